"""The catalogue: search, facets and pages of task vectors."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from comgrad.service.auth.http import Who
from comgrad.service.core import service_of
from comgrad.service.listings import Asked, Page
from comgrad.service.pages.render import render, with_query

router = APIRouter()
PER_PAGE = 25
SHOWN = 8
FACETS = (
    ("family", "Family"),
    ("base", "Base model"),
    ("kind", "Kind"),
    ("owner", "Shared by"),
    ("tag", "Tag"),
    ("visibility", "Visible to"),
)
SORTS = (("newest", "newest first"), ("oldest", "oldest first"), ("name", "by name"), ("norm", "largest change first"))
MEANT = 6


@dataclass(frozen=True)
class Choice:
    """One value of a facet and where choosing (or leaving) it leads."""

    value: str
    count: int
    chosen: bool
    address: str


@dataclass(frozen=True)
class Facet:
    """A facet with its values; `more` are behind a fold."""

    name: str
    title: str
    choices: list[Choice]
    more: list[Choice]


@router.get("/vectors")
def catalogue(
    request: Request,
    who: Who,
    q: str = "",
    family: str | None = None,
    base: str | None = None,
    kind: str | None = None,
    tag: str | None = None,
    owner: str | None = None,
    visibility: str | None = None,
    sort: str = "newest",
    page: int = 1,
) -> Response:
    """A page of the catalogue; where words alone find little, what means the same is shown too."""
    service = service_of(request)
    page = min(max(page, 1), 100_000)
    text = q.strip()[:1000]
    sort = sort if sort in dict(SORTS) else "newest"
    asked = Asked(
        text, family or None, base or None, kind or None, tag or None, owner or None, visibility or None,
        sort, PER_PAGE, PER_PAGE * (page - 1),
    )  # fmt: skip
    found = service.listings.page(who, asked)
    chosen = {n: v for n, _ in FACETS if (v := getattr(asked, n)) is not None}
    hits = []
    if text and not chosen and page == 1 and found.total < PER_PAGE:
        listed = {x.id for x in found.items}
        hits = [h for h in service.insight.search(who, text, limit=MEANT) if h.listing.id not in listed]
    return render(
        request,
        who,
        "catalogue.html",
        q=text,
        found=found,
        hits=hits,
        facets=_facets(request, found, chosen),
        chosen=chosen,
        clear=with_query(request.query_params, page=None, **dict.fromkeys(chosen)),
        sorts=SORTS,
        sort=sort,
        page=page,
        pages=max(1, -(-found.total // PER_PAGE)),
        params=request.query_params,
        largest=max([x.entry.norm or 0.0 for x in found.items], default=0.0),
    )


def _facets(request: Request, found: Page, chosen: dict[str, str]) -> list[Facet]:
    made = []
    for name, title in FACETS:
        counted = found.facets.get(name, [])
        if len(counted) < 2 and name not in chosen:
            continue
        choices = [
            Choice(
                value,
                count,
                chosen.get(name) == value,
                with_query(request.query_params, page=None, **{name: None if chosen.get(name) == value else value}),
            )
            for value, count in counted
        ]
        choices.sort(key=lambda c: not c.chosen)
        made.append(Facet(name, title, choices[:SHOWN], choices[SHOWN:60]))
    return made
