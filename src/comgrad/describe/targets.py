"""What the learned embedding h is taught: a similarity between known tasks, one row and column per task.

| target | similarity of tasks i and j |
|---|---|
| `frobenius` | cos(τ_i, τ_j) from the Gram matrix: the note's projection, free of norms |
| `centred` | cos(u_i − ū, u_j − ū), u = τ/‖τ‖: what is left when the mean of all vectors is taken out |
| `functional` | cos(F_i, F_j) in the metric M⁻¹, M = G/ḡ + βFᵀF/Q: whether the same vectors help both |

For the input-weighted form, give `frobenius` or `centred` the input-weighted Gram matrix
tr(ΔW_i C ΔW_jᵀ), C = E[xxᵀ] of each layer's inputs (`evaluate/input_metric.py`).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Square = Float[np.ndarray, "k k"]


def frobenius(gram: Square) -> Square:
    """Cosines (K, K)."""
    return _cosine(gram)


def centred(gram: Square) -> Square:
    """Cosines of the centred unit vectors (K, K)."""
    K = len(gram)
    C = np.eye(K) - 1.0 / K
    return _cosine(C @ _cosine(gram) @ C)


def functional(gains: Float[np.ndarray, "q k"], gram: Square, risk: float) -> Float[np.ndarray, "q q"]:
    """Similarity of what would help (Q, Q).

    Args:
        gains: F, rows of Q tasks over K vectors, nats.
        gram: G of the K vectors.
        risk: β, 1/nats.
    """
    metric = gram / np.diag(gram).mean() + risk * gains.T @ gains / len(gains)
    return _cosine(gains @ np.linalg.solve(metric, gains.T))


def _cosine(inner: Square) -> Square:
    own = np.diag(inner)
    size = np.sqrt(np.where(own > 0.0, own, np.inf))
    cosine: Square = np.clip(inner / np.outer(size, size), -1.0, 1.0)
    return cosine
