"""Steps saved: fine-tuning from a suggested start against a zero start, each with its own tuned learning rate.

    python benchmarks/bootstrap.py --data DIR --out BENCH_OUT [--dev 4] [--tasks 12] [--start ours+16] [--jobs 2] [--page FILE]

BENCH_OUT is the folder of a finished `comgrad bench descinit` whose cells hold the starts' coefficients (the task's source
group left out). Tasks are drawn with a fixed seed: the learning rates are chosen on development tasks, the figures are of
others. Target: 80 % of the way from the base model's test loss to the best loss that the tuned zero start reaches. A third
arm trains only a quarter of the start's parameters, those that `comgrad suggest --share 0.25` names; a fourth merges the
start into the base and trains a fresh adapter on top (`comgrad train --merge-init`) at the zero start's learning rate. Runs are
kept in BENCH_OUT/bootstrap; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from comgrad.weights.storage import atomic_write_bytes

STEPS, SHARE = 80, 0.8
QUARTER = 0.25
LOOK_AT = (3, 6, 10, 15, 20, 30, 40, 60, 80)
RATES = (1e-3, 2e-3, 4e-3)
GROUPS = ("zero", "start")  # a learning rate is chosen for each
KINDS = ("zero", "start", "quarter", "merged")
HEAD = ["task", "sibling", "base", "start's loss", *(f"steps, {k}" for k in KINDS), *(f"end, {k}" for k in KINDS)]
Runs = dict[tuple[str, str, float], list[list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dev", type=int, default=4, help="development tasks for the learning rates")
    parser.add_argument("--tasks", type=int, default=12, help="test tasks")
    parser.add_argument("--start", default="ours+16", help="method whose coefficients make the start")
    parser.add_argument("--test-examples", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--page", type=Path, help="write the table as Markdown here")
    options = parser.parse_args()
    dev, test = _tasks(options)
    folder = options.out / "bootstrap"
    tuning = [(t, kind, rate) for t in dev for kind in GROUPS for rate in RATES]
    runs = _all(tuning, options, folder)
    rates = {kind: _best_rate(kind, dev, runs) for kind in GROUPS}
    rates |= {"quarter": rates["start"], "merged": rates["zero"]}
    runs |= _all([(t, kind, rates[kind]) for t in test for kind in rates], options, folder)
    lines = _lines(test, rates, runs, options)
    facts = _facts(lines, rates)
    _show(lines, facts)
    if options.page is not None:
        atomic_write_bytes(options.page, _page(lines, facts, options).encode())


def _tasks(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Development and test tasks whose start is kept and not zero, drawn with a fixed seed."""
    from comgrad.workflows.bench.fold import in_development

    worker = _worker(options.data, options.out, options.test_examples)
    usable = [i for i in worker.corpus.tested if _coefficients(worker, i.id, options.start) is not None]
    order = [usable[i] for i in np.random.default_rng(0).permutation(len(usable))]
    dev = [i.id for i in order if in_development(i)][: options.dev]
    return dev, [i.id for i in order if not in_development(i)][: options.tasks]


def _worker(data: Path, out: Path, test_examples: int) -> Any:
    from comgrad.workflows.bench.plan import Request
    from comgrad.workflows.bench.prepare import Sizes
    from comgrad.workflows.bench.work import Worker

    return Worker(Request(data=data, out=out, sizes=Sizes(test=test_examples)))


def _coefficients(worker: Any, task: str, method: str) -> np.ndarray | None:
    from comgrad.workflows.bench.methods import METHODS
    from comgrad.workflows.bench.plan import Cell

    kept = worker.keep.read(Cell(task, method, "losgo"), METHODS[method])
    if kept is None or not np.any(kept.get("coefficients") or [0.0]):
        return None
    return np.array(kept["coefficients"])


def _all(wanted: list[tuple[str, str, float]], options: argparse.Namespace, folder: Path) -> Runs:
    """Readings (step, test loss) of every run, made where they are not kept."""
    todo = [w for w in wanted if not _file(folder, options.start, *w).exists()]
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        given = (options.data, options.out, options.test_examples, options.start, folder)
        futures = [pool.submit(_run, *w, *given) for w in todo]
        for future in track(as_completed(futures), "training", len(futures), console=Console(stderr=True)):
            future.result()
    return {w: json.loads(_file(folder, options.start, *w).read_text()) for w in wanted}


def _file(folder: Path, start: str, task: str, kind: str, rate: float) -> Path:
    name = {"zero": "zero", "start": start, "quarter": f"{start}-quarter", "merged": f"{start}-merged"}[kind]
    return folder / f"{task}--{name}--{rate:g}.json"


def _run(
    task: str, kind: str, rate: float, data: Path, out: Path, test_examples: int, method: str, folder: Path
) -> None:
    import torch

    from comgrad.describe.task import Task
    from comgrad.finetune.loop import TrainSpec
    from comgrad.predict.start import combination, predicted_start, zero_start
    from comgrad.predict.trainable import Split, split, trainable_set
    from comgrad.vectors.task_vector import TaskVector
    from comgrad.workflows.bench.fold import fold_of
    from comgrad.workflows.bench.prepare import chosen
    from comgrad.workflows.bench.training import RANK, SCALE
    from comgrad.workflows.starting import run_starts

    torch.set_num_threads(1)
    worker = _worker(data, out, test_examples)
    item = worker.corpus.get(task)
    like = worker.corpus.vectors[0]
    zero = start = zero_start(like.base, like.tensors, RANK, scale=SCALE).vector
    if kind != "zero":
        fold = fold_of(worker.board, item, "losgo", item.description)
        c = _coefficients(worker, task, method)
        assert c is not None
        vectors = [worker.corpus.vectors[k] for k in fold.allowed]
        start = predicted_start(combination(vectors, c.tolist()), RANK, scale=SCALE).vector
    begun: TaskVector | Split = start
    if kind == "quarter":
        begun = split(start, trainable_set(start, QUARTER))
    if kind == "merged":
        begun = Split(zero, start)
    sizes = worker.request.sizes
    train = tuple(e for e in item.task.examples if e.split == "train")
    small = Task(item.name, item.description, item.label_names, item.label_prompts, train + chosen(item, "test", sizes))
    spec = TrainSpec(steps=STEPS, learning_rate=rate)
    readings = run_starts(worker.model.bench, small, {"start": begun}, spec, LOOK_AT)["start"]
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(
        _file(folder, method, task, kind, rate), json.dumps([[r.step, r.loss] for r in readings]).encode()
    )


def steps_to(target: float, readings: list[list[float]]) -> float:
    """The step at which the loss, interpolated between readings, first reaches the target; the last step where never."""
    for (a, before), (b, after) in pairwise(readings):
        if before <= target:
            return a
        if after <= target:
            return a + (b - a) * (before - target) / (before - after)
    return readings[-1][0]


def _best_rate(kind: str, dev: list[str], runs: Runs) -> float:
    """The rate with the least mean over tasks and readings of the loss relative to the base's."""
    base = {t: runs[t, "zero", RATES[0]][0][1] for t in dev}
    mean = {r: np.mean([np.mean([x[1] for x in runs[t, kind, r]]) / base[t] for t in dev]) for r in RATES}
    return min(mean, key=lambda r: mean[r])


@dataclass(frozen=True)
class Line:
    """One task: is there a sibling, test losses of base and start, steps of each arm, final losses of each arm."""

    task: str
    sibling: bool
    base: float
    start: float
    steps: dict[str, float]
    end: dict[str, float]


def _lines(tasks: list[str], rates: dict[str, float], runs: Runs, options: argparse.Namespace) -> list[Line]:
    siblings = _with_sibling(options)
    out = []
    for t in tasks:
        of = {kind: runs[t, kind, rates[kind]] for kind in KINDS}
        zero = of["zero"]
        target = zero[0][1] - SHARE * (zero[0][1] - min(x[1] for x in zero))
        steps = {k: max(steps_to(target, r), 1.0) for k, r in of.items()}
        ends = {k: r[-1][1] for k, r in of.items()}
        out.append(Line(t, t in siblings, zero[0][1], of["start"][0][1], steps, ends))
    return out


def _facts(lines: list[Line], rates: dict[str, float]) -> list[str]:
    """What the table says, a line each."""
    out = [f"Learning rates chosen on development tasks: zero {rates['zero']:g}, start {rates['start']:g}."]
    for kind, name in (("start", "the start trained"), ("merged", "the start merged, a fresh adapter on top")):
        for what, chosen in (
            ("all tasks", lines),
            ("tasks with a sibling (same family, other source)", [x for x in lines if x.sibling]),
            ("tasks whose start recovers a fifth of the gap or more", [x for x in lines if _ahead(x) >= 0.2]),
        ):
            ratios = np.array([x.steps[kind] / x.steps["zero"] for x in chosen])
            out.append(f"Steps saved to {SHARE:.0%} of the gap, {name}, {what}: {_saved(ratios)}.")
        less = np.array([x.end["zero"] - x.end[kind] for x in lines])
        out.append(
            f"Final loss, {name}: lower than from zero by {less.mean():+.4f} on average, no higher on {np.mean(less >= 0):.0%}."
        )
    kept = sum(x.base - x.end["quarter"] for x in lines) / sum(x.base - x.end["start"] for x in lines)
    out.append(f"A quarter of the start's parameters keeps {kept:.1%} of the gain of all (sums over tasks).")
    return out


def _ahead(x: Line) -> float:
    """The share of what training from zero gains that the start has before any step."""
    return (x.base - x.start) / (x.base - x.end["zero"])


def _show(lines: list[Line], facts: list[str]) -> None:
    table = Table(*HEAD)
    for line in lines:
        table.add_row(*_cells(line))
    Console(width=150).print(table)
    print("\n".join(facts))


def _cells(x: Line) -> list[str]:
    steps = [f"{x.steps[k]:.0f}" for k in KINDS]
    ends = [f"{x.end[k]:.3f}" for k in KINDS]
    return [x.task, "yes" if x.sibling else "no", f"{x.base:.3f}", f"{x.start:.3f}", *steps, *ends]


def _page(lines: list[Line], facts: list[str], options: argparse.Namespace) -> str:
    rows = [f"| {' | '.join(r)} |" for r in (HEAD, ["---"] * len(HEAD), *map(_cells, lines))]
    asked = f"--dev {options.dev} --tasks {options.tasks} --start {options.start}"
    command = f"python benchmarks/bootstrap.py --data data --out bench-out {asked} --page docs/bootstrapping.md"
    return "\n".join(
        [
            "# Fine-tuning from a predicted start: steps saved",
            "",
            f"Written by `{command}`; no figure here was typed by hand.",
            "",
            f"Starts are those of `{options.start}` in [descinit](descinit.md): the task's source group is left out, and nothing",
            f"of the test examples is seen. Every arm trains {STEPS} steps of 16 on the task's training examples. The target is",
            f"{SHARE:.0%} of the way from the base's test loss to the best that the zero start reaches. *start*: the adapter as",
            "`comgrad suggest` writes it is trained on; *quarter*: only the quarter of its parameters that `--share 0.25` names;",
            "*merged*: the start is merged into the base and a fresh adapter trained on top (`--merge-init`).",
            "",
            *rows,
            "",
            *(f"- {f}" for f in facts),
            "",
        ]
    )


def _with_sibling(options: argparse.Namespace) -> set[str]:
    """Tasks of whose family there is another in another source group."""
    items = _worker(options.data, options.out, options.test_examples).corpus.known
    return {i.id for i in items if any(j.family == i.family and j.source_group != i.source_group for j in items)}


def _saved(ratios: np.ndarray) -> str:
    if len(ratios) == 0:
        return "no such task"
    logs = np.log(ratios)
    draws = logs[np.random.default_rng(0).integers(0, len(logs), (10_000, len(logs)))].mean(axis=1)
    low, high = 1 - np.exp(np.quantile(draws, [0.975, 0.025]))
    mean = 1 - np.exp(logs.mean())
    return f"{mean:.0%} (geometric mean of {len(logs)} tasks; 95 % interval {low:.0%} to {high:.0%})"


if __name__ == "__main__":
    main()
