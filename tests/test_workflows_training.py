"""Training: what is written is what was trained, whatever the start; interrupted or not, the same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from comgrad.describe.task import Example, Task, load_task
from comgrad.errors import BaseMismatch, ComgradError, FileRefused, NotFound, StorageError, UnsupportedAdapter
from comgrad.evaluate.harness import Harness, open_harness
from comgrad.predict.trainable import parameters, split, trainable_set
from comgrad.registry.card import Card
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.peft import read_peft
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.gradients import read_gradient_file
from comgrad.workflows.training import TrainRequest, train, what_is_kept
from comgrad.workflows.training_data import divided
from training_models import (
    COLD,
    WARM,
    adapter,
    bert_base,
    examples,
    gpt2_base,
    llama_base,
    task_folder,
)

FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "task_card.json",
    "task_gradient.json",
    "task_gradient.safetensors",
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_base(tmp_path_factory.mktemp("bases") / "tiny-bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_base(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_folder(tmp_path_factory.mktemp("tasks") / "cold")


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    return adapter(bert, tmp_path_factory.mktemp("inits") / "start")


def ask(task: Path, base: Path, **options: Any) -> TrainRequest:
    return TrainRequest(task, **({"base": str(base), "steps": 12, "batch_size": 8, "learning_rate": 1e-2} | options))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def stock(base: Path, written: Path, task: Path) -> tuple[Harness, Any]:
    """The written adapter on its original base, loaded by stock PEFT alone."""
    kind = transformers.AutoModel if (base.name == "tiny-bert") else transformers.AutoModelForCausalLM
    model = peft.PeftModel.from_pretrained(kind.from_pretrained(base, dtype=torch.float32), written)
    harness = open_harness(resolve_base(base), load_task(task))
    return harness, harness.wrap(model.eval())


def test_from_zero_it_learns_and_what_is_written_is_what_was_measured(tmp_path: Path, bert: Path, task: Path) -> None:
    made = train(ask(task, bert, steps=40), tmp_path / "out")
    assert made.loss_before == made.loss_base
    assert made.loss_after < 0.8 * made.loss_before
    assert made.accuracy_after > made.accuracy_before
    assert made.evaluated_on == "test"
    assert set(files(tmp_path / "out")) == FILES
    gradient = read_gradient_file(tmp_path / "out")
    assert gradient is not None
    assert gradient.facts.examples == len(load_task(task).split("train"))
    plain = open_harness(resolve_base(bert), load_task(task))
    train_loss = plain.score(plain.wrap(plain.fresh()), load_task(task).split("train")).loss
    assert gradient.facts.loss == pytest.approx(train_loss, abs=1e-5)
    assert not (tmp_path / "out.partial").exists()
    harness, model = stock(bert, tmp_path / "out", task)
    score = harness.score(model, load_task(task).split("test"))
    assert score.loss == pytest.approx(made.loss_after, abs=1e-5)
    assert score.accuracy == made.accuracy_after
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    ends = {m.split(".", 3)[3] for m in config["target_modules"]}
    assert ends == {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"}


def test_the_loss_before_is_that_of_the_plain_base(tmp_path: Path, bert: Path, task: Path) -> None:
    made = train(ask(task, bert, steps=1), tmp_path / "out")
    harness = open_harness(resolve_base(bert), load_task(task))
    score = harness.score(harness.wrap(harness.fresh()), load_task(task).split("test"))
    assert (made.loss_base, made.accuracy_base) == (score.loss, score.accuracy)


@pytest.mark.parametrize("options", [{}, {"share": 0.4}, {"merge_init": True}, {"merge_init": True, "share": 0.3}])
def test_nothing_of_the_init_is_lost(
    tmp_path: Path, bert: Path, task: Path, init: Path, options: dict[str, Any]
) -> None:
    made = train(ask(task, bert, init=init, learning_rate=1e-12, **options), tmp_path / "out")  # trains, hardly moves
    before, after = read_peft(init, base=bert), read_peft(tmp_path / "out", base=bert)
    moved = {n: after.tensors[n].dense() for n in after.tensors}
    for name, d in before.tensors.items():
        torch.testing.assert_close(moved.pop(name), d.dense(), rtol=1e-4, atol=1e-5)
    assert all(float(rest.abs().max()) < 1e-8 for rest in moved.values())
    assert made.loss_after == pytest.approx(made.loss_before, abs=1e-5)
    assert made.loss_before != pytest.approx(made.loss_base, abs=1e-3)
    harness, model = stock(bert, tmp_path / "out", task)
    assert harness.score(model, load_task(task).split("test")).loss == pytest.approx(made.loss_before, abs=1e-4)


def test_with_a_share_only_the_chosen_directions_move(tmp_path: Path, bert: Path, task: Path, init: Path) -> None:
    made = train(ask(task, bert, init=init, share=0.4), tmp_path / "out")
    start, result = read_peft(init, base=bert), read_peft(tmp_path / "out", base=bert)
    ranks = trainable_set(start, 0.4)
    assert made.trainable == ranks
    assert made.trainable_parameters == sum(k * 48 for k in ranks.values())
    assert made.share == pytest.approx(made.trainable_parameters / parameters(start))
    assert made.share <= 0.4
    frozen = split(start, ranks).frozen
    assert frozen is not None
    for name, d in start.tensors.items():
        rest = result.tensors[name].dense() - (frozen.tensors[name].dense() if name in frozen.tensors else 0.0)
        assert torch.linalg.matrix_rank(rest, atol=1e-4) == ranks.get(name, 0)  # what moved has the rank it was given
        if name not in ranks:
            torch.testing.assert_close(result.tensors[name].dense(), d.dense(), rtol=1e-5, atol=1e-6)
        assert result.tensors[name].rank == 3  # type: ignore[union-attr]
    assert made.loss_after < made.loss_before


def test_without_an_init_a_share_cuts_the_rank_evenly(tmp_path: Path, bert: Path, task: Path) -> None:
    made = train(ask(task, bert, share=0.25, steps=2), tmp_path / "out")
    assert set(made.trainable.values()) == {2}
    assert made.share == 0.25
    assert len(made.trainable) == 8


def test_a_fresh_adapter_on_a_merged_init_is_written_as_their_exact_sum(
    tmp_path: Path, bert: Path, task: Path, init: Path
) -> None:
    made = train(ask(task, bert, init=init, merge_init=True, rank=4), tmp_path / "out")
    result = read_peft(tmp_path / "out", base=bert)
    ranks = {n: d.rank for n, d in result.tensors.items() if isinstance(d, LowRank)}
    assert {n.split(".")[-2]: r for n, r in ranks.items()} == {"query": 7, "value": 7, "key": 4, "dense": 4}
    assert made.loss_after < made.loss_before
    harness, model = stock(bert, tmp_path / "out", task)
    assert harness.score(model, load_task(task).split("test")).loss == pytest.approx(made.loss_after, abs=1e-4)
    card = Card.from_file(tmp_path / "out" / "task_card.json")
    assert "relative to the original base: the exact sum, whose ranks add" in card.notes


def test_the_initial_factors_are_balanced_whatever_gauge_the_init_is_in(
    tmp_path: Path, bert: Path, task: Path, init: Path
) -> None:
    start = read_peft(init)
    lopsided = {n: LowRank(d.B * 50, d.A / 50, d.scale) for n, d in start.tensors.items() if isinstance(d, LowRank)}
    write_peft(TaskVector(start.base, lopsided), tmp_path / "lopsided")
    a = train(ask(task, bert, init=init), tmp_path / "a")
    b = train(ask(task, bert, init=tmp_path / "lopsided"), tmp_path / "b")
    assert a.loss_after == pytest.approx(b.loss_after, abs=1e-4)


def test_an_init_that_is_zero_trains_like_a_start_from_zero(tmp_path: Path, bert: Path, task: Path) -> None:
    from comgrad.finetune.recipes import RECIPES
    from comgrad.workflows.training_start import start_of

    base = resolve_base(bert)
    zero, _ = start_of(ask(task, bert), RECIPES["lora"], base, None)
    write_peft(zero.trained, tmp_path / "zero")
    a, b = train(ask(task, bert), tmp_path / "a"), train(ask(task, bert, init=tmp_path / "zero"), tmp_path / "b")
    assert a.loss_after == b.loss_after < a.loss_before


def test_a_zero_init_merged_adds_no_rank(tmp_path: Path, bert: Path, task: Path, init: Path) -> None:
    start = read_peft(init)
    zero = {n: LowRank(torch.zeros_like(d.B), d.A, d.scale) for n, d in start.tensors.items() if isinstance(d, LowRank)}
    write_peft(TaskVector(start.base, zero), tmp_path / "zero")
    made = train(ask(task, bert, init=tmp_path / "zero", merge_init=True), tmp_path / "out")
    assert made.rank == 8
    assert made.loss_after == train(ask(task, bert), tmp_path / "plain").loss_after


# -- causal models -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [llama_base, gpt2_base])
def test_a_causal_model_learns_its_answers(tmp_path: Path, task: Path, make: Any) -> None:
    base = make(tmp_path / "tiny-causal")
    made = train(ask(task, base, steps=60), tmp_path / "out")
    assert made.model == "causal"
    assert made.loss_after < 0.7 * made.loss_base
    assert made.accuracy_after >= made.accuracy_before
    harness, model = stock(base, tmp_path / "out", task)
    score = harness.score(model, load_task(task).split("test"))
    assert score.loss == pytest.approx(made.loss_after, abs=1e-5)
    added = add_paths([tmp_path / "out"], AddRequest(base=str(base)))
    assert [a.status for a in added] == ["added"]


def test_a_causal_run_on_from_its_own_result(tmp_path: Path, llama: Path, task: Path) -> None:
    first = train(ask(task, llama), tmp_path / "first")
    again = train(ask(task, llama, init=tmp_path / "first", merge_init=True), tmp_path / "again")
    assert again.loss_before == pytest.approx(first.loss_after, abs=1e-5)
    harness, model = stock(llama, tmp_path / "again", task)
    assert harness.score(model, load_task(task).split("test")).loss == pytest.approx(again.loss_after, abs=1e-5)


def test_a_checkpoint_with_a_head_prefix_still_fits_stock_peft(tmp_path: Path, task: Path) -> None:
    torch.manual_seed(0)
    inner = bert_base(tmp_path / "plain")
    base = tmp_path / "tiny-bert"
    config = transformers.BertConfig.from_pretrained(inner)
    transformers.BertForMaskedLM(config).save_pretrained(base)  # its tensors are called bert.encoder...
    for file in inner.glob("tokenizer*"):
        shutil.copy(file, base)
    made = train(ask(task, base), tmp_path / "out")
    harness, model = stock(base, tmp_path / "out", task)
    assert harness.score(model, load_task(task).split("test")).loss == pytest.approx(made.loss_after, abs=1e-5)
    assert made.loss_after != made.loss_before


# -- the same bytes ------------------------------------------------------------------------------------------------
class Stop(Exception):
    pass


def test_an_interrupted_run_ends_at_the_same_bytes(tmp_path: Path, bert: Path, task: Path, init: Path) -> None:
    request = ask(task, bert, init=init, share=0.5, schedule="cosine", steps=25)
    whole = train(request, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        assert total == 25
        if done == 15:
            raise Stop

    with pytest.raises(Stop):
        train(request, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    assert "up to step 14" in what_is_kept(tmp_path / "out")
    again = train(request, tmp_path / "out")
    assert (whole.resumed_from, again.resumed_from) == (None, 14)
    assert files(tmp_path / "whole") == files(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.slow
def test_a_killed_run_ends_at_the_same_bytes(tmp_path: Path, bert: Path, task: Path, home: Path) -> None:
    options = ["--task", task, "--base", bert, "--steps", 200, "--batch-size", 8, "--learning-rate", 0.01, "--json"]

    def command(out: Path) -> list[str]:
        program = "from comgrad.cli.main import main; main()"
        return [sys.executable, "-c", program, "train", *map(str, options), "-o", str(out)]

    out = tmp_path / "out"
    for kills in range(2):
        checkpoints, give_up = out.with_name("out.partial") / "checkpoints", time.monotonic() + 120
        with subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
            while not (checkpoints / f"checkpoint-{40 * (kills + 1)}" / "complete.json").exists():
                assert running.poll() is None, running.stderr.read() if running.stderr else ""
                assert time.monotonic() < give_up
                time.sleep(0.005)
            running.send_signal(signal.SIGKILL)
        assert not out.exists()
    done = subprocess.run(command(out), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["resumed_from"] >= 80
    subprocess.run(command(tmp_path / "whole"), capture_output=True, check=True)
    assert files(out) == files(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_another_seed_is_another_run_and_the_same_seed_the_same_bytes(tmp_path: Path, bert: Path, task: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(ask(task, bert, seed=seed), tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    weights = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "ac"]
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "loop"),
        ({"share": 0.5}, "share"),
        ({"rank": 2}, "rank"),
        ({"limit_examples": 20}, "limit_examples"),
    ],
)
def test_another_request_does_not_go_on_from_these_checkpoints(
    tmp_path: Path, bert: Path, task: Path, change: dict[str, Any], named: str
) -> None:
    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        train(ask(task, bert), tmp_path / "out", progress=stop)
    with pytest.raises(ComgradError, match=f"unfinished run with another .*{named}") as caught:
        train(ask(task, bert, **change), tmp_path / "out")
    assert caught.value.code == "other-run"


def test_another_task_base_or_init_does_not_go_on_from_these_checkpoints(
    tmp_path: Path, bert: Path, task: Path, init: Path
) -> None:
    def stop(done: int, total: int) -> None:
        raise Stop

    own = shutil.copytree(init, tmp_path / "start")
    with pytest.raises(Stop):
        train(ask(task, bert, init=own), tmp_path / "out", progress=stop)
    other_task = task_folder(tmp_path / "other", examples(60, "train", 7) + examples(24, "test", 2))
    other_base = bert_base(tmp_path / "tiny-bert", seed=9)
    for request, named in (
        (ask(other_task, bert, init=own), "task"),
        (ask(task, other_base, init=own), "base"),
    ):
        with pytest.raises(ComgradError, match=f"another {named} "):
            train(request, tmp_path / "out")
    shutil.rmtree(own)
    adapter(bert, own, rank=2)
    with pytest.raises(ComgradError, match="another init "):
        train(ask(task, bert, init=own), tmp_path / "out")


# -- examples --------------------------------------------------------------------------------------------------------
def test_without_a_test_split_a_part_is_held_back_and_never_trained_on(tmp_path: Path, bert: Path) -> None:
    rows = examples(50, "train", 1)
    rows += rows[:10]  # the same text twice must not be on both sides
    folder = task_folder(tmp_path / "task", rows)
    data = divided(load_task(folder))
    assert data.where == "held back from train"
    assert not {e.text for e in data.train} & {e.text for e in data.look}
    assert len(data.train) + len(data.look) == 60
    assert {e.label for e in data.train} == {e.label for e in data.look} == {0, 1}
    assert divided(load_task(folder), seed=5).look == data.look
    made = train(ask(folder, bert, steps=2), tmp_path / "out")
    assert made.evaluated_on == "held back from train"
    assert made.examples == {"train": len(data.train), "evaluated": len(data.look), "left_out": 0}
    training = json.loads((tmp_path / "out" / "task_card.json").read_text())["training"]
    assert training["evaluated_on"] == "held back from train"


def test_a_text_of_the_test_split_is_never_trained_on(tmp_path: Path) -> None:
    rows = examples(30, "train", 1) + examples(10, "test", 2)
    folder = task_folder(tmp_path / "task", [*rows, {**rows[0], "split": "test"}, {**rows[1], "split": "test"}])
    data = divided(load_task(folder))
    assert data.left_out == 2
    assert len(data.train) == 28
    assert not {e.text for e in data.train} & {e.text for e in data.look}


@given(st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.integers(0, 2)), min_size=1, max_size=40))
def test_what_is_held_back_and_what_is_trained_on_are_the_whole(rows: list[tuple[str, int]]) -> None:
    whole = tuple(Example(text, label) for text, label in rows)
    try:
        data = divided(Task("t", "d", ("x", "y", "z"), ("x", "y", "z"), whole))
    except ComgradError as error:
        assert error.code in ("one-label", "nothing-to-measure")
        return
    assert sorted(map(repr, (*data.train, *data.look))) == sorted(map(repr, whole))
    assert not {e.text for e in data.train} & {e.text for e in data.look}
    assert data.left_out == 0


def test_a_limit_draws_examples_and_leaves_the_measurement_alone(task: Path) -> None:
    whole, few = divided(load_task(task)), divided(load_task(task), limit=12, seed=3)
    assert len(few.train) == 12
    assert set(few.train) <= set(whole.train)
    assert few.look == whole.look
    assert divided(load_task(task), limit=12, seed=4).train != few.train
    assert len(divided(load_task(task), limit=10_000).train) == len(whole.train)


# -- the card ------------------------------------------------------------------------------------------------------------
def test_the_card_tells_how_it_was_made_and_the_registry_takes_it(
    tmp_path: Path, bert: Path, task: Path, init: Path
) -> None:
    made = train(ask(task, bert, init=init, share=0.5), tmp_path / "mine")
    card = Card.from_file(tmp_path / "mine" / "task_card.json")
    assert card.description == load_task(task).description
    assert card.label_prompts == load_task(task).label_prompts
    assert card.training is not None
    told = card.training.model_dump()
    for key in (
        "loss_base",
        "loss_before",
        "loss_after",
        "accuracy_before",
        "accuracy_after",
        "steps",
        "recipe",
        "share",
    ):
        assert told[key] == (0.5 if key == "share" else getattr(made, key))
    assert [p.role for p in card.parents] == ["train"]
    assert card.extra["base_fingerprint"] == resolve_base(bert).fingerprint.root
    assert len(card.extra["init_digest"]) == 64
    assert card.seeds == {"data": 0}
    added = add_paths([tmp_path / "mine"], AddRequest(base=str(bert)))
    assert [(a.status, a.name) for a in added] == [("added", "mine")]


# -- refusals --------------------------------------------------------------------------------------------------------
def refused(request: TrainRequest, out: Path, match: str, kind: type[ComgradError] = ComgradError) -> ComgradError:
    with pytest.raises(kind, match=match) as caught:
        train(request, out)
    assert not out.exists()
    assert not out.with_name(out.name + ".partial").exists()
    return caught.value


def test_requests_that_cannot_be_met_are_refused_early(tmp_path: Path, bert: Path, task: Path, init: Path) -> None:
    out = tmp_path / "out"
    refused(ask(task, bert, recipe="qlorb"), out, "the recipe 'qlorb'; .*use one of: lora")
    refused(ask(task, bert, share=0.0), out, "more than 0 and at most 1")
    refused(ask(task, bert, share=float("nan")), out, "more than 0 and at most 1")
    refused(ask(task, bert, share=0.001), out, "give at least")
    refused(ask(task, bert, merge_init=True), out, "--merge-init without --init")
    refused(ask(task, bert, init=init, rank=4), out, "an init is trained with its own ranks")
    refused(ask(task, bert, rank=25), out, "rank 25; the smallest matrix to train has rank 24")
    refused(ask(task, bert, schedule="zigzag"), out, "use one of: constant, linear, cosine")
    refused(ask(task, bert, limit_examples=0), out, "give a positive number")
    refused(ask(tmp_path / "nowhere", bert), out, "holds no task_card.json", NotFound)
    refused(ask(task, tmp_path / "no-base"), out, "it is no path, no installed package", NotFound)
    refused(ask(task, bert / "model.safetensors"), out, "it is a file of weights")
    refused(ask(task, bert, init=tmp_path / "no-init"), out, "no such directory", NotFound)


def test_a_process_that_ended_between_result_and_tidying_up_leaves_nothing_for_good(
    tmp_path: Path, bert: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comgrad.finetune.workfolder import WorkFolder

    with monkeypatch.context() as patched:
        patched.setattr(WorkFolder, "remove", lambda self: None)
        train(ask(task, bert, steps=1), tmp_path / "out")
    assert (tmp_path / "out.partial").exists()
    before = files(tmp_path / "out")
    with pytest.raises(StorageError, match="the folder is not empty"):
        train(ask(task, bert, steps=1), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert files(tmp_path / "out") == before


def test_a_taken_folder_is_refused(tmp_path: Path, bert: Path, task: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    with pytest.raises(StorageError, match="the folder is not empty"):
        train(ask(task, bert), tmp_path / "out")


def test_tasks_that_cannot_be_learned_from_are_refused(tmp_path: Path, bert: Path) -> None:
    test = examples(8, "test", 99)
    one = [r for r in examples(20, "train", 1) if r["label"] == 1]
    few = [{"text": "a b", "label": 0}, {"text": "b c", "label": 1}]
    for name, rows, match in (
        ("none", [], "no examples in split 'train'"),
        ("only-test", test, "no examples in split 'train'"),
        ("one", one + test, "only the label 'warm' among 10 training examples; there is nothing to tell apart"),
        ("few", few, "no label has a text to spare for the measurement"),
    ):
        refused(ask(task_folder(tmp_path / name, rows), bert), tmp_path / "out", match)


def test_an_init_of_another_base_is_refused(tmp_path: Path, bert: Path, llama: Path, task: Path, init: Path) -> None:
    out = tmp_path / "out"
    twin = bert_base(tmp_path / "tiny-bert", seed=1)  # the same name and shapes, other weights
    first = train(ask(task, twin, steps=1), tmp_path / "first")
    refused(ask(task, bert, init=Path(first.path)), out, "use an init of this base", BaseMismatch)
    refused(ask(task, llama, init=init), out, "has no such parameter", BaseMismatch)
    start = read_peft(init)
    wide = {n: LowRank(torch.ones(30, 2), torch.ones(2, 24)) for n in start.tensors}
    write_peft(TaskVector(start.base, wide), tmp_path / "wide")
    refused(ask(task, bert, init=tmp_path / "wide"), out, "it has shape", BaseMismatch)


def test_the_packaged_base_is_told_by_its_weights(
    tmp_path: Path, tasks: list[Path], zoo: list[Path], bert: Path
) -> None:
    refused(ask(tasks[1], bert, init=zoo[0]), tmp_path / "out", "the base to train is 'tiny-bert'", BaseMismatch)


def test_an_init_that_is_no_low_rank_adapter_is_refused(tmp_path: Path, bert: Path, task: Path, init: Path) -> None:
    start = dict(read_peft(init).tensors)
    name = next(iter(start))
    with_bias = start | {name.removesuffix(".weight") + ".bias": Dense(torch.ones(24))}
    write_peft(TaskVector(BaseRef(bert.name), with_bias), tmp_path / "biased")
    refused(ask(task, bert, init=tmp_path / "biased"), tmp_path / "out", "is a dense delta", UnsupportedAdapter)
    embedding = {"embeddings.word_embeddings.weight": LowRank(torch.ones(24, 1), torch.ones(1, 26), transposed=True)}
    write_peft(TaskVector(BaseRef(bert.name), embedding), tmp_path / "embedding")
    refused(ask(task, bert, init=tmp_path / "embedding"), tmp_path / "out", "attention and MLP matrices only")


def test_an_init_with_a_number_that_is_none_is_refused(tmp_path: Path, bert: Path, task: Path, init: Path) -> None:
    from safetensors.torch import load_file, save_file

    bad = shutil.copytree(init, tmp_path / "bad")
    tensors = load_file(bad / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, bad / "adapter_model.safetensors")
    refused(ask(task, bert, init=bad), tmp_path / "out", "NaN|infinit|finite", FileRefused)


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, bert: Path, task: Path) -> None:
    pattern = (
        r"the loss of step (\d+) is (nan|inf); training diverged; lower the learning rate, or look at the examples of "
        r"this batch \(rows ([\d, ]+) of the training examples, from 0\); '.*out.partial' keeps the training up to step "
        r"(\d+); remove '.*out.partial' before another try"
    )
    with pytest.raises(ComgradError, match=pattern) as caught:
        train(ask(task, bert, learning_rate=1e30), tmp_path / "out")
    assert caught.value.code == "diverged"
    found = re.search(pattern, str(caught.value))
    assert found is not None
    assert int(found[4]) == int(found[1]) - 1  # a checkpoint after every step here
    assert len(set(map(int, found[3].split(", ")))) == 8
    saved = load_file(tmp_path / "out.partial" / "checkpoints" / f"checkpoint-{found[4]}" / "model.safetensors")
    assert all(bool(t.isfinite().all()) for t in saved.values())
    assert not (tmp_path / "out").exists()


def test_a_card_that_could_not_be_written_is_refused_before_training(tmp_path: Path, bert: Path) -> None:
    folder = task_folder(tmp_path / "task")
    card = json.loads((folder / "task_card.json").read_text())
    (folder / "task_card.json").write_text(json.dumps(card | {"label_names": ["cold", "wa\u202erm"]}))
    refused(ask(folder, bert), tmp_path / "out", "hides or reorders what is read", FileRefused)


def test_a_base_with_nothing_to_train_is_refused(tmp_path: Path, bert: Path, task: Path) -> None:
    from safetensors.torch import load_file, save_file

    odd = shutil.copytree(bert, tmp_path / "odd")
    weights = {n.replace("attention", "mixing"): t for n, t in load_file(odd / "model.safetensors").items()}
    save_file(weights, odd / "model.safetensors", {"format": "pt"})
    refused(ask(task, odd), tmp_path / "out", "none of its tensors plays a part that the recipe 'lora' trains")


def test_a_full_disk_is_refused_before_training(
    tmp_path: Path, bert: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type(usage)(usage.total, usage.total, 1000))
    refused(ask(task, bert), tmp_path / "out", "checkpoints and result need about", StorageError)


def test_the_words_of_the_fixture_are_apart() -> None:
    assert not set(COLD) & set(WARM)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
