"""KnOTS: merge in the coordinates of a left basis that all vectors share, so that related updates line up.

For each matrix [ΔW₁ … ΔW_T] = U·S·[V₁ᵀ … V_Tᵀ]; vector i has the coordinates Pᵢ = S·Vᵢᵀ = UᵀΔWᵢ (k, n). The inner
method merges the Pᵢ of all tensors as if they were task vectors, and the result is U·P. U comes from the factors when
all deltas of a tensor are low-rank (QR of the stacked B, SVD of a small core), and the result is then low-rank, of rank
k ≤ Σrᵢ, exactly. Tensors that are no matrix go to the inner method as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from comgrad.vectors.delta import Delta, Dense, LowRank, matrix_shape
from comgrad.vectors.merging.common import (
    Held,
    all_low,
    all_names,
    dense_from,
    dense_like,
    held,
    is_matrix,
    low_from,
    one_base,
)
from comgrad.vectors.merging.linear import weighted_sum
from comgrad.vectors.merging.settings import Settings
from comgrad.vectors.merging.sparse import dare, ties
from comgrad.vectors.merging.spectral import numerical_rank
from comgrad.vectors.task_vector import Deferred, TaskVector, like

INNER: Mapping[str, Callable[[Sequence[TaskVector], Sequence[float], Settings], TaskVector]] = {
    "ties": ties,
    "sum": weighted_sum,
    "dare": dare,
}


def shared_basis(terms: Sequence[Held]) -> Tensor:
    """U (m, k): left singular vectors of [ΔW₁ … ΔW_T] that carry energy, in fp64. Weights take no part."""
    if not all_low(terms):
        m = matrix_shape(terms[0].delta)[0]
        side = torch.cat([t.delta.dense().reshape(m, -1).double() for t in terms], dim=1)
        U, S, _ = torch.linalg.svd(side, full_matrices=False)
        carried: Tensor = U[:, : numerical_rank(S, tuple(side.shape))]
        return carried
    low = [t.delta for t in terms if isinstance(t.delta, LowRank)]
    Q, R = torch.linalg.qr(torch.cat([d.B.double() * d.scale for d in low], dim=1))
    columns = R.split([d.rank for d in low], dim=1)
    core = torch.cat(
        [c @ torch.linalg.qr(d.A.double().T).R.T for c, d in zip(columns, low, strict=True)], dim=1
    )  # R·diag(R₁ᵀ…R_Tᵀ), block by block
    u, S, _ = torch.linalg.svd(core, full_matrices=False)
    rank = numerical_rank(S, (Q.shape[0], sum(d.A.shape[1] for d in low)))
    left: Tensor = Q @ u[:, :rank]
    return left


def coordinates(U: Tensor, d: Delta) -> Tensor:
    """UᵀΔW (k, n) in fp64, never forming a low-rank ΔW."""
    if isinstance(d, LowRank):
        return (U.T @ (d.B.double() * d.scale)) @ d.A.double()
    return U.T @ d.dense().reshape(matrix_shape(d)).double()


def knots(vectors: Sequence[TaskVector], weights: Sequence[float], settings: Settings) -> TaskVector:
    """Merge by `settings.inner` in shared coordinates. See `merge.METHODS`."""
    names = all_names(vectors)

    @lru_cache(maxsize=1)
    def basis(name: str) -> Tensor | None:
        terms = held(vectors, weights, name)
        return shared_basis(terms) if is_matrix(terms) else None

    def seen_by(v: TaskVector) -> TaskVector:
        def of_tensor(name: str) -> Delta:
            U = basis(name)
            return v.tensors[name] if U is None else Dense(coordinates(U, v.tensors[name]))

        return TaskVector(v.base, Deferred(tuple(v.tensors), of_tensor))

    inner = INNER[settings.inner]([seen_by(v) for v in vectors], weights, settings).tensors

    def back(name: str) -> Delta:
        terms = held(vectors, weights, name)
        U = basis(name)
        if U is None:
            return inner[name]
        P = inner[name].dense().double()
        if not all_low(terms):
            return dense_from(U @ P, terms)
        size = float(P.norm()) / max(1, U.shape[1]) ** 0.5  # B and A of one size, so that both train at one rate
        c = size**0.5 if size > 0 else 1.0
        return low_from(U * c, P / c, terms)

    base = one_base(vectors)
    if all(v.kind == "lowrank" for v in vectors):
        return TaskVector(base, like(names, back, *(v.tensors for v in vectors)))
    return TaskVector(base, dense_like(names, back, vectors))
