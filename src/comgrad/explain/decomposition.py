"""Decomposition of a vector on described vectors: non-negative, sparse, from inner products alone.

    minimise ‖τ − Σ_k c_k τ_k‖²  with c ≥ 0

in two steps. *Full*: Lawson and Hanson's non-negative least squares on all K vectors. *Sparse*: vectors are added one at a
time, always the one with the largest positive cosine with the residual, and all coefficients are fitted again. The path
ends when `ENOUGH` of what the full solution explains is explained and the next vector alone would add less than `LITTLE`
of ‖τ‖², and at `MOST` vectors at the latest. What is reported is the sparse solution. Nothing depends on any vector's norm
but the coefficients themselves.

Source: Lawson and Hanson, Solving Least Squares Problems (1974), ch. 23; the path is orthogonal matching pursuit
(Pati et al. 1993) with non-negative coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import nnls

ENOUGH = 0.9
LITTLE = 0.01
MOST = 12
CANDIDATES = 400  # the vectors with the largest cosine take part; more cost time and explain nothing more
NOISE = 1e-10  # eigenvalues of the Gram matrix below this share of the largest are rounding


@dataclass(frozen=True)
class Decomposition:
    """τ ≈ Σ c_k τ_k.

    Args:
        coefficients: c (K,) of the vectors as they are, ≥ 0, at most `MOST` of them not zero.
        residual: ‖τ − Σ c_k τ_k‖²/‖τ‖², in [0, 1].
        full_residual: the same with all vectors allowed: never larger.
        order: the chosen vectors in the order in which they were added.
    """

    coefficients: Float[np.ndarray, "k"]
    residual: float
    full_residual: float
    order: Int[np.ndarray, "s"]

    @property
    def explained(self) -> float:
        """1 − residual."""
        return 1.0 - self.residual


def decompose(
    gram: Float[np.ndarray, "k k"], inner: Float[np.ndarray, "k"], energy: float, *, most: int = MOST
) -> Decomposition:
    """The sparse non-negative decomposition of a vector.

    Args:
        gram: ⟨τ_i, τ_j⟩. inner: ⟨τ, τ_k⟩. energy: ‖τ‖²; 0 gives no coefficients and residual 1.
        most: how many vectors it may use.
    """
    K = len(inner)
    size = np.sqrt(np.maximum(np.diag(gram), 0.0))
    if energy <= 0.0 or not (size > 0).any():
        return Decomposition(np.zeros(K), 1.0, 1.0, np.zeros(0, dtype=np.int64))
    safe = np.where(size > 0, size, np.inf)
    b = inner / safe / np.sqrt(energy)
    use = np.sort(np.argsort(-b, kind="stable")[:CANDIDATES])
    use = use[b[use] > 0]
    G = (gram / np.outer(safe, safe))[np.ix_(use, use)]
    full, sparse, order = _path(G, b[use], most)
    c = np.zeros(K)
    c[use] = sparse * np.sqrt(energy) / size[use]
    return Decomposition(c, _residual(G, b[use], sparse), _residual(G, b[use], full), use[order])


def _path(
    G: Float[np.ndarray, "k k"], b: Float[np.ndarray, "k"], most: int
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Int[np.ndarray, "s"]]:
    """Full and sparse coefficients in unit vectors, and the order of the sparse ones."""
    full = non_negative(G, b)
    goal = ENOUGH * (1.0 - _residual(G, b, full))
    sparse = np.zeros(len(b))
    order: list[int] = []
    while len(order) < min(most, len(b)):
        slope = b - G @ sparse
        slope[order] = -np.inf
        best = int(np.argmax(slope))
        enough = 1.0 - _residual(G, b, sparse) >= goal and slope[best] ** 2 < LITTLE
        if slope[best] <= 1e-12 or enough:
            break
        order.append(best)
        sparse = np.zeros(len(b))
        sparse[order] = non_negative(G[np.ix_(order, order)], b[order])
    return full, sparse, np.array([i for i in order if sparse[i] > 0], dtype=np.int64)


def non_negative(G: Float[np.ndarray, "k k"], b: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    """argmin over c ≥ 0 of cᵀGc − 2bᵀc, for a positive semi-definite G with b in its range."""
    if not len(b):
        return np.zeros(0)
    values, turn = np.linalg.eigh(G)
    kept = values > NOISE * values[-1]
    root = np.sqrt(values[kept])
    A = root[:, None] * turn[:, kept].T
    found: Float[np.ndarray, "k"] = nnls(A, (turn[:, kept].T @ b) / root, maxiter=max(100, 30 * len(b)))[0]
    return found


def _residual(G: Float[np.ndarray, "k k"], b: Float[np.ndarray, "k"], c: Float[np.ndarray, "k"]) -> float:
    """‖u − Σ c_k u_k‖² for a unit vector u."""
    return float(np.clip(1.0 - 2.0 * b @ c + c @ G @ c, 0.0, 1.0))
