"""Methods on the singular vectors of each matrix: TSV-M and Iso-C.

Both act on the weighted vectors wᵢ·τᵢ, matrix by matrix; convolution kernels are matrices (out, in·kh·kw). A tensor that
is no matrix is averaged, Σ wᵢ·τᵢ / T. Decompositions are in fp64, from the factors where a delta is low-rank, and the
result is cast once; it is low-rank wherever every delta of the tensor is.

Directions without energy have no meaning, so they take no part: a singular value counts from max(m, n)·2⁻²⁴ of the
largest one up. Dense and factored forms of one delta thus give one result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from comgrad.vectors import delta as _delta
from comgrad.vectors.cutting import factored_svd
from comgrad.vectors.delta import UNIT_ROUNDOFF, Delta, Dense, LowRank, matrix_shape
from comgrad.vectors.merging.common import (
    Held,
    all_low,
    all_names,
    average,
    dense_from,
    dense_like,
    held,
    is_matrix,
    low_from,
    one_base,
)
from comgrad.vectors.merging.settings import Settings
from comgrad.vectors.task_vector import TaskVector, like

_DEPENDENT = 1e-6  # singular value of stacked orthonormal bases below which a direction is a copy of others


def numerical_rank(S: Tensor, shape: tuple[int, ...], floor: float = 0.0) -> int:
    """Number of singular values that count: above max(m, n)·2⁻²⁴ of the largest, and above `floor`."""
    if S.numel() == 0 or float(S[0]) <= floor:
        return 0
    least = max(max(shape) * UNIT_ROUNDOFF[torch.float32] * float(S[0]), floor)
    return int(S.gt(least).sum())


def nearest_orthonormal(M: Tensor) -> Tensor:
    """The polar factor P·Qᵀ of M = P·D·Qᵀ, over the directions that are there: M·(MᵀM)^{+1/2}.

    For independent columns this is the nearest matrix with orthonormal columns; dependent ones share a direction.
    """
    P, D, Qh = torch.linalg.svd(M, full_matrices=False)
    k = int(D.gt(_DEPENDENT * D[:1]).sum()) if D.numel() else 0
    factor: Tensor = P[:, :k] @ Qh[:k]
    return factor


def tsv_m(vectors: Sequence[TaskVector], weights: Sequence[float], _: Settings) -> TaskVector:
    """Task singular vectors, thinned out and made orthogonal. See `merge.METHODS`."""
    count = len(vectors)

    def of_matrix(terms: list[Held]) -> tuple[Tensor, Tensor]:
        m, n = matrix_shape(terms[0].delta)
        U, S, Vh = _stacked(terms, max(1, min(m, n) // count))
        order = S.argsort(descending=True, stable=True)[: min(m, n)].sort().values  # more vectors than dimensions
        root = S[order].sqrt()
        return nearest_orthonormal(U[:, order]) * root, root[:, None] * nearest_orthonormal(Vh[order].T).T

    return _matrix_by_matrix(vectors, weights, of_matrix)


def _stacked(terms: Sequence[Held], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading `most` singular triples of every wᵢ·τᵢ side by side; the weight's sign goes to the left."""
    parts = []
    for t in terms:
        U, S, Vh = factored_svd(t.delta)
        k = min(most, numerical_rank(S, matrix_shape(t.delta))) if t.weight else 0
        parts.append((U[:, :k] * math.copysign(1.0, t.weight), S[:k] * abs(t.weight), Vh[:k]))
    return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])


def iso_c(vectors: Sequence[TaskVector], weights: Sequence[float], _: Settings) -> TaskVector:
    """The sum with all its singular values made equal. See `merge.METHODS`."""

    def of_matrix(terms: list[Held]) -> tuple[Tensor, Tensor]:
        U, S, Vh = factored_svd(_sum64(terms))
        size = math.fsum(abs(t.weight) * math.sqrt(max(0.0, _delta.inner(t.delta, t.delta))) for t in terms)
        k = numerical_rank(S, matrix_shape(terms[0].delta), 1e-12 * size)  # what is left of vectors that cancel
        root = S[:k].mean().sqrt() if k else S.new_zeros(())
        return U[:, :k] * root, root * Vh[:k]

    return _matrix_by_matrix(vectors, weights, of_matrix)


def _sum64(terms: Sequence[Held]) -> Delta:
    """Σ wᵢ·τᵢ of one matrix in fp64, factored where all terms are."""
    if all_low(terms):
        low = [t.delta for t in terms if isinstance(t.delta, LowRank)]
        return _delta.concatenate(
            [
                replace(d, B=d.B.double(), A=d.A.double(), scale=d.scale * t.weight)
                for d, t in zip(low, terms, strict=True)
            ]
        )
    total = torch.zeros(matrix_shape(terms[0].delta), dtype=torch.float64)
    for t in terms:
        total.add_(t.delta.dense().reshape(total.shape).double(), alpha=t.weight)
    return Dense(total)


def _matrix_by_matrix(
    vectors: Sequence[TaskVector],
    weights: Sequence[float],
    of_matrix: Callable[[list[Held]], tuple[Tensor, Tensor]],
) -> TaskVector:
    def of_tensor(name: str) -> Delta:
        terms = held(vectors, weights, name)
        if not is_matrix(terms):
            return average(terms, len(vectors))
        B, A = of_matrix(terms)
        return low_from(B, A, terms) if all_low(terms) else dense_from(B @ A, terms)

    names, base = all_names(vectors), one_base(vectors)
    if all(v.kind == "lowrank" for v in vectors):
        return TaskVector(base, like(names, of_tensor, *(v.tensors for v in vectors)))
    return TaskVector(base, dense_like(names, of_tensor, vectors))
