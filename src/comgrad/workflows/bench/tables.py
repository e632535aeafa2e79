"""From finished cells to rows and summaries, and to CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comgrad.workflows.bench.corpus import Corpus
from comgrad.workflows.bench.fold import in_development
from comgrad.workflows.bench.methods import METHODS
from comgrad.workflows.bench.plan import GIVEN
from comgrad.workflows.bench.score import Losses, common, figures, gr_difference, gr_interval

COLUMNS = (
    "task", "family", "source_group", "pool", "split", "variant", "known", "draw", "vectors", "method", "needs", "loss",
    "accuracy", "loss0", "accuracy0", "loss_own", "gap_error", "abstained", "strength", "expected_gain", "scale", "reason",
)  # fmt: skip
MEAN = "mean-scaled"
Row = Mapping[str, Any]


def rows_of(records: Iterable[Row], corpus: Corpus) -> list[dict[str, Any]]:
    """One row per finished cell, with what is known of its task."""
    out = []
    for record in records:
        if "missing" in record:
            continue
        item = corpus.get(record["task"])
        pool = "development" if in_development(item) else "held-out"
        extra = {"family": item.family, "source_group": item.source_group, "pool": pool}
        whole = {**record, **extra, "scale": record["note"].get("scale")}
        out.append({c: whole[c] for c in COLUMNS})
    return out


@dataclass(frozen=True)
class Group:
    """Rows that belong to one line of a table."""

    method: str
    split: str
    variant: str = GIVEN
    known: int = 0
    draw: int = 0


def losses(rows: Sequence[Row]) -> dict[Group, Losses]:
    """Rows by method, split, variant and number of known vectors; tasks sorted."""
    parts: dict[Group, list[Row]] = {}
    for row in rows:
        group = Group(row["method"], row["split"], row["variant"], row["known"], row["draw"])
        parts.setdefault(group, []).append(row)
    return {g: _losses(sorted(part, key=lambda r: str(r["task"]))) for g, part in parts.items()}


def _losses(rows: Sequence[Row]) -> Losses:
    def column(name: str) -> Any:
        return np.array([math.nan if r[name] is None else float(r[name]) for r in rows])

    return Losses(
        tuple(str(r["task"]) for r in rows),
        column("loss"),
        column("loss0"),
        column("loss_own"),
        column("gap_error"),
        np.array([bool(r["abstained"]) for r in rows]),
        column("strength"),
        column("expected_gain"),
    )


def summary(rows: Sequence[Row], *, seed: int = 0) -> list[dict[str, Any]]:
    """Figures of every group, over all tasks and over those on which no constant was chosen."""
    out = []
    for pool in ("all", "held-out"):
        grouped = losses([r for r in rows if pool in ("all", r["pool"])])
        order = {name: i for i, name in enumerate(METHODS)}
        for g, x in sorted(grouped.items(), key=lambda e: (e[0].split, e[0].variant, e[0].known, order[e[0].method])):
            base = grouped.get(Group(MEAN, g.split, GIVEN, g.known, g.draw))
            mean = common([x, base])[1] if base is not None and set(x.tasks) <= set(base.tasks) else None
            low, high = gr_interval(x, seed=seed)
            out.append({"pool": pool, **g.__dict__, **figures(x, mean), "gr_low": low, "gr_high": high})
    return out


def comparisons(
    rows: Sequence[Row], ours: str, others: Sequence[str], split: str, *, seed: int = 0
) -> list[dict[str, Any]]:
    """GR(ours) − GR(other) by paired bootstrap, on the tasks that both have."""
    grouped = losses(rows)
    mine = grouped.get(Group(ours, split))
    out = []
    for other in others:
        theirs = grouped.get(Group(other, split))
        if mine is None or theirs is None or other == ours:
            continue
        a, b = common([mine, theirs])
        d = gr_difference(a, b, seed=seed)
        out.append({"ours": ours, "other": other, "tasks": len(a.tasks), **d.__dict__})
    return out


def lift(rows: Sequence[Row], method: str, split: str, *, seed: int = 0) -> dict[str, Any] | None:
    """Description lift: GR(given) − GR(shuffled), paired."""
    grouped = losses(rows)
    given, shuffled = grouped.get(Group(method, split)), grouped.get(Group(method, split, "shuffled"))
    if given is None or shuffled is None:
        return None
    a, b = common([given, shuffled])
    return {"method": method, "tasks": len(a.tasks), **gr_difference(a, b, seed=seed).__dict__}


def as_csv(rows: Sequence[Row]) -> bytes:
    """The rows as a table, numbers with seven significant digits: what differs below that is the order of a sum."""
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()})
    return buffer.getvalue().encode()
