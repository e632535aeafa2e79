"""What is shared: the catalogue as somebody may see it, changes to it, its files and its lineage."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from comgrad.errors import ComgradError
from comgrad.registry import search
from comgrad.registry.names import checked_name, name_key
from comgrad.service.audit import Audit
from comgrad.service.auth.identity import Principal
from comgrad.service.errors import Forbidden, no_vector
from comgrad.service.files import FileInfo, Files, Opened
from comgrad.service.scope import Scope
from comgrad.service.scopes import Scopes
from comgrad.service.store import things
from comgrad.service.store.database import Database, now
from comgrad.service.vectors import Listing, drop_unlisted

Sort = Literal["newest", "oldest", "name", "norm"]
FACETS = ("family", "base", "kind", "tag", "owner", "visibility")
MOST = 200  # in one page
MOST_TAGS = 20
REMEMBERED = 64


@dataclass(frozen=True)
class Asked:
    """Which part of the catalogue is asked for; `text` keeps those that hold all of its words."""

    text: str = ""
    family: str | None = None
    base: str | None = None
    kind: str | None = None
    tag: str | None = None
    owner: str | None = None
    visibility: str | None = None
    sort: str = "newest"
    limit: int = 24
    offset: int = 0


@dataclass(frozen=True)
class Page:
    """One page of the catalogue; facets count what the other choices leave."""

    items: list[Listing]
    total: int
    offset: int
    limit: int
    facets: dict[str, list[tuple[str, int]]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facets = {f: [{"value": v, "count": n} for v, n in found] for f, found in self.facets.items()}
        items = [x.as_dict() for x in self.items]
        return {"items": items, "total": self.total, "offset": self.offset, "limit": self.limit, "facets": facets}


@dataclass(frozen=True)
class Link:
    """A vector that another was made from, or that was made from it; unnamed where it may not be read."""

    id: str
    name: str | None
    role: str
    coefficient: float | None
    readable: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Lineage:
    """Where a vector comes from, and what was made of it."""

    parents: list[Link]
    children: list[Link]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"parents": [x.as_dict() for x in self.parents], "children": [x.as_dict() for x in self.children]}


class Listings:
    """The catalogue over scopes and rows."""

    def __init__(self, database: Database, scopes: Scopes, files: Files, audit: Audit) -> None:
        self._db = database
        self._scopes = scopes
        self._files = files
        self._audit = audit
        self._pages: OrderedDict[tuple[int, Asked], tuple[list[Listing], dict[str, list[tuple[str, int]]]]] = (
            OrderedDict()
        )

    # -- reading -------------------------------------------------------------------------------------------------
    def page(self, who: Principal, asked: Asked) -> Page:
        """A page of what somebody may read. Raises ComgradError."""
        if asked.sort not in ("newest", "oldest", "name", "norm"):
            raise ComgradError(f"the order {asked.sort[:40]!a}", "there is none", "newest, oldest, name or norm")
        if not 1 <= asked.limit <= MOST or asked.offset < 0 or len(asked.text) > 1000:
            raise ComgradError("the page asked for", f"it has 1 to {MOST} rows from 0 on", "ask for less")
        scope = self._scopes.scope(who)
        key = (scope.mark, Asked(**{**asked.__dict__, "limit": 0, "offset": 0}))
        found = self._pages.get(key)
        if found is None:
            found = _found(scope, asked)
            self._pages[key] = found
            while len(self._pages) > REMEMBERED:
                self._pages.popitem(last=False)
        items, facets = found
        return Page(items[asked.offset : asked.offset + asked.limit], len(items), asked.offset, asked.limit, facets)

    def get(self, who: Principal, ref: str) -> Listing:
        """A vector by its id or `owner/name`. Raises NotFound: none, or none that may be read; (`removed`)."""
        scope = self._scopes.scope(who)
        found = self._scopes.own(who, ref) or scope.by_id.get(ref)
        if found is None and "/" in ref:
            owner, _, name = ref.partition("/")
            found = self._scopes.named(who, owner, name_key(name))
        if found is None:
            raise no_vector(ref)
        return _told(found, scope)

    def lineage(self, who: Principal, ref: str) -> Lineage:
        """The parents that its card names, and the vectors whose cards name it. Raises NotFound."""
        found = self.get(who, ref)
        scope = self._scopes.scope(who)
        parents = [self._link(scope, p.id, p.role, p.coefficient) for p in found.card.parents[:MOST]]
        children = [
            Link(x.id, x.full_name, p.role, p.coefficient, True)
            for named in (found.id, found.full_name)
            for x, p in scope.children.get(named, ())
        ]
        return Lineage(parents, children[:MOST])

    @staticmethod
    def _link(scope: Scope, identity: str, role: str, coefficient: float | None) -> Link:
        found = scope.by_id.get(identity)
        return Link(identity, found.full_name if found else None, role, coefficient, found is not None)

    # -- files ---------------------------------------------------------------------------------------------------
    def files(self, who: Principal, ref: str) -> list[FileInfo]:
        """What can be downloaded of a vector. Raises NotFound."""
        return self._files.of(self.get(who, ref))

    def open_file(self, who: Principal, ref: str, name: str) -> Opened:
        """One of its files. Raises NotFound, StorageError."""
        return self._files.open(self.get(who, ref), name)

    # -- changing ------------------------------------------------------------------------------------------------
    def patch(
        self,
        who: Principal,
        ref: str,
        *,
        visibility: str | None = None,
        description: str | None = None,
        tags: list[str] | None = None,
    ) -> Listing:
        """Change what is said of a vector or who sees it; for its owner. Raises NotFound, Forbidden, ComgradError."""
        found = self._mine(who, ref)
        changes: dict[str, Any] = {}
        if visibility is not None:
            changes["visibility"] = checked_visibility(visibility)
            changes |= {"related": None, "screening": None}  # these were found among what other readers may read
        if tags is not None:
            changes["tags"] = checked_tags(tags)
        if description is not None:
            changes["card"] = found.card.replaced(description=description).to_dict()
            changes |= {"embedding": None, "encoder": None, "related": None, "screening": None}
        if changes:
            with self._db.write() as rows:
                things.change_listing(rows, found.id, found.owner_id, **changes)
                told = {k: v for k, v in changes.items() if k in ("visibility", "tags")} | {"changed": sorted(changes)}
                self._audit.by(rows, who, "change", f"{found.owner}/{found.id}", told)
        return self._again(who, found)

    def _again(self, who: Principal, found: Listing) -> Listing:
        made = self._scopes.readable(who, found.id, found.owner_id)
        if made is None:
            raise no_vector(found.id)
        return _told(made, self._scopes.scope(who))

    def remove(self, who: Principal, ref: str, reason: str = "") -> Listing:
        """Stop sharing a vector: its row becomes a tombstone, its name stays taken, and its bytes go when nobody else
        shares the same ones. For its owner, and for site admins. Raises NotFound, Forbidden."""
        found = self._mine(who, ref, administer=True)
        with self._db.write() as rows:
            gone = {"state": "removed", "removed_at": now(), "removed_reason": reason[:500], "embedding": None}
            things.change_listing(rows, found.id, found.owner_id, **gone)
            self._audit.by(rows, who, "remove", f"{found.owner}/{found.id}", {"reason": reason[:500]})
        if drop_unlisted(self._db, self._scopes.registry.store, found.id, "removed by its owner"):
            self._files.forget(found.id)
        return found

    def _mine(self, who: Principal, ref: str, *, administer: bool = False) -> Listing:
        who.must("write")
        found = self.get(who, ref)
        if who.writes_as(found.owner_id):
            return found
        if who.site_admin and "admin" in who.scopes and (administer or found.owner == "local"):
            return found
        raise Forbidden(f"'{found.full_name}'", "it is not yours to change", "ask its owner")


def _told(x: Listing, scope: Scope) -> Listing:
    """The listing with only that of its analysis which speaks of vectors that the reader may read now."""

    def shown(value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None or all(i in scope.by_id for i in value.get("about", ())):
            return value
        near = [n for n in value.get("neighbours", ()) if n["id"] in scope.by_id]
        return {"neighbours": near, "notes": [], "copy_of": None, "about": []}

    related, screening = shown(x.row.related), x.row.screening
    if screening is not None and not all(i in scope.by_id for i in screening.get("about", ())):
        screening = {k: screening[k] for k in ("verdict", "known") if k in screening} | {"about": []}
    return replace(x, row=replace(x.row, related=related, screening=screening))


def checked_visibility(value: str) -> str:
    """`public` or `private`. Raises ComgradError."""
    if value not in ("public", "private"):
        raise ComgradError(f"the visibility {value[:40]!a}", "there is none of that name", "public or private")
    return value


def checked_tags(tags: Iterable[str]) -> list[str]:
    """Tags as they are stored: short names, once each. Raises ComgradError."""
    kept = list(dict.fromkeys(checked_name(t).casefold() for t in tags))
    if len(kept) > MOST_TAGS or any(len(t) > 40 for t in kept):
        raise ComgradError("the tags", f"there are at most {MOST_TAGS} of at most 40 characters", "give fewer")
    return kept


def _found(scope: Scope, asked: Asked) -> tuple[list[Listing], dict[str, list[tuple[str, int]]]]:
    """The listings that match, in order, and the counts of each facet among what the other facets leave."""
    terms = search.terms(asked.text)
    wanted = {f: v for f in FACETS if (v := getattr(asked, f)) is not None}
    kept = [x for x in scope.listings if all(term in x.document for term in terms)] if terms else list(scope.listings)
    counted = dict.fromkeys(FACETS, kept)
    if wanted:
        missed = [[f for f, v in wanted.items() if v not in x.facets[f]] for x in kept]
        counted = {f: [x for x, m in zip(kept, missed, strict=True) if not m or m == [f]] for f in FACETS}
        kept = [x for x, m in zip(kept, missed, strict=True) if not m]
    order: dict[str, Any] = {
        "newest": lambda x: -x.row.created_at.timestamp(),
        "name": lambda x: (x.row.name_key, x.owner),
        "norm": lambda x: -(x.entry.norm or 0.0),
    }
    if asked.sort in order:  # a scope is in the order of age
        kept.sort(key=order[asked.sort])
    counts = {f: Counter(chain.from_iterable(x.facets[f] for x in found)) for f, found in counted.items()}
    return kept, {f: sorted(c.items(), key=lambda p: (-p[1], p[0]))[:100] for f, c in counts.items()}
