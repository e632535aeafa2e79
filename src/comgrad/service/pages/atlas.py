"""The map of tasks and the trends of the collection."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import nsmallest
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from comgrad.errors import ComgradError
from comgrad.service.auth.http import Who
from comgrad.service.core import service_of
from comgrad.service.errors import status_of
from comgrad.service.pages import charts
from comgrad.service.pages.render import render

router = APIRouter()
IN_PICTURE = 400
IN_LIST = 120
ROWS = 12


@router.get("/map")
def task_map(request: Request, who: Who, base: str = "", focus: str = "") -> Response:
    """The map; without script a picture and a list."""
    service = service_of(request)
    points: list[Mapping[str, Any]] = []
    found: Mapping[str, Any] = {}
    problem: ComgradError | None = None
    try:
        found = service.insight.map(who, base=base or None)
        points = list(found["points"])
    except ComgradError as error:
        problem = error
    return render(
        request,
        who,
        "map.html",
        status=200 if problem is None or problem.code == "empty-registry" else status_of(problem),
        found=found,
        total=len(points),
        families=charts.families(points)[:40],
        dots=charts.dots(points, IN_PICTURE),
        listed=nsmallest(IN_LIST, points, key=lambda p: (str(p.get("family")), str(p["name"]))),
        bases=service.insight.bases(who),
        base=base,
        focus=focus[:2000],
        error=problem,
    )


@router.get("/trends")
def trends(request: Request, who: Who, base: str = "", since: str = "") -> Response:
    """What grows, what is copied or mixed, and what is lacking."""
    service = service_of(request)
    found: Mapping[str, Any] | None = None
    problem: ComgradError | None = None
    try:
        found = service.insight.trends(who, base=base or None, since=since or None)
    except ComgradError as error:
        problem = error
    growth = charts.columns(found["growth"]["starts"], found["growth"]["total"]) if found else None
    return render(
        request,
        who,
        "trends.html",
        status=200 if problem is None or problem.code == "empty-registry" else status_of(problem),
        t=found,
        growth=growth,
        rows=ROWS,
        bases=service.insight.bases(who),
        base=base,
        since=since[:40],
        error=problem,
    )
