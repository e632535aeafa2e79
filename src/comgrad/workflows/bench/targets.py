"""The promises of this benchmark against its figures: what was aimed at, what came out, and whether that is enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from comgrad.workflows.bench import tables
from comgrad.workflows.bench.cut import RANK
from comgrad.workflows.bench.methods import METHODS, TEXT
from comgrad.workflows.bench.plan import GIVEN
from comgrad.workflows.bench.score import common, figures
from comgrad.workflows.bench.tables import Group, Row

FUNCTIONAL = "functional"
GAIN = {"functional": 0.20, "ours+16": 0.30, "ours+160": 0.40}
FROM_OURS = ("ours-then-finetune+160",)  # the same examples, trained on from the start they give
BETTER, HARMED, LIFT, LOST = 0.95, 0.03, 0.10, 0.05


@dataclass(frozen=True)
class Target:
    """One promise: of what, what it asks, what was found, on how many tasks, and whether the figure meets it."""

    method: str
    asked: str
    found: str
    tasks: int
    met: bool


def targets(rows: Sequence[Row], split: str, *, seed: int = 0) -> list[Target]:
    """All that the rows can decide."""
    grouped = tables.losses(rows)
    out: list[Target] = []
    for method, least in GAIN.items():
        own = grouped.get(Group(method, split, GIVEN))
        if own is None:
            continue
        f = figures(own, None)
        checks: list[tuple[str, str, str, Callable[[float], bool]]] = [
            ("gr", "GR", f"≥ {least:.2f}", lambda x, least=least: x >= least)  # type: ignore[misc]
        ]
        if method == FUNCTIONAL:
            checks += [
                ("improved_or_abstained", "better or abstained", f"≥ {BETTER:.2f}", lambda x: x >= BETTER),
                ("harmed", "harmed by more than 1 %", f"≤ {HARMED:.2f}", lambda x: x <= HARMED),
            ]
        for key, name, bound, enough in checks:
            value = float(f[key] or 0.0)
            out.append(Target(method, f"{name} {bound}", f"{value:.3f}", len(own.tasks), enough(value)))
        out += _above(rows, method, _rivals(method, {g.method for g in grouped}), split, seed)
    present = {g.method for g in grouped if g.split == split}
    for method in FROM_OURS:
        if method in present:
            out += _above(rows, method, _rivals(method, present), split, seed)
    found = tables.lift(rows, FUNCTIONAL, split, seed=seed)
    if found is not None:
        shown = f"{found['value']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"
        out.append(Target(FUNCTIONAL, f"description lift ≥ {LIFT:.2f}", shown, found["tasks"], found["value"] >= LIFT))
    return out + list(_rank(rows, split, seed))


def _rivals(method: str, present: set[str]) -> list[str]:
    """What a method should beat: by words alone all other text rows, with examples what has as many."""
    ours = {*GAIN, "bold"}
    if method == FUNCTIONAL:
        found = [m.name for m in METHODS.values() if m.group == TEXT and not m.name.startswith(FUNCTIONAL)]
    else:
        found = [
            m.name
            for m in METHODS.values()
            if m.needs == METHODS[method].needs and m.name.startswith(("lorahub", "finetune"))
        ]
    return [m for m in found if m in present and m not in ours]


def _above(rows: Sequence[Row], ours: str, others: Sequence[str], split: str, seed: int) -> Iterable[Target]:
    for d in tables.comparisons(rows, ours, others, split, seed=seed):
        if not math.isnan(d["low"]):
            shown = f"{d['value']:+.3f} [{d['low']:.2f}, {d['high']:.2f}]"
            yield Target(ours, f"GR above {d['other']}, interval without zero", shown, d["tasks"], d["low"] > 0.0)


def _rank(rows: Sequence[Row], split: str, seed: int) -> Iterable[Target]:
    grouped = tables.losses(rows)
    for whole in ("functional", "ours+16"):
        a, b = (grouped.get(Group(m, split, GIVEN)) for m in (whole, f"{whole}-r{RANK}"))
        if a is None or b is None:
            continue
        d = tables.comparisons(rows, whole, [f"{whole}-r{RANK}"], split, seed=seed)[0]
        of = float(figures(common([a, b])[0], None)["gr"] or math.nan)
        shown = f"{d['value'] / of:.3f} [{d['low'] / of:.2f}, {d['high'] / of:.2f}]"
        yield Target(whole, f"share of GR lost at rank {RANK} ≤ {LOST:.2f}", shown, d["tasks"], d["value"] <= LOST * of)
