"""The page of a task vector, changing it, and comparing two."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from comgrad.errors import ComgradError
from comgrad.service.auth.http import Form, Who
from comgrad.service.auth.identity import Principal
from comgrad.service.core import service_of
from comgrad.service.errors import SignInNeeded, status_of
from comgrad.service.files import CARD, CONFIG, README, WEIGHTS
from comgrad.service.pages import charts, words
from comgrad.service.pages.bundle import bundle
from comgrad.service.pages.render import go, render
from comgrad.service.vectors import Listing

router = APIRouter()
NEIGHBOURS = 8
MOST_TENSORS = 100


@router.get("/names/{owner}/{name:path}")
def named(request: Request, who: Who, owner: str, name: str) -> Response:
    """The page of a vector by its name."""
    return go(f"/vectors/{service_of(request).listings.get(who, f'{owner}/{name}').id}")


@router.get("/vectors/{vector_id}")
def vector(request: Request, who: Who, vector_id: str) -> Response:
    """Everything that is known of a vector."""
    return _page(request, who, service_of(request).listings.get(who, vector_id))


def _page(request: Request, who: Principal, found: Listing, error: ComgradError | None = None) -> Response:
    if isinstance(error, SignInNeeded):
        raise error
    service = service_of(request)
    layers: list[dict[str, Any]] = []
    near: list[dict[str, Any]] = []
    with contextlib.suppress(ComgradError):  # what cannot be computed is said on the page, and the rest is shown
        rows = service.insight.profile(who, found.id)
        key = "energy" if rows and "energy" in rows[0] else "share"
        layers = charts.layers(rows, key)
    with contextlib.suppress(ComgradError):
        near = service.insight.neighbours(who, found.id, limit=NEIGHBOURS)
    files = service.listings.files(who, found.id)
    return render(
        request,
        who,
        "vector.html",
        status=200 if error is None else status_of(error),
        error=error,
        v=found,
        facts=found.as_dict(full=True),
        layers=layers,
        near=[_near(n) for n in near],
        lineage=service.listings.lineage(who, found.id),
        files=files,
        loadable={WEIGHTS, CONFIG} <= {f.name for f in files},
        screening=found.row.screening,
        mine=who.writes_as(found.owner_id) or (who.site_admin and "admin" in who.scopes),
        words=words,
    )


def _near(row: Mapping[str, Any]) -> dict[str, Any]:
    value = float(row["cosine"])
    return {"listing": row["listing"], "cosine": value}


@router.get("/vectors/{vector_id}/adapter.zip")
def download(request: Request, who: Who, vector_id: str) -> Response:
    """The adapter as one file: weights, configuration and cards."""
    listings = service_of(request).listings
    there = {f.name for f in listings.files(who, vector_id)}
    names = [n for n in (WEIGHTS, CONFIG, CARD, README) if n in there]
    return bundle([listings.open_file(who, vector_id, n) for n in names], listings.get(who, vector_id).id)


@router.post("/vectors/{vector_id}/change")
def change(request: Request, who: Who, vector_id: str, form: Form) -> Response:
    """Change the description, the tags or who sees it."""
    listings = service_of(request).listings
    tags = [t for t in (part.strip() for part in form.get("tags", "").split(",")) if t]
    try:
        listings.patch(
            who,
            vector_id,
            visibility=form.get("visibility") or None,
            description=form["description"].replace("\r\n", "\n") if "description" in form else None,
            tags=tags,
        )
    except ComgradError as error:
        return _page(request, who, listings.get(who, vector_id), error)
    return go(f"/vectors/{vector_id}")


@router.post("/vectors/{vector_id}/remove")
def remove(request: Request, who: Who, vector_id: str, form: Form) -> Response:
    """Stop sharing it; the box must be ticked."""
    listings = service_of(request).listings
    if form.get("sure") != "1":
        refusal = ComgradError("removing this vector", "the box beside the button is not ticked", "tick it first")
        return _page(request, who, listings.get(who, vector_id), refusal)
    gone = listings.remove(who, vector_id, form.get("reason", ""))
    return render(request, who, "removed.html", v=gone)


@router.get("/compare")
def compare(request: Request, who: Who, a: str = "", b: str = "") -> Response:
    """Two vectors side by side."""
    service = service_of(request)
    a, b = a.strip(), b.strip()
    found: dict[str, Any] | None = None
    pair: list[Listing] = []
    problem: ComgradError | None = None
    if a and b:
        try:
            pair = [service.listings.get(who, a), service.listings.get(who, b)]
            found = service.insight.compare(who, pair[0].id, pair[1].id)
        except ComgradError as error:
            problem = error
    first = None
    if a and not b:
        with contextlib.suppress(ComgradError):
            first = service.listings.get(who, a)
    return render(
        request,
        who,
        "compare.html",
        status=200 if problem is None else status_of(problem),
        a=a,
        b=b,
        pair=pair,
        first=first,
        found=found,
        tensors=_tensors(found),
        hidden=max(0, len(found["tensors"]) - MOST_TENSORS) if found else 0,
        profiles=_profiles(request, who, pair) if found else [],
        error=problem,
        words=words,
    )


def _tensors(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Tensors with the largest cosines first."""
    rows = [{"name": n, **t} for n, t in found["tensors"].items()] if found else []
    rows.sort(key=lambda r: -abs(r.get("cosine") or 0.0))
    for row, bar in zip(rows, charts.signed_bars([r.get("cosine") or 0.0 for r in rows]), strict=True):
        row["bar"] = bar
    return rows[:MOST_TENSORS]


def _profiles(request: Request, who: Principal, pair: list[Listing]) -> list[dict[str, Any]]:
    """Layer by layer, the share of each of the two."""
    made: dict[str, dict[str, Any]] = {}
    for i, listing in enumerate(pair):
        with contextlib.suppress(ComgradError):
            for row in service_of(request).insight.profile(who, listing.id):
                share = float(row.get("energy", row.get("share", 0.0)))
                made.setdefault(row["layer"], {"layer": row["layer"], "shares": [0.0, 0.0]})["shares"][i] = share
    top = max([s for row in made.values() for s in row["shares"]], default=0.0)
    return [row | {"bars": [charts.bar(s, top) for s in row["shares"]]} for row in made.values()]
