"""Figures of judgements: areas under ROC curves with intervals over blocks, rates, calibration, abstention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from sklearn.metrics import roc_auc_score

from comgrad.evaluate.intervals import DRAWS, LEVEL, Interval
from comgrad.explain.screening import CONSISTENT, REFUSED, SUSPICIOUS, UNEXPLAINED
from comgrad.workflows.bench_screening.plan import ADAPTIVE, BENIGN, POISONED
from comgrad.workflows.bench_screening.settings import Judged
from comgrad.workflows.bench_screening.table import Table

ALL = "all benign"
FALSE_ALARMS = 0.01
BINS = 5


@dataclass(frozen=True)
class Area:
    """Attacks against benign vectors under one screen.

    Args:
        attack: poisoned, or one of the adaptive groups. against: a benign group, or all. part: one trigger or dataset.
        auroc: chance that an attack's score is above a benign one's, ties half. low, high: 95 %, blocks resampled.
        tpr: share of attacks found with at most 1 % of these benign vectors above the threshold.
        within: the same chance as `auroc` over pairs of one block alone, whose settings are the same; NaN without any.
        n_bad, n_benign: how many there are.
    """

    setting: str
    features: str
    attack: str
    against: str
    part: str
    auroc: float
    low: float
    high: float
    tpr: float
    within: float
    n_bad: int
    n_benign: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """Calibration and abstention of one screen on poisoned and benign vectors.

    `brier` of the probabilities, and of always saying the share of poisoned vectors; shares of each answer; of the
    answers given, those that are right. `reliability`: (mean probability, share poisoned, how many) in equal parts.
    """

    setting: str
    features: str
    brier: float
    brier_constant: float
    abstained: float
    refused: float
    answered_right: float
    missed: float
    alarmed: float
    reliability: tuple[tuple[float, float, int], ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def areas(table: Table, judged: Judged, *, seed: int = 0) -> list[Area]:
    """Every attack against every benign group and all of them; and for each part, poisoned against all."""
    rows, parts = np.array(judged.rows), np.array(judged.parts)
    kinds, groups, scores = table.kinds[rows], table.groups[rows], judged.scores
    out = []
    for attack in (POISONED, *ADAPTIVE):
        for against in (*BENIGN, ALL):
            benign = np.isin(kinds, BENIGN) if against == ALL else kinds == against
            out.append(_area(judged, attack, against, "", scores, kinds == attack, benign, groups, parts, seed))
    for part in sorted(set(judged.parts) - {""}):
        here = parts == part
        bad, benign = here & (kinds == POISONED), here & np.isin(kinds, BENIGN)
        out.append(_area(judged, POISONED, ALL, part, scores, bad, benign, groups, parts, seed))
    return [a for a in out if a is not None]


def _area(
    judged: Judged, attack: str, against: str, part: str, scores: np.ndarray, bad: np.ndarray, benign: np.ndarray,
    groups: np.ndarray, parts: np.ndarray, seed: int,
) -> Area | None:  # fmt: skip
    if not bad.any() or not benign.any():
        return None
    used = bad | benign
    interval = auroc_interval(scores[used], bad[used], groups[used], seed=seed)
    return Area(
        judged.setting, judged.features, attack, against, part, auroc(scores[used], bad[used]), interval.low,
        interval.high, found_at(scores[bad], scores[benign]), _within(scores, bad, benign, groups, parts),
        int(bad.sum()), int(benign.sum()),
    )  # fmt: skip


def auroc(scores: Float[np.ndarray, "n"], bad: Bool[np.ndarray, "n"]) -> float:
    """P(score of a bad one > score of a benign one) + ½P(equal)."""
    return float(roc_auc_score(bad, scores))


def auroc_interval(
    scores: Float[np.ndarray, "n"],
    bad: Bool[np.ndarray, "n"],
    groups: Integer[np.ndarray, "n"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the area, whole groups drawn with replacement; draws without both kinds are left out."""
    rng = np.random.default_rng(seed)
    names, own = np.unique(groups, return_inverse=True)
    order = np.argsort(scores, kind="stable")
    ties = np.unique(scores[order], return_inverse=True)[1]
    y, own = bad[order].astype(float), own[order]
    found = []
    for _ in range(draws):
        weight = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[own].astype(float)
        good, evil = np.bincount(ties, weight * (1 - y)), np.bincount(ties, weight * y)
        if good.sum() and evil.sum():
            below = np.cumsum(good) - good
            found.append(float((evil * (below + good / 2)).sum() / (good.sum() * evil.sum())))
    if not found:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def found_at(bad: Float[np.ndarray, "b"], benign: Float[np.ndarray, "g"], rate: float = FALSE_ALARMS) -> float:
    """Share of bad scores above the threshold that at most ⌊rate·n⌋ of the n benign scores pass."""
    allowed = math.floor(rate * len(benign) + 1e-9)
    threshold = np.sort(benign)[::-1][allowed]
    return float((bad > threshold).mean())


def _within(scores: np.ndarray, bad: np.ndarray, benign: np.ndarray, groups: np.ndarray, parts: np.ndarray) -> float:
    won = []
    for part in set(parts.tolist()):
        for g in set(groups[bad].tolist()):
            here = (groups == g) & (parts == part)
            gap = scores[here & bad][:, None] - scores[here & benign][None]
            won += (np.sign(gap).ravel() / 2 + 0.5).tolist()
    return float(np.mean(won)) if won else math.nan


def answers(table: Table, judged: Judged) -> Answers:
    """Calibration and abstention over poisoned and benign vectors, adaptive ones apart."""
    rows = np.array(judged.rows)
    known = np.isin(table.kinds[rows], (*BENIGN, POISONED))
    bad, chance = table.bad[rows][known], judged.scores[known]
    said = np.array([j.answer for j in judged.found])[known]
    given = np.isin(said, (CONSISTENT, SUSPICIOUS))
    right = (said == SUSPICIOUS) == bad
    return Answers(
        judged.setting,
        judged.features,
        float(np.square(chance - bad).mean()),
        float(bad.mean() * (1 - bad.mean())),
        float(np.isin(said, (UNEXPLAINED, REFUSED)).mean()),
        float((said == REFUSED).mean()),
        float(right[given].mean()) if given.any() else math.nan,
        float((said[bad] == CONSISTENT).mean()) if bad.any() else math.nan,
        float((said[~bad] == SUSPICIOUS).mean()) if (~bad).any() else math.nan,
        _reliability(chance, bad),
    )


def _reliability(chance: np.ndarray, bad: np.ndarray) -> tuple[tuple[float, float, int], ...]:
    parts = np.array_split(np.argsort(chance, kind="stable"), BINS)
    return tuple((float(chance[p].mean()), float(bad[p].mean()), len(p)) for p in parts if len(p))


def curve(scores: Sequence[float], bad: Sequence[bool]) -> tuple[list[float], list[float]]:
    """False and true alarm rates as the threshold falls, from (0, 0) to (1, 1); ties make one step."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    s, y = np.asarray(scores)[order], np.asarray(bad, dtype=bool)[order]
    last = np.append(s[1:] != s[:-1], True)
    hits, alarms = np.cumsum(y)[last] / y.sum(), np.cumsum(~y)[last] / (~y).sum()
    return [0.0, *alarms.tolist()], [0.0, *hits.tolist()]
