"""Further points placed on a finished map, each among the points of it that it is nearest to.

A map of thousands cannot be made anew for each vector, and its points must not jump. So the map of some of them, the
landmarks, is made once, and every other point is put among its nearest landmarks. A point's place depends on the landmarks
and on itself only: it stays where it is, whatever comes later.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

NEAREST = 4


def place(
    similarity: Float[np.ndarray, "n l"], positions: Float[np.ndarray, "l 2"], *, nearest: int = NEAREST
) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, "n"]]:
    """x = Σ_l w_l x_l / Σ_l w_l over a point's nearest landmarks, w_l = max(s_l, 0.001)²; and which is the nearest.

    Few and nearest, because the larger similarities are those that are known well: where s is estimated with an error
    that is as large as most of its values, the fit to all of them (least squares of the distances, a linear map) puts
    everything near the middle.

    Args:
        similarity: s of each point to each landmark. positions: of the landmarks.
    """
    near = np.argsort(-similarity, axis=1, kind="stable")[:, :nearest]
    weight = np.maximum(np.take_along_axis(similarity, near, axis=1), 1e-3).astype(np.float64) ** 2
    found: Float[np.ndarray, "n 2"] = (positions[near] * weight[..., None]).sum(axis=1) / weight.sum(axis=1)[:, None]
    return found, near[:, 0]


def centred(rows: Float[np.ndarray, "n d"], mean: Float[np.ndarray, "d"]) -> Float[np.ndarray, "n d"]:
    """Unit rows of row − mean, whose inner products are centred cosines; 0 where a row equals the mean."""
    away = rows - mean
    size = np.linalg.norm(away, axis=1, keepdims=True)
    found: Float[np.ndarray, "n d"] = np.where(size > 1e-6, away / np.maximum(size, 1e-6), 0.0)
    return found
