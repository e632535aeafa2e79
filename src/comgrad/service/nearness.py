"""Neighbours of a vector among thousands: sketches choose a few, exact inner products order them.

A whole Gram matrix of K vectors has K² entries; here a vector costs one product of its sketch with all sketches, and the
reading of a few dozen others. The centre of the crowd is that of the sketches, in which copies do not count.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from comgrad.service.errors import Busy
from comgrad.service.scope import Group, Matrix, Places
from comgrad.service.settings import Settings
from comgrad.service.sketches import SIZE, Sketches
from comgrad.service.vectors import Listing
from comgrad.service.warm import Geometry, Warm

CANDIDATES = 16  # vectors that are read for one answer
MOST = 10
COPY = 0.999
ALIKE = 0.8  # sketched cosine from which a vector is looked at whatever the mean is
PATIENCE = 2.0  # seconds that a question waits for the sketches of thousands
WHOLE = 20.0  # and for a whole geometry that somebody else makes


@dataclass(frozen=True)
class Near:
    """A vector near another one: its cosine, exact, and the same after taking off the mean of the crowd."""

    listing: Listing
    cosine: float
    centred: float


@dataclass(frozen=True)
class Crowd:
    """The sketches of a group, and their centre: m_j = ⟨u_j, ū⟩, own = ⟨ū, ū⟩."""

    group: Group
    places: Places
    mean: Matrix
    m: Matrix
    own: float
    hidden: np.ndarray[Any, np.dtype[np.bool_]]  # copies, and what cannot be read

    @cached_property
    def owners(self) -> frozenset[str]:
        """Who shares them."""
        return frozenset(x.owner_id for x in self.group)

    @cached_property
    def texts(self) -> list[tuple[str, ...]]:
        """The words of each description."""
        return [x.words for x in self.group]

    @cached_property
    def beginnings(self) -> dict[tuple[str, ...], list[int]]:
        """The first words of a description → the members that begin so."""
        from comgrad.workflows.standing import REPEATED

        found: dict[tuple[str, ...], list[int]] = {}
        for i, text in enumerate(self.texts):
            if text:
                found.setdefault(text[:REPEATED], []).append(i)
        return found


class Nearness:
    """What is near to a vector: by the whole geometry of a small group, by sketches and a few vectors of a large one."""

    def __init__(self, geometry: Geometry, settings: Settings) -> None:
        self._geometry = geometry
        self._settings = settings
        self._sketches: Sketches | None = None
        self._lock = threading.Lock()
        self._crowds: list[Crowd] = []

    def surroundings(self, x: Listing, group: Group, *, patience: float = PATIENCE) -> dict[str, Any]:
        """Neighbours, the vector it is a copy of, and why its description is not believed; and which vectors that
        speaks about. Raises ComgradError, Busy."""
        if len(group) < 2:
            return {"neighbours": [], "notes": []}
        if len(group) <= self._settings.whole_scope:
            return _in_whole(x, self._geometry.warm(group, patience=max(patience, WHOLE)))
        crowd = self._crowd(group, patience)
        near = self._near(x, crowd)
        older = {g.id for g in group[: _place(x, group)]}
        twins = [n.listing for n in near if n.listing.id in older and n.cosine > COPY]
        twin = min(twins, key=lambda g: (g.row.created_at, g.id), default=None)
        told = [(n.listing.id, n.listing.full_name, n.centred) for n in near[:MOST]]
        doubt, why = (
            ("", set[str]()) if twin is not None else self._doubt(x, crowd, [n for n in near if n.listing.id in older])
        )
        about = {i for i, _, _ in told} | why
        return _told(x, told, doubt, None if twin is None else (twin.id, twin.full_name), about)

    def prepare(self, group: Group) -> None:
        """Sketch what has no sketch yet."""
        if len(group) > self._settings.whole_scope:
            self._crowd(group, 3600.0)

    def sketched(
        self, listings: Sequence[Listing], patience: float = PATIENCE
    ) -> tuple[Matrix, np.ndarray[Any, np.dtype[np.bool_]]]:
        """The unit sketches of listings (n, 1024), and which of them can be read. Raises ComgradError, Busy."""
        with self._turn(patience):
            sketches = self._opened()
            places = sketches.places(listings, self._geometry)
            rows = sketches.rows() if len(sketches.rows()) else np.zeros((1, SIZE), dtype=np.float32)
            return rows[places], places >= 0

    def _near(self, x: Listing, crowd: Crowd) -> list[Near]:
        """The members nearest by centred cosine, best first; of copies only the first."""
        assert self._sketches is not None
        at = int(self._sketches.places([x], self._geometry)[0])
        if at < 0:
            return []
        rows = self._sketches.rows()
        raw = (rows @ rows[at])[crowd.places]
        score = _centred(raw, crowd.m, float(rows[at] @ crowd.mean), crowd.own)
        ranked = np.maximum(score, np.where(raw > ALIKE, raw, -np.inf))  # in a crowd of copies the mean says nothing
        ranked[crowd.hidden] = -np.inf
        ranked[_place(x, crowd.group)] = -np.inf
        best = np.argsort(-ranked, kind="stable")[:CANDIDATES]
        found = self._exact(x, [int(i) for i in best if ranked[i] > -np.inf], crowd)
        return sorted(found, key=lambda n: -n.centred)

    def _exact(self, x: Listing, chosen: Sequence[int], crowd: Crowd) -> list[Near]:
        """Inner products with some members from the vectors themselves; only the crowd's mean is that of the sketches."""
        from comgrad.geometry.gram import gram_rows

        if not chosen:
            return []
        assert self._sketches is not None
        at = int(self._sketches.places([x], self._geometry)[0])
        m_x = float(self._sketches.rows()[at] @ crowd.mean) if at >= 0 else 0.0
        others = [crowd.group[i] for i in chosen]
        taus = [self._geometry.vector(g.entry) for g in others]
        inner = gram_rows([self._geometry.vector(x.entry)], taus, workers=1).total.numpy()[0]
        norms = np.array([g.entry.norm for g in others]) * x.entry.norm
        cosine = np.clip(inner / np.where(norms > 0.0, norms, np.inf), -1.0, 1.0)
        centred = _centred(cosine, crowd.m[list(chosen)], m_x, crowd.own)
        return [Near(g, float(c), float(z)) for g, c, z in zip(others, cosine, centred, strict=True)]

    def _doubt(self, x: Listing, crowd: Crowd, near: Sequence[Near]) -> tuple[str, set[str]]:
        """Why its description is not believed, and which vectors that speaks about: it repeats an older one's words on
        other weights, or its owner has several of the same task (`near` are the older ones)."""
        from comgrad.workflows.standing import CLAIM, SAME, VOTES, contradiction, repeated, too_many

        place = _place(x, crowd.group)
        for others in repeated(crowd.texts, place, crowd.beginnings):
            older = [i for i in others if i < place and not _doubted(crowd.group[i])][:CANDIDATES]
            found = self._exact(x, older, crowd)
            if found and max(n.centred for n in found) < CLAIM:
                first = found[0].listing
                return contradiction(first.full_name, max(n.centred for n in found)), {first.id}
        if len(crowd.owners) < 2:
            return "", set()
        mine = [n for n in near if n.listing.owner_id == x.owner_id and not _doubted(n.listing)]
        alike = {n.listing.id for n in mine if n.centred >= SAME or (x.words and n.listing.words == x.words)}
        return (too_many(len(alike)), alike) if len(alike) >= VOTES else ("", set())

    def _crowd(self, group: Group, patience: float) -> Crowd:
        """The group's sketches; of the few groups asked last. Raises Busy: they are being made."""
        with self._turn(patience):
            for crowd in self._crowds:
                if crowd.group is group:
                    return crowd
            made = _crowd(group, self._opened(), self._geometry)
            self._crowds = [made, *self._crowds[:3]]
            return made

    @contextlib.contextmanager
    def _turn(self, patience: float) -> Iterator[None]:
        """One at a time reads vectors to sketch them. Raises Busy."""
        if not self._lock.acquire(timeout=patience):
            raise Busy("the neighbours", "thousands of vectors are being looked at", "ask again in a few minutes")
        try:
            yield
        finally:
            self._lock.release()

    def _opened(self) -> Sketches:
        if self._sketches is None:
            store = self._geometry.registry.store
            sketches = Sketches(store.cache_dir)
            sketches.prune({r.id for r in store.list()})
            self._sketches = sketches
        return self._sketches


def _crowd(group: Group, sketches: Sketches, geometry: Geometry) -> Crowd:
    places = sketches.places(group, geometry)
    hidden = np.array([is_copy(x, group) for x in group]) | (places < 0)
    rows = sketches.rows()
    weights = np.zeros(len(rows), dtype=np.float32)
    weights[places[~hidden]] = 1.0 / max(1, int((~hidden).sum()))
    mean = weights @ rows
    return Crowd(group, places, mean, (rows @ mean)[places], float(mean @ mean), hidden)


def _in_whole(x: Listing, warm: Warm) -> dict[str, Any]:
    """The same from the whole geometry of a group."""
    atlas = warm.atlas
    at = atlas.ids.index(x.id)
    cosine = atlas.cosine()[at]
    neighbours = [(m.id, m.name, c) for m, c in atlas.neighbours(at, most=MOST)]
    doubt = warm.counted().doubt.get(x.id, "")
    twin = next((atlas.members[j] for j in range(at) if cosine[j] > COPY), None)
    about = {i for i, _, _ in neighbours} | {m.id for m in atlas.members if f"'{m.name}'" in doubt}
    return _told(x, neighbours, doubt, None if twin is None else (twin.id, twin.name), about)


def _told(
    x: Listing, near: Sequence[tuple[str, str, float]], doubt: str, twin: tuple[str, str] | None, about: set[str]
) -> dict[str, Any]:
    notes = [doubt] if doubt else []
    if twin is not None:
        notes.append(f"nearly the same vector as '{twin[1]}': derived from it, or a copy of it")
        about = about | {twin[0]}
    return {
        "neighbours": [{"id": i, "name": n, "cosine": c} for i, n, c in near],
        "notes": notes,
        "doubt": doubt,
        "copy_of": None if twin is None else twin[0],
        "about": sorted(about - {x.id}),
    }


def is_copy(x: Listing, group: Group) -> bool:
    """Whether its admission found a member of the group that it is a copy of."""
    return (x.row.related or {}).get("copy_of") in group.ids


def _doubted(x: Listing) -> bool:
    return bool((x.row.related or {}).get("doubt"))


def _place(x: Listing, group: Group) -> int:
    return group.place[x.id]


def _centred(cosine: Any, m_j: Any, m_x: float, own: float) -> Any:
    """⟨u_x − ū, u_j − ū⟩ over the lengths of both."""
    lengths = np.sqrt(np.maximum(1.0 - 2.0 * m_j + own, 1e-6) * max(1.0 - 2.0 * m_x + own, 1e-6))
    return np.clip((cosine - m_j - m_x + own) / lengths, -1.0, 1.0)
