"""What two random subspaces look like: the null against which an overlap or an angle means something.

For independent uniform subspaces of ℝᵐ of dimensions r₁, r₂, F = ‖U₁ᵀU₂‖_F² = tr(P₁P₂) has

    mean r₁r₂/m,   variance 2·r₁r₂(m − r₁)(m − r₂) / (m²(m − 1)(m + 2)).

(P₂ minus its trace part is a uniformly rotated symmetric matrix; its second moments follow from the invariance under
O(m). For r₁ = r₂ = 1 it is the variance of Beta(1/2, (m−1)/2).) Random is not zero: the overlap F/min(r₁, r₂) is r/m.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from comgrad.errors import ComgradError

DRAWS = 512


def overlap_mean(m: int, r1: int, r2: int) -> float:
    """Mean of ‖U₁ᵀU₂‖_F² for independent uniform subspaces: r₁r₂/m."""
    _check(m, r1, r2)
    return r1 * r2 / m


def overlap_variance(m: int, r1: int, r2: int) -> float:
    """Variance of ‖U₁ᵀU₂‖_F²; 0 when one subspace is all of ℝᵐ."""
    _check(m, r1, r2)
    if m == 1:
        return 0.0
    return 2.0 * r1 * r2 * (m - r1) * (m - r2) / (m**2 * (m - 1) * (m + 2))


def overlap_z(squared: Tensor, m: int, rank_1: Tensor, rank_2: Tensor) -> Tensor:
    """(F − mean)/standard deviation; NaN where a rank is 0 or the null has no spread.

    Args:
        squared: F = ‖U₁ᵀU₂‖_F², any shape; rank_1, rank_2: of the same shape, or broadcast to it.
    """
    r1, r2 = rank_1.double(), rank_2.double()
    variance = 2.0 * r1 * r2 * (m - r1) * (m - r2) / (m**2 * max(m - 1, 1) * (m + 2))
    return torch.where(variance > 0, (squared - r1 * r2 / m) / variance.sqrt(), torch.nan)


def pooled_z(z: Tensor) -> Tensor:
    """Σz/√T over the first axis and its T defined entries: one z of unit variance under the null.

    It takes the tensors as independent. Tensors of one training run are not quite, so a pooled z ranks pairs and
    rejects the null of unrelated subspaces; its tail probability is not calibrated.
    """
    defined = ~z.isnan()
    count = defined.sum(0).double()
    return torch.where(count > 0, z.nansum(0) / count.clamp_min(1).sqrt(), torch.nan)


@lru_cache(maxsize=256)
def expected_distance(m: int, r1: int, r2: int, measure: str = "grassmann_l1", seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of Σθ (`grassmann_l1`) or √Σθ² (`geodesic`) under the null, over min(r₁, r₂) angles.

    By simulation with a seeded generator, 512 draws: a fixed coordinate subspace against the span of a Gaussian matrix.

    Raises:
        ComgradError: ranks outside 1…m, or another measure.
    """
    _check(m, r1, r2)
    if measure not in ("grassmann_l1", "geodesic"):
        raise ComgradError(f"the measure '{measure}'", "it has no simulated null", "use grassmann_l1 or geodesic")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(DRAWS):
        Q, _ = torch.linalg.qr(torch.randn(m, r2, generator=generator, dtype=torch.float64))
        theta = torch.linalg.svdvals(Q[:r1]).clamp(0.0, 1.0).arccos()
        values.append(theta.sum() if measure == "grassmann_l1" else theta.norm())
    sample = torch.stack(values)
    return float(sample.mean()), float(sample.std())


def _check(m: int, r1: int, r2: int) -> None:
    if not (1 <= r1 <= m and 1 <= r2 <= m):
        raise ComgradError(
            f"subspaces of dimensions {r1} and {r2} in ℝ^{m}",
            "a subspace has between 1 and m dimensions",
            "check the ranks (a zero delta spans nothing)",
        )


__all__ = ["expected_distance", "overlap_mean", "overlap_variance", "overlap_z", "pooled_z"]
