"""Pages for files: explain a stranger's adapter, share one's own, and what became of the job."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from comgrad.service.auth.http import Who
from comgrad.service.core import service_of
from comgrad.service.errors import sign_in
from comgrad.service.pages import report
from comgrad.service.pages.render import render

router = APIRouter()
STATES = {"queued": "Waiting", "running": "Working", "done": "Done", "failed": "Stopped"}
STEP_STATES = {"done": "done", "running": "now", "waiting": "to come", "failed": "stopped here"}
STEPS = {
    "read": "Read the files strictly, check the base",
    "store": "Write it again in the service's own bytes and store it",
    "describe": "Take in the description",
    "relate": "Find neighbours and copies",
    "compare": "Gather the described vectors over its base",
    "explain": "Decompose it, compare it and screen it",
}
KINDS = {"explain": "Explanation", "admit": "Sharing", "relate": "Neighbours", "screen": "Screening"}


@router.get("/explain")
def explain(request: Request, who: Who) -> Response:
    """Hand in somebody's adapter and learn what it does; nothing of it is kept."""
    return render(request, who, "explain.html", limits=service_of(request).settings)


@router.get("/share")
def share(request: Request, who: Who) -> Response:
    """Hand in one's own adapter."""
    owners = [who.handle, *sorted(who.orgs)]
    bases = service_of(request).insight.bases(who)
    return render(request, who, "share.html", limits=service_of(request).settings, owners=owners, bases=bases)


@router.get("/jobs")
def jobs(request: Request, who: Who) -> Response:
    """What this account handed in."""
    if not who.known:
        raise sign_in("your work")
    found = service_of(request).jobs.list(who, limit=50)
    return render(request, who, "jobs.html", jobs=found, states=STATES, kinds=KINDS)


@router.get("/jobs/{job_id}")
def job(request: Request, who: Who, job_id: str) -> Response:
    """The steps of a job while it runs, and its result after."""
    found = service_of(request).jobs.get(who, job_id)
    result = dict(found.result or {})
    explanation = result.get("explanation") or {}
    return render(
        request,
        who,
        "job.html",
        job=found,
        states=STATES,
        step_states=STEP_STATES,
        step_names=STEPS,
        kinds=KINDS,
        result=result,
        explained=report.of(explanation) if found.state == "done" and explanation else None,
    )
