"""The benchmark's figures from rows of losses: shares with intervals, gap recovered, and paired bootstrap over tasks.

With L₀ the base's test loss, L the method's and L* that of the task's own adapter, each row's gain is a = L₀ − L and its gap
g = L₀ − L*:

| figure | formula |
|---|---|
| `improved` | share with L ≤ L₀ that did not abstain; `improved_or_abstained` counts those too (P+, with Wilson's interval) |
| `harmed` | share with L > 1.01 L₀ (P-harm) |
| `rld` | mean of a/L₀ |
| `gr` | Σa/Σg over tasks whose gap is at least two standard errors; `gr_median` is the median of a/g there |
| `gr_beyond` | (GR − GR_mean)/(1 − GR_mean), GR_mean of the scaled mean on the same tasks (GR⊥) |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import spearmanr

Z95 = 1.959963984540054
HARM = 0.01
DRAWS = 10_000
Vector = Float[np.ndarray, "n"]


@dataclass(frozen=True)
class Losses:
    """One method on n tasks, in one order for all methods.

    Args:
        own: L*, NaN where the task has no adapter of its own. gap_error: standard error of the gap.
        strength, expected: what the method itself says about its prediction; NaN where it says nothing.
    """

    tasks: tuple[str, ...]
    loss: Vector
    base: Vector
    own: Vector
    gap_error: Vector
    abstained: Bool[np.ndarray, "n"]
    strength: Vector
    expected: Vector

    @property
    def gain(self) -> Vector:
        out: Vector = self.base - self.loss
        return out

    @property
    def gap(self) -> Vector:
        out: Vector = self.base - self.own
        return out

    @property
    def measurable(self) -> Bool[np.ndarray, "n"]:
        """Tasks whose gap is at least two standard errors."""
        with np.errstate(invalid="ignore"):
            out: Bool[np.ndarray, "n"] = self.gap >= 2.0 * self.gap_error
        return out & (self.gap > 0.0)


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a share: (p + z²/2n ± z√(p(1−p)/n + z²/4n²)) / (1 + z²/n); NaN of nothing."""
    if n == 0:
        return float("nan"), float("nan")
    p = successes / n
    middle, spread = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    low, high = (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def gap_recovered(x: Losses) -> float:
    """GR: Σ gains over Σ gaps of the measurable tasks; NaN without any."""
    at = x.measurable
    return float(x.gain[at].sum() / x.gap[at].sum()) if at.any() else float("nan")


def figures(x: Losses, mean: Losses | None) -> dict[str, float | int | None]:
    """All figures of one method; `mean` is the scaled mean on the same tasks."""
    n = len(x.loss)
    better = x.loss <= x.base
    good = int((better | x.abstained).sum())
    harmed = int((x.loss > (1.0 + HARM) * x.base).sum())
    at = x.measurable
    gr = gap_recovered(x)
    reference = gap_recovered(mean) if mean is not None else float("nan")
    low, high = wilson(good, n)
    harm_low, harm_high = wilson(harmed, n)
    return {
        "tasks": n,
        "improved": float((better & ~x.abstained).mean()),
        "improved_or_abstained": good / n,
        "improved_low": low,
        "improved_high": high,
        "harmed": harmed / n,
        "harmed_low": harm_low,
        "harmed_high": harm_high,
        "abstained": float(x.abstained.mean()),
        "rld": float((x.gain / x.base).mean()),
        "gr": gr,
        "gr_median": float(np.median(x.gain[at] / x.gap[at])) if at.any() else float("nan"),
        "gr_tasks": int(at.sum()),
        "gr_beyond": (gr - reference) / (1.0 - reference),
        **calibration(x),
    }


def calibration(x: Losses) -> dict[str, float]:
    """How the method's own words agree with what happened: Spearman's ρ of strength with the relative gain, and the
    slope of realised on expected gain through the origin."""
    out = {"strength_spearman": float("nan"), "expected_slope": float("nan")}
    at = np.isfinite(x.strength) & np.isfinite(x.loss)
    if at.sum() > 2 and np.ptp(x.strength[at]) > 0.0 and np.ptp((x.gain / x.base)[at]) > 0.0:
        out["strength_spearman"] = float(spearmanr(x.strength[at], (x.gain / x.base)[at]).statistic)
    at = np.isfinite(x.expected) & np.isfinite(x.loss)
    size = float((x.expected[at] ** 2).sum())
    if size > 0.0:
        out["expected_slope"] = float((x.expected[at] * x.gain[at]).sum() / size)
    return out


@dataclass(frozen=True)
class Difference:
    """GR(a) − GR(b) with its 95 % interval, and the two-sided bootstrap p of no difference."""

    value: float
    low: float
    high: float
    p: float


def gr_difference(a: Losses, b: Losses, *, seed: int = 0, draws: int = DRAWS) -> Difference:
    """Paired bootstrap over tasks: tasks are drawn with replacement, and both ratios of sums computed on each draw.

    Raises:
        ValueError: the two are not of the same tasks in the same order.
    """
    if a.tasks != b.tasks:
        raise ValueError("a paired comparison needs the same tasks in the same order")
    at = a.measurable & b.measurable
    difference = a.gain[at] - b.gain[at]
    gap = a.gap[at]
    n = int(at.sum())
    if n < 2:
        return Difference(float("nan"), float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng([seed, 6])
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=draws).astype(np.float64)
    drawn = (counts @ difference) / (counts @ gap)
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = 2.0 * min(float((drawn <= 0.0).mean()), float((drawn >= 0.0).mean()))
    return Difference(float(difference.sum() / gap.sum()), float(low), float(high), min(1.0, max(p, 2.0 / draws)))


def gr_interval(x: Losses, *, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """Bootstrap interval of GR over tasks."""
    zero = Losses(x.tasks, x.base, x.base, x.own, x.gap_error, x.abstained, x.strength, x.expected)
    found = gr_difference(x, zero, seed=seed, draws=draws)
    return found.low, found.high


def common(rows: Sequence[Losses]) -> list[Losses]:
    """The same tasks in the same order for all."""
    shared = set(rows[0].tasks).intersection(*(set(r.tasks) for r in rows))
    order = [t for t in rows[0].tasks if t in shared]
    return [_only(r, order) for r in rows]


def _only(x: Losses, order: Sequence[str]) -> Losses:
    at = np.array([x.tasks.index(t) for t in order], dtype=int)
    return Losses(
        tuple(order),
        x.loss[at],
        x.base[at],
        x.own[at],
        x.gap_error[at],
        x.abstained[at],
        x.strength[at],
        x.expected[at],
    )
