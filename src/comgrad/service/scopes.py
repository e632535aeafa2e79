"""The listings in memory, and what each reader sees of them; brought up to date by what changed, not by reading all.

A scope is the set of vectors that somebody may read: the public ones, their own, their organisations'. Whoever has no
private vector shares the public scope. Everything that is computed from vectors (search, suggestion, map, neighbours,
trends, explanation) is computed from one scope, so that nothing of it can tell of a vector outside it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from comgrad.errors import NotFound
from comgrad.service.auth.identity import Principal
from comgrad.service.scope import Scope
from comgrad.service.settings import Settings
from comgrad.service.store import people, things
from comgrad.service.store.database import Database
from comgrad.service.vectors import Listing
from comgrad.service.warm import Geometry
from comgrad.workflows.registry import Registry

_MANY = 50  # changed listings that are looked up in the registry in one query


@dataclass
class _Held:
    """A scope, and the vectors that changed since it was made."""

    scope: Scope
    changed: set[str] = field(default_factory=set)


class Scopes:
    """The listings in memory, the scopes in use, and their geometry."""

    def __init__(self, database: Database, registry: Registry, settings: Settings) -> None:
        self._db = database
        self.registry = registry
        self.geometry = Geometry(registry, settings)
        self._settings = settings
        self._lock = threading.RLock()
        self._seen = 0
        self._rows: dict[str, dict[str, Listing]] = {}  # vector → owner → listing
        self._names: dict[tuple[str, str], Listing] = {}  # owner's handle, key of the name
        self._pointing: dict[
            str, dict[tuple[str, str], float]
        ] = {}  # vector → whose related vectors it is, and how near
        self._handles: dict[str, str] = {}
        self._scopes: OrderedDict[frozenset[str], _Held] = OrderedDict()
        self._private: dict[str, int] = {}  # owner → how many private listings
        self.loaded = False

    def close(self) -> None:
        """Begin nothing more."""
        self.geometry.close()

    # -- keeping up ----------------------------------------------------------------------------------------------
    def refresh(self) -> int:
        """Read the listings that changed since the last time; the number of the last change. Raises StorageError."""
        with self._db.read() as rows:
            number = things.version(rows)
            if number == self._seen and self.loaded:
                return number
            with self._lock:
                changed = things.changed_since(rows, self._seen)
                if any(r.owner_id not in self._handles for r in changed):
                    self._handles = people.owner_handles(rows)
                self._take(changed)
                self._seen = max([self._seen, *(r.changed for r in changed)])
                self.loaded = True
                return self._seen

    def _take(self, changed: Sequence[things.ListingRow]) -> None:
        store = self.registry.store
        many = len(changed) > _MANY  # one query for all, or one for each
        records = {r.id: r for r in store.list()} if many else {}
        for row in changed:
            self._drop(row.vector_id, row.owner_id)
            if row.state != "active":
                continue
            try:
                record = records[row.vector_id] if many else store.get(row.vector_id)
            except (NotFound, KeyError):
                continue
            self._put(Listing.of(row, self._handles.get(row.owner_id, "?"), record, store))
        touched = {row.vector_id for row in changed}
        for held in self._scopes.values():
            held.changed |= touched

    def _drop(self, vector_id: str, owner_id: str) -> None:
        owners = self._rows.get(vector_id, {})
        old = owners.pop(owner_id, None)
        if old is None:
            return
        if not owners:
            del self._rows[vector_id]
        if self._names.get(_name(old)) is old:
            del self._names[_name(old)]
        for near in (old.row.related or {}).get("neighbours", ()):
            self._pointing.get(near["id"], {}).pop((vector_id, owner_id), None)
        if old.visibility == "private":
            self._private[owner_id] -= 1
            if not self._private[owner_id]:
                del self._private[owner_id]

    def _put(self, x: Listing) -> None:
        self._rows.setdefault(x.id, {})[x.owner_id] = x
        self._names[_name(x)] = x
        for near in (x.row.related or {}).get("neighbours", ()):
            self._pointing.setdefault(near["id"], {})[(x.id, x.owner_id)] = near["cosine"]
        if x.visibility == "private":
            self._private[x.owner_id] = self._private.get(x.owner_id, 0) + 1

    # -- reading -------------------------------------------------------------------------------------------------
    def scope(self, who: Principal) -> Scope:
        """What somebody may read now."""
        self.refresh()
        mine = _mine(who)
        with self._lock:
            owners = frozenset(self._private) & mine
            held = self._scopes.get(owners)
            if held is None:
                held = self._scopes[owners] = _Held(self._made(owners))
            elif held.changed:
                following = held.scope.following(held.changed, lambda i: self._chosen(i, owners))
                held.scope, held.changed = following or self._made(owners), set()
            self._scopes.move_to_end(owners)
            while len(self._scopes) > 4 * self._settings.warm_scopes:
                self._scopes.popitem(last=False)
            return held.scope

    def _made(self, owners: frozenset[str]) -> Scope:
        """The scope of everybody who reads what these owners keep private: of no one's public listing more than that."""
        return Scope.of(x for i in self._rows if (x := self._chosen(i, owners)) is not None)

    def _chosen(self, vector_id: str, owners: frozenset[str]) -> Listing | None:
        """The listing of a vector that they see: one of these owners' before another's, the oldest of several."""
        seen = [x for x in self._rows.get(vector_id, {}).values() if x.visibility == "public" or x.owner_id in owners]
        return min(seen, key=lambda x: (x.owner_id not in owners, x.row.created_at, x.owner_id), default=None)

    def own(self, who: Principal, vector_id: str) -> Listing | None:
        """Somebody's own listing of a vector, or their organisation's, whoever else lists it."""
        with self._lock:
            owners = self._rows.get(vector_id, {})
            return next((x for owner in sorted(_mine(who)) if (x := owners.get(owner)) is not None), None)

    def named(self, who: Principal, owner: str, key: str) -> Listing | None:
        """An owner's listing by the key of its name, where it may be read, also where the scope shows another's."""
        self.refresh()
        with self._lock:
            found = self._names.get((owner, key))
        return found if found is not None and _reads(who, found) else None

    def pointing(self, scope: Scope, vector_id: str) -> dict[str, float]:
        """The vectors of a scope at whose admission this one was found near, and how near."""
        with self._lock:
            found = list(self._pointing.get(vector_id, {}).items())
        return {i: c for (i, owner), c in found if (x := scope.by_id.get(i)) is not None and x.owner_id == owner}

    def readable(self, who: Principal, vector_id: str, owner_id: str | None = None) -> Listing | None:
        """The listing of a vector that somebody may read: their own, their organisation's, or a public one."""
        found = self.scope(who).by_id.get(vector_id)
        if owner_id is None or (found is not None and found.owner_id == owner_id):
            return found
        with self._lock:
            other = self._rows.get(vector_id, {}).get(owner_id)
        return other if other is not None and _reads(who, other) else None

    def all_listings(self) -> list[Listing]:
        """Every active listing, for the service's own work."""
        self.refresh()
        with self._lock:
            return [x for owners in self._rows.values() for x in owners.values()]

    def size(self) -> int:
        """How many listings there are."""
        with self._lock:
            return sum(map(len, self._rows.values()))


def _mine(who: Principal) -> frozenset[str]:
    return frozenset(who.owner_ids) if "read" in who.scopes else frozenset()


def _reads(who: Principal, x: Listing) -> bool:
    return x.visibility == "public" or x.owner_id in _mine(who)


def _name(x: Listing) -> tuple[str, str]:
    return (x.owner, x.row.name_key)
