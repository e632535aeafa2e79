"""Two versions of a map laid on each other: Procrustes, and how far each point has drifted.

A map's axes, their signs and its size mean nothing, so versions are compared after the best rotation or reflection, shift
and scale. Source: Schönemann (1966), Gower (1975).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Alignment:
    """x ↦ scale · x R + shift, which brings one map nearest to another.

    Args:
        rotation: R (d, d), orthogonal.
        moved: (K, d) the moving map after it.
        drift: (K,) distance of each point from its place in the fixed map, in units of that map's radius √(mean ‖x − x̄‖²).
        overall: root mean square of the drifts: 0 where the maps have one shape, at most 1.
    """

    rotation: Float[np.ndarray, "d d"]
    scale: float
    shift: Float[np.ndarray, "d"]
    moved: Float[np.ndarray, "k d"]
    drift: Float[np.ndarray, "k"]
    overall: float

    def apply(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Other points of the moving map in the fixed map's frame."""
        moved: Float[np.ndarray, "n d"] = self.scale * points @ self.rotation + self.shift
        return moved


def align(moving: Float[np.ndarray, "k d"], fixed: Float[np.ndarray, "k d"]) -> Alignment:
    """The similarity transform that minimises Σ ‖scale · x_i R + shift − y_i‖² over the points of two maps.

    With X, Y centred and XᵀY = U S Vᵀ: R = U Vᵀ, scale = Σ S / ‖X‖². Where a direction is flat in one of the maps its
    sign is free; R is then the one without a reflection.
    """
    x, y = moving.mean(axis=0), fixed.mean(axis=0)
    X, Y = moving - x, fixed - y
    U, S, Vt = np.linalg.svd(X.T @ Y)
    if len(S) and S[-1] <= 1e-12 * max(float(S[0]), 1e-300) and np.linalg.det(U @ Vt) < 0:
        U[:, -1] *= -1.0
    R = U @ Vt
    own = float((X**2).sum())
    scale = float(S.sum()) / own if own > 0.0 else 1.0
    shift = y - scale * x @ R
    moved = scale * moving @ R + shift
    radius = float(((Y**2).sum() / max(len(Y), 1)) ** 0.5)
    apart = np.linalg.norm(moved - fixed, axis=1)
    drift = apart / radius if radius > 0.0 else np.zeros(len(apart))
    return Alignment(R, scale, shift, moved, drift, float((drift**2).mean() ** 0.5) if len(drift) else 0.0)


def shuffled_drift(
    moving: Float[np.ndarray, "k d"], fixed: Float[np.ndarray, "k d"], *, rounds: int = 200, seed: int = 0
) -> Float[np.ndarray, "r"]:
    """The overall drift of maps whose points were paired at random: what no shared shape at all looks like."""
    draw = np.random.default_rng(seed)
    return np.array([align(moving[draw.permutation(len(moving))], fixed).overall for _ in range(rounds)])
