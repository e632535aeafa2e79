"""The pictures of the page: PNG bytes, the same for the same cells."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from comgrad.evaluate.disentanglement import DISTANCES, Surface
from comgrad.evaluate.heatmap import matrices_png, surfaces_png
from comgrad.workflows.bench_arithmetic.measure import Record, measured
from comgrad.workflows.bench_arithmetic.plan import Cell, Plan
from comgrad.workflows.bench_arithmetic.rows import Row, by_seed

FIRST = ("nonlinear", "ntk", "attention-linear")  # the three that the paper shows side by side
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")


def pictures(plan: Plan, rows: Sequence[Row]) -> dict[str, bytes]:
    """Name's end → PNG."""
    out = {}
    seed = plan.suite.seeds[0]
    shown = [r for r in FIRST if r in plan.suite.recipes] or list(plan.suite.recipes[:3])
    for number, pair in enumerate(plan.suite.pairs, 1):
        found = [(r, measured(plan, Cell(r, seed, "disentanglement", pair))) for r in shown]
        there = [(r, record) for r, record in found if record is not None and "whole" in record]
        for distance in DISTANCES if there else ():
            surfaces = [surface_of(record["whole"]) for _, record in there]
            out[f"xi-{number}-{distance}"] = surfaces_png(surfaces, [r for r, _ in there], distance)
    cosines = [(r, measured(plan, Cell(r, seed, "cosine"))) for r in shown]
    matrices = [(r, np.array(record["cosine"])) for r, record in cosines if record is not None]
    if matrices:
        names = list(plan.suite.tasks)
        out["cosine"] = matrices_png([m for _, m in matrices], [r for r, _ in matrices], names)
    single = single_png(plan, rows)
    return out | ({"single": single} if single is not None else {})


def surface_of(record: Record) -> Surface:
    """A kept surface, as it was computed."""
    terms = {d: np.array(record["terms"][d]) for d in DISTANCES}
    first, second = record["tasks"]
    return Surface((first, second), tuple(record["alphas"]), terms, (record["n"][0], record["n"][1]))


def single_png(plan: Plan, rows: Sequence[Row]) -> bytes | None:
    """Single-task test accuracy of every recipe against that of non-linear fine-tuning; None without both."""
    from matplotlib.figure import Figure

    others = [r for r in plan.suite.recipes if r != FIRST[0]]
    points = {r: [_pair(rows, r, t) for t in plan.suite.tasks] for r in others}
    known = {r: [p for p in found if p is not None] for r, found in points.items()}
    if not any(known.values()):
        return None
    fig = Figure(figsize=(6, 5.6), dpi=110, layout="constrained")
    ax = fig.subplots()
    ax.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    for k, (recipe, found) in enumerate(known.items()):
        xs, ys = [p[0] for p in found], [p[1] for p in found]
        ax.scatter(xs, ys, label=recipe, color=COLOURS[k % len(COLOURS)], s=26)
    every = [x for found in known.values() for p in found for x in p]
    low, high = max(0.0, min(every) - 0.03), min(1.0, max(every) + 0.03)
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_xlabel("test accuracy, nonlinear")
    ax.set_ylabel("test accuracy, the recipe")
    ax.legend(fontsize=8)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _pair(rows: Sequence[Row], recipe: str, task: str) -> tuple[float, float] | None:
    """Means over seeds of the accuracy of non-linear fine-tuning and of the recipe, on one task."""
    found = [list(by_seed(rows, "accuracy", r, task=task).values()) for r in (FIRST[0], recipe)]
    return (float(np.mean(found[0])), float(np.mean(found[1]))) if all(found) else None
