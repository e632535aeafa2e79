"""Search in what somebody may read: one product of the query's embedding with all rows, and the best few of it."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from comgrad.engine.cores import cores
from comgrad.errors import ComgradError, NotFound
from comgrad.registry import search
from comgrad.service.auth.identity import Principal
from comgrad.service.scope import Group, Matrix, Scope
from comgrad.service.scopes import Scopes
from comgrad.service.settings import Settings
from comgrad.service.turns import Turns
from comgrad.service.vectors import Listing
from comgrad.workflows.searching import Counted, Found, checked_description, settled

MOST = 100
MEANT = 4096  # queries whose embedding is remembered
PATIENCE = 2.0  # seconds that a search waits for the first geometry of its scope
_DOUBTFUL = 4.0  # more than two cosines differ by


@dataclass(frozen=True)
class Hit:
    """One result of a search; see `workflows.searching.Found`."""

    listing: Listing
    score: float
    copies: int
    doubt: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self.listing.as_dict() | {"score": self.score, "copies": self.copies, "doubt": self.doubt}


@dataclass(frozen=True)
class _Ranking:
    """What is taken off each row's score: all of a copy's, and a step of a doubtful one's."""

    counted: Counted
    off: Matrix


class Finding:
    """Searches over scopes."""

    def __init__(self, scopes: Scopes, settings: Settings, turns: Turns) -> None:
        self._scopes = scopes
        self._settings = settings
        self._turns = turns
        self._meant: OrderedDict[str, Matrix] = OrderedDict()
        self._lock = threading.Lock()
        self._encoding = threading.Semaphore(max(1, cores() - 1))

    def search(self, who: Principal, text: str, limit: int = 20, words: bool = False) -> list[Hit]:
        """The vectors whose descriptions are nearest in meaning, best first; by words alone when asked, or where the
        text encoder is not on this machine. Raises ComgradError."""
        query = checked_description(text)
        scope = self._scopes.scope(who)
        most = max(1, min(limit, MOST))
        found = None
        if not words and scope.described.listings:
            with contextlib.suppress(NotFound):  # no encoder here
                found = self._by_meaning(query, scope, most)
        if found is None:
            found = self._by_words(query, scope)[:most]
        return [Hit(scope.by_id[f.entry.id], f.score, f.copies, f.doubt) for f in found]

    def meaning(self, text: str) -> Matrix:
        """The unit row of a text; the last few thousand are remembered. Raises NotFound: no encoder here."""
        with self._lock:
            found = self._meant.get(text)
            if found is not None:
                self._meant.move_to_end(text)
                return found
        from comgrad.describe.encoder import load_encoder

        encoder = load_encoder()
        with self._encoding:  # more at one time than there are cores, less the one that answers, wait for each other
            made: Matrix = encoder.encode([text])[0].astype(np.float32)
        with self._lock:
            self._meant[text] = made
            while len(self._meant) > MEANT:
                self._meant.popitem(last=False)
        return made

    @staticmethod
    def encoder() -> str:
        """The key of the encoder that questions are put to. Raises NotFound: no encoder here."""
        from comgrad.describe.encoder import key_of, load_encoder

        return key_of(load_encoder())

    def nearest(self, text: str, group: Group, scope: Scope) -> Listing | None:
        """The member of a group whose description is nearest to a text; None where none is embedded."""
        places = scope.places(group)
        if not len(places):
            return None
        scores = scope.described.rows @ self.meaning(text)
        return scope.described.listings[int(places[int(np.argmax(scores[places]))])]

    def _by_meaning(self, query: str, scope: Scope, most: int) -> list[Found]:
        held, ranking = scope.described, self._ranking(scope)
        scores = held.rows @ self.meaning(query)
        ranked = scores - ranking.off
        first = np.argpartition(-ranked, most - 1)[:most] if most < len(ranked) else np.arange(len(ranked))
        edge = ranked[first].min()
        first = np.flatnonzero(ranked >= edge)  # of equals the oldest, as a whole sort would have it
        order = first[np.argsort(-ranked[first], kind="stable")][:most]
        kept = [i for i in order.tolist() if ranked[i] > -np.inf]
        counted = ranking.counted
        return [
            Found(x.entry, float(scores[i]), counted.copies.get(x.id, 0), counted.doubt.get(x.id, ""))
            for i in kept
            for x in (held.listings[i],)
        ]

    def _by_words(self, query: str, scope: Scope) -> list[Found]:
        terms = search.terms(query)
        stems = {search.stem(t) for t in terms}
        near = [x for x in scope.listings if any(s in x.document for s in stems)]
        scores = search.scores(terms, [x.document for x in near], len(scope.listings))
        found = [Found(x.entry, s) for s, x in zip(scores, near, strict=True) if s > 0.0]
        found.sort(key=lambda f: (-f.score, f.entry.name))
        return settled(found, self._ranking(scope).counted)

    def _ranking(self, scope: Scope) -> _Ranking:
        """What each listing counts for: from the geometry of a small scope, else from what its admission found."""
        known = self._turns.known(("ranking", scope.mark))
        if known is not None:
            found: _Ranking = known
            return found
        counted, whole = self._counted(scope)
        off = np.zeros(len(scope.described.listings), dtype=np.float32)
        place = scope.described.place
        off[[place[i] for i in counted.doubt if i in place]] = _DOUBTFUL
        off[[place[i] for i in counted.hidden if i in place]] = np.inf
        made = _Ranking(counted, off)
        return self._turns.put(("ranking", scope.mark), made) if whole else made

    def _counted(self, scope: Scope) -> tuple[Counted, bool]:
        """And whether it is of exactly this scope: while geometry is made, an older one or none stands for it."""
        out, whole = Counted({}, {}, set()), True
        for group in scope.groups:
            warm = None
            if len(group) <= self._settings.whole_scope:
                try:
                    warm = self._scopes.geometry.soon(group, PATIENCE)
                except ComgradError:
                    warm = None  # a file is lost, or the storage is away: searching must still work
                whole = whole and warm is not None and warm[1]
            if warm is None:
                _count_as_admitted(out, group)
                continue
            one = warm[0].counted()
            out.copies.update(one.copies)
            out.doubt.update(one.doubt)
            out.hidden.update(one.hidden)
        return out, whole


def _count_as_admitted(out: Counted, group: Group) -> None:
    """Copies and doubts as the admission of each member found them, as far as the reader may read what they speak of."""
    ids = group.ids
    for x in group:
        related = x.row.related or {}
        of, doubt = related.get("copy_of"), related.get("doubt")
        if of in ids:
            out.hidden.add(x.id)
            out.copies[of] = out.copies.get(of, 0) + 1
        elif doubt and ids.issuperset(related.get("about", ())):
            out.doubt[x.id] = doubt
