"""Who judges whom: every vector is scored by a screen that was fitted on no vector of its block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from sklearn.model_selection import StratifiedGroupKFold

from comgrad.errors import ComgradError
from comgrad.explain.screening import Judgement, fit
from comgrad.workflows.bench_screening.plan import CLEAN, POISONED
from comgrad.workflows.bench_screening.table import Table

SEEN, UNSEEN_TRIGGER, UNSEEN_TASK = "in distribution", "unseen trigger", "unseen dataset"
SETTINGS = (SEEN, UNSEEN_TRIGGER, UNSEEN_TASK)
FOLDS = 5
Mask = Bool[np.ndarray, "n"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Split:
    """One fit: rows to fit on, rows to judge, and benign rows that others are seen beside.

    `part`: the held-out trigger or dataset, for figures of each.
    """

    train: Mask
    test: Mask
    bank: Mask
    part: str = ""


@dataclass(frozen=True, eq=False)
class Judged:
    """What one setting and set of features found: judgements of rows, one per row and part; adaptive rows among them."""

    setting: str
    features: str
    rows: tuple[int, ...]
    parts: tuple[str, ...]
    found: tuple[Judgement, ...]

    @property
    def scores(self) -> Float[np.ndarray, "j"]:
        return np.array([j.probability for j in self.found])


def splits(table: Table, setting: str, seed: int = 0) -> Iterator[Split]:
    """The fits of a setting. Adaptive rows are judged, and never fitted on.

    Raises:
        ComgradError: (`too-few`) fewer than two blocks with either kind.
    """
    known = ~table.bad | (table.kinds == POISONED)
    clean = table.kinds == CLEAN
    if setting == UNSEEN_TASK:
        for task in sorted(set(table.tasks)):
            own = np.array(table.tasks) == task
            # beside other tasks' benign vectors alone, for the rows it is fitted on too: no bank
            yield Split(known & ~own, own, np.zeros_like(own), task)
        return
    for held in _folds(table, known, seed):
        train, bank = known & ~held, clean & ~held
        if setting == SEEN:
            yield Split(train, held, bank)
            continue
        for kind in sorted(set(table.triggers[table.kinds == POISONED].tolist())):
            others = table.bad & (table.triggers != kind)
            yield Split(train & ~(table.bad & ~others), held & ~others, bank, kind)


def _folds(table: Table, known: Mask, seed: int) -> list[Mask]:
    """Folds of blocks; adaptive rows go where their block goes."""
    n = min(FOLDS, len(set(table.groups[table.bad & known].tolist())))
    if n < 2:
        raise ComgradError(
            f"{len(table.rows)} kept vectors, {int((table.bad & known).sum())} of them poisoned",
            "a screen is fitted on some blocks and judged on others",
            "make more vectors",
            code="too-few",
        )
    at = np.flatnonzero(known)
    made = StratifiedGroupKFold(n, shuffle=True, random_state=seed)
    out = []
    for _, test in made.split(at[:, None], table.bad[at], table.groups[at]):
        out.append(np.isin(table.groups, table.groups[at[test]]))
    return out


def judge(
    table: Table, setting: str, features: str, *, labels: Mask | None = None, seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Judged:  # fmt: skip
    """Judgements of a setting. A split that cannot be fitted (one kind is missing) is left out.

    Args:
        labels: others than the true ones, for a null.

    Raises:
        ComgradError: (`too-few`) no split can be fitted.
    """
    y = table.bad if labels is None else labels
    rows: list[int] = []
    parts: list[str] = []
    found: list[Judgement] = []
    for split in splits(table, setting, seed):
        X = table.seen(features, split.bank)
        try:
            screen = fit(X[split.train], y[split.train], table.groups[split.train], seed=seed)
        except ComgradError as error:
            if error.code != "too-few":
                raise
            continue
        at = np.flatnonzero(split.test)
        if not len(at):
            continue
        rows += at.tolist()
        parts += [split.part] * len(at)
        found += screen.judge(X[at])
        progress()
    if not rows:
        raise ComgradError(
            f"the setting '{setting}' on {len(table.rows)} vectors",
            "no part of them has enough of both kinds to fit a screen",
            "make more vectors",
            code="too-few",
        )
    return Judged(setting, features, tuple(rows), tuple(parts), tuple(found))


def shuffled(table: Table, seed: int) -> Mask:
    """Labels that belong to other rows: those of the known rows, permuted."""
    known = np.flatnonzero(~table.bad | (table.kinds == POISONED))
    out = table.bad.copy()
    out[known] = table.bad[np.random.default_rng(seed).permutation(known)]
    return out
