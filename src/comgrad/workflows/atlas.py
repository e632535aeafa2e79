"""The atlas as users see it: a collection of described vectors with its geometry and its predictor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from comgrad.atlas.collection import Collection, Member
from comgrad.errors import ComgradError
from comgrad.explain.explanation import Explanation
from comgrad.registry.card import Card
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.known import Known
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection
from comgrad.workflows.suggesting import Suggestion, predict


class Atlas:
    """Described task vectors over one base.

    Args:
        source: a registry, or the vectors themselves.
        cards: one card per vector, when vectors are given.
        base: the base, when a registry holds several.

    Raises:
        ComgradError: no vectors, or not one card per vector.
        BaseMismatch: several bases.
    """

    def __init__(
        self,
        source: Registry | Sequence[TaskVector],
        cards: Sequence[Card | dict[str, Any]] | None = None,
        *,
        base: str | None = None,
    ) -> None:
        if isinstance(source, Registry):
            self._cache: Path | None = source.store.cache_dir
            self.collection = collection(source, base=base)
            of = {e.id: e for e in source.list()}
            self._groups = [of[i].card.source_group for i in self.collection.ids]
        else:
            self._cache = None
            self.collection = Collection.build(_members(source, cards))
            self._groups = [_read(c).source_group for c in cards or ()]
        self._known: Known | None = None

    @property
    def gram(self) -> Float[np.ndarray, "k k"]:
        """G_ij = ⟨τ_i, τ_j⟩ (K, K), fp64."""
        return self.collection.gram

    @property
    def ids(self) -> tuple[str, ...]:
        """The vectors' ids, in the order of the Gram matrix."""
        return self.collection.ids

    def fit_descriptions(self) -> Atlas:
        """Fit the predictor on the described vectors; `suggest` does it when it was not done."""
        self._known = Known.of(self.collection, cache=self._cache)
        return self

    def suggest(self, text: str, *, rank: int | None = None) -> Suggestion:
        """A starting adapter for a task described in words; `.vector.save_peft(path)` writes it. Raises ComgradError."""
        if self._known is None:
            self.fit_descriptions()
        assert self._known is not None
        return predict(self._known, text, rank=rank)

    def explain(self, tau: TaskVector, *, claim: str = "", seed: int = 0) -> Explanation:
        """What a task vector does, by its weights alone. See `workflows.explaining`.

        Args:
            tau: any vector; a known one is left out of what it is compared with.
            claim: what it is said to do.
            seed: of the random vectors it is compared with.

        Raises:
            ComgradError: no other described vector; NaN or infinite numbers.
        """
        from comgrad.workflows.explaining import explain_in

        return explain_in(self.collection, self._groups, tau, claim=claim, cache=self._cache, seed=seed)


def _members(vectors: Sequence[TaskVector], cards: Sequence[Card | dict[str, Any]] | None) -> list[Member]:
    if cards is None or len(cards) != len(vectors):
        raise ComgradError(
            f"{len(vectors)} vectors and {len(cards or ())} cards",
            "each vector needs its card",
            "give as many cards as vectors",
        )
    for v in vectors[1:]:
        vectors[0].base.joined(v.base)
    read = [_read(c) for c in cards]
    return [
        Member(f"v{i}", c.task_id or c.name or f"vector {i}", c.description, c.family, lambda v=v: v)  # type: ignore[misc]
        for i, (v, c) in enumerate(zip(vectors, read, strict=True))
    ]


def _read(card: Card | dict[str, Any]) -> Card:
    return Card.from_dict(card) if isinstance(card, dict) else card
