"""The first predictor: kernel ridge over descriptions, on centred task vectors.

    τ̂(d) = s · [ μ + k(d,·)·C·(CKC + λI)⁻¹·C·T ],   C = I − 11ᵀ/K

with T the known vectors (rows), μ their mean and k a kernel between description embeddings. Every prediction is a
linear combination τ̂ = Σ c_k τ_k, so that fitting needs only the Gram matrix of the vectors, never the vectors.

λ and one scale s are chosen by leave-one-out over the registry's own vectors, in closed form: ridge with a free
intercept is a linear smoother T̂ = S·T, and the prediction for i without i is (S_i − S_ii e_i)·T/(1 − S_ii). The mean of
the vectors is the case λ = ∞ and is kept unless a finite λ is better on the same criterion by two standard errors.

Source: the ComGrad note, §2–3 (prediction as coordinates in known task vectors); the shrinkage is ours, because Eq. 1 as
written overshoots when the known vectors are correlated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

LAMBDAS = tuple(float(x) for x in np.logspace(-2, 2, 13))
Matrix = Float[np.ndarray, "k k"]
Vector = Float[np.ndarray, "k"]


@dataclass(frozen=True)
class LeaveOneOut:
    """How a rule predicts each known vector from the others.

    `scale` is the s that minimises Σ_i ‖τ_i − sτ̂_i‖²/‖τ_i‖². `error` is the mean of these terms (1 is what predicting
    zero gets), each with the scale chosen without task i, so that it can exceed 1. `cosine` is the mean cosine of τ̂_i
    with τ_i.
    """

    lam: float
    scale: float
    error: float
    cosine: float
    per_task: Vector


@dataclass(frozen=True)
class RidgePredictor:
    """A fitted rule. `coefficients(e)` turns a description's embedding into Σ c_k τ_k."""

    embeddings: Float[np.ndarray, "k d"]
    width: float
    chosen: LeaveOneOut
    candidates: tuple[LeaveOneOut, ...]
    rule: Literal["ridge", "mean", "zero"]

    def coefficients(self, e: Float[np.ndarray, d]) -> Vector:
        """Coefficients c (K,) of the known vectors, scale included; all zero when the rule is `zero`."""
        K = len(self.embeddings)
        if self.rule == "zero":
            return np.zeros(K)
        if self.rule == "mean":
            return np.full(K, self.chosen.scale / K)
        kernel = similarity_kernel(self.embeddings, self.embeddings, self.width)
        k = similarity_kernel(e[None], self.embeddings, self.width)[0]
        return self.chosen.scale * weights_at(kernel, k, self.chosen.lam)

    def confidence(self, e: Float[np.ndarray, d]) -> float:
        """Share of the kernel's prior variance at e that the known descriptions explain, in [0, 1].

        1 − (k(d,d) − k(d,·)(K + λI)⁻¹k(·,d))/k(d,d): near 0 for a description unlike all known ones.
        """
        lam = self.chosen.lam if np.isfinite(self.chosen.lam) else 1.0
        kernel = similarity_kernel(self.embeddings, self.embeddings, self.width)
        k = similarity_kernel(e[None], self.embeddings, self.width)[0]
        return float(np.clip(k @ np.linalg.solve(kernel + lam * np.eye(len(k)), k), 0.0, 1.0))


def fit(embeddings: Float[np.ndarray, "k d"], gram: Matrix) -> RidgePredictor:
    """Choose λ and the scale by leave-one-out; fall back to the mean, or to zero, when nothing better is shown.

    Args:
        embeddings: (K, d) unit rows, one description each.
        gram: (K, K) Gram matrix of the task vectors.
    """
    embeddings = np.asarray(embeddings, dtype=np.float64)
    K = len(embeddings)
    width = _median_distance(embeddings)
    if K < 3:  # nothing can be left out and still be predicted from others
        only = LeaveOneOut(np.inf, 1.0, float("nan"), float("nan"), np.full(K, np.nan))
        return RidgePredictor(embeddings, width, only, (only,), "zero")
    kernel = similarity_kernel(embeddings, embeddings, width)
    mean = leave_one_out(kernel, gram, np.inf)
    ridges = [leave_one_out(kernel, gram, lam) for lam in LAMBDAS]
    best = min(ridges, key=lambda r: r.error)
    chosen = best if _clearly(mean.per_task - best.per_task) else mean
    rule: Literal["ridge", "mean", "zero"] = "mean" if chosen is mean else "ridge"
    if not (chosen.scale > 0 and _clearly(1.0 - chosen.per_task)):
        rule = "zero"
    return RidgePredictor(embeddings, width, chosen, (mean, *ridges), rule)


def _clearly(gain: Vector) -> bool:
    """Whether a mean gain over tasks exceeds two standard errors; NaN never does."""
    return bool(gain.mean() > 2.0 * gain.std(ddof=1) / np.sqrt(len(gain)))


def leave_one_out(kernel: Matrix, gram: Matrix, lam: float) -> LeaveOneOut:
    """Leave-one-out of the rule with this λ; λ = ∞ is the mean of the others."""
    L = left_out_weights(kernel, lam)
    own = np.diag(gram)
    dots = np.einsum("ij,ij->i", L, gram) / own  # ⟨τ̂_i, τ_i⟩ / ‖τ_i‖²
    sizes = ((L @ gram) * L).sum(axis=1) / own  # ‖τ̂_i‖² / ‖τ_i‖²
    scale = float(dots.sum() / sizes.sum())
    without = (dots.sum() - dots) / (sizes.sum() - sizes)  # the scale that the other tasks choose
    per_task = 1.0 - 2.0 * without * dots + without**2 * sizes
    cosine = float(np.mean(dots / np.sqrt(np.maximum(sizes, 1e-300))))
    return LeaveOneOut(lam, scale, float(per_task.mean()), cosine, per_task)


def weights_at(kernel: Matrix, k: Vector, lam: float) -> Vector:
    """Weights (K,) at a point with kernel row k; see `weights_for`."""
    weights: Vector = weights_for(kernel, k[None], lam)[0]
    return weights


def weights_for(kernel: Matrix, rows: Float[np.ndarray, "n k"], lam: float) -> Float[np.ndarray, "n k"]:
    """Weights (n, K), each row of sum 1, with which ridge with a free intercept predicts at points with these kernel rows.

    w = 1/K + C(CKC + λI)⁻¹C(k − K̄),   K̄ = the kernel's mean row
    """
    K = len(kernel)
    C = np.eye(K) - 1.0 / K
    pulled = np.linalg.solve(C @ kernel @ C + lam * np.eye(K), C @ (rows - kernel.mean(axis=0)).T)
    weights: Float[np.ndarray, "n k"] = pulled.T @ C + 1.0 / K
    return weights


def left_out_weights(kernel: Matrix, lam: float) -> Matrix:
    """Row i: the weights with which the rule, fitted without i, predicts τ_i from the others (zero diagonal, sum 1)."""
    K = len(kernel)
    S = np.full((K, K), 1.0 / K)
    if np.isfinite(lam):
        C = np.eye(K) - 1.0 / K
        centred = C @ kernel @ C
        S = S + np.linalg.solve(centred + lam * np.eye(K), centred).T @ C
    left_out: Matrix = S / (1.0 - np.diag(S))[:, None]
    np.fill_diagonal(left_out, 0.0)
    return left_out


def similarity_kernel(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], width: float
) -> Float[np.ndarray, "n m"]:
    """exp(−(1 − cos)/width)."""
    value: Float[np.ndarray, "n m"] = np.exp((np.clip(a @ b.T, -1.0, 1.0) - 1.0) / width)
    return value


def _median_distance(embeddings: Float[np.ndarray, "k d"]) -> float:
    """The median of 1 − cos over pairs: the kernel's width, not tuned."""
    K = len(embeddings)
    if K < 2:
        return 1.0
    distance = 1.0 - (embeddings @ embeddings.T)[~np.eye(K, dtype=bool)]
    return float(max(np.median(distance), 1e-6))


def left_out_confidence(predictor: RidgePredictor) -> Vector:
    """Confidence at each known description, computed without it: what confidence looks like for a real task."""
    lam = predictor.chosen.lam if np.isfinite(predictor.chosen.lam) else 1.0
    kernel = similarity_kernel(predictor.embeddings, predictor.embeddings, predictor.width)
    K = len(kernel)
    # with Q = (K + λI)⁻¹, the variance left at i when i is unknown is 1/Q_ii − λ (block inversion)
    left = 1.0 / np.diag(np.linalg.inv(kernel + lam * np.eye(K))) - lam
    return np.clip(1.0 - left, 0.0, 1.0)
