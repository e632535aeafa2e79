"""All figures of a table of features, and the bars they are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comgrad.errors import ComgradError
from comgrad.workflows.bench_screening.figures import (
    ALL,
    Answers,
    Area,
    answers,
    areas,
    auroc,
    auroc_interval,
)
from comgrad.workflows.bench_screening.mislabel import SWAPS, TRUE, Claim
from comgrad.workflows.bench_screening.plan import BENIGN, CLEAN, POISONED
from comgrad.workflows.bench_screening.settings import (
    SEEN,
    SETTINGS,
    UNSEEN_TASK,
    UNSEEN_TRIGGER,
    Judged,
    judge,
    shuffled,
)
from comgrad.workflows.bench_screening.store import Row
from comgrad.workflows.bench_screening.suite import Suite
from comgrad.workflows.bench_screening.table import SETS, WHOLE, Fate, Table, kept_rows

TARGETS = {SEEN: 0.95, UNSEEN_TRIGGER: 0.85, UNSEEN_TASK: 0.75}
"""AUROC of all features against clean vectors, set before any run; the third is that of the project's notes."""
NULLS = 5
MET, MISSED, OPEN = "met", "missed", "open"


@dataclass(frozen=True, eq=False)
class Results:
    """Everything found.

    Args:
        nulls: AUROC against all benign vectors with shuffled labels, all features, in distribution: one a shuffle.
        absent: setting and features that could not be judged, with the reason.
    """

    table: Table
    fates: list[Fate]
    judged: list[Judged]
    areas: list[Area]
    answers: list[Answers]
    nulls: list[float]
    mislabels: list[dict[str, Any]]
    absent: list[tuple[str, str, str]]

    def area(self, setting: str, features: str, attack: str = POISONED, against: str = CLEAN, part: str = "") -> Area | None:  # fmt: skip
        """One of the areas, where it is known."""
        key = (setting, features, attack, against, part)
        return next((a for a in self.areas if (a.setting, a.features, a.attack, a.against, a.part) == key), None)


def results_of(
    rows: Sequence[Row],
    claims: Sequence[Claim],
    suite: Suite,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _d, _t: None,
) -> Results:
    """Every setting with every set of features. Raises ComgradError (`too-few`): nothing can be judged at all."""
    table, fates = kept_rows(rows, suite)
    judged: list[Judged] = []
    absent: list[tuple[str, str, str]] = []
    wanted = [(s, f) for s in SETTINGS for f in SETS]
    for done, (setting, features) in enumerate(wanted, 1):
        try:
            judged.append(judge(table, setting, features, seed=seed))
        except ComgradError as error:
            if error.code != "too-few":
                raise
            absent.append((setting, features, error.why))
        progress(done, len(wanted) + NULLS)
    if not judged:
        raise ComgradError(
            f"{len(table.rows)} kept vectors",
            "no setting has enough poisoned and benign vectors to fit and judge a screen",
            "make more vectors",
            code="too-few",
        )
    nulls = []
    for k in range(NULLS):
        found = _null(table, seed + k)
        if found is not None:
            nulls.append(found)
        progress(len(wanted) + k + 1, len(wanted) + NULLS)
    found_areas = [a for j in judged for a in areas(table, j, seed=seed)]
    return Results(
        table, fates, judged, found_areas, [answers(table, j) for j in judged], nulls,
        mislabel_areas(claims, seed=seed), absent,
    )  # fmt: skip


def _null(table: Table, seed: int) -> float | None:
    """The area where the screen is fitted and judged on labels that belong to other rows."""
    labels = shuffled(table, seed)
    try:
        judged = judge(table, SEEN, WHOLE, labels=labels, seed=seed)
    except ComgradError:
        return None
    rows = np.array(judged.rows)
    known = np.isin(table.kinds[rows], (*BENIGN, POISONED))
    y = labels[rows][known]
    return auroc(judged.scores[known], y) if 0 < y.sum() < len(y) else None


def mislabel_areas(claims: Sequence[Claim], *, seed: int = 0) -> list[dict[str, Any]]:
    """Swapped against true descriptions, source groups resampled."""
    out = []
    for setting in dict.fromkeys(c.setting for c in claims):
        for swap in SWAPS:
            used = [c for c in claims if c.setting == setting and c.claim in (TRUE, swap)]
            bad = np.array([c.claim == swap for c in used])
            if not bad.any() or bad.all():
                continue
            names = sorted({c.source_group for c in used})
            groups = np.array([names.index(c.source_group) for c in used])
            scores = np.array([c.score for c in used])
            interval = auroc_interval(scores, bad, groups, seed=seed)
            row = {"setting": setting, "swap": swap, "auroc": auroc(scores, bad), "low": interval.low}
            out.append({**row, "high": interval.high, "n_swapped": int(bad.sum()), "n_true": int((~bad).sum())})
    return out


# -- the bars ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Verdict:
    """A target and what became of it: `met` or `missed` by the estimate; `sure` where the whole interval is on that side."""

    setting: str
    target: float
    area: Area | None
    verdict: str
    sure: bool


def verdicts(results: Results) -> list[Verdict]:
    """The three targets; `open` where nothing was judged."""
    out = []
    for setting, target in TARGETS.items():
        area = results.area(setting, WHOLE)
        if area is None or math.isnan(area.auroc):
            out.append(Verdict(setting, target, None, OPEN, False))
            continue
        met = area.auroc >= target
        out.append(
            Verdict(setting, target, area, MET if met else MISSED, area.low >= target if met else area.high < target)
        )
    return out


__all__ = ["ALL", "MET", "MISSED", "OPEN", "TARGETS", "Results", "Verdict", "mislabel_areas", "results_of", "verdicts"]
