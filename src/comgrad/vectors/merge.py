"""Merging methods as rows of a table: a name, a function, its parameters and its source.

Every method maps task vectors over one base, and one weight for each, to a task vector. The meaning of a row never
changes once released: where published tools differ, the one-line meaning says which formula is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from comgrad.errors import ComgradError
from comgrad.vectors import delta as _delta
from comgrad.vectors.delta import Delta, LowRank
from comgrad.vectors.task_vector import TaskVector, like

MergeFunction = Callable[[Sequence[TaskVector], Sequence[float]], TaskVector]


@dataclass(frozen=True)
class Method:
    """One merging method.

    Args:
        name: what users write.
        function: (vectors, weights) → vector.
        meaning: the formula in one line.
        source: paper or page that published it.
        parameters: further parameters, name → what it means.
    """

    name: str
    function: MergeFunction
    meaning: str
    source: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def weighted_sum(vectors: Sequence[TaskVector], weights: Sequence[float]) -> TaskVector:
    """Σ wᵢ·τᵢ in one pass over the tensors: low-rank stays low-rank, and no term is copied twice."""
    base = vectors[0].base
    for v in vectors[1:]:
        base = base.joined(v.base)
    names = tuple(sorted({name for v in vectors for name in v.tensors}))

    def combined(name: str) -> Delta:
        terms = [v.tensors[name].scaled(w) for v, w in zip(vectors, weights, strict=True) if name in v.tensors]
        for other in terms[1:]:
            _delta.same_place(terms[0], other, name)
        low = [t for t in terms if isinstance(t, LowRank)]
        total: Delta | None = _delta.concatenate(low) if low else None
        for t in terms:
            if not isinstance(t, LowRank):
                total = t if total is None else _delta.add(t, total)
        assert total is not None  # every name comes from at least one vector
        return total

    return TaskVector(base, like(names, combined, *(v.tensors for v in vectors)))


def weighted_mean(vectors: Sequence[TaskVector], weights: Sequence[float]) -> TaskVector:
    """Σ wᵢ·τᵢ / Σ wᵢ."""
    total = math.fsum(weights)
    if total == 0:
        raise ComgradError("weights that add up to 0", "their mean is not defined", "use the method 'sum'")
    return weighted_sum(vectors, [w / total for w in weights])


METHODS: Mapping[str, Method] = {
    m.name: m
    for m in (
        Method("sum", weighted_sum, "Σ wᵢ·τᵢ (task arithmetic)", "https://arxiv.org/abs/2212.04089"),
        Method("mean", weighted_mean, "Σ wᵢ·τᵢ / Σ wᵢ (weight averaging)", "https://arxiv.org/abs/2203.05482"),
    )
}


def merge(vectors: Sequence[TaskVector], method: str = "sum", weights: Sequence[float] | None = None) -> TaskVector:
    """Merge task vectors over one base by a named method.

    Args:
        vectors: one or more vectors.
        method: a name in `METHODS`.
        weights: one finite number for each vector; 1 each when left out.

    Raises:
        ComgradError: unknown method, no vectors, wrong number of weights.
        BaseMismatch, ShapeMismatch: vectors that cannot be added.
    """
    row = METHODS.get(method)
    if row is None:
        raise ComgradError(
            f"the method '{method}'", "no merging method has that name", f"use one of {', '.join(METHODS)}"
        )
    if not vectors:
        raise ComgradError("no vectors", "there is nothing to merge", "name at least one vector")
    used = [1.0] * len(vectors) if weights is None else [float(w) for w in weights]
    if len(used) != len(vectors):
        raise ComgradError(
            f"{len(used)} weights for {len(vectors)} vectors",
            "each vector needs one weight",
            "give one weight per vector",
        )
    if not all(math.isfinite(w) for w in used):
        raise ComgradError(f"the weights {used}", "a weight must be a finite number", "check the weights")
    return row.function(vectors, used)
