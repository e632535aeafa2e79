"""Numbers for the small charts; the templates draw them as SVG, with attributes and classes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

MOST_ROWS = 16
MOST_LABELS = 9


@dataclass(frozen=True)
class Bar:
    """A bar in percent of the chart's width."""

    start: float
    width: float


def signed_bars(values: Sequence[float]) -> list[Bar]:
    """Bars from one zero line, which stands at the left if nothing is negative."""
    low, high = min([0.0, *values]), max([0.0, *values])
    span = (high - low) or 1.0
    zero = -low / span
    return [
        Bar(
            round(100 * (min(v, 0.0) - low) / span, 2) if v < 0 else round(100 * zero, 2), round(100 * abs(v) / span, 2)
        )
        for v in values
    ]


def bar(value: float | None, top: float) -> float:
    """A length in percent of the longest."""
    return 0.0 if value is None or top <= 0 else round(100 * min(max(value / top, 0.0), 1.0), 2)


def layers(rows: Sequence[Mapping[str, Any]], key: str = "share") -> list[dict[str, Any]]:
    """Layers with bars: name, share, rank, height in percent of the largest."""
    top = max([float(r.get(key) or 0.0) for r in rows], default=0.0)
    return [
        {
            "layer": str(r["layer"]),
            "share": float(r.get(key) or 0.0),
            "rank": r.get("rank"),
            "height": bar(float(r.get(key) or 0.0), top),
        }
        for r in rows
    ]


@dataclass(frozen=True)
class Stack:
    """One label's part of every column: rectangles (x, y, height) in a box of 100 by 100."""

    label: str
    last: int
    parts: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Columns:
    """Stacked columns."""

    stacks: tuple[Stack, ...]
    width: float
    starts: tuple[str, ...]
    top: int


def columns(starts: Sequence[str], total: Mapping[str, Sequence[int]]) -> Columns:
    """Growth by label, the most frequent first and at the bottom; the rest as one."""
    shown = list(total.items())
    if len(shown) > MOST_LABELS:
        rest = shown[MOST_LABELS - 1 :]
        summed = [sum(row[i] for _, row in rest) for i in range(len(starts))]
        shown = [*shown[: MOST_LABELS - 1], (f"{len(rest)} other families", summed)]
    top = max([sum(row[i] for _, row in shown) for i in range(len(starts))], default=0) or 1
    wide = 100 / max(1, len(starts))
    below = [0] * len(starts)
    stacks = []
    for label, row in shown:
        parts = []
        for i, value in enumerate(row):
            tall = 100 * value / top
            parts.append((round(i * wide, 3), round(100 - 100 * below[i] / top - tall, 3), round(tall, 3)))
            below[i] += value
        stacks.append(Stack(label, row[-1] if len(row) else 0, tuple(parts)))
    return Columns(tuple(stacks), round(max(wide - min(0.6, wide / 5), 0.2), 3), tuple(starts), top)


@dataclass(frozen=True)
class Dot:
    """A point of the picture of the map, in a box of 1000 by 640."""

    x: float
    y: float
    colour: int
    point: Mapping[str, Any]


COLOURS = 12


def families(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Families, the largest first, with how many points each has."""
    counts: dict[str, int] = {}
    for p in points:
        counts[str(p.get("family") or "")] = counts.get(str(p.get("family") or ""), 0) + 1
    return sorted(counts.items(), key=lambda x: (-x[1], x[0]))


def dots(points: Sequence[Mapping[str, Any]], most: int) -> list[Dot]:
    """The first of the map's points placed in a box that has room for all, aspect kept."""
    if not points:
        return []
    xs, ys = [float(p["x"]) for p in points], [float(p["y"]) for p in points]
    scale = min(920 / ((max(xs) - min(xs)) or 1.0), 560 / ((max(ys) - min(ys)) or 1.0))
    mid_x, mid_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    place = {name: i % COLOURS for i, (name, _) in enumerate(families(points))}
    return [
        Dot(
            round(500 + (x - mid_x) * scale, 1),
            round(320 - (y - mid_y) * scale, 1),
            place[str(p.get("family") or "")],
            p,
        )
        for x, y, p in islice(zip(xs, ys, points, strict=True), most)
    ]
