"""Routes of uploads and jobs."""

from __future__ import annotations

import time
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from comgrad.errors import ComgradError, NotFound
from comgrad.service.api import results_work as r
from comgrad.service.api.answers import PAGE
from comgrad.service.api.bodies import UploadBody
from comgrad.service.api.results import sends
from comgrad.service.auth.http import Who
from comgrad.service.auth.identity import Principal
from comgrad.service.core import Service, service_of
from comgrad.service.errors import WrongMedia, status_of
from comgrad.service.parcels import NewPart, NewUpload
from comgrad.service.store.work import Job
from comgrad.service.web.answers import Json, JsonRoute

router = APIRouter(tags=["uploads"], default_response_class=Json, route_class=JsonRoute)
Wait = Annotated[float, Query(ge=0, le=60)]
COMPLETED: dict[int | str, dict[str, Any]] = {
    200: {"model": r.Completed, "description": "Taken in: the same was there already"},
    201: {"model": r.Completed, "description": "Taken in"},
    202: {"model": r.Completed, "description": "Being looked at"},
}
STREAM = "application/octet-stream"
_REPORT_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'self'"


@router.post("/uploads", **sends(r.OneUpload, 201))
def create(request: Request, who: Who, body: UploadBody) -> dict[str, Any]:
    """Begin an upload: say what will come, how large it is, and what it hashes to."""
    fields = {n: getattr(body, n) for n in UploadBody.model_fields if n != "parts"}
    parts = [NewPart(p.name, p.size, p.sha256) for p in body.parts]
    return {"upload": service_of(request).uploads.create(who, NewUpload(parts=parts, **fields)).as_dict()}


@router.get("/uploads", **sends(r.Uploads))
def uploads(request: Request, who: Who, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> dict[str, Any]:
    """One's uploads, newest first."""
    return {"items": [u.as_dict() for u in service_of(request).uploads.list(who, limit)]}


@router.get("/uploads/{identity}", **sends(r.OneUpload))
def upload(request: Request, who: Who, identity: str) -> dict[str, Any]:
    """How far an upload is."""
    return {"upload": service_of(request).uploads.get(who, identity).as_dict()}


@router.delete("/uploads/{identity}", **sends(r.OneUpload))
def cancel(request: Request, who: Who, identity: str) -> dict[str, Any]:
    """Give an upload up."""
    return {"upload": service_of(request).uploads.cancel(who, identity).as_dict()}


@router.head("/uploads/{identity}/parts/{part}", response_class=Response)
def offset(request: Request, who: Who, identity: str, part: str) -> Response:
    """How many bytes of a part are here: where to go on after a cut."""
    found = service_of(request).uploads.get(who, identity)
    declared = next((p for p in found.row.parts if p["name"] == part), None)
    if declared is None:
        raise NotFound(f"the part {part[:60]!a}", "this upload has none of that name", "see its list of parts")
    headers = {"Upload-Offset": str(found.received[part]), "Upload-Length": str(declared["size"])}
    return Response(status_code=200, headers=headers)


@router.patch(
    "/uploads/{identity}/parts/{part}",
    status_code=204,
    openapi_extra={"requestBody": {"content": {STREAM: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def append(
    request: Request,
    who: Who,
    identity: str,
    part: str,
    upload_offset: Annotated[int, Header(ge=0, le=2**62)],
) -> Response:
    """Send bytes of a part at its offset; they stay, whatever becomes of the connection."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (STREAM, "application/offset+octet-stream"):
        raise WrongMedia(f"a body of type {kind[:60]!a}", "a part is plain bytes", f"send it as {STREAM}")
    service = service_of(request)
    found = await service.uploads.append(who, identity, part, upload_offset, aiter(request.stream()))
    size = next(p["size"] for p in found.row.parts if p["name"] == part)
    headers = {"Upload-Offset": str(found.received[part]), "Upload-Length": str(size)}
    return Response(status_code=204, headers=headers)


@router.post("/uploads/{identity}/complete", response_model=None, status_code=202, responses=COMPLETED)
async def complete(request: Request, who: Who, identity: str, wait: Wait = 0) -> Response:
    """Have an upload checked and taken in; with `wait` the answer is that of its job, if that is over by then."""
    service = service_of(request)
    found, job = await run_in_threadpool(service.uploads.complete, who, identity)
    if wait and not job.over:
        job = await waited(service, who, job.id, wait)
    if job.over:
        found = await run_in_threadpool(service.uploads.get, who, identity)
    body = {"upload": found.as_dict(), "job": job.as_dict()}
    if job.state == "failed":
        return Json(body | {"error": job.error}, status_of(_error(job)))
    if job.state == "done":
        fresh = (job.result or {}).get("status") == "added"
        return Json(body, 201 if fresh else 200)
    return Json(body, 202)


async def waited(service: Service, who: Principal, identity: str, seconds: float) -> Job:
    """A job, when it is over or the time is; who waits holds no thread."""
    until, pause = time.monotonic() + seconds, 0.03
    while not (found := await run_in_threadpool(service.jobs.get, who, identity)).over and time.monotonic() < until:
        await anyio.sleep(pause)
        pause = min(1.5 * pause, 0.5)
    return found


def _error(job: Job) -> ComgradError:
    """The job's error, of the class that its code had, as far as the status goes."""
    from comgrad.errors import NameTaken

    e = job.error or {}
    kind = NameTaken if e.get("code") == NameTaken.default_code else ComgradError
    return kind(e.get("given", ""), e.get("why", ""), e.get("remedy", ""), code=e.get("code"))


@router.get("/jobs", **sends(r.Jobs))
def jobs(request: Request, who: Who, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> dict[str, Any]:
    """One's jobs, newest first, without their results."""
    found = service_of(request).jobs.list(who, limit)
    return {"items": [{k: v for k, v in j.as_dict().items() if k != "result"} for j in found]}


@router.get("/jobs/{identity}", **sends(r.OneJob))
async def job(request: Request, who: Who, identity: str, wait: Wait = 0) -> dict[str, Any]:
    """How far a job is, and its result; with `wait` when it is over or the time is."""
    found = await waited(service_of(request), who, identity, wait)
    shown = found.as_dict()
    if isinstance(shown["result"], dict):
        shown["result"] = {k: v for k, v in shown["result"].items() if k != "report"}
    return {"job": shown}


@router.get("/jobs/{identity}/report", response_class=Response, responses=PAGE)
def report(request: Request, who: Who, identity: str) -> Response:
    """The report of an explained adapter, as a page without scripts."""
    found = service_of(request).jobs.get(who, identity)
    page = (found.result or {}).get("report")
    if page is None:
        raise NotFound(f"the report of {identity[:60]!a}", "the job is not over, or has none", "wait for the job")
    headers = {"Content-Security-Policy": _REPORT_CSP, "X-Frame-Options": "SAMEORIGIN"}
    return Response(page, headers=headers, media_type="text/html; charset=utf-8")
