"""A few labelled examples choose how far to go along a predicted direction; zero is one of the choices."""

from __future__ import annotations

import random
from pathlib import Path

from comgrad.describe.task import load_task
from comgrad.errors import ComgradError
from comgrad.evaluate.classifier import Bench, evaluate, shifted
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base

FEWEST = 8
MOST = 64
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0, 1.5)  # of the norm that known vectors usually have


def best_factor(direction: TaskVector, task_dir: Path, *, usual_norm: float) -> float:
    """The factor of the direction with the least loss on the task's training examples: 1 (as predicted), 0, or one
    that brings it to a share of the usual norm.

    Raises:
        ComgradError: fewer than eight training examples.
    """
    task = load_task(task_dir)
    train = task.split("train")
    examples = random.Random(0).sample(train, min(MOST, len(train)))  # a file may be sorted by label
    if len(examples) < FEWEST:
        raise ComgradError(
            f"{len(examples)} training examples",
            f"a scale chosen on fewer than {FEWEST} is noise",
            "give more, or leave --examples out",
            code="too-few-examples",
        )
    bench = Bench.open(resolve_base(direction.base.name))
    encoder = bench.encoder()
    model = bench.classifier(task, encoder)
    norm = direction.norm()
    factors = [0.0, 1.0, *(share * usual_norm / norm for share in SHARES)]
    losses = []
    for factor in factors:
        with shifted(encoder, direction, factor):
            losses.append(evaluate(bench, model, examples).loss)
    return factors[losses.index(min(losses))]
