"""Task negation and analogy.

Negation: θ₀ − α·τ, with the α ≥ 0 of the lowest validation accuracy on the target among those that keep at least 95 % of
the base's validation accuracy on the control tasks. Analogy: θ₀ + α·(τ_C + τ_B − τ_A), "A is to B as C is to D", with
the α of the highest validation accuracy on D. Source: Ilharco et al. 2023 (arXiv 2212.04089), §§3 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from comgrad.errors import ComgradError
from comgrad.evaluate.arithmetic import GRID, TEST, VALIDATION, Progress, checked_grid
from comgrad.evaluate.intervals import mean_interval
from comgrad.evaluate.predictor import Cache, Outcome, Predictor, Problem
from comgrad.vectors.merge import weighted_sum
from comgrad.vectors.task_vector import TaskVector

THRESHOLD = 0.95


@dataclass(frozen=True)
class NegationPoint:
    """Validation accuracies at one α, and whether the control tasks allow it."""

    alpha: float
    target: float
    controls: tuple[float, ...]
    allowed: bool


@dataclass(frozen=True)
class Edited:
    """One task on test data, before and after."""

    name: str
    base: Outcome
    after: Outcome

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "n": self.after.n,
            "base": self.base.accuracy,
            "accuracy": self.after.accuracy,
            "kept": self.after.accuracy / self.base.accuracy if self.base.accuracy else None,
            "interval": mean_interval([self.after.correct], over_tasks=False).as_dict(),
        }


@dataclass(frozen=True)
class Negation:
    """The result of one negation; `alpha`, `target` and `controls` are None and empty when no α is allowed.

    An α of 0 means that no allowed step away from the base lowers the target's validation accuracy.
    """

    name: str
    threshold: float
    alpha: float | None
    curve: tuple[NegationPoint, ...]
    target: Edited | None
    controls: tuple[Edited, ...]

    @property
    def satisfied(self) -> bool:
        """Whether some α keeps the control accuracy on validation data."""
        return self.alpha is not None

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "threshold": self.threshold,
            "satisfied": self.satisfied,
            "alpha": self.alpha,
            "target": self.target.as_dict() if self.target else None,
            "controls": [c.as_dict() for c in self.controls],
            "curve": [{**vars(p), "controls": list(p.controls)} for p in self.curve],
        }


def negation(
    predictor: Predictor,
    target: Problem,
    vector: TaskVector,
    controls: Sequence[Problem],
    *,
    threshold: float = THRESHOLD,
    constraint: Literal["each", "mean"] = "each",
    grid: Sequence[float] = GRID,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Negation:
    """Choose α on validation data as the module says, lowest first among equals, then one look at the test data.

    Args:
        constraint: the threshold holds for every control task, or for the mean of their accuracies.
        grid: α ≥ 0; the model is θ₀ − α·τ.

    Raises:
        ComgradError: (`bad-options`) no control task, a negative α, a threshold outside [0, 1].
    """
    alphas = checked_grid(grid)
    if not controls or alphas[0] < 0 or not 0.0 <= threshold <= 1.0:
        raise ComgradError(
            f"{len(controls)} control tasks, a smallest coefficient of {alphas[0]} and a threshold of {threshold}",
            "a negation steps back along the vector and must keep a share of the accuracy on other tasks",
            "give at least one control task, coefficients from 0 up and a threshold in [0, 1]",
            code="bad-options",
        )
    problems = [target, *controls]
    before = [o.accuracy for o in predictor.outcomes(controls, VALIDATION, [], cache)]
    curve = []
    for done, alpha in enumerate(alphas, 1):
        found = predictor.outcomes(problems, VALIDATION, [(-alpha, vector)], cache)
        kept = tuple(o.accuracy for o in found[1:])
        allowed = _allowed(kept, before, threshold, constraint)
        curve.append(NegationPoint(alpha, found[0].accuracy, kept, allowed))
        if progress:
            progress(done, len(alphas))
    possible = [p for p in curve if p.allowed]
    if not possible:
        return Negation(target.name, threshold, None, tuple(curve), None, ())
    lowest = min(p.target for p in possible)
    alpha = next(p.alpha for p in possible if p.target == lowest)
    base = predictor.outcomes(problems, TEST, [], cache)
    after = predictor.outcomes(problems, TEST, [(-alpha, vector)], cache)
    edited = [Edited(p.name, b, a) for p, b, a in zip(problems, base, after, strict=True)]
    return Negation(target.name, threshold, alpha, tuple(curve), edited[0], tuple(edited[1:]))


def _allowed(kept: Sequence[float], before: Sequence[float], threshold: float, constraint: str) -> bool:
    if constraint == "mean":
        return float(np.mean(kept)) >= threshold * float(np.mean(before))
    return all(k >= threshold * b for k, b in zip(kept, before, strict=True))


@dataclass(frozen=True)
class Analogy:
    """The result of one analogy on the target task's test data: the base, C alone with factor 1, and the analogy."""

    name: str
    alpha: float
    curve: tuple[tuple[float, float], ...]
    base: Outcome
    c_alone: Outcome
    after: Outcome

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "alpha": self.alpha,
            "n": self.after.n,
            "base": self.base.accuracy,
            "c_alone": self.c_alone.accuracy,
            "accuracy": self.after.accuracy,
            "interval": mean_interval([self.after.correct], over_tasks=False).as_dict(),
            "curve": [list(p) for p in self.curve],
        }


def analogy(
    predictor: Predictor,
    target: Problem,
    a: TaskVector,
    b: TaskVector,
    c: TaskVector,
    *,
    grid: Sequence[float] = GRID,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Analogy:
    """θ₀ + α·(C + (B − A)) on the target task D; α by validation accuracy, lowest first among equals; then one test."""
    alphas = checked_grid(grid)
    whole = weighted_sum([c, b, a], [1.0, 1.0, -1.0])
    curve = []
    for done, alpha in enumerate(alphas, 1):
        curve.append((alpha, predictor.outcome(target, VALIDATION, [(alpha, whole)], cache).accuracy))
        if progress:
            progress(done, len(alphas))
    best = max(accuracy for _, accuracy in curve)
    alpha = next(alpha for alpha, accuracy in curve if accuracy == best)
    after = predictor.outcome(target, TEST, [(alpha, whole)], cache)
    base = predictor.outcome(target, TEST, [], cache)
    alone = predictor.outcome(target, TEST, [(1.0, c)], cache)
    return Analogy(target.name, alpha, tuple(curve), base, alone, after)
