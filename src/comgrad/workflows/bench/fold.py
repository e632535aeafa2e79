"""A fold: one query task, and all that a method may know of the others. What the split leaves out is not there at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from comgrad.errors import ComgradError
from comgrad.evaluate.tangent import Tangent
from comgrad.predict.evidence import Evidence, Query
from comgrad.workflows.bench.corpus import Corpus, Item
from comgrad.workflows.bench.prepare import Prepared, restricted

SPLITS = {
    "losgo": "leave one source group out: no vector trained on the same texts",
    "loo": "leave one task out",
    "lofo": "leave one family out, and the source group",
}
Places = Int[np.ndarray, "k"]


@dataclass(frozen=True)
class Board:
    """All numbers of a run.

    Args:
        gram: (K, K) of the known vectors.
        embeddings: text → e(text).
        prepared: task's id → its numbers.
    """

    corpus: Corpus
    gram: Float[np.ndarray, "k k"]
    embeddings: Mapping[str, Float[np.ndarray, "d"]]
    prepared: Mapping[str, Prepared]

    @cached_property
    def evidence(self) -> Evidence:
        """Everything about all known vectors; folds take parts of it."""
        known = self.corpus.known
        gains = np.full((len(known), len(known)), np.nan)
        for k, item in enumerate(known):
            if item.id in self.prepared:
                gains[k] = self.prepared[item.id].tangent.gains
        rows = np.stack([self.embeddings[i.description] for i in known])
        return Evidence(self.gram, gains, rows, tuple(i.description for i in known))


@dataclass(frozen=True)
class Other:
    """Another task that the fold may learn from.

    Args:
        place: of its vector among the fold's, if it has one.
        tangent: along the fold's vectors.
    """

    query: Query
    group: str
    place: int | None
    tangent: Tangent


@dataclass(frozen=True)
class Fold:
    """What a method sees.

    Args:
        allowed: places of the fold's vectors among all known ones; coefficients are in this order.
        groups, families: of the fold's vectors.
        evidence: of the fold's vectors.
        query: the text the method is asked with.
        seed: for methods that draw.
    """

    board: Board
    allowed: Places
    groups: tuple[str, ...]
    families: tuple[str, ...]
    evidence: Evidence
    query: Query
    seed: int
    other_items: tuple[Item, ...]

    @cached_property
    def others(self) -> tuple[Other, ...]:
        """Tasks with examples that the split allows."""
        known = self.board.corpus.known
        at = {known[k].id: i for i, k in enumerate(self.allowed)}
        return tuple(
            Other(
                Query(item.description, self.board.embeddings[item.description]),
                item.source_group,
                at.get(item.id),
                restricted(self.board.prepared[item.id].tangent, self.allowed),
            )
            for item in self.other_items
        )

    def without_group(self, group: str) -> Places:
        """Places within the fold of the vectors of other source groups."""
        return np.array([i for i, g in enumerate(self.groups) if g != group], dtype=int)


def may_know(split: str, query: Item, other: Item) -> bool:
    """Whether a split lets the query's prediction use the other task."""
    if split == "loo":
        return other.id != query.id
    if split == "losgo":
        return other.source_group != query.source_group
    if split == "lofo":
        return other.source_group != query.source_group and other.family != query.family
    raise ComgradError(f"the split '{split}'", "there is none of that name", f"use some of: {', '.join(SPLITS)}")


def fold_of(
    board: Board, query: Item, split: str, text: str, *, seed: int = 0, among: Sequence[int] | None = None
) -> Fold:
    """The fold of a query.

    Args:
        text: what it is asked with.
        among: places of the vectors that are known at all; default: every one.
    """
    corpus = board.corpus
    pool = range(len(corpus.known)) if among is None else sorted(among)
    allowed = np.array([k for k in pool if may_know(split, query, corpus.known[k])], dtype=int)
    there = {corpus.known[k].id for k in allowed}
    others = tuple(
        i
        for i in corpus.tested
        if i.id in board.prepared and may_know(split, query, i) and (i.id in there or i.adapter is None)
    )
    return Fold(
        board,
        allowed,
        tuple(corpus.known[k].source_group for k in allowed),
        tuple(corpus.known[k].family for k in allowed),
        board.evidence.subset(allowed.tolist()),
        Query(text, board.embeddings[text]),
        seed,
        others,
    )


def in_development(item: Item) -> bool:
    """Whether constants of the rules may have been chosen on this task: a third of the source groups, by hash."""
    return int(hashlib.sha256(f"dev{item.source_group}".encode()).hexdigest(), 16) % 3 == 0


def growing(known: int, size: int, seed: int) -> list[int]:
    """A random set of `size` vectors that holds the smaller sets of the same seed."""
    order = np.random.default_rng([seed, 2]).permutation(known)
    return sorted(int(k) for k in order[:size])
