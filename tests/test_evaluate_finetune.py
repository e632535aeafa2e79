"""The frozen-head classifier and the training loop, on the real packaged encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from comgrad.describe.task import Example, Task, load_task
from comgrad.errors import ComgradError, ShapeMismatch
from comgrad.evaluate.classifier import Bench, evaluate, shifted, with_adapter
from comgrad.finetune.loop import TrainSpec, fine_tune
from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from comgrad.workflows.starting import collate, rows, run_starts

BASE = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.open(resolve_base(BASE))


@pytest.fixture(scope="module")
def task(tasks: list[Path]) -> Task:
    return load_task(tasks[1])


def test_evaluation_is_the_plain_formula_whatever_the_batches(bench: Bench, task: Task) -> None:
    examples = task.split("test")[:23]
    model = bench.classifier(task, bench.encoder())
    whole, pieces = evaluate(bench, model, examples), evaluate(bench, model, examples, batch_size=5)
    assert whole.loss == pytest.approx(pieces.loss, abs=1e-5)
    assert whole.accuracy == pieces.accuracy
    encoder, losses = bench.encoder(), []
    with torch.no_grad():
        for e in examples:  # one text at a time: no padding, so pooling is a plain mean
            x = torch.nn.functional.normalize(encoder(**bench.tokens([e.text])).last_hidden_state[0].mean(0), dim=0)
            prompts = [encoder(**bench.tokens([p])).last_hidden_state[0].mean(0) for p in task.label_prompts]
            logits = 20 * torch.stack([torch.nn.functional.normalize(p, dim=0) @ x for p in prompts])
            losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(e.label))))
    assert whole.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_an_adapter_scores_as_its_task_vector_added_to_the_base(bench: Bench, task: Task, zoo: list[Path]) -> None:
    examples = task.split("test")[:40]
    encoder = bench.encoder()
    before = {n: p.clone() for n, p in encoder.named_parameters()}
    with shifted(encoder, TaskVector.from_peft(zoo[3])):
        added = evaluate(bench, bench.classifier(task, encoder), examples)
    adapted = evaluate(bench, bench.classifier(task, with_adapter(bench, zoo[3])), examples)
    assert added.loss == pytest.approx(adapted.loss, abs=1e-5)
    assert all(torch.equal(p, before[n]) for n, p in encoder.named_parameters())


def test_shifting_by_a_foreign_vector_is_refused_and_undone(bench: Bench) -> None:
    encoder = bench.encoder()
    before = {n: p.clone() for n, p in encoder.named_parameters()}
    good = next(n for n, p in encoder.named_parameters() if p.shape == (384, 384))
    foreign = TaskVector(
        BaseRef("x"),
        {
            good: LowRank(torch.ones(384, 1), torch.ones(1, 384)),
            "z.weight": LowRank(torch.ones(3, 1), torch.ones(1, 3)),
        },
    )
    with pytest.raises(ShapeMismatch, match="'z.weight'"), shifted(encoder, foreign):
        pass
    assert all(torch.equal(p, before[n]) for n, p in encoder.named_parameters())


def test_training_from_one_start_twice_gives_the_same_readings(bench: Bench, task: Task, zoo: list[Path]) -> None:
    small = Task(
        task.name,
        task.description,
        task.label_names,
        task.label_prompts,
        (*task.split("train")[:64], *task.split("test")[:32]),
    )
    spec = TrainSpec(steps=4)
    start = TaskVector.from_peft(zoo[1])
    first = run_starts(bench, small, {"a": start}, spec, (2, 4))
    second = run_starts(bench, small, {"a": start}, spec, (2, 4))
    assert first == second
    assert [r.step for r in first["a"]] == [0, 2, 4]
    assert first["a"][-1].loss != first["a"][0].loss


def test_a_model_with_nothing_to_train_is_refused(bench: Bench, task: Task, zoo: list[Path], tmp_path: Path) -> None:
    model = bench.classifier(task, with_adapter(bench, zoo[0], trainable=False))
    with pytest.raises(ComgradError, match="no trainable parameter"):
        fine_tune(model, rows(task.split("train")[:8]), lambda b: collate(bench, b), TrainSpec(steps=1), tmp_path)


def test_a_diverging_run_stops_and_says_so(bench: Bench, task: Task, zoo: list[Path], tmp_path: Path) -> None:
    model = bench.classifier(task, with_adapter(bench, zoo[0], trainable=True))
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(ComgradError, match="the loss of step 1 is nan; training diverged; lower the learning rate"):
        fine_tune(model, rows(task.split("train")[:32]), lambda b: collate(bench, b), TrainSpec(steps=2), tmp_path)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": -1.0}])
def test_impossible_recipes_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ComgradError, match="correct the numbers"):
        TrainSpec(**bad)  # type: ignore[arg-type]


def test_examples_are_batched_with_their_labels(bench: Bench) -> None:
    batch = collate(bench, rows([Example("a b", 1), Example("c", 0)]))
    assert batch["labels"].tolist() == [1, 0]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
