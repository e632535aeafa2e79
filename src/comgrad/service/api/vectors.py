"""Routes of vectors: the catalogue, one vector, its files and its surroundings."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from comgrad.service.api import results_vectors as r
from comgrad.service.api.answers import FILE
from comgrad.service.api.bodies import PatchBody
from comgrad.service.api.results import sends
from comgrad.service.auth.http import Who
from comgrad.service.core import service_of
from comgrad.service.listings import Asked
from comgrad.service.web.answers import Json, JsonRoute, send_file

router = APIRouter(tags=["vectors"], default_response_class=Json, route_class=JsonRoute)
Choice = Annotated[str | None, Query(max_length=300)]


@router.get("/vectors", **sends(r.Catalogue))
def vectors(
    request: Request,
    who: Who,
    q: Annotated[str, Query(max_length=1000)] = "",
    family: Choice = None,
    base: Choice = None,
    kind: Choice = None,
    tag: Choice = None,
    owner: Choice = None,
    visibility: Choice = None,
    sort: Annotated[str, Query(max_length=20)] = "newest",
    limit: Annotated[int, Query(ge=1, le=200)] = 24,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> dict[str, Any]:
    """A page of the catalogue as one may see it, with the counts of each facet."""
    asked = Asked(q, family, base, kind, tag, owner, visibility, sort, limit, offset)
    return service_of(request).listings.page(who, asked).as_dict()


@router.get("/vectors/{ref}", **sends(r.OneVector))
def vector(request: Request, who: Who, ref: str) -> dict[str, Any]:
    """One vector."""
    return {"vector": service_of(request).listings.get(who, ref).as_dict(full=True)}


@router.get("/names/{owner}/{name}", **sends(r.OneVector))
def by_name(request: Request, who: Who, owner: str, name: str) -> dict[str, Any]:
    """One vector by its owner and name."""
    return {"vector": service_of(request).listings.get(who, f"{owner}/{name}").as_dict(full=True)}


@router.patch("/vectors/{ref}", **sends(r.OneVector))
def patch(request: Request, who: Who, ref: str, body: PatchBody) -> dict[str, Any]:
    """Change who sees a vector, or what is said of it; for its owner."""
    service = service_of(request)
    made = service.listings.patch(who, ref, visibility=body.visibility, description=body.description, tags=body.tags)
    service.jobs.submit("relate", {}, key="relate")
    return {"vector": made.as_dict(full=True)}


@router.delete("/vectors/{ref}", **sends(r.Removed))
def remove(request: Request, who: Who, ref: str, reason: Annotated[str, Query(max_length=500)] = "") -> dict[str, Any]:
    """Stop sharing a vector; its name stays taken. For its owner and for administrators of the site."""
    return {"vector": service_of(request).listings.remove(who, ref, reason).as_dict(), "removed": True}


@router.get("/vectors/{ref}/neighbours", **sends(r.Neighbours))
def neighbours(request: Request, who: Who, ref: str, limit: Annotated[int, Query(ge=1, le=10)] = 10) -> dict[str, Any]:
    """The vectors nearest in weights, of what one may read."""
    found = service_of(request).insight.neighbours(who, ref, limit)
    return {"items": [{**n["listing"].as_dict(), "cosine": n["cosine"]} for n in found]}


@router.get("/vectors/{ref}/profile", **sends(r.Profile))
def profile(request: Request, who: Who, ref: str) -> dict[str, Any]:
    """Where in the model it acts: the share of its squared norm in each layer."""
    return {"items": service_of(request).insight.profile(who, ref)}


@router.get("/vectors/{ref}/lineage", **sends(r.Lineage))
def lineage(request: Request, who: Who, ref: str) -> dict[str, Any]:
    """What it was made from, and what was made of it."""
    return service_of(request).listings.lineage(who, ref).as_dict()


@router.get("/vectors/{ref}/files", **sends(r.Files))
def files(request: Request, who: Who, ref: str) -> dict[str, Any]:
    """What can be downloaded, with sizes and digests."""
    return {"items": [f.as_dict() for f in service_of(request).listings.files(who, ref)]}


@router.get("/vectors/{ref}/manifest", **sends(r.Manifest))
def manifest(request: Request, who: Who, ref: str) -> dict[str, Any]:
    """The digests of all its files, and their signature where the site signs."""
    service = service_of(request)
    x, found = service.listings.get(who, ref), service.listings.files(who, ref)
    return {
        "vector": x.id,
        "name": x.full_name,
        "files": {f.name: {"sha256": f.sha256, "size": f.size} for f in found},
        "signature": None if service.signer is None else service.signer(found),
    }


@router.head("/vectors/{ref}/files/{name}", include_in_schema=False)
@router.get("/vectors/{ref}/files/{name}", response_class=Response, responses=FILE)
def file(request: Request, who: Who, ref: str, name: str) -> Response:
    """One file: the same bytes for everybody, named by their digest."""
    listings = service_of(request).listings
    public = listings.get(who, ref).visibility == "public"
    return send_file(request, listings.open_file(who, ref, name), public=public)
