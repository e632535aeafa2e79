"""Steps saved: fine-tuning from a suggested start against a zero start, each with its own tuned learning rate.

    python benchmarks/bootstrap.py --data DIR --out BENCH_OUT [--dev 4] [--tasks 12] [--start ours+16] [--jobs 2]

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
GROUPS = {"zero": "from zero", "start": "from the suggested start"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dev", type=int, default=4, help="development tasks for the learning rates")
    parser.add_argument("--tasks", type=int, default=12, help="test tasks")
    parser.add_argument("--start", default="ours+16", help="method whose coefficients make the start")
    parser.add_argument("--test-examples", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    dev, test = _tasks(options)
    folder = options.out / "bootstrap"
    tuning = [(t, kind, rate) for t in dev for kind in GROUPS for rate in RATES]
    runs = _all(tuning, options, folder)
    rates = {kind: _best_rate(kind, dev, runs) for kind in GROUPS}
    rates |= {"quarter": rates["start"], "merged": rates["zero"]}
    runs |= _all([(t, kind, rates[kind]) for t in test for kind in rates], options, folder)
    _show(test, rates, runs, options)


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


def _all(
    wanted: list[tuple[str, str, float]], options: argparse.Namespace, folder: Path
) -> dict[tuple[str, str, float], list[list[float]]]:
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


def _best_rate(kind: str, dev: list[str], runs: dict[tuple[str, str, float], list[list[float]]]) -> float:
    """The rate with the least mean over tasks and readings of the loss relative to the base's."""
    base = {t: runs[t, "zero", RATES[0]][0][1] for t in dev}
    mean = {r: np.mean([np.mean([x[1] for x in runs[t, kind, r]]) / base[t] for t in dev]) for r in RATES}
    return min(mean, key=lambda r: mean[r])


def _show(
    tasks: list[str],
    rates: dict[str, float],
    runs: dict[tuple[str, str, float], list[list[float]]],
    options: argparse.Namespace,
) -> None:
    table = Table(
        "task",
        "sibling",
        "base",
        "start",
        "steps, zero",
        "steps, start",
        "end, zero",
        "end, start",
        "quarter",
        "merged",
    )
    siblings = _with_sibling(options)
    ratios, better, quarter, ahead, ends = [], [], [], [], []
    for t in tasks:
        zero, ours, part, merged = (runs[t, kind, rates[kind]] for kind in ("zero", "start", "quarter", "merged"))
        target = zero[0][1] - SHARE * (zero[0][1] - min(x[1] for x in zero))
        a, b = steps_to(target, zero), steps_to(target, ours)
        ratios.append(max(b, 1.0) / max(a, 1.0))
        ahead.append(max(steps_to(target, merged), 1.0) / max(a, 1.0))
        ends.append(zero[-1][1] - merged[-1][1])
        better.append(zero[-1][1] - ours[-1][1])
        quarter.append((zero[0][1] - part[-1][1], zero[0][1] - ours[-1][1]))
        cells = (f"{x:.3f}" for x in (zero[-1][1], ours[-1][1], part[-1][1], merged[-1][1]))
        table.add_row(
            t,
            "yes" if t in siblings else "no",
            f"{zero[0][1]:.3f}",
            f"{ours[0][1]:.3f}",
            f"{a:.0f}",
            f"{b:.0f}",
            *cells,
        )
    Console(width=140).print(table)
    chosen = np.array([t in siblings for t in tasks])
    print(f"learning rates chosen on development tasks: zero {rates['zero']:g}, start {rates['start']:g}")
    print(f"steps saved to {SHARE:.0%} of the gap, all: {_saved(np.array(ratios))}")
    print(f"steps saved, tasks with a sibling (same family, other source): {_saved(np.array(ratios)[chosen])}")
    print(f"steps saved, others: {_saved(np.array(ratios)[~chosen])}")
    print(
        f"final loss, zero minus start: mean {np.mean(better):+.4f}, start not worse on {np.mean(np.array(better) >= 0):.0%}"
    )
    print(f"merged start, fresh adapter: steps saved {_saved(np.array(ahead))}")
    print(
        f"  final loss, zero minus merged: mean {np.mean(ends):+.4f}, not worse on {np.mean(np.array(ends) >= 0):.0%}"
    )
    gains = np.array(quarter)
    print(f"a quarter of the parameters keeps {gains[:, 0].sum() / gains[:, 1].sum():.1%} of the gain of all (summed)")


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
