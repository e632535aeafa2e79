"""What changes in a collection over time: growth by family, groups whose share grows, and thinly settled ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from comgrad.errors import ComgradError

SURE = 0.05  # chance below which a rise is called one, over all groups together


@dataclass(frozen=True)
class Growth:
    """How many members each label had at the end of each period.

    Args:
        unit: `day`, `week` or `month`.
        starts: first day of each period, without gaps.
        labels: the most frequent first.
        total: (L, B) members at the end of each period.
    """

    unit: str
    starts: tuple[date, ...]
    labels: tuple[str, ...]
    total: Int[np.ndarray, "l b"]

    @property
    def added(self) -> Int[np.ndarray, "l b"]:
        """(L, B) members added in each period."""
        new: Int[np.ndarray, "l b"] = np.diff(self.total, axis=1, prepend=0)
        return new


def growth(times: Sequence[datetime], labels: Sequence[str]) -> Growth:
    """Cumulative counts by label, in days, weeks or months, whichever gives at most some thirty periods."""
    if not times:
        raise ComgradError("an empty registry", "there is nothing to count", "add adapters with: comgrad add PATH")
    days = [t.astimezone(UTC).date() for t in times]
    span = (max(days) - min(days)).days
    unit = "day" if span <= 31 else "week" if span <= 217 else "month"
    starts = _periods(min(days), max(days), unit)
    names = sorted(set(labels), key=lambda n: (-list(labels).count(n), n))
    place = {name: i for i, name in enumerate(names)}
    period = {s: i for i, s in enumerate(starts)}
    added = np.zeros((len(names), len(starts)), dtype=np.int64)
    for day, label in zip(days, labels, strict=True):
        added[place[label], period[_start(day, unit)]] += 1
    return Growth(unit, tuple(starts), tuple(names), added.cumsum(axis=1))


def _start(day: date, unit: str) -> date:
    """First day of the period a day lies in; weeks begin on Monday."""
    if unit == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if unit == "week" else day


def _periods(first: date, last: date, unit: str) -> list[date]:
    out = [_start(first, unit)]
    step = {"day": 1, "week": 7, "month": 31}[unit]  # from the first of a month, 31 days on is in the next
    while (following := _start(out[-1] + timedelta(days=step), unit)) <= last:
        out.append(following)
    return out


@dataclass(frozen=True)
class Rise:
    """How one group's share changed.

    Args:
        before, after: its members added before the date, and since.
        share_before, share_after: of all that were added before, and since.
        chance: the probability that a random choice of which members are the recent ones gives the group at least so many
            of them (hypergeometric), times the number of groups still in question (Holm), at most 1.
    """

    label: str
    before: int
    after: int
    share_before: float
    share_after: float
    chance: float

    @property
    def emerging(self) -> bool:
        """Whether its share grew by more than chance explains."""
        return self.share_after > self.share_before and self.chance < SURE

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self) | {"emerging": self.emerging}


def rises(labels: Sequence[str], recent: Sequence[bool]) -> list[Rise]:
    """All groups, the least likely rise first."""
    from scipy.stats import hypergeom

    N, new = len(labels), sum(recent)
    raw = []
    for label in sorted(set(labels)):
        of = [r for name, r in zip(labels, recent, strict=True) if name == label]
        after = sum(of)
        raw.append((float(hypergeom.sf(after - 1, N, len(of), new)), label, len(of) - after, after))
    raw.sort()
    out, worst = [], 0.0
    for rank, (chance, label, before, after) in enumerate(raw):
        worst = max(worst, min(1.0, chance * (len(raw) - rank)))
        out.append(Rise(label, before, after, before / max(N - new, 1), after / max(new, 1), worst))
    return out


@dataclass(frozen=True)
class Gap:
    """A wanted description, the nearest known one and its cosine, and whether it is farther than known tasks are.

    Args:
        usual: share of the known descriptions whose own nearest other one is at least as far away.
    """

    text: str
    nearest: int
    cosine: float
    usual: float
    lacking: bool


def gaps(
    wanted: Float[np.ndarray, "n d"], known: Float[np.ndarray, "k d"], texts: Sequence[str], *, far: float = SURE
) -> list[Gap]:
    """Wanted descriptions by how far they are from every known one, the farthest first.

    One is lacking where at most a share `far` of the known descriptions have their nearest other one as far away.

    Args:
        wanted, known: unit rows. texts: of the wanted ones.
    """
    between = known @ known.T
    np.fill_diagonal(between, -np.inf)
    own = np.sort(between.max(axis=1)) if len(known) > 1 else np.zeros(0)
    out = []
    for text, row in zip(texts, wanted @ known.T, strict=True):
        best = int(row.argmax())
        usual = float((own <= row[best]).mean()) if len(own) else 1.0
        out.append(Gap(text, best, float(row[best]), usual, usual <= far))
    return sorted(out, key=lambda g: (g.cosine, g.text))


def lonely(similarity: Float[np.ndarray, "k k"], *, share: float = 0.1) -> list[tuple[int, int, float]]:
    """The tenth of the members that are farthest from their nearest other one: member, that one, the similarity."""
    K = len(similarity)
    if K < 2:
        return []
    others = similarity - np.where(np.eye(K, dtype=bool), np.inf, 0.0)
    best = others.argmax(axis=1)
    value = others[np.arange(K), best]
    order = np.argsort(value, kind="stable")[: max(1, round(share * K))]
    return [(int(i), int(best[i]), float(value[i])) for i in order]
