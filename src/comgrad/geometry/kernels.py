"""Principal angles and diagonal spectra of a batch of pairs; every other module states its formulas through these.

θ is computed three ways, each where it is accurate to 1e-10 or better. With M = U₁ᵀU₂ and λ = cos²θ an eigenvalue of MMᵀ:
inside (θ from 1e-3 to π/2 − 1e-5) atan2(√(1−λ), √λ) loses at most eps/sin 2θ and needs no singular vectors. Near π/2
the square has lost σ, so arccos of a singular value of M is used. Near 0 arccos loses everything, so the sine comes from
the residual: atan2 of a singular value of (I − U₁U₁ᵀ)U₂ and σ (Knyazev and Argentati 2002). Its singular values, not the
norms of its columns along the singular vectors z of M: cosines of angles below 1e-5 are too close for z to be resolved,
and an angle of 1e-8 beside one of 1e-6 would come out wrong by a part in a hundred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL_SINE_SQUARED = 1e-6
SMALL_COSINE_SQUARED = 1e-10
HALF_PI = math.pi / 2


def angles_exact(U1: Tensor, U2: Tensor) -> Tensor:
    """Principal angles of c pairs of orthonormal frames, ascending, (c, min(w₁, w₂)) radians.

    Args:
        U1: (c, w₁, m) frames as rows; rows beyond a frame's rank are zero and give π/2. U2: (c, w₂, m).
    """
    if U1.shape[1] < U2.shape[1]:
        U1, U2 = U2, U1
    M = U1 @ U2.mT  # (c, w1, w2), w2 the smaller
    cosine = torch.linalg.svdvals(M)
    sine = torch.linalg.svdvals(U2 - M.mT @ U1).flip(1)  # of the rows of U₂ outside the first space, ascending
    w = sine.shape[1]
    padding = (U2.abs().amax(2) == 0).sum(1, keepdim=True)  # zero rows have zero residuals: not angles, passed over
    sine = sine.gather(1, (torch.arange(w) + padding).clamp_max(w - 1))
    return torch.where(cosine > 0.7, torch.atan2(sine, cosine), cosine.clamp(0.0, 1.0).arccos())


def angles_inside(M: Tensor) -> tuple[Tensor, Tensor]:
    """Angles from the squared cosines alone, (c, w) ascending, and cos²θ; accurate away from 0 and π/2."""
    C = M @ M.mT if M.shape[1] <= M.shape[2] else M.mT @ M
    squared = torch.linalg.eigvalsh(C).flip(-1).clamp(0.0, 1.0)
    return torch.atan2((1.0 - squared).sqrt(), squared.sqrt()), squared


def needs_exact(squared: Tensor, valid: Tensor) -> Tensor:
    """(c,) whether any angle of the pair lies where `angles_inside` loses accuracy."""
    near = (squared > 1.0 - SMALL_SINE_SQUARED) | (squared < SMALL_COSINE_SQUARED)
    return (near & valid).any(1)


@dataclass(frozen=True, eq=False)
class SpectralStats:
    """Comparisons of two spectra over the last axis; NaN where a value is undefined."""

    explained: Tensor
    l1: Tensor
    l2: Tensor
    rec: Tensor
    entropy_2: Tensor


def lp_distance(s1: Tensor, s2: Tensor, p: float | int) -> Tensor:
    """(Σ|s1 − s2|^p)^(1/p) over the last axis."""
    gap = (s1 - s2).abs()
    if p == 1:
        return gap.sum(-1)
    return gap.square().sum(-1).sqrt() if p == 2 else gap.pow(p).sum(-1).pow(1.0 / p)


def shares(s: Tensor) -> Tensor:
    """|s|/Σ|s| over the last axis; NaN for a zero spectrum."""
    size = s.abs()
    return size / size.sum(-1, keepdim=True)


def entropy(s: Tensor, rank: Tensor) -> Tensor:
    """Shannon entropy of |s|/Σ|s| divided by log rank, in [0, 1]; 0 for rank 1, NaN for a zero spectrum or rank 0."""
    return _entropy_of(shares(s), rank)


def _entropy_of(p: Tensor, rank: Tensor) -> Tensor:
    raw = -(p.clamp_min(1e-300).log_().mul_(p)).sum(-1)  # 0·log 0 = 0, and a NaN stays
    scale = torch.where(rank > 1, rank, 2).double().log()
    return torch.where(rank > 1, raw / scale, torch.where(rank == 1, 0.0 * raw, torch.nan))


def spectral_stats(s1: Tensor, s2: Tensor, rank: Tensor, energy: Tensor) -> SpectralStats:
    """Compare S₁ with the signed S₂ of another delta in its frame.

    Args:
        s1: (..., w) spectrum of ΔW₁, zero beyond its rank; s2: (..., w); rank: rank of ΔW₁; energy: ‖ΔW₂‖².
    """
    known = (rank > 0) & (energy > 0)
    p1, p2 = shares(s1), shares(s2)
    gap = s1 - s2
    return SpectralStats(
        torch.where(known, torch.linalg.vecdot(s2, s2) / energy, torch.nan),
        torch.where(known, gap.abs().sum(-1), torch.nan),
        torch.where(known, torch.linalg.vecdot(gap, gap).sqrt(), torch.nan),
        torch.where(known, torch.minimum(p1, p2).sum(-1), torch.nan),
        torch.where(known, _entropy_of(p2, rank), torch.nan),
    )
