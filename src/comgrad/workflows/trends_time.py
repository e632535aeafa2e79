"""What grows: counts by family over time. Needs only when each vector was added and what family its card names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from comgrad.atlas.trends import Growth, Rise, growth, rises
from comgrad.errors import ComgradError

THIN = 2
NO_FAMILY = "(no family)"


@dataclass(frozen=True)
class OverTime:
    """How a collection grew.

    Args:
        since: what counts as recent was added at or after it; None where everything was added on one day.
        recent: for each member, whether it is.
        families: the least likely rise first; none where nothing is recent.
        thin: families with at most two members.
    """

    span_days: float
    since: datetime | None
    recent: tuple[bool, ...]
    growth: Growth
    families: tuple[Rise, ...]
    thin: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, times: Sequence[datetime], families: Sequence[str], since: datetime | None) -> OverTime:
        """The growth of members added at these times, of these families ("" where a card names none).

        Raises:
            ComgradError (`empty-registry`): no members.
        """
        named = [f or NO_FAMILY for f in families]
        grown = growth(times, named)
        since = since if since is not None else _last_quarter(times)
        recent = tuple(since is not None and t >= since for t in times)
        few = [(f, n) for f, n in Counter(named).items() if n <= THIN and f != NO_FAMILY]
        return cls(
            span_days=(max(times) - min(times)) / timedelta(days=1),
            since=since,
            recent=recent,
            growth=grown,
            families=tuple(rises(named, recent)) if any(recent) else (),
            thin=tuple(sorted(few, key=lambda x: (x[1], x[0]))),
            notes=_notes(recent, since),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        grown = self.growth
        return {
            "span_days": self.span_days,
            "since": self.since.isoformat() if self.since else None,
            "growth": {
                "unit": grown.unit,
                "starts": [d.isoformat() for d in grown.starts],
                "total": {name: row.tolist() for name, row in zip(grown.labels, grown.total, strict=True)},
            },
            "families": [r.as_dict() for r in self.families],
            "thin": [{"family": f, "vectors": n} for f, n in self.thin],
            "notes": self.notes,
        }


def parsed_day(text: str) -> datetime:
    """A date or an ISO time, in UTC unless it says otherwise. Raises ComgradError."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ComgradError(f"the date {text!a}", "it is no date", "write it as 2026-01-31", code="bad-date") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _last_quarter(times: Sequence[datetime]) -> datetime | None:
    """When the last quarter of the vectors began to be added; None where all were added within a day."""
    ordered = sorted(times)
    if ordered[-1] - ordered[0] < timedelta(days=1):
        return None
    chosen = ordered[len(ordered) - max(1, len(ordered) // 4)]
    return chosen if chosen > ordered[0] else next(t for t in ordered if t > ordered[0])


def _notes(recent: Sequence[bool], since: datetime | None) -> tuple[str, ...]:
    if since is None:
        return ("all vectors were added within one day, so nothing can be said about trends in time; name a --since",)
    new = sum(recent)
    if new in (0, len(recent)):
        when = "nothing was" if new == 0 else "everything was"
        return (f"{when} added since {since:%Y-%m-%d %H:%M}, so there is no before and after to compare",)
    return ()
