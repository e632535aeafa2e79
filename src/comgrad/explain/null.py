"""What a residual is measured against: random vectors of the same shape and norms, and the described vectors themselves.

*Random.* A random adapter has in each tensor the norm of τ and a direction that is uniform up to rotations on both sides
(Gaussian factors). By that invariance E[vec vecᵀ] = ‖ΔW‖²/(mn)·I whatever its rank, so its inner products with the
described vectors have mean zero and covariance

    Σ_tensors ‖τ_t‖²/(m_t n_t) · G_t

exactly; they are sums over many directions and are drawn as Gaussian. No vector is ever formed.

*Left out.* Each described vector is decomposed on the others by the same rule: what a real vector of this kind looks like.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from comgrad.explain.decomposition import Decomposition, decompose
from comgrad.explain.reference import Reference

DRAWS = 99
SAMPLE = 150  # described vectors that are left out, evenly over the registry


def random_inner(spread: Float[np.ndarray, "k k"], draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "n k"]:
    """Inner products of random vectors with the described ones.

    Args:
        spread: their covariance (K, K), see above.
    """
    values, turn = np.linalg.eigh((spread + spread.T) / 2.0)
    root = np.sqrt(np.maximum(values, 0.0))
    noise = np.random.default_rng(seed).standard_normal((draws, len(spread)))
    out: Float[np.ndarray, "n k"] = (noise * root) @ turn.T
    return out


def random_residuals(
    gram: Float[np.ndarray, "k k"],
    spread: Float[np.ndarray, "k k"],
    energy: float,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Float[np.ndarray, "n"]:
    """Residual shares of random vectors, decomposed by the same rule."""
    return np.array([decompose(gram, b, energy).residual for b in random_inner(spread, draws, seed)])


def left_out_decomposition(reference: Reference, index: int, *, group: bool = False) -> Decomposition:
    """One described vector on the others."""
    others, probe = reference.left_out(index, group=group)
    return decompose(others.total, probe.inner.sum(axis=0), probe.total)


def sampled(count: int, most: int = SAMPLE) -> list[int]:
    """At most `most` places, evenly over `count`."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def share_at_most(values: Float[np.ndarray, "n"], value: float) -> float:
    """Share of the values that are no larger, in [0, 1], counting the value itself as one more: never 0, so that a
    hundred draws never claim more than they can show. 1 where there are none."""
    return float((1 + (values <= value).sum()) / (1 + len(values)))


def share_at_least(values: Float[np.ndarray, "n"], value: float) -> float:
    """Share of the values that are no smaller, the value itself counted."""
    return float((1 + (values >= value).sum()) / (1 + len(values)))
