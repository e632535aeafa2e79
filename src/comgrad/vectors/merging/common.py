"""What merging methods share: the vectors' one base, the deltas of one tensor, and the form of the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comgrad.types import BaseRef
from comgrad.vectors import delta as _delta
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import Deferred, TaskVector

IN_MEMORY = 1 << 27  # elements of a dense result; a larger one is computed tensor by tensor as it is read
BLOCK = 1 << 18  # elements of each vector in fp64 at once


@dataclass(frozen=True)
class Held:
    """One vector's delta of the tensor at hand: which vector, its weight, the delta."""

    vector: int
    weight: float
    delta: Delta


def one_base(vectors: Sequence[TaskVector]) -> BaseRef:
    """The best known reference to the vectors' base. Raises BaseMismatch."""
    base = vectors[0].base
    for v in vectors[1:]:
        base = base.joined(v.base)
    return base


def all_names(vectors: Sequence[TaskVector]) -> tuple[str, ...]:
    """Names of the tensors that at least one vector holds, sorted: the order every method walks in."""
    return tuple(sorted({name for v in vectors for name in v.tensors}))


def held(vectors: Sequence[TaskVector], weights: Sequence[float], name: str) -> list[Held]:
    """The deltas of one tensor, of those vectors that have it. Raises ShapeMismatch."""
    found = [
        Held(i, w, v.tensors[name]) for i, (v, w) in enumerate(zip(vectors, weights, strict=True)) if name in v.tensors
    ]
    for other in found[1:]:
        _delta.same_place(found[0].delta, other.delta, name)
    return found


def all_low(terms: Sequence[Held]) -> bool:
    return all(isinstance(t.delta, LowRank) for t in terms)


def is_matrix(terms: Sequence[Held]) -> bool:
    """Whether the tensor is a matrix; a convolution kernel is one, (out, in·kh·kw)."""
    return all(t.delta.is_matrix for t in terms)


def shape_of(terms: Sequence[Held]) -> tuple[int, ...]:
    """Shape of the dense result: the kernel's shape where one of the deltas knows it."""

    def full(d: Delta) -> tuple[int, ...]:
        return d.weight_shape if isinstance(d, LowRank) and d.weight_shape is not None else d.shape

    return max((full(t.delta) for t in terms), key=len)


def result_dtype(terms: Sequence[Held]) -> torch.dtype:
    """fp64 when any term is kept in it, else fp32."""
    kept = [(t.delta.B if isinstance(t.delta, LowRank) else t.delta.W).dtype for t in terms]
    return torch.float64 if torch.float64 in kept else torch.float32


def stored_dtype(terms: Sequence[Held]) -> torch.dtype:
    """The coarsest dtype that any term was stored in."""
    stored = terms[0].delta.stored
    for t in terms[1:]:
        stored = _delta.coarser(stored, t.delta.stored)
    return stored


def dense_from(W: Tensor, terms: Sequence[Held]) -> Dense:
    """The result as a dense delta: cast once, in the tensor's shape."""
    return Dense(
        W.to(result_dtype(terms)).reshape(shape_of(terms)),
        stored=stored_dtype(terms),
        transposed=terms[0].delta.transposed,
    )


def low_from(B: Tensor, A: Tensor, terms: Sequence[Held]) -> LowRank:
    """The result as factors, cast once; without columns it is a zero of rank 1, which every format can hold."""
    if B.shape[1] == 0:
        B, A = B.new_zeros(B.shape[0], 1), A.new_zeros(1, A.shape[1])
    shape = shape_of(terms)
    return LowRank(
        B.to(result_dtype(terms)),
        A.to(result_dtype(terms)),
        stored=stored_dtype(terms),
        transposed=terms[0].delta.transposed,
        weight_shape=shape if len(shape) > 2 else None,
    )


def average(terms: Sequence[Held], count: int) -> Dense:
    """Σ wᵢ·Wᵢ / count over the vectors that have the tensor, in fp64, cast once."""
    total = torch.zeros(terms[0].delta.numel, dtype=torch.float64)
    for t in terms:
        total.add_(t.delta.dense().reshape(-1).double(), alpha=t.weight)
    return dense_from(total / count, terms)


def dense_like(
    names: tuple[str, ...], get: Callable[[str], Delta], vectors: Sequence[TaskVector]
) -> Mapping[str, Delta]:
    """Deferred when an input is, or when the dense result would not comfortably be in memory; else computed now."""
    if any(isinstance(v.tensors, Deferred) for v in vectors):
        return Deferred(names, get)
    size = sum(math.prod(next(v.tensors[n].shape for v in vectors if n in v.tensors)) for n in names)
    return Deferred(names, get) if size > IN_MEMORY else {n: get(n) for n in names}
