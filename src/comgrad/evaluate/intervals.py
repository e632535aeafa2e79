"""Bootstrap intervals of accuracies and of their ratios, over examples and over tasks.

Resampling n paired right-or-wrong answers is a multinomial draw of the four counts (both right, first only, second only,
neither), which is how it is done here: exact, and independent of n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from comgrad.errors import Undefined

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A percentile interval."""

    low: float
    high: float
    level: float = LEVEL

    def as_dict(self) -> dict[str, float]:
        return {"low": self.low, "high": self.high, "level": self.level}


def ratio(accuracy: float, reference: float, what: str) -> float:
    """accuracy/reference. Raises Undefined when the reference is 0."""
    if reference == 0:
        raise Undefined(
            f"the normalised accuracy of '{what}'",
            "the model fine-tuned on it has no right answer, so there is nothing to divide by",
            "leave that task out, or train it longer",
        )
    return accuracy / reference


def mean_interval(
    correct: Sequence[np.ndarray],
    reference: Sequence[np.ndarray] | None = None,
    *,
    over_tasks: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """95 % interval of the mean over tasks of accuracy, or of accuracy/reference accuracy on the same examples.

    Args:
        correct: for each task, (n,) right or wrong.
        reference: for each task, (n,) of the model to divide by, on the same examples: resampled in pairs.
        over_tasks: tasks are drawn with replacement, then examples within each; else examples alone.
        draws, seed: of the bootstrap. Draws in which a reference has no right answer are left out.
    """
    rng = np.random.default_rng(seed)
    count = len(correct)
    chosen = rng.integers(count, size=(draws, count)) if over_tasks else np.tile(np.arange(count), (draws, 1))
    values = np.empty((draws, count))
    for t in range(count):
        at = chosen == t
        values[at] = _drawn(correct[t], None if reference is None else reference[t], int(at.sum()), rng)
    means = values.mean(axis=1)
    means = means[np.isfinite(means)]
    if not len(means):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _drawn(a: np.ndarray, b: np.ndarray | None, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` resampled accuracies of a, divided by those of b on the same draws; NaN where that is 0."""
    n = len(a)
    if b is None:
        return np.asarray(rng.binomial(n, a.mean(), size=size) / n)
    cells = np.array([(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()]) / n
    both, first, second, _ = rng.multinomial(n, cells, size=size).T
    below = both + second
    return np.where(below > 0, (both + first) / np.where(below > 0, below, 1), np.nan)
