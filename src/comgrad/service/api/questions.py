"""Routes that compute: search, suggestion, comparison, map, trends."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from comgrad.service.api import results_vectors as r
from comgrad.service.api.answers import FILE
from comgrad.service.api.bodies import SearchBody, SuggestBody
from comgrad.service.api.results import sends
from comgrad.service.api.results_atlas import Map, Trends
from comgrad.service.auth.http import Who
from comgrad.service.core import service_of
from comgrad.service.web.answers import Json, JsonRoute, send_file

router = APIRouter(tags=["questions"], default_response_class=Json, route_class=JsonRoute)
Base = Annotated[str | None, Query(max_length=200)]


@router.post("/search", **sends(r.Hits))
def search(request: Request, who: Who, body: SearchBody) -> dict[str, Any]:
    """The vectors whose descriptions are nearest in meaning."""
    found = service_of(request).insight.search(who, body.text, body.limit, body.words)
    return {"items": [h.as_dict() for h in found]}


@router.get("/search", **sends(r.Hits))
def search_address(
    request: Request,
    who: Who,
    q: Annotated[str, Query(max_length=2000)],
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    words: bool = False,
) -> dict[str, Any]:
    """The same, for an address that can be kept."""
    return {"items": [h.as_dict() for h in service_of(request).insight.search(who, q, limit, words)]}


@router.post("/suggestions", **sends(r.Suggestion))
def suggest(request: Request, who: Who, body: SuggestBody) -> dict[str, Any]:
    """A starting adapter for a task in words, from the vectors that one may read."""
    insight = service_of(request).insight
    made = insight.suggest(who, body.text, base=body.base, rank=body.rank, rule=body.rule, dare=body.dare)
    return made.as_dict()


@router.get("/suggestions/{identity}", **sends(r.Suggestion))
def suggestion(request: Request, who: Who, identity: str) -> dict[str, Any]:
    """A suggestion that was made."""
    return service_of(request).insight.suggestion(who, identity).as_dict()


@router.head("/suggestions/{identity}/files/{name}", include_in_schema=False)
@router.get("/suggestions/{identity}/files/{name}", response_class=Response, responses=FILE)
def suggestion_file(request: Request, who: Who, identity: str, name: str) -> Response:
    """One file of a suggestion: together they are a folder that stock PEFT loads."""
    return send_file(request, service_of(request).insight.suggestion_file(who, identity, name), public=False)


@router.get("/compare", **sends(r.Comparison))
def compare(
    request: Request, who: Who, a: Annotated[str, Query(max_length=300)], b: Annotated[str, Query(max_length=300)]
) -> dict[str, Any]:
    """Every measure between two vectors."""
    return service_of(request).insight.compare(who, a, b)


@router.get("/map", **sends(Map))
def task_map(
    request: Request, who: Who, base: Base = None, most: Annotated[int | None, Query(ge=1, le=100_000)] = None
) -> dict[str, Any]:
    """The map of the tasks that one may see: the first `exact` points by their distances, others among these."""
    return service_of(request).insight.map(who, base, most)


@router.get("/trends", **sends(Trends))
def trends(
    request: Request, who: Who, base: Base = None, since: Annotated[str | None, Query(max_length=40)] = None
) -> dict[str, Any]:
    """What grows, drifts, is copied or lacking."""
    return service_of(request).insight.trends(who, base, since)


@router.get("/bases", **sends(r.Bases))
def bases(request: Request, who: Who) -> dict[str, Any]:
    """The base models, and how many vectors stand on each."""
    return {"items": service_of(request).insight.bases(who)}
