"""Task addition: one α for the sum of the vectors, chosen on validation data, then one look at the test data.

    normalised accuracy = (1/T) Σ_t acc_t(θ₀ + α·Σ_s τ_s) / acc_t(θ₀ + τ_t),

a mean of ratios, each by the fine-tuned model of the same recipe on the same split. Source: Ilharco et al. 2023
(arXiv 2212.04089); Ortiz-Jimenez et al. 2023 (arXiv 2305.12827), appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comgrad.errors import ComgradError
from comgrad.evaluate.intervals import DRAWS, Interval, mean_interval, ratio
from comgrad.evaluate.predictor import Cache, Outcome, Predictor, Problem
from comgrad.vectors.merge import weighted_sum
from comgrad.vectors.task_vector import TaskVector

GRID = tuple(round(i * 0.05, 2) for i in range(21))  # 0, 0.05, …, 1
VALIDATION, TEST = "validation", "test"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SingleTask:
    """A task's own vector on its own split, beside the base."""

    name: str
    split: str
    alpha: float
    base: Outcome
    tuned: Outcome

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "split": self.split,
            "alpha": self.alpha,
            "n": self.tuned.n,
            "base": self.base.accuracy,
            "accuracy": self.tuned.accuracy,
            "loss": self.tuned.loss,
            "base_loss": self.base.loss,
            "interval": mean_interval([self.tuned.correct], over_tasks=False).as_dict(),
        }


def single_task(
    predictor: Predictor,
    problem: Problem,
    vector: TaskVector,
    *,
    alpha: float = 1.0,
    split: str = TEST,
    cache: Cache | None = None,
) -> SingleTask:
    """The accuracy of θ₀ + α·τ on its own task, and that of θ₀."""
    base = predictor.outcome(problem, split, [], cache)
    tuned = predictor.outcome(problem, split, [(alpha, vector)], cache)
    return SingleTask(problem.name, split, alpha, base, tuned)


@dataclass(frozen=True)
class AddedTask:
    """One task of an addition, on test data: the base, its own fine-tuned model, the merged model."""

    name: str
    base: Outcome
    tuned: Outcome
    merged: Outcome
    normalised: float
    interval: Interval
    normalised_interval: Interval

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "n": self.merged.n,
            "base": self.base.accuracy,
            "finetuned": self.tuned.accuracy,
            "accuracy": self.merged.accuracy,
            "normalised": self.normalised,
            "loss": self.merged.loss,
            "interval": self.interval.as_dict(),
            "normalised_interval": self.normalised_interval.as_dict(),
        }


@dataclass(frozen=True)
class Point:
    """Mean validation accuracy at one α, absolute and normalised."""

    alpha: float
    absolute: float
    normalised: float


@dataclass(frozen=True)
class Addition:
    """The result of one addition.

    Args:
        curve: on validation data, one point for each α.
        absolute, normalised: means over tasks on test data at the chosen α.
        absolute_interval, normalised_interval: over tasks and examples; `_examples`: these tasks, over examples alone.
    """

    alpha: float
    method: str
    curve: tuple[Point, ...]
    tasks: tuple[AddedTask, ...]
    absolute: float
    normalised: float
    absolute_interval: Interval
    normalised_interval: Interval
    absolute_examples: Interval
    normalised_examples: Interval

    @property
    def base(self) -> float:
        """Mean test accuracy of the base."""
        return float(np.mean([t.base.accuracy for t in self.tasks]))

    @property
    def finetuned(self) -> float:
        """Mean test accuracy of the fine-tuned models, each on its own task."""
        return float(np.mean([t.tuned.accuracy for t in self.tasks]))

    @property
    def at_edge(self) -> bool:
        """Whether the chosen α is the largest of the grid, so that a larger one might do better."""
        return self.alpha == max(p.alpha for p in self.curve)

    def as_dict(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha,
            "method": self.method,
            "at_edge": self.at_edge,
            "base": self.base,
            "finetuned": self.finetuned,
            "absolute": self.absolute,
            "normalised": self.normalised,
            "absolute_interval": self.absolute_interval.as_dict(),
            "normalised_interval": self.normalised_interval.as_dict(),
            "absolute_examples": self.absolute_examples.as_dict(),
            "normalised_examples": self.normalised_examples.as_dict(),
            "tasks": [t.as_dict() for t in self.tasks],
            "curve": [dict(vars(p)) for p in self.curve],
        }


def addition(
    predictor: Predictor,
    problems: Sequence[Problem],
    vectors: Sequence[TaskVector],
    *,
    merged: TaskVector | None = None,
    method: str = "sum",
    grid: Sequence[float] = GRID,
    draws: int = DRAWS,
    seed: int = 0,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Addition:
    """Merge the vectors, choose α by mean normalised validation accuracy, and evaluate that α once on test data.

    Of equally good α the lowest is taken. The test split is not read before α is chosen.

    Args:
        problems, vectors: task t and its own vector, in one order; problems with splits `validation` and `test`.
        merged: the vector that α scales; the plain sum when left out.
        method: its name, for the record.
        progress: called with (evaluations done, all) of the search over α.

    Raises:
        ComgradError: (`bad-options`) no tasks, another number of vectors, no α or one that is not finite.
        Undefined: a fine-tuned model without any right answer. BaseMismatch, ShapeMismatch.
    """
    paired(problems, vectors)
    alphas = checked_grid(grid)
    whole = weighted_sum(vectors, [1.0] * len(vectors)) if merged is None else merged
    alpha, curve = _chosen(predictor, problems, vectors, whole, alphas, cache, progress)
    return _tested(predictor, problems, vectors, whole, alpha, curve, method, draws, seed, cache)


def _chosen(
    predictor: Predictor,
    problems: Sequence[Problem],
    vectors: Sequence[TaskVector],
    whole: TaskVector,
    alphas: Sequence[float],
    cache: Cache | None,
    progress: Progress | None,
) -> tuple[float, tuple[Point, ...]]:
    """The lowest α of the highest mean normalised accuracy on validation data, and the whole curve."""
    tuned = [
        predictor.outcome(p, VALIDATION, [(1.0, v)], cache).accuracy for p, v in zip(problems, vectors, strict=True)
    ]
    curve = []
    for done, alpha in enumerate(alphas, 1):
        found = [o.accuracy for o in predictor.outcomes(problems, VALIDATION, [(alpha, whole)], cache)]
        ratios = [ratio(a, b, p.name) for a, b, p in zip(found, tuned, problems, strict=True)]
        curve.append(Point(alpha, math.fsum(found) / len(found), math.fsum(ratios) / len(ratios)))
        if progress:
            progress(done, len(alphas))
    best = max(p.normalised for p in curve)
    return next(p.alpha for p in curve if p.normalised == best), tuple(curve)


def _tested(
    predictor: Predictor,
    problems: Sequence[Problem],
    vectors: Sequence[TaskVector],
    whole: TaskVector,
    alpha: float,
    curve: tuple[Point, ...],
    method: str,
    draws: int,
    seed: int,
    cache: Cache | None,
) -> Addition:
    base = predictor.outcomes(problems, TEST, [], cache)
    after = predictor.outcomes(problems, TEST, [(alpha, whole)], cache)
    tasks = []
    for problem, vector, b, m in zip(problems, vectors, base, after, strict=True):
        t = predictor.outcome(problem, TEST, [(1.0, vector)], cache)
        tasks.append(
            AddedTask(
                problem.name, b, t, m, ratio(m.accuracy, t.accuracy, problem.name),
                mean_interval([m.correct], over_tasks=False, draws=draws, seed=seed),
                mean_interval([m.correct], [t.correct], over_tasks=False, draws=draws, seed=seed),
            )
        )  # fmt: skip
    right, reference = [t.merged.correct for t in tasks], [t.tuned.correct for t in tasks]
    spread = [
        mean_interval(right, by, over_tasks=over, draws=draws, seed=seed)
        for over in (True, False)
        for by in (None, reference)
    ]
    absolute = math.fsum(t.merged.accuracy for t in tasks) / len(tasks)
    normalised = math.fsum(t.normalised for t in tasks) / len(tasks)
    return Addition(alpha, method, curve, tuple(tasks), absolute, normalised, *spread)


# -- shared with `editing` ---------------------------------------------------------------------------------------------
def paired(problems: Sequence[Problem], vectors: Sequence[TaskVector]) -> None:
    """Refuse anything but one vector for each of at least one task."""
    if not problems or len(problems) != len(vectors):
        raise ComgradError(
            f"{len(problems)} tasks and {len(vectors)} vectors",
            "each task needs its own vector",
            "give both in one order",
            code="bad-options",
        )


def checked_grid(grid: Sequence[float]) -> tuple[float, ...]:
    """The coefficients in ascending order, each once."""
    if not grid or not all(math.isfinite(a) for a in grid):
        raise ComgradError(
            f"the coefficients {list(grid)}",
            "the search needs at least one finite number",
            "give numbers such as 0, 0.05, …, 1",
            code="bad-options",
        )
    return tuple(sorted({float(a) for a in grid}))
