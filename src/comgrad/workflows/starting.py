"""Fine-tune one task from several starts with equal steps, and look at loss and accuracy along the way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comgrad.describe.task import Example, Task
from comgrad.evaluate.classifier import Bench, evaluate
from comgrad.finetune.adapter import Start, on_adapter
from comgrad.finetune.loop import TrainSpec, fine_tune
from comgrad.predict.trainable import Split
from comgrad.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Reading:
    """Test loss (nats) and accuracy after so many steps."""

    step: int
    loss: float
    accuracy: float


def run_starts(
    bench: Bench,
    task: Task,
    starts: Mapping[str, TaskVector | Split],
    spec: TrainSpec,
    look_at: Sequence[int],
    *,
    watch: Callable[[str, Reading], None] = lambda *_: None,
) -> dict[str, list[Reading]]:
    """Train the task from each starting adapter: the same steps, seed and order of examples, read on the test split.

    Args:
        starts: name → starting adapter; of one in two parts, only the first is trained.
        look_at: steps after which to read; step 0 is always read.
        watch: called with each reading as it comes.
    """
    train, test = task.split("train"), task.split("test")
    out: dict[str, list[Reading]] = {}
    for name, start in starts.items():
        torch.manual_seed(spec.seed)
        with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
            parts = start if isinstance(start, Split) else Split(start, None)
            begun = Start(parts.trained.base, bench.base.path, parts.trained, parts.frozen)
            model = bench.classifier(task, on_adapter(bench.encoder(), begun).model)
            readings = out.setdefault(name, [])

            def read(step: int, name: str = name, model: Any = model, readings: list[Reading] = readings) -> None:
                score = evaluate(bench, model, test)
                readings.append(Reading(step, score.loss, score.accuracy))
                watch(name, readings[-1])

            fine_tune(
                model,
                rows(train),
                lambda b: collate(bench, b),
                spec,
                Path(folder) / "loop",
                probe=read,
                probe_at=look_at,
            )
    return out


def rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Examples as the training loop takes them."""
    return [{"text": e.text, "label": e.label} for e in examples]


def collate(bench: Bench, batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A batch of rows as token ids, mask and labels."""
    labels = torch.tensor([r["label"] for r in batch])
    tokens = {k: v.cpu() for k, v in bench.tokens([r["text"] for r in batch]).items()}
    return {**tokens, "labels": labels}
