"""The learned embedding h of descriptions: inner products of h imitate a similarity between task vectors.

A text encoder gives e(d). The head is linear, h(d) = L·(e(d) − ē), and is found in closed form: with Y the centred target
similarities of the known tasks (rows and columns in the order of E),

    M* = argmin_M Σ_ij (e_iᵀ M e_j − Y_ij)² + λ‖M‖_F²     (singular value decomposition of E)
    LᵀL = the nearest positive semi-definite matrix to M*   (negative eigenvalues cut)

so that ⟨h(d_i), h(d_j)⟩ ≈ Y_ij: the ComGrad note's Eq. 5, with the squared error as L_emb. The diagonal is not fitted (a task is
no news about itself). Learning takes milliseconds for hundreds of tasks, so a new task means a new solve, never a training run.

Source: the ComGrad note, §3; closed form and targets are ours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from comgrad.errors import ShapeMismatch

DECAY = 10.0  # λ; chosen on development tasks, see docs/decisions/0008


@dataclass(frozen=True)
class Head:
    """A fitted h.

    Args:
        mean: ē, the mean of the embeddings it was fitted on (d,).
        weights: L (r, d).
        offset: the mean of the target similarities, which ⟨h, h⟩ leaves out.
    """

    mean: Float[np.ndarray, "d"]
    weights: Float[np.ndarray, "r d"]
    offset: float

    def __call__(self, embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n r"]:
        """h of each row."""
        h: Float[np.ndarray, "n r"] = (embeddings - self.mean) @ self.weights.T
        return h

    def similarity(self, a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
        """Predicted target similarity of each pair: ⟨h(a_i), h(b_j)⟩ + offset."""
        predicted: Float[np.ndarray, "n m"] = self(a) @ self(b).T + self.offset
        return predicted

    @property
    def digest(self) -> str:
        """SHA-256 of the head's numbers, in hexadecimal: two heads with one digest predict the same."""
        parts = (self.mean, self.weights, np.array([self.offset]))
        return hashlib.sha256(b"".join(np.ascontiguousarray(p, np.float64).tobytes() for p in parts)).hexdigest()


def fit_head(embeddings: Float[np.ndarray, "k d"], target: Float[np.ndarray, "i j"], *, decay: float = DECAY) -> Head:
    """The head whose inner products come nearest to the target similarities.

    Args:
        embeddings: unit rows e(d_k).
        target: symmetric; its diagonal is not looked at.
        decay: λ.

    Raises:
        ShapeMismatch: the target is not one row and one column per embedding.
    """
    E = np.asarray(embeddings, dtype=np.float64)
    K = len(E)
    if target.shape != (K, K):
        raise ShapeMismatch(
            f"{K} embeddings and a target of shape {target.shape}",
            "each pair of descriptions needs one target",
            "give both in the same order",
        )
    off = ~np.eye(K, dtype=bool)
    offset = float(target[off].mean()) if K > 1 else 0.0
    Y = np.where(off, target - offset, 0.0)
    mean = E.mean(axis=0)
    U, s, Vt = np.linalg.svd(E - mean, full_matrices=False)
    core = (U.T @ (Y + Y.T) @ U / 2.0) * np.outer(s, s) / (np.outer(s**2, s**2) + decay)
    size, turn = np.linalg.eigh(core)
    kept = size > 1e-12 * max(float(np.abs(size).max(initial=0.0)), 1e-300)
    return Head(mean, (np.sqrt(size[kept])[:, None] * turn[:, kept].T) @ Vt, offset)
