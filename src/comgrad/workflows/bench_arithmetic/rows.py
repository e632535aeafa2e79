"""From finished cells to rows, one figure each, and to means over seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comgrad.evaluate.disentanglement import DISTANCES
from comgrad.workflows.bench_arithmetic.costs import known_costs
from comgrad.workflows.bench_arithmetic.measure import Record, measured
from comgrad.workflows.bench_arithmetic.plan import Cell, Plan
from comgrad.workflows.bench_arithmetic.train import seconds_of, trainings

Row = dict[str, Any]
COLUMNS = ("measure", "recipe", "seed", "method", "task", "other", "value", "low", "high", "n")
BASE = "pre-trained"
LEVEL = 0.95


def rows_of(plan: Plan) -> list[Row]:
    """A row for every figure of every finished cell of the request's suite, of both benchmarks."""
    out: list[Row] = []
    told: set[str] = set()
    for cell in plan.cells():
        record = measured(plan, cell)
        if record is not None:
            for row in _ROWS[cell.kind](cell, record, plan):
                if row["recipe"] == BASE and row["task"] in told:
                    continue
                told |= {row["task"]} if row["recipe"] == BASE else set()
                out.append(row)
    costs = known_costs(plan)
    return out + (list(_cost(costs)) if costs is not None else [])


def _row(cell: Cell | None, measure: str, value: float | None, **more: Any) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    if cell is not None:
        row |= {"recipe": cell.recipe, "seed": cell.seed}
    return row | {"measure": measure, "value": value} | more


def _single(cell: Cell, record: Record, _plan: Plan) -> Iterator[Row]:
    for t in record["tasks"]:
        interval = {"low": t["interval"]["low"], "high": t["interval"]["high"], "n": t["n"]}
        if t["split"] == "test":
            yield _row(None, "accuracy", t["base"], recipe=BASE, task=t["task"], n=t["n"])
            yield _row(cell, "accuracy", t["accuracy"], task=t["task"], **interval)
            yield _row(cell, "loss", t["loss"], task=t["task"], n=t["n"])
        else:
            yield _row(cell, "validation-accuracy", t["accuracy"], task=t["task"], **interval)


def _addition(cell: Cell, record: Record, _plan: Plan) -> Iterator[Row]:
    method = {"method": record["method"]}
    for what in ("absolute", "normalised"):
        spread = record[f"{what}_interval"]
        yield _row(cell, f"addition-{what}", record[what], low=spread["low"], high=spread["high"], **method)
    yield _row(cell, "addition-alpha", record["alpha"], **method)
    yield _row(cell, "addition-alpha-at-edge", float(record["at_edge"]), **method)
    for t in record["tasks"]:
        more = {"task": t["task"], "n": t["n"], **method}
        yield _row(cell, "added-accuracy", t["accuracy"], **more)
        yield _row(cell, "added-normalised", t["normalised"], **more)


def _negation(cell: Cell, record: Record, _plan: Plan) -> Iterator[Row]:
    """Where no coefficient keeps the control tasks, nothing was done: the accuracies stay the base's."""
    task = cell.detail[0]
    yield _row(cell, "negation-satisfied", float(record["satisfied"]), task=task)
    if record["target"] is None:
        return
    yield _row(cell, "negation-alpha", record["alpha"], task=task)
    for t in (record["target"], *record["controls"]):
        kind = "target" if t is record["target"] else "control"
        other = {"task": task, "other": None if kind == "target" else t["task"], "n": t["n"]}
        yield _row(cell, f"negation-{kind}-base", t["base"], **other)
        yield _row(cell, f"negation-{kind}", t["accuracy"], **other)


def _cosine(cell: Cell, record: Record, plan: Plan) -> Iterator[Row]:
    tasks, matrix = plan.suite.tasks, record["cosine"]
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks[:i]):
            yield _row(cell, "cosine", matrix[i][j], task=a, other=b)
            yield _row(cell, "cosine-size", abs(matrix[i][j]), task=a, other=b)


def _disentanglement(cell: Cell, record: Record, _plan: Plan) -> Iterator[Row]:
    task, other = cell.detail
    for distance in DISTANCES:
        yield _row(cell, f"xi-unit-{distance}", record["unit"]["unit_mean"][distance], task=task, other=other)
        if "whole" in record:
            yield _row(cell, f"xi-whole-{distance}", record["whole"]["mean"][distance], task=task, other=other)


def _proposition(cell: Cell, record: Record, plan: Plan) -> Iterator[Row]:
    """`task` is whose inputs, `other` whose vector."""
    tasks, harm = plan.suite.tasks, record["interference"]
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks):
            which = "own" if i == j else "other"
            yield _row(cell, f"inputs-{which}", record["relative"][i][j], task=a, other=b)
            if i != j:
                yield _row(cell, "interference-loss", harm["loss"][i][j], task=a, other=b)
                yield _row(cell, "interference-accuracy", harm["accuracy"][i][j], task=a, other=b)
    if record["association"] is not None:
        yield _row(cell, "association-rho", record["association"]["rho"], n=record["association"]["pairs"])
        yield _row(cell, "association-p", record["association"]["p"], n=record["association"]["pairs"])


def _cost(record: Record) -> Iterator[Row]:
    for c in record["costs"]:
        one = {"recipe": c["name"], "n": c["steps"]}
        yield _row(None, "cost-seconds", c["seconds"], low=c["quartiles"][0], high=c["quartiles"][1], **one)
        yield _row(None, "cost-bytes", float(c["peak_bytes"]), low=c["peak_bytes"], high=c["peak_bytes"], **one)
        yield _row(None, "cost-trainable", float(c["trainable"]), **one)
        yield _row(None, "cost-speed-up", c["speed_up"], **one)
        yield _row(None, "cost-memory-share", c["memory_share"], **one)


_ROWS: Mapping[str, Any] = {
    "single": _single, "addition": _addition, "negation": _negation, "cosine": _cosine,
    "disentanglement": _disentanglement, "proposition": _proposition,
}  # fmt: skip


def seconds_of_all(plan: Plan) -> list[dict[str, Any]]:
    """Seconds of every training and every cell; apart from the rows, because no two runs share them."""
    done = (
        t for recipe in plan.suite.recipes for seed in plan.suite.seeds for t in trainings(plan, recipe, seed) or ()
    )
    out: list[dict[str, Any]] = [
        {"recipe": t.recipe, "seed": t.seed, "what": f"train--{t.task}", "seconds": seconds_of(plan, t)} for t in done
    ]
    for cell in plan.cells():
        record = measured(plan, cell)
        if record is not None:
            out.append({"recipe": cell.recipe, "seed": cell.seed, "what": cell.name, "seconds": record["seconds"]})
    return out


# -- over seeds --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Spread:
    """A mean over seeds with its 95 % t-interval; without at least two seeds the interval is NaN."""

    mean: float
    low: float
    high: float
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """x̄ ± t₀.₉₇₅(n−1)·s/√n."""
    from scipy.stats import t

    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Spread(mean, math.nan, math.nan, n)
    s = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * s / math.sqrt(n)
    return Spread(mean, mean - half, mean + half, n)


def by_seed(rows: Sequence[Row], measure: str, recipe: str, **only: Any) -> dict[int, float]:
    """Seed → mean of a measure over tasks or pairs; addition is of the plain sum unless another method is named.

    What has no seed, such as the pre-trained model's accuracy, is under −1. The pre-trained model's accuracy stands for
    its accuracy after addition too.
    """
    if recipe == BASE and measure == "addition-absolute":
        measure = "accuracy"
    if measure.startswith(("addition", "added")) and recipe != BASE:
        only = {"method": "sum"} | only
    found: dict[int, list[float]] = {}
    for r in rows:
        if r["measure"] == measure and r["recipe"] == recipe and all(r[k] == v for k, v in only.items()):
            found.setdefault(-1 if r["seed"] is None else r["seed"], []).append(float(r["value"]))
    return {seed: math.fsum(v) / len(v) for seed, v in sorted(found.items())}
