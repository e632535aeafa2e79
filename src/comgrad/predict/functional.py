"""The functional rule: from a description to the gains that known vectors would bring, and from there to coefficients.

Weight cosines say little about transfer; the first-order gain F_qk = −⟨∇L_q(θ₀), τ_k⟩ says much (docs/descinit.md).
So gains are predicted, not weights:

1. F̂(d) = w(d)·F: kernel ridge over the tasks whose gradient is known. The kernel is the mean of a fixed one,
   exp(−(1 − cos)/0.3), and of ⟨h(d), h(d′)⟩ with the learned embedding h, which imitates the similarity of rows of F.
2. Σ: the second moment of what the same ridge gets wrong about each known task when that task is left out.
3. The coefficients maximise the expected gain less its risk and the size of the step, with ḡ the mean of diag G:
       c = argmax cᵀF̂ − ½ cᵀMc = M⁻¹F̂,    M = λG/ḡ + βΣ
   λ (nats) stands for the curvature of the loss over one known vector's length; β (1/nats) makes directions dear in
   which tasks differ in ways that no description tells, class shares above all.
4. The strength z = cᵀF̂/√(cᵀΣc) is the expected gain in units of its own uncertainty. Below a threshold the rule abstains:
   the least strength at which 95 % of the known tasks, left out of the ridge in turn, realise at least a fifth of the gain
   predicted. That trial is lenient, for h and Σ have seen those tasks; the confidence comes from a strict one, in which
   everything is fitted anew without a tenth of the tasks at a time.

The constants were chosen on development tasks (decision 0008).

Source: the ComGrad note, §2–3 (coordinates in known vectors from descriptions); gains as the target, the risk term and
the abstention are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from comgrad.describe import targets
from comgrad.describe.head import Head, fit_head
from comgrad.errors import Undefined
from comgrad.predict.evidence import Evidence, Matrix, Prediction, Query, Vector
from comgrad.predict.ridge import left_out_weights, similarity_kernel, weights_for

WIDTH = 0.3  # of the fixed kernel
NOISE = 1.0  # of the ridge, where kernels have a diagonal of about 1
CURVATURE = 1.0  # λ
RISK = 100.0  # β
SURE = 0.95
REALISED = 0.2
FEWEST = 8
FOLDS = 10  # of the strict trial
Rows = Float[np.ndarray, "n d"]


@dataclass(frozen=True)
class Functional:
    """The rule fitted to evidence of which at least `FEWEST` tasks have gradients.

    Args:
        evidence: what is known.
        learned: h; without it the fixed kernel is used alone.
    """

    evidence: Evidence
    learned: Head | None = None
    curvature: float = CURVATURE
    risk: float = RISK

    @classmethod
    def of(cls, evidence: Evidence, *, learned: bool = True) -> Functional:
        """The rule with h learned from the evidence (milliseconds), or with the fixed kernel alone."""
        if not learned:
            return cls(evidence)
        at = evidence.with_gradient
        similarity = targets.functional(evidence.gains[at], evidence.gram, RISK)
        return cls(evidence, fit_head(evidence.embeddings[at], similarity))

    def __post_init__(self) -> None:
        n = int(self.evidence.with_gradient.sum())
        if n < FEWEST:
            raise Undefined(
                f"{n} tasks with gradients",
                f"predicting gains takes at least {FEWEST}",
                "add vectors with --examples, or use another rule",
            )

    @cached_property
    def _rows(self) -> Rows:
        rows: Rows = self.evidence.embeddings[self.evidence.with_gradient]
        return rows

    @cached_property
    def _gains(self) -> Float[np.ndarray, "q k"]:
        gains: Float[np.ndarray, "q k"] = self.evidence.gains[self.evidence.with_gradient]
        return gains

    def _kernel(self, a: Rows) -> Float[np.ndarray, "n q"]:
        """Kernel of rows with the known rows."""
        fixed = similarity_kernel(a, self._rows, WIDTH)
        if self.learned is None:
            return fixed
        own = self.learned(self._rows)
        unit = float(np.median(np.einsum("ij,ij->i", own, own)))
        if unit <= 0.0:
            return fixed
        mixed: Float[np.ndarray, "n q"] = (fixed + self.learned(a) @ own.T / unit) / 2.0
        return mixed

    @cached_property
    def _known(self) -> Matrix:
        return self._kernel(self._rows)

    @cached_property
    def _left_out(self) -> Float[np.ndarray, "q k"]:
        """Each known task's gains as predicted from the other tasks."""
        predicted: Float[np.ndarray, "q k"] = left_out_weights(self._known, NOISE) @ self._gains
        return predicted

    @cached_property
    def uncertainty(self) -> Matrix:
        """Σ (K, K), nats²."""
        wrong = self._gains - self._left_out
        second: Matrix = wrong.T @ wrong / len(wrong)
        return second

    @cached_property
    def penalty(self) -> Matrix:
        """M = λG/ḡ + βΣ (K, K), nats."""
        gram = self.evidence.gram
        M: Matrix = self.curvature * gram / np.diag(gram).mean() + self.risk * self.uncertainty
        return M

    def gains_at(self, query: Query) -> Vector:
        """F̂(d), nats."""
        gains: Vector = self._gains_for(query.embedding[None])[0]
        return gains

    def _gains_for(self, rows: Rows) -> Float[np.ndarray, "n k"]:
        gains: Float[np.ndarray, "n k"] = weights_for(self._known, self._kernel(rows), NOISE) @ self._gains
        return gains

    def predict(self, query: Query) -> Prediction:
        """Coefficients for a description, or an abstention."""
        expected = self.gains_at(query)
        c = np.linalg.solve(self.penalty, expected)
        strength = _strength(c, expected, self.uncertainty)
        reason = ""
        if not strength >= self.threshold:
            reason = (
                f"the gain expected from this description is {strength:.2f} times its own uncertainty; at least "
                f"{self.threshold:.2f} is asked for, from where on {SURE:.0%} of the known tasks would have gained."
            )
        return Prediction(c, "functional", float(c @ expected) / 2.0, strength, self.confidence(strength), reason)

    @cached_property
    def _trial(self) -> tuple[Vector, Bool[np.ndarray, "q"]]:
        """Each known task left out of the ridge: its strength, and whether it gains.

        Task q counts as gaining when the first-order gain cᵀF_q is at least a fifth of the predicted cᵀF̂, a margin for
        the curvature that neither sees; c is predicted without q's gradient and without τ_q.
        """
        owners = np.flatnonzero(self.evidence.with_gradient)
        expected = self._left_out.copy()
        expected[np.arange(len(owners)), owners] = 0.0
        inverse = np.linalg.inv(self.penalty)
        c = expected @ inverse
        own = c[np.arange(len(owners)), owners] / np.diag(inverse)[owners]
        c -= own[:, None] * inverse[owners]  # (M without row and column k)⁻¹ = A − aaᵀ/α, A = M⁻¹, a its column k
        gain, promised = (c * self._gains).sum(axis=1), (c * expected).sum(axis=1)
        strengths = np.array([_strength(a, b, self.uncertainty) for a, b in zip(c, expected, strict=True)])
        return strengths, gain > REALISED * promised

    @cached_property
    def _strict_trial(self) -> tuple[Vector, Bool[np.ndarray, "q"]]:
        """As `_trial`, with h, the ridge and Σ fitted anew without a tenth of the tasks and their vectors at a time."""
        owners = np.flatnonzero(self.evidence.with_gradient)
        strengths, gained = np.empty(len(owners)), np.empty(len(owners), dtype=bool)
        for fold in range(min(FOLDS, len(owners))):
            held = np.arange(fold, len(owners), FOLDS)
            rest = np.delete(np.arange(len(self.evidence)), owners[held])
            known = self.evidence.subset(rest)
            if known.with_gradient.sum() < FEWEST:
                return self._trial
            rule = replace(
                Functional.of(known, learned=self.learned is not None), curvature=self.curvature, risk=self.risk
            )
            expected = rule._gains_for(self.evidence.embeddings[owners[held]])
            c = np.linalg.solve(rule.penalty, expected.T).T
            strengths[held] = [_strength(a, b, rule.uncertainty) for a, b in zip(c, expected, strict=True)]
            true = self.evidence.gains[np.ix_(owners[held], rest)]
            gained[held] = (c * true).sum(axis=1) > REALISED * (c * expected).sum(axis=1)
        return strengths, gained

    @cached_property
    def threshold(self) -> float:
        """The strength to ask for: the least at which 95 % of the known tasks at or above it gain, or infinity."""
        strengths, gained = self._trial
        order = np.argsort(-strengths, kind="stable")
        share = np.cumsum(gained[order]) / np.arange(1, len(order) + 1)
        good = np.flatnonzero(share >= SURE)
        return float(strengths[order[good[-1]]]) if len(good) else float("inf")

    def confidence(self, strength: float) -> float:
        """Share of the known tasks of about this strength that gain, in [0, 1]: isotonic regression on `_strict_trial`."""
        from scipy.optimize import isotonic_regression  # half a second of imports

        strengths, gained = self._strict_trial
        at, group, count = np.unique(strengths, return_inverse=True, return_counts=True)
        share = np.bincount(group, weights=gained.astype(np.float64)) / count
        return float(np.interp(strength, at, isotonic_regression(share, weights=count).x))


def _strength(c: Vector, expected: Vector, uncertainty: Matrix) -> float:
    spread = float(c @ uncertainty @ c)
    return float(c @ expected) / spread**0.5 if spread > 0.0 else 0.0
