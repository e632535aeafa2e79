"""Intervals and exact tests of the study: over modules, over groups of pairs, and over directions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest

MOST_FLIPPED = 20  # groups whose reversals are counted one by one
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % percentile interval from bootstrap draws; NaN bounds where there is one value only."""

    mean: float
    low: float
    high: float


def over(values: Float[np.ndarray, "n"], *, draws: int, seed: int) -> Estimate:
    """Mean of values, drawn with replacement; undefined ones are left out."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    if len(known) == 1:
        return Estimate(float(known[0]), float("nan"), float("nan"))
    rng = np.random.default_rng([seed, 11])
    weights = rng.multinomial(len(known), np.full(len(known), 1.0 / len(known)), size=draws) / len(known)
    low, high = np.quantile(weights @ known, QUANTILES)
    return Estimate(float(known.mean()), float(low), float(high))


def by_group(values: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """Group → mean of its values, in the order of the names."""
    return {g: float(np.mean([v for v, h in zip(values, groups, strict=True) if h == g])) for g in sorted(set(groups))}


def over_groups(values: Sequence[float], groups: Sequence[str], *, draws: int, seed: int) -> Estimate:
    """Mean of the groups' means, groups drawn with replacement: values of one group are not independent."""
    return over(np.array(list(by_group(values, groups).values())), draws=draws, seed=seed)


@dataclass(frozen=True)
class Share:
    """Successes among n: share, exact (Clopper–Pearson) 95 % interval, two-sided exact p against one half."""

    successes: int
    n: int
    share: float
    low: float
    high: float
    p: float


def exact_share(successes: int, n: int) -> Share:
    """Of at least one trial."""
    found = binomtest(successes, n)
    bounds = found.proportion_ci(0.95, method="exact")
    return Share(successes, n, successes / n, float(bounds.low), float(bounds.high), float(found.pvalue))


def flip_p(shares: Sequence[float]) -> float:
    """Two-sided exact p that shares of successes of independent groups are about one half.

    If a score knew nothing of direction, reversing every pair of a group (share → 1 − share) would be as likely as what
    was seen: the p is the share of the 2^G reversals whose mean is as far from one half.

    Args:
        shares: of each group, at most 20 groups; beyond, 100,000 seeded random reversals stand for all.
    """
    gap = np.asarray(shares, dtype=np.float64) - 0.5
    if len(gap) <= MOST_FLIPPED:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(gap))))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), size=(100_000, len(gap)))
        signs[0] = 1.0
    return float((np.abs(signs @ gap) >= abs(gap.sum()) - 1e-12).mean())
