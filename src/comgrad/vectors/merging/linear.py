"""Task arithmetic and averaging: exact on factors, one pass over the tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from comgrad.errors import ComgradError
from comgrad.vectors import delta as _delta
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.merging.common import all_names, average, held, one_base
from comgrad.vectors.merging.settings import Settings
from comgrad.vectors.task_vector import TaskVector, like


def weighted_sum(vectors: Sequence[TaskVector], weights: Sequence[float], _: Settings | None = None) -> TaskVector:
    """Σ wᵢ·τᵢ: low-rank stays low-rank, no term is copied twice, and dense terms are added in fp64 and rounded once."""

    def combined(name: str) -> Delta:
        given = held(vectors, weights, name)
        if len(given) > 1 and all(isinstance(h.delta, Dense) for h in given):
            return average(given, 1)
        terms = [h.delta.scaled(h.weight) for h in given]
        low = [t for t in terms if isinstance(t, LowRank)]
        total: Delta | None = _delta.concatenate(low) if low else None
        for t in terms:
            if not isinstance(t, LowRank):
                total = t if total is None else _delta.add(t, total)
        assert total is not None  # every name comes from at least one vector
        return total

    return TaskVector(one_base(vectors), like(all_names(vectors), combined, *(v.tensors for v in vectors)))


def weighted_mean(vectors: Sequence[TaskVector], weights: Sequence[float], _: Settings | None = None) -> TaskVector:
    """Σ wᵢ·τᵢ / Σ wᵢ. Raises ComgradError where the weights add up to 0."""
    total = math.fsum(weights)
    if total == 0:
        raise ComgradError("weights that add up to 0", "their mean is not defined", "use the method 'sum'")
    return weighted_sum(vectors, [w / total for w in weights])
