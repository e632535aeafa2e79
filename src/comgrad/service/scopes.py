"""What each reader may compute with, kept in memory: listings, embeddings, and the warm geometry of each visibility.

A scope is the set of vectors that somebody may read: the public ones, their own, their organisations'. Whoever has no
private vector shares the public scope. Everything that is computed from vectors (search, suggestion, map, neighbours,
trends, explanation) is computed from one scope, so that nothing of it can tell of a vector outside it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from comgrad.errors import ComgradError, NotFound
from comgrad.service.auth.identity import Principal
from comgrad.service.settings import Settings
from comgrad.service.store import people, things
from comgrad.service.store.database import Database
from comgrad.service.vectors import Listing
from comgrad.workflows.registry import Entry, Registry, by_base

if TYPE_CHECKING:
    from comgrad.atlas.collection import Collection, Member
    from comgrad.vectors.task_vector import TaskVector
    from comgrad.workflows.known import Known
    from comgrad.workflows.searching import Counted

Matrix = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Scope:
    """What somebody may read: one listing per vector, oldest first.

    Args:
        mark: equal for equal contents. private: whether it holds anything that is not public.
    """

    mark: int
    listings: tuple[Listing, ...]
    private: bool

    @cached_property
    def by_id(self) -> dict[str, Listing]:
        """Id → listing."""
        return {x.id: x for x in self.listings}

    @cached_property
    def described(self) -> tuple[tuple[Listing, ...], Matrix]:
        """The listings whose description is embedded, by the encoder used last, and the unit rows (n, d)."""
        kept = tuple(x for x in self.listings if x.row.embedding is not None)
        if not kept:
            return (), np.zeros((0, 0), dtype=np.float32)
        encoder = max(kept, key=lambda x: x.row.changed).row.encoder
        kept = tuple(x for x in kept if x.row.encoder == encoder)
        rows = [np.frombuffer(x.row.embedding or b"", dtype="<f4") for x in kept]
        return kept, np.stack(rows).astype(np.float32)

    @cached_property
    def groups(self) -> list[list[Listing]]:
        """The listings over one base each, the largest group first."""
        of = self.by_id
        found = [[of[e.id] for e in g] for g in by_base([x.entry for x in self.listings if not x.entry.record.damage])]
        return sorted(found, key=lambda g: -len(g))

    @cached_property
    def _group_of(self) -> dict[str, int]:
        return {x.id: at for at, g in enumerate(self.groups) for x in g}

    def among(self, x: Listing) -> list[Listing]:
        """The group that a listing is in; nothing where it is in none, as a damaged one is."""
        at = self._group_of.get(x.id)
        return [] if at is None else self.groups[at]

    @cached_property
    def parts(self) -> dict[str, Scope]:
        """Each group as a scope of its own, by its first listing's id; they go when this one goes."""
        return {g[0].id: Scope(0, tuple(g), False) for g in self.groups}

    def group(self, base: str | None) -> list[Listing]:
        """The listings over a base, by its name, the name's end, or its fingerprint; the largest group when not named.

        Raises:
            NotFound: none over that base. ComgradError (`empty-registry`): none at all.
        """
        if not self.groups:
            raise ComgradError(
                "a collection with no vectors",
                "there is nothing to work on",
                "share a vector first",
                code="empty-registry",
            )
        if base is None:
            return self.groups[0]
        for g in self.groups:
            for x in g:
                ref = x.entry.record.facts.base
                if base in (ref.name, ref.name.rsplit("/", 1)[-1], ref.fingerprint):
                    return g
        raise NotFound(f"the base {base[:80]!a}", "no vector that you may read stands on it", "see the list of bases")


@dataclass
class Warm:
    """The geometry of some listings over one base, ready for questions; its parts are made when first asked for."""

    listings: tuple[Listing, ...]
    atlas: Collection
    cache: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: Known | None = None
    _counted: Counted | None = None

    def known(self) -> Known:
        """What predictions need. Raises ComgradError (`no-descriptions`)."""
        from comgrad.workflows.known import Known

        with self._lock:
            if self._known is None:
                self._known = Known.of(self.atlas, cache=self.cache)
                _ = self._known.ridge, self._known.functional
            return self._known

    def counted(self) -> Counted:
        """What each listing counts for in rankings."""
        from comgrad.workflows.searching import Counted, count_in

        with self._lock:
            if self._counted is None:
                self._counted = Counted({}, {}, set())
                if len(self.listings) > 1:
                    count_in(self._counted, self.atlas)
            return self._counted

    @property
    def groups(self) -> list[str]:
        """The source group of each member."""
        return [x.card.source_group for x in self.listings]


class Scopes:
    """The listings in memory, and the warm geometry of the scopes in use."""

    def __init__(self, database: Database, registry: Registry, settings: Settings) -> None:
        self._db = database
        self.registry = registry
        self._settings = settings
        self._lock = threading.RLock()
        self._seen = 0
        self._rows: dict[tuple[str, str], Listing] = {}
        self._handles: dict[str, str] = {}
        self._scopes: OrderedDict[frozenset[str], tuple[int, Scope]] = OrderedDict()
        self._warm: OrderedDict[tuple[str, ...], Future[Warm]] = OrderedDict()
        self._vectors: OrderedDict[str, tuple[TaskVector, int]] = OrderedDict()
        self._vector_bytes = 0
        self._background = ThreadPoolExecutor(1, thread_name_prefix="warm")
        self._private: frozenset[str] = frozenset()
        self.loaded = False

    def close(self) -> None:
        """Let what is being made end."""
        self._background.shutdown(wait=True, cancel_futures=True)

    # -- listings ------------------------------------------------------------------------------------------------
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
        many = len(changed) > 50  # one query for all, or one for each
        records = {r.id: r for r in store.list()} if many else {}
        for row in changed:
            key = (row.vector_id, row.owner_id)
            self._rows.pop(key, None)
            if row.state != "active":
                continue
            try:
                record = records[row.vector_id] if many else store.get(row.vector_id)
            except (NotFound, KeyError):
                continue
            self._rows[key] = Listing.of(row, self._handles.get(row.owner_id, "?"), record, store)
        self._private = frozenset(x.owner_id for x in self._rows.values() if x.visibility == "private")

    def scope(self, who: Principal) -> Scope:
        """What somebody may read now."""
        number = self.refresh()
        mine = who.owner_ids if "read" in who.scopes else frozenset()
        with self._lock:
            owners = self._private & mine
            found = self._scopes.get(owners)
            if found is not None and found[0] == number:
                self._scopes.move_to_end(owners)
                return found[1]
            made = self._made(owners)
            if found is not None and found[1].mark == made.mark:
                made = found[1]  # somebody else's private change: what is computed here stays
            self._scopes[owners] = (number, made)
            while len(self._scopes) > 4 * self._settings.warm_scopes:
                self._scopes.popitem(last=False)
            return made

    def _made(self, owners: frozenset[str]) -> Scope:
        """The scope of everybody who reads what these owners keep private: of no one's public listing more than that."""
        chosen: dict[str, Listing] = {}
        for x in sorted(self._rows.values(), key=lambda x: (x.row.created_at, x.id, x.owner_id)):
            if x.visibility != "public" and x.owner_id not in owners:
                continue
            known = chosen.get(x.id)
            if known is None or (x.owner_id in owners and known.owner_id not in owners):
                chosen[x.id] = x
        listings = tuple(sorted(chosen.values(), key=lambda x: (x.row.created_at, x.id)))
        mark = hash(tuple((x.id, x.owner_id, x.row.changed) for x in listings))
        return Scope(mark, listings, any(x.visibility == "private" for x in listings))

    def own(self, who: Principal, vector_id: str) -> Listing | None:
        """Somebody's own listing of a vector, or their organisation's, whoever else lists it."""
        mine = who.owner_ids if "read" in who.scopes else frozenset()
        with self._lock:
            return next((x for owner in sorted(mine) if (x := self._rows.get((vector_id, owner)))), None)

    def readable(self, who: Principal, vector_id: str, owner_id: str | None = None) -> Listing | None:
        """The listing of a vector that somebody may read: their own, their organisation's, or a public one."""
        found = self.scope(who).by_id.get(vector_id)
        if owner_id is None or (found is not None and found.owner_id == owner_id):
            return found
        with self._lock:
            other = self._rows.get((vector_id, owner_id))
        mine = who.owner_ids if "read" in who.scopes else frozenset()
        return other if other is not None and (other.visibility == "public" or other.owner_id in mine) else None

    def all_listings(self) -> list[Listing]:
        """Every active listing, for the service's own work."""
        self.refresh()
        with self._lock:
            return list(self._rows.values())

    def size(self) -> int:
        """How many listings there are."""
        return len(self._rows)

    # -- geometry ------------------------------------------------------------------------------------------------
    def warm(self, listings: Sequence[Listing], *, keep: bool = True) -> Warm:
        """The geometry of these listings over one base; made once, by whoever asks first, and kept on disk unless it is
        one of many neighbourhoods. Raises ComgradError."""
        key = tuple(x.content for x in listings)
        found, mine = self._claimed(key)
        if not mine:
            return found.result(timeout=600)
        return self._fill(found, key, listings, keep)

    def lately(self, listings: Sequence[Listing]) -> tuple[Warm, bool]:
        """The geometry of these listings, or meanwhile an older one of most of them and of no others, while theirs is
        made in the background; and whether it is theirs. What may no longer be read is never in it."""
        key = tuple(x.content for x in listings)
        wanted = set(key)
        with self._lock:
            older = [
                (k, f)
                for k, f in reversed(self._warm.items())
                if f.done() and f.exception() is None and set(k) <= wanted and 10 * len(k) >= 9 * len(key)
            ]
            have = key in self._warm and self._warm[key].done()
        if have or not older:
            return self.warm(listings), True
        found, mine = self._claimed(key)
        if mine:
            self._background.submit(self._fill_quietly, found, key, listings)
        return older[0][1].result(), False

    def _fill_quietly(self, future: Future[Warm], key: tuple[str, ...], listings: Sequence[Listing]) -> None:
        with contextlib.suppress(ComgradError):  # whoever asks next meets it
            made = self._fill(future, key, listings, True)
            _ = made.known().vectors, made.counted()

    def _claimed(self, key: tuple[str, ...]) -> tuple[Future[Warm], bool]:
        with self._lock:
            found = self._warm.get(key)
            if found is not None:
                self._warm.move_to_end(key)
                return found, False
            made: Future[Warm] = Future()
            self._warm[key] = made
            while len(self._warm) > self._settings.warm_scopes:
                self._warm.popitem(last=False)
            return made, True

    def _fill(self, future: Future[Warm], key: tuple[str, ...], listings: Sequence[Listing], keep: bool) -> Warm:
        try:
            made = self._built(listings, keep)
        except BaseException as error:
            with self._lock:
                self._warm.pop(key, None)
            future.set_exception(error)
            raise
        future.set_result(made)
        return made

    def _built(self, listings: Sequence[Listing], keep: bool) -> Warm:
        from comgrad.atlas.collection import Collection

        gradients = self.registry.store.gradients()
        members = [self._member(x.entry, gradients.get(x.id)) for x in listings]
        folder = self.registry.store.cache_dir
        return Warm(tuple(listings), Collection.build(members, cache=folder if keep else None), folder)

    def _member(self, entry: Entry, gradient: Any) -> Member:
        from comgrad.workflows.resolve import member

        return replace(member(entry, gradient), load=self._loader(entry))

    def _loader(self, entry: Entry) -> Callable[[], TaskVector]:
        return lambda: self.vector(entry)

    def vector(self, entry: Entry) -> TaskVector:
        """A vector from memory, or read and kept as long as there is room. Raises StorageError."""
        with self._lock:
            found = self._vectors.get(entry.id)
            if found is not None:
                self._vectors.move_to_end(entry.id)
                return found[0]
        tau, size = entry.vector(), entry.record.size_bytes
        if size > self._settings.warm_vectors_bytes // 8:
            return tau  # one large checkpoint must not push out everything else
        with self._lock:
            if entry.id not in self._vectors:
                self._vectors[entry.id] = (tau, size)
                self._vector_bytes += size
            while self._vector_bytes > self._settings.warm_vectors_bytes:
                self._vector_bytes -= self._vectors.popitem(last=False)[1][1]
        return tau
