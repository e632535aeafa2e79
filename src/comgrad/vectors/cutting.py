"""Cutting a delta to few directions: its singular value decomposition, exact, and the best approximation of a rank."""

from __future__ import annotations

import torch
from torch import Tensor

from comgrad.vectors.delta import Delta, Dense, LowRank, inner, matrix_shape


def compress(d: Delta, rank: int) -> tuple[Delta, float, float]:
    """Best rank-`rank` approximation in the Frobenius norm, balanced factors B = U√Σ, A = √ΣVᵀ.

    Low-rank input: QR of B and of Aᵀ, SVD of the r×r core, exact; dense input, and a sum of so many low-rank deltas that
    it has as many columns as a dense one: SVD. Where few directions of many are asked for, those alone are computed.
    Tensors that are no matrix stay.

    Returns:
        the delta, its energy Σσ² kept, and the whole energy.
    """
    if isinstance(d, Dense) and not d.is_matrix:
        energy = inner(d, d)
        return d, energy, energy
    U, S, Vh, energy = _leading(d, rank)
    root = S.sqrt()
    weight_shape = d.weight_shape if isinstance(d, LowRank) else (d.shape if len(d.shape) > 2 else None)
    dtype = (
        torch.float64
        if torch.float64 in (d.stored, d.dense().dtype if isinstance(d, Dense) else d.B.dtype)
        else torch.float32
    )
    small = LowRank(
        B=(U * root).to(dtype),
        A=(root[:, None] * Vh).to(dtype),
        stored=d.stored,
        transposed=d.transposed,
        weight_shape=weight_shape,
    )
    return small, float(S.square().sum()), energy


def _leading(d: Delta, rank: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """The first `rank` singular triplets, as `factored_svd` gives them, and ‖ΔW‖²."""
    low = min(matrix_shape(d))
    if isinstance(d, LowRank) and d.rank < low:
        found = _leading_of_factors(d, rank) if 8 * rank <= d.rank else None
    else:
        found = _leading_of_dense(d, rank) if 8 * rank <= low else None
    if found is not None:
        return found
    U, S, Vh = factored_svd(d)
    k = min(rank, S.numel())
    return U[:, :k], S[:k], Vh[:k], float(S.square().sum())


def _leading_of_dense(d: Delta, rank: int) -> tuple[Tensor, Tensor, Tensor, float] | None:
    W = d.scale * (d.B.double() @ d.A.double()) if isinstance(d, LowRank) else d.W.reshape(matrix_shape(d)).double()
    found = _leading_of(W, rank)
    return None if found is None else (*found, float(W.square().sum()))


def _leading_of_factors(d: LowRank, rank: int) -> tuple[Tensor, Tensor, Tensor, float] | None:
    """As `factored_svd`, with the orthonormal factors left as reflectors and turned for the leading directions alone."""
    (hb, tb), (ha, ta) = torch.geqrf(d.B.double()), torch.geqrf(d.A.double().T)
    r = d.rank
    core = d.scale * (hb[:r].triu() @ ha[:r].triu().T)
    found = _leading_of(core, rank)
    if found is None:
        return None
    u, S, vh = found
    U, V = (torch.ormqr(h, t, _tall(x, h.shape[0])) for h, t, x in ((hb, tb, u), (ha, ta, vh.T)))
    sign = _signs(U)
    return U * sign, S, (V * sign).T, float(core.square().sum())


def _tall(x: Tensor, rows: int) -> Tensor:
    """x with zeros below."""
    return torch.cat([x, x.new_zeros(rows - x.shape[0], x.shape[1])])


def _leading_of(W: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Leading left directions Q from the eigenvectors of WWᵀ, then the exact SVD of QᵀW.

    Squaring costs half the digits of what is small beside σ₁: None where a direction asked for is below 1e-4 σ₁, where
    the error of Q, about 1e-16·(σ₁/σ_k)², would pass 1e-8.
    """
    wide = W.shape[0] > W.shape[1]
    side = W.T if wide else W
    values, Q = _largest(side @ side.T, rank)
    if not values[0] > 1e-8 * values[-1]:
        return None
    u, S, vh = torch.linalg.svd(Q.T @ side, full_matrices=False)
    U, Vh = (vh.T, (Q @ u).T) if wide else (Q @ u, vh)
    sign = _signs(U)
    return U * sign, S, Vh * sign.T


def _largest(M: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of a symmetric M, ascending, and their vectors: without the others, in half the time."""
    if M.device.type != "cpu":
        values, vectors = torch.linalg.eigh(M)
        return values[-k:], vectors[:, -k:]
    from scipy.linalg import eigh  # a tenth of a second of imports

    n = M.shape[0]
    values, vectors = eigh(M.numpy(), subset_by_index=[n - k, n - 1], overwrite_a=True)
    return torch.from_numpy(values), torch.from_numpy(vectors)


def _signs(U: Tensor) -> Tensor:
    """(1, k): what makes the largest entry of each column positive."""
    sign = U.gather(0, U.abs().argmax(dim=0, keepdim=True)).sign()
    return torch.where(sign == 0, torch.ones_like(sign), sign)


def factored_svd(d: Delta) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD ΔW = U diag(S) Vᵀ in fp64 with deterministic signs (largest entry of each u positive).

    Returns:
        U (m, k), S (k,), Vh (k, n) with k = r for low-rank, min(m, n) for dense.
    """
    if isinstance(d, LowRank):
        Qb, Rb = torch.linalg.qr(d.B.double())
        Qa, Ra = torch.linalg.qr(d.A.double().T)
        u, S, vh = torch.linalg.svd(Rb @ Ra.T)
        k = S.numel()
        U, Vh = Qb @ u[:, :k], vh[:k] @ Qa.T
        if d.scale < 0:
            U = -U
        S = S * abs(d.scale)
    else:
        U, S, Vh = torch.linalg.svd(d.dense().reshape(matrix_shape(d)).double(), full_matrices=False)
    sign = _signs(U)
    return U * sign, S, Vh * sign.T
