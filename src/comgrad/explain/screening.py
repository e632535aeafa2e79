"""A screen for poisoned vectors: a calibrated probability from features, with the right not to answer.

A logistic regression on standardised features; its penalty is chosen, its probabilities are calibrated (Platt) and its
conformal thresholds are set on scores that inner folds give to rows they were not fitted on, folds never splitting a
group. An answer is one of

| answer | when |
|---|---|
| `consistent` | it would be unusual for a poisoned vector (p ≤ level) and is usual for a benign one |
| `suspicious` | it would be unusual for a benign vector (p ≤ level) and is usual for a poisoned one |
| `unexplained` | it is usual for both, or for neither: no answer |
| `refused` | its features lie further out than those of nearly all vectors it was fitted on: no answer |

None of them says that a vector is free of a backdoor: `consistent` is about the kinds of attack it was fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from comgrad.errors import ComgradError

CONSISTENT, SUSPICIOUS, UNEXPLAINED, REFUSED = "consistent", "suspicious", "unexplained", "refused"
PENALTIES = (0.003, 0.03, 0.3, 3.0)  # C, the inverse strength
LEVEL = 0.1
FOREIGN = 0.01
INNER_FOLDS = 4

Table = Float[np.ndarray, "n f"]
Labels = Bool[np.ndarray, "n"]
Groups = Integer[np.ndarray, "n"]


@dataclass(frozen=True)
class Judgement:
    """What a screen says of one vector.

    Args:
        probability: of being poisoned, at the share of poisoned vectors it was fitted on.
        score: the logit before calibration, for ranking.
        p_benign, p_poisoned: conformal p-values: how usual the score would be for either kind.
        p_known: how usual its distance from the middle of the fitted vectors is.
    """

    probability: float
    score: float
    p_benign: float
    p_poisoned: float
    p_known: float
    answer: str


@dataclass(frozen=True, eq=False)
class Screen:
    """A fitted screen; make it with `fit`. `penalty` is the chosen C."""

    penalty: float
    scaler: Any
    model: Any
    calibration: Any
    benign: Float[np.ndarray, "b"]
    poisoned: Float[np.ndarray, "p"]
    distances: Float[np.ndarray, "n"]
    level: float = LEVEL
    foreign: float = FOREIGN

    def judge(self, X: Table) -> list[Judgement]:
        """What it says of every row. Raises ComgradError (`not-finite`)."""
        _finite(X)
        Z = self.scaler.transform(X)
        scores, far = self.model.decision_function(Z), _distance(Z)
        chances = self.calibration.predict_proba(scores[:, None])[:, 1]
        return [self._one(*map(float, row)) for row in zip(chances, scores, far, strict=True)]

    def _one(self, probability: float, score: float, distance: float) -> Judgement:
        p_benign = _p_value(self.benign >= score)
        p_poisoned = _p_value(self.poisoned <= score)
        p_known = _p_value(self.distances >= distance)
        # with fewer than 1/foreign vectors, one further out than all of them
        if p_known <= max(self.foreign, 1.0 / (len(self.distances) + 1)):
            answer = REFUSED
        elif p_benign <= self.level < p_poisoned:
            answer = SUSPICIOUS
        elif p_poisoned <= self.level < p_benign:
            answer = CONSISTENT
        else:
            answer = UNEXPLAINED
        return Judgement(probability, score, p_benign, p_poisoned, p_known, answer)


def fit(
    X: Table, y: Labels, groups: Groups, *, level: float = LEVEL, foreign: float = FOREIGN, seed: int = 0
) -> Screen:
    """Fit a screen.

    Args:
        X: features of vectors, (n, f). y: which of them are poisoned. groups: rows of one group are never divided
            between folds (the same task and seed, say).
        level: error rate of either answer. foreign: share of known vectors that may be refused.

    Raises:
        ComgradError: fewer than two groups with both kinds, or (`not-finite`).
    """
    _finite(X)
    both = min(len(set(groups[y].tolist())), len(set(groups[~y].tolist())))
    if both < 2:
        raise ComgradError(
            f"{len(X)} vectors, {int(y.sum())} of them poisoned, {both} groups with the rarer kind",
            "a screen is fitted and calibrated on at least two groups of either kind",
            "give more vectors",
            code="too-few",
        )
    folds = _folds(X, y, groups, min(INNER_FOLDS, both), seed)
    found = {C: _held_out(X, y, folds, C) for C in PENALTIES}
    penalty = min(PENALTIES, key=lambda C: (_loss(y, found[C][0]), C))
    scores, distances = found[penalty]
    known = np.isfinite(scores)
    scaler = StandardScaler().fit(X)
    return Screen(
        penalty,
        scaler,
        _regression(penalty).fit(scaler.transform(X), y),
        _calibration(scores[known], y[known]),
        scores[known & ~y],
        scores[known & y],
        distances[known],
        level,
        foreign,
    )


def _folds(X: Table, y: Labels, groups: Groups, n: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds whose training part has both kinds."""
    made = StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(X, y, groups)
    return [(a, b) for a, b in made if 0 < y[a].sum() < len(a) and len(b)]


def _held_out(
    X: Table, y: Labels, folds: Sequence[tuple[np.ndarray, np.ndarray]], C: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and distances of rows from models that were not fitted on them; NaN where no fold gave one."""
    scores, distances = np.full(len(X), np.nan), np.full(len(X), np.nan)
    for train, test in folds:
        scaler = StandardScaler().fit(X[train])
        Z = scaler.transform(X[test])
        scores[test] = _regression(C).fit(scaler.transform(X[train]), y[train]).decision_function(Z)
        distances[test] = _distance(Z)
    return scores, distances


def _loss(y: Labels, scores: np.ndarray) -> float:
    known = np.isfinite(scores)
    chance = 1.0 / (1.0 + np.exp(-np.clip(scores[known], -30.0, 30.0)))
    return float(log_loss(y[known], chance, labels=[False, True]))


def _regression(C: float) -> Any:
    return LogisticRegression(C=C, solver="newton-cholesky", max_iter=200)


def _calibration(scores: np.ndarray, y: Labels) -> Any:
    """Platt's sigmoid with his smoothed targets (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2), finite for separable scores: every
    row stands once under either label, weighted by its target."""
    many = int(y.sum())
    target = np.where(y, (many + 1) / (many + 2), 1 / (len(y) - many + 2))
    rows, labels = np.tile(scores, 2)[:, None], np.repeat([True, False], len(y))
    return LogisticRegression(C=1e6).fit(rows, labels, sample_weight=np.concatenate([target, 1 - target]))


def _distance(Z: np.ndarray) -> np.ndarray:
    """Root mean square of a row's standardised features."""
    size: np.ndarray = np.sqrt(np.square(Z).mean(axis=1))
    return size


def _p_value(as_far: np.ndarray) -> float:
    return (1 + int(as_far.sum())) / (1 + len(as_far))


def _finite(X: Table) -> None:
    if not np.isfinite(X).all():
        raise ComgradError(
            f"features with {int((~np.isfinite(X)).sum())} entries that are no number",
            "no score of them means anything",
            "find the broken vector, or leave the feature out",
            code="not-finite",
        )


# -- beside a bank of benign vectors -----------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Bank:
    """Benign vectors that others are seen beside: of the same task, where there are enough of it.

    Args:
        X: their features. tasks, groups: what each was trained on, and the group it is of.
        least: so many vectors of a task make its own middle; with fewer, it is the middle of all.
    """

    X: Table
    tasks: tuple[str, ...]
    groups: Groups
    least: int = 1

    def relative(self, X: Table, tasks: Sequence[str], groups: Groups) -> Table:
        """(x − middle)/spread: the middle is the mean of the bank's vectors of the row's task and of other groups than
        the row's own (its own twin would tell what no screen can know); the spread is the standard deviation inside
        tasks, of all features that vary, else 1.

        Raises:
            ComgradError: a bank with no vector outside the row's group.
        """
        mine, spread = np.array(self.tasks), self._spread()
        out = np.empty_like(X, dtype=np.float64)
        for i, (x, task, group) in enumerate(zip(X, tasks, groups, strict=True)):
            others = self.groups != group
            if not others.any():
                raise ComgradError(
                    "a bank of one group", "a vector is seen beside those of other groups", "add some", code="too-few"
                )
            own = others & (mine == task)
            out[i] = (x - self.X[own if own.sum() >= self.least else others].mean(axis=0)) / spread
        return out

    def _spread(self) -> Float[np.ndarray, "f"]:
        mine = np.array(self.tasks)
        middles = {t: self.X[mine == t].mean(axis=0) for t in set(self.tasks)}
        inside = self.X - np.stack([middles[t] for t in self.tasks])
        free = len(self.X) - len(middles)
        total = inside if free > 0 else self.X - self.X.mean(axis=0)
        spread = np.sqrt(np.square(total).sum(axis=0) / max(1, free if free > 0 else len(self.X) - 1))
        return np.where(spread > 1e-12, spread, 1.0)
