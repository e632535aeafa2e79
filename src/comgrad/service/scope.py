"""What somebody may read, as one immutable value: a scope, its groups over one base each, and the rows of its descriptions.

A scope that follows another takes over what has not changed: at thousands of vectors a change costs what it changes.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from comgrad.errors import ComgradError, NotFound
from comgrad.service.vectors import Listing
from comgrad.workflows.registry import by_base

Matrix = np.ndarray[Any, np.dtype[np.float32]]
Places = np.ndarray[Any, np.dtype[np.intp]]

Change = tuple[Listing | None, Listing | None]  # what goes, what comes

_marks = count(1)
_MANY = 4  # of a scope's listings at most one in so many changes one by one


class Group(tuple[Listing, ...]):
    """Listings over one base, oldest first."""

    @cached_property
    def digest(self) -> str:
        """The same while nothing changes that anything is computed from."""
        return hashlib.sha256(" ".join(x.content for x in self).encode()).hexdigest()

    @cached_property
    def ids(self) -> frozenset[str]:
        """The ids of its vectors."""
        return frozenset(x.id for x in self)

    @cached_property
    def place(self) -> dict[str, int]:
        """Id → place."""
        return {x.id: i for i, x in enumerate(self)}


@dataclass(frozen=True)
class Described:
    """Listings whose description is embedded by one encoder, and the unit rows (n, d)."""

    listings: tuple[Listing, ...]
    rows: Matrix

    @cached_property
    def place(self) -> dict[str, int]:
        """Id → row."""
        return {x.row.vector_id: i for i, x in enumerate(self.listings)}

    def row(self, identity: str) -> Matrix | None:
        """The row of a vector's description."""
        at = self.place.get(identity)
        return None if at is None else self.rows[at]

    def of(self, listings: Iterable[Listing]) -> Places:
        """The rows of those of the listings that have one."""
        place = self.place
        return np.array([place[i] for x in listings if (i := x.row.vector_id) in place], dtype=np.intp)


def described(listings: Sequence[Listing], before: Described | None = None) -> Described:
    """The listings that are embedded by the encoder used last; rows that an earlier value holds are taken from it."""
    kept = [x for x in listings if x.row.embedding is not None]
    if not kept:
        return Described((), np.zeros((0, 0), dtype=np.float32))
    encoder = max(kept, key=lambda x: x.row.changed).row.encoder
    kept = [x for x in kept if x.row.encoder == encoder]
    width = len(kept[0].row.embedding or b"") // 4
    rows = np.empty((len(kept), width), dtype=np.float32)
    known: dict[int, int] = {}
    if before is not None and before.rows.shape[1:] == (width,):
        known = {id(x): i for i, x in enumerate(before.listings)}  # the listings live as long as `before`
    places = np.array([known.get(id(x), -1) for x in kept], dtype=np.intp)
    old = places >= 0
    if before is not None and old.any():
        rows[old] = before.rows[places[old]]
    for i in np.flatnonzero(~old).tolist():
        rows[i] = np.frombuffer(kept[i].row.embedding or b"", dtype="<f4")
    return Described(tuple(kept), rows)


def _age(x: Listing) -> tuple[datetime, str]:
    return (x.row.created_at, x.id)


def _base(x: Listing) -> tuple[str, str | None]:
    ref = x.entry.record.facts.base
    return (ref.name, ref.fingerprint)


def _changed(listings: Iterable[Listing], changes: Iterable[Change]) -> list[Listing]:
    """Listings in the order of age, some taken out and others put in."""
    out = list(listings)
    for old, new in changes:
        if old is not None:
            del out[bisect_left(out, _age(old), key=_age)]
        if new is not None:
            insort_left(out, new, key=_age)
    return out


@dataclass(frozen=True)
class Scope:
    """What somebody may read: one listing per vector, oldest first.

    Args:
        mark: its own: another scope of the same readers has another one only where something differs.
        before: the descriptions' rows of the scope that this one follows, until its own are made.
    """

    listings: tuple[Listing, ...]
    before: Described | None = field(default=None, repr=False)
    mark: int = field(default_factory=lambda: next(_marks))

    @classmethod
    def of(cls, listings: Iterable[Listing]) -> Scope:
        """The scope of these listings, of different vectors."""
        return cls(tuple(sorted(listings, key=_age)))

    def following(self, changed: set[str], chosen: Callable[[str], Listing | None]) -> Scope | None:
        """This scope after changes of some vectors, of which `chosen` says what is seen now; itself where that is
        nothing else than before; None where so much changed that it is made anew."""
        if _MANY * len(changed) > len(self.listings) + 64:
            return None
        changes = [(self.by_id.get(i), chosen(i)) for i in changed]
        changes = [(old, new) for old, new in changes if new is not old]
        if not changes:
            return self
        listings = _changed(self.listings, changes)
        made = Scope(tuple(listings), self.__dict__.get("described", self.before))
        groups = self._regrouped(changes) if "groups" in self.__dict__ else None
        if groups is not None:
            made.__dict__["groups"] = groups
        return made

    def _regrouped(self, changes: Sequence[Change]) -> list[Group] | None:
        """The groups after changes that bring no other base, nor take one away; None where that is not certain."""
        homes = {_base(g[0]): at for at, g in enumerate(self.groups)}
        if any(x is not None and (_base(x) not in homes or x.entry.record.damage) for pair in changes for x in pair):
            return None
        by_group: dict[int, list[Change]] = {}
        for old, new in changes:
            for change in ((old, None), (None, new)):
                x = change[0] or change[1]
                if x is not None:
                    by_group.setdefault(homes[_base(x)], []).append(change)
        found = [Group(_changed(g, by_group[at])) if at in by_group else g for at, g in enumerate(self.groups)]
        if any(not g or _base(g[0]) not in homes for g in found):
            return None
        return sorted(found, key=lambda g: -len(g))

    @cached_property
    def private(self) -> bool:
        """Whether it holds anything that is not public."""
        return any(x.row.visibility == "private" for x in self.listings)

    @cached_property
    def by_id(self) -> dict[str, Listing]:
        """Id → listing."""
        return {x.row.vector_id: x for x in self.listings}

    @cached_property
    def described(self) -> Described:
        """The descriptions by meaning."""
        made = described(self.listings, self.before)
        self.__dict__.update(described=made, before=None)  # a row of scopes must not hold each other in memory
        return made

    @cached_property
    def groups(self) -> list[Group]:
        """The listings over one base each, the largest group first."""
        of = self.by_id
        found = [
            Group(of[e.id] for e in g) for g in by_base([x.entry for x in self.listings if not x.entry.record.damage])
        ]
        return sorted(found, key=lambda g: -len(g))

    @cached_property
    def _group_of(self) -> dict[str, int]:
        return {x.row.vector_id: at for at, g in enumerate(self.groups) for x in g}

    def among(self, x: Listing) -> Group:
        """The group that a listing is in; nothing where it is in none, as a damaged one is."""
        at = self._group_of.get(x.id)
        return Group() if at is None else self.groups[at]

    @cached_property
    def _places(self) -> list[Places]:
        return [self.described.of(g) for g in self.groups]

    def places(self, group: Group) -> Places:
        """The rows of `described` that a group has."""
        at = next((i for i, g in enumerate(self.groups) if g is group), None)
        return self.described.of(group) if at is None else self._places[at]

    def nearest_in_words(self, x: Listing, group: Group, most: int) -> Group:
        """All of a small group; of a large one those nearest in words to one of its members, in the group's order."""
        if len(group) <= most:
            return group
        mine, places = self.described.row(x.id), self.places(group)
        if mine is None or len(places) == 0:
            return Group([*[g for g in group[-most:] if g.id != x.id][-most + 1 :], x])
        scores = (self.described.rows @ mine)[places]
        first = np.argsort(-np.where(places == self.described.place[x.id], np.inf, scores), kind="stable")[:most]
        near = {self.described.listings[int(i)].id for i in places[first]} | {x.id}
        return Group(group[i] for i in sorted(group.place[n] for n in near))

    @cached_property
    def children(self) -> dict[str, list[tuple[Listing, Any]]]:
        """A parent's id or name → the listings whose cards name it, and how."""
        found: dict[str, list[tuple[Listing, Any]]] = {}
        for x in self.listings:
            for p in x.card.parents:
                found.setdefault(p.id, []).append((x, p))
        return found

    def group(self, base: str | None) -> Group:
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
