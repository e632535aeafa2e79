"""Coefficients from a few labelled examples, with the description as the prior.

Around a point c̄ the frozen-head classifier is, to first order, linear in the coefficients: logits z + Φ(c − c̄), with
Φ[x, j, k] the derivative of logit j on text x in the direction of τ_k (one backward pass per class for all K vectors). So

    ĉ = argmin_c  mean_x CE(z(x) + Φ(x)(c − c̄), y(x)) + ½ (c − c₀)ᵀ P (c − c₀)

is a convex problem in K numbers: the mode of a posterior whose prior has the mean c₀ that the description predicts
(`functional.py`, or 0) and the precision P = λG/ḡ + (n₀/n)Σ: the size of the step in units of a known vector, and, fading
with the number n of examples, the directions whose gain no description foresees. P is the trust region of the
linearisation as well: repeat from ĉ until the true loss stops falling (`fit`).

Source: first-order features as in the tangent-kernel literature; prior, precision and loop are ours. λ and n₀ were chosen on
development tasks (decision 0008).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize

from comgrad.predict.evidence import Matrix, Vector

CURVATURE = 0.3  # λ, nats
PRIOR_EXAMPLES = 160.0  # n₀, nats⁻¹
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
ENOUGH = 64  # examples from which on going round again fits the task more than the noise


@dataclass(frozen=True)
class Linearised:
    """The classifier around one point, on n examples with C labels and K vectors.

    Args:
        logits: z (n, C).
        jacobian: Φ (n, C, K).
        labels: (n,).
    """

    logits: Float[np.ndarray, "n c"]
    jacobian: Float[np.ndarray, "n c k"]
    labels: Int[np.ndarray, "n"]


def precision(gram: Matrix, uncertainty: Matrix | None, n: int, *, curvature: float = CURVATURE) -> Matrix:
    """P = λG/ḡ + (n₀/n)Σ (K, K); without Σ the second term is left out."""
    P: Matrix = curvature * gram / np.diag(gram).mean()
    if uncertainty is not None:
        P = P + PRIOR_EXAMPLES / n * uncertainty
    return P


def mode(model: Linearised, at: Vector, prior: Vector, P: Matrix) -> Vector:
    """ĉ of the linearisation around `at`."""
    n, C, K = model.jacobian.shape
    features = model.jacobian.reshape(n * C, K)
    fixed = model.logits.reshape(-1) - features @ at
    truth = np.zeros((n, C))
    truth[np.arange(n), model.labels] = 1.0

    def objective(c: Vector) -> tuple[float, Vector]:
        z = (fixed + features @ c).reshape(n, C)
        top = z.max(axis=1, keepdims=True)
        e = np.exp(z - top)
        total = e.sum(axis=1, keepdims=True)
        loss = (np.log(total) + top)[:, 0] - (z * truth).sum(axis=1)
        pull = P @ (c - prior)
        slope = ((e / total - truth).reshape(-1) @ features) / n + pull
        return float(loss.mean() + 0.5 * (c - prior) @ pull), slope

    found: Vector = minimize(objective, at, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-8}).x
    return found


def rounds_for(n: int) -> int:
    """How often to linearise with n examples: once with few, where a second look fits their noise."""
    return 1 if n < ENOUGH else 3


def fit(
    linearise: Callable[[Vector], Linearised],
    loss: Callable[[Vector], float],
    prior: Vector,
    P: Matrix,
    *,
    rounds: int = 1,
) -> Vector:
    """Gauss–Newton with a line search on the true penalised loss; 0 is always one of the candidates.

    Args:
        linearise: c ↦ the classifier's linearisation at θ₀ + Σ c_k τ_k.
        loss: c ↦ the true mean loss on the examples there, nats.
        rounds: linearisations at most; see `rounds_for`.

    Returns:
        c (K,); exactly 0 when nothing tried beats the base model on the examples.
    """

    def penalised(c: Vector, plain: float) -> float:
        return plain + 0.5 * float((c - prior) @ P @ (c - prior))

    at = np.zeros_like(prior)
    plain_base = loss(at)
    best, plain = penalised(at, plain_base), plain_base
    for _ in range(rounds):
        target = mode(linearise(at), at, prior, P)
        tried = [(at + s * (target - at)) for s in STEPS[1:]]
        losses = [loss(c) for c in tried]
        values = [penalised(c, value) for c, value in zip(tried, losses, strict=True)]
        i = int(np.argmin(values))
        if values[i] >= best - 1e-4:
            break
        at, best, plain = tried[i], values[i], losses[i]
    return at if plain < plain_base else np.zeros_like(prior)
