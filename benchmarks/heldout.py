"""Held-out tasks: loss and accuracy from zero and from the suggestion, at 0, 10 and 40 steps.

    .venv/bin/python benchmarks/heldout.py [--steps 40] [--seeds 3] [--json FILE]

The registry is the starter zoo; the three tasks are those shipped without an adapter, chosen before any run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from comgrad.describe.task import load_task
from comgrad.evaluate.classifier import Bench
from comgrad.finetune.loop import TrainSpec
from comgrad.weights.bases import resolve_base
from comgrad.weights.storage import atomic_write_bytes
from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.demo import held_out_tasks, starter
from comgrad.workflows.known import Known
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection
from comgrad.workflows.starting import run_starts
from comgrad.workflows.suggesting import predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(folder)
        add_paths([starter("zoo")], AddRequest(), registry=registry)
        known = Known.of(collection(registry))
        bench = Bench.open(resolve_base(known.traits.base.name))
        print(
            f"{'task':32} {'start':36} seed "
            + " ".join(f"{f'loss@{s}':>9} {f'acc@{s}':>7}" for s in (0, 10, options.steps))
        )
        for task_id in held_out_tasks():
            task = load_task(starter("tasks", task_id))
            starts = {"zero": known.zero_start(known.traits.rank).vector}
            starts["description"] = predict(known, task.description).vector
            starts["description + 160 examples"] = predict(
                known, task.description, task_dir=starter("tasks", task_id)
            ).vector
            for seed in range(options.seeds):
                spec = TrainSpec(steps=options.steps, seed=seed)
                curves = run_starts(bench, task, starts, spec, (10, options.steps))
                for start, readings in curves.items():
                    cells = " ".join(f"{r.loss:9.4f} {r.accuracy:7.3f}" for r in readings)
                    print(f"{task_id:32} {start:36} {seed:4} {cells}", flush=True)
                    rows.append(
                        {"task": task_id, "start": start, "seed": seed, "readings": [r.__dict__ for r in readings]}
                    )
    if options.json:
        atomic_write_bytes(options.json, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
