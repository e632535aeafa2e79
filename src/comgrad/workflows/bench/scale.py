"""One scale for a rule, fitted on the fold's other tasks: what makes a baseline that overshoots a fair one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from comgrad.predict.rules import RULES
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.fold import Fold, Other
from comgrad.workflows.bench.outcome import Outcome

GRID = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FEWEST = 2


def scaled(fold: Fold, aid: Aid, *, rule: str) -> Outcome:
    """The rule's coefficients times the scale with the least summed loss of the other tasks.

    Each of them is predicted by the same rule without its own source group, and its loss is that of the linearised
    classifier. Without other tasks the scale is 1.
    """
    del aid
    found = RULES[rule](fold.evidence, fold.query)
    s = best_scale(fold, rule)
    return Outcome(s * found.coefficients, note={"scale": s})


def best_scale(fold: Fold, rule: str) -> float:
    """The scale of `GRID` with the least Σ over other tasks of the linearised loss, nats."""
    total = np.zeros(len(GRID))
    for other in fold.others:
        at = fold.without_group(other.group)
        if len(at) < FEWEST:
            continue
        c = np.zeros(len(fold.allowed))
        c[at] = RULES[rule](fold.evidence.subset(at.tolist()), other.query).coefficients
        total += losses_along(other, c)
    return GRID[int(np.argmin(total))] if total.any() else 1.0


def losses_along(other: Other, c: Float[np.ndarray, "k"]) -> Float[np.ndarray, "g"]:
    """The linearised loss at s·c for every s of the grid."""
    t = other.tangent
    used = np.flatnonzero(c)
    direction = (t.phi[:, :, used] @ c[used].astype(np.float32)).astype(np.float64)
    z = t.z0[None].astype(np.float64) + np.array(GRID)[:, None, None] * direction[None]
    right = z[:, np.arange(len(t.labels)), t.labels]
    out: Float[np.ndarray, "g"] = (logsumexp(z, axis=2) - right).mean(axis=1)
    return out
