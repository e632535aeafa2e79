"""Numerical rank of a stored delta, and its canonical form ΔW = U diag(S) Vᵀ restricted to that rank.

Factors are stored in a dtype whose rounding is far coarser than the arithmetic, so a space of 4 dimensions stored with
16 columns looks 16-dimensional to any rule based on the working precision. Rounding of relative size u puts independent
errors of standard deviation u/√3 · rms(B) on the entries of B; the largest singular value of such a matrix is close to
(√m + √r) times that. Singular values above three times it are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from comgrad.errors import ComgradError
from comgrad.vectors.delta import UNIT_ROUNDOFF, Dense, LowRank, matrix_shape

EPS = 2.0**-52
ENERGY = 0.99  # share of Σσ² that the leading directions of a dense delta must hold


def tolerance(rms: Tensor, largest: Tensor, m: int, r: int, stored: torch.dtype) -> Tensor:
    """Smallest singular value that is no rounding noise: 3·(u/√3)·rms·(√m + √r), u the STORED dtype's roundoff.

    The rounding of the fp64 decomposition itself, 4·eps·(√m + √r)/√m of the largest singular value, is the floor; it
    only matters for factors stored in fp64.
    """
    spread = math.sqrt(m) + math.sqrt(r)
    rule = 3.0 * UNIT_ROUNDOFF[stored] / math.sqrt(3.0) * rms * spread
    return torch.maximum(rule, 4.0 * EPS * spread / math.sqrt(m) * largest)


def numerical_rank(X: Tensor, stored: torch.dtype | None = None) -> int:
    """Number of singular values of a matrix (m, r) above `tolerance`.

    Args:
        stored: dtype the entries were rounded to when stored; the dtype of X when None.
    """
    X64 = X.double()
    S = torch.linalg.svdvals(X64)
    if S.numel() == 0 or float(S[0]) == 0.0:
        return 0
    cut = tolerance(X64.square().mean().sqrt(), S[0], X.shape[0], X.shape[1], stored or X.dtype)
    return int((cut < S).sum())


@dataclass(frozen=True, eq=False)
class Canonical:
    """ΔW restricted to its numerical rank, for a batch of deltas of one shape.

    U (c, m, w) and V (c, n, w) have orthonormal columns up to `rank` and zeros beyond; S (c, w) likewise, descending.
    `energy` (c,) is ‖ΔW‖_F² of the delta as stored, `cut` (c,) whether directions were left out of U, S, V.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    rank: Tensor  # (c,) int64
    energy: Tensor
    cut: Tensor  # (c,) bool


def canonical_lowrank(
    B: Tensor, A: Tensor, scale: Tensor, stored: torch.dtype, out: tuple[Tensor, Tensor] | None = None
) -> Canonical:
    """Canonical form of c low-rank deltas, QR of both factors and an SVD of the small core; no (m, n) matrix is formed.

    With full numerical rank r in one factor, rank ΔW is the rank of the other. When both are deficient, rank ΔW is the
    number of principal cosines between the row space of B and the column space of A (both inside ℝʳ) that exceed
    tol_B/σ_min(B) + tol_A/σ_min(A), σ_min over the kept values: by Wedin's theorem those spaces are known no better.

    Args:
        B: (c, m, r) fp64. A: (c, r, n) fp64. scale: (c,).
        out: where to put Uᵀ (c, w, m) and Vᵀ (c, w, n), w = min(m, n, r), so that a stack is written only once.
    """
    _, m, r = B.shape
    n = A.shape[2]
    Qb, Rb = torch.linalg.qr(B)  # (c, m, p), (c, p, r)
    Qa, Ra = torch.linalg.qr(A.mT)  # (c, n, q), (c, q, r)
    Sb, Sa = torch.linalg.svdvals(Rb), torch.linalg.svdvals(Ra)
    tol_b = tolerance((Sb.square().sum(1) / (m * r)).sqrt(), Sb[:, 0], m, r, stored)
    tol_a = tolerance((Sa.square().sum(1) / (n * r)).sqrt(), Sa[:, 0], n, r, stored)
    rank_b, rank_a = (Sb > tol_b[:, None]).sum(1), (Sa > tol_a[:, None]).sum(1)
    core = Rb @ Ra.mT  # (c, p, q)
    u, S, vh = torch.linalg.svd(core, full_matrices=False)
    energy = (S * scale[:, None]).square().sum(1)
    width = S.shape[1]
    rank = torch.full_like(rank_b, width)
    for i in torch.nonzero((rank_b < width) | (rank_a < width)).flatten().tolist():
        part = _restricted(Rb[i], Ra[i], int(rank_b[i]), int(rank_a[i]), float(tol_b[i]), float(tol_a[i]))
        u[i], S[i], vh[i], rank[i] = part
    rank = torch.where(energy > 0, rank, torch.zeros_like(rank))
    keep = torch.arange(width) < rank[:, None]
    S = torch.where(keep, S * scale.abs()[:, None], 0.0)
    u *= (keep * torch.where(scale < 0, -1.0, 1.0)[:, None])[:, None]
    vh *= keep[:, :, None]
    # frames as rows: the layout that the products over all pairs want
    Ut = torch.matmul(u.mT, Qb.mT, out=None if out is None else out[0])
    Vt = torch.matmul(vh, Qa.mT, out=None if out is None else out[1])
    return Canonical(Ut.mT, S, Vt.mT, rank, energy, rank < width)


def _restricted(
    Rb: Tensor, Ra: Tensor, rank_b: int, rank_a: int, tol_b: float, tol_a: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    """SVD of the core with both factors cut to their numerical ranks: u (p, w), S (w,), vh (w, q), rank."""
    p, r = Rb.shape
    q = Ra.shape[0]
    width = min(p, q)
    ub, sb, wb = torch.linalg.svd(Rb, full_matrices=False)
    ua, sa, wa = torch.linalg.svd(Ra, full_matrices=False)
    ub, sb, wb = ub[:, :rank_b], sb[:rank_b], wb[:rank_b]
    ua, sa, wa = ua[:, :rank_a], sa[:rank_a], wa[:rank_a]
    u_out, s_out, v_out = Rb.new_zeros(p, width), Rb.new_zeros(width), Rb.new_zeros(width, q)
    rank = min(rank_b, rank_a)
    if rank == 0:
        return u_out, s_out, v_out, 0
    meet = wb @ wa.T  # (rank_b, rank_a): cosines between the two subspaces of ℝʳ
    if rank_b < r and rank_a < r:
        known = min(0.5, tol_b / float(sb[-1]) + tol_a / float(sa[-1]))
        rank = int((torch.linalg.svdvals(meet) > known).sum())
    u, s, vh = torch.linalg.svd(sb[:, None] * meet * sa[None, :], full_matrices=False)
    u_out[:, :rank], s_out[:rank], v_out[:rank] = ub @ u[:, :rank], s[:rank], vh[:rank] @ ua.T
    return u_out, s_out, v_out, rank


def canonical_dense(W: Tensor, stored: torch.dtype, energy: float = ENERGY) -> Canonical:
    """Canonical form of one dense delta (m, n), cut to a rank that means something.

    The rounding of a dense delta sits in the two checkpoints it came from, whose entries are larger than its own, so
    `tolerance` with rms(ΔW) is a lower bound of the noise. When the rank it finds is at most min(m, n)/2 the delta IS
    low-rank (a merged adapter, say) and that rank is used. Otherwise all of ℝᵐ would be the column space and every
    angle 0: the leading directions that hold the share `energy` of Σσ² are used, never more than min(m, n)/2.
    """
    m, n = W.shape
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    squares = S.square()
    total = squares.sum()
    half = max(1, min(m, n) // 2)
    rank = 0
    if float(total) > 0:
        cut = tolerance(W.double().square().mean().sqrt(), S[0], m, n, stored)
        rank = int((cut < S).sum())
        if rank > half:
            rank = min(half, 1 + int((squares.cumsum(0) < energy * total).sum()))
    return Canonical(
        U[None, :, :rank],
        S[None, :rank],
        Vh[None, :rank].mT,
        torch.tensor([rank]),
        total[None],
        torch.tensor([rank < S.numel()]),
    )


def canonical(delta: Dense | LowRank, energy: float = ENERGY) -> Canonical:
    """Canonical form of one delta (batch of one). Convolution kernels are taken as (out, in·kh·kw).

    Raises:
        ComgradError: the delta is no matrix (a bias, a norm), or holds a non-finite number.
    """
    if not delta.is_matrix:
        raise ComgradError(
            f"a delta of shape {delta.shape}", "only a matrix has a column space", "leave biases and norms out"
        )
    if isinstance(delta, LowRank):
        _finite(delta.B, delta.A)
        B, A = delta.B.double()[None], delta.A.double()[None]
        return canonical_lowrank(B, A, torch.tensor([delta.scale], dtype=torch.float64), delta.stored)
    _finite(delta.W)
    return canonical_dense(delta.W.reshape(matrix_shape(delta)), delta.stored, energy)


def _finite(*tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise ComgradError(
            "a delta with NaN or infinite entries",
            "no distance to it has a value, and NaN would win every ranking",
            "find the broken tensor in the file it came from",
            code="not-finite",
        )
