"""Training a model's own parameters, through the journey: what is written is what was measured, resumed or not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from comgrad.describe.task import load_task
from comgrad.errors import BaseMismatch, ComgradError, UnsupportedAdapter
from comgrad.evaluate.classifier import shifted
from comgrad.evaluate.harness import open_harness
from comgrad.finetune.linearised import Linearised
from comgrad.registry.card import Card
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.gradients import read_gradient_file
from comgrad.workflows.resolve import VECTOR_FILE, read_vector
from comgrad.workflows.training import TrainRequest, train
from training_models import adapter, bert_base, gpt2_base, llama_base, task_folder

RECIPES = ("nonlinear", "attention-linear", "ntk")
FILES = {VECTOR_FILE, "task_card.json", "task_gradient.json", "task_gradient.safetensors"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_base(tmp_path_factory.mktemp("bases") / "tiny-bert")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_folder(tmp_path_factory.mktemp("tasks") / "cold")


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    return adapter(bert, tmp_path_factory.mktemp("inits") / "start")


def ask(task: Path, base: Path, recipe: str, **options: Any) -> TrainRequest:
    plain = {"base": str(base), "steps": 12, "batch_size": 8, "learning_rate": 3e-3}
    return TrainRequest(task, recipe, **(plain | options))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def loss_of(base: Path, vector: TaskVector, task: Path, linearised: bool) -> float:
    """Test loss at θ₀ + τ, of the plain or of the first-order model."""
    harness = open_harness(resolve_base(base), load_task(task))
    model = harness.fresh()
    looked_at = harness.wrap(Linearised(model) if linearised else model)
    with shifted(model, vector):
        return harness.score(looked_at, load_task(task).split("test")).loss


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_learns_and_what_is_written_is_what_was_measured(
    tmp_path: Path, bert: Path, task: Path, recipe: str
) -> None:
    made = train(ask(task, bert, recipe, steps=30), tmp_path / "out")
    assert made.loss_after < 0.9 * made.loss_before == 0.9 * made.loss_base
    assert made.linearised == (recipe == "ntk")
    assert set(files(tmp_path / "out")) == FILES
    vector = read_vector(tmp_path / "out")
    assert vector.base.fingerprint == resolve_base(bert).fingerprint.root
    assert loss_of(bert, vector, task, made.linearised) == pytest.approx(made.loss_after, abs=1e-5)
    total = sum(p.numel() for p in transformers.AutoModel.from_pretrained(bert).parameters())
    wanted = 2 * 4 * 24 * 24 if recipe == "attention-linear" else total
    assert (made.trainable_parameters, made.trainable_share, made.share) == (wanted, wanted / total, 1.0)
    assert set(made.trainable) == set(vector.tensors)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_card_says_what_evaluation_must_know_and_the_registry_takes_it(
    tmp_path: Path, bert: Path, task: Path, recipe: str
) -> None:
    made = train(ask(task, bert, recipe, steps=2), tmp_path / "mine")
    card = Card.from_file(tmp_path / "mine" / "task_card.json")
    assert card.training is not None
    told = card.training.model_dump()
    assert told["recipe"] == recipe
    assert told["paradigm"] == (recipe if recipe == "attention-linear" else "all")
    assert told["trainable_share"] == made.trainable_share
    assert told["trained_parameters"] == made.trainable_parameters
    assert told.get("linearised") == (True if recipe == "ntk" else None)
    assert told["schedule"] == "cosine"
    assert card.seeds == {"data": 0}
    gradient = read_gradient_file(tmp_path / "mine")
    assert gradient is not None
    assert not any("embed" in n for n in gradient.vector.tensors)
    added = add_paths([tmp_path / "mine"], AddRequest())
    assert [(a.status, a.name) for a in added] == [("added", "mine")]


def test_applied_to_its_base_it_is_the_trained_checkpoint(tmp_path: Path, bert: Path, task: Path) -> None:
    made = train(ask(task, bert, "attention-linear-bias"), tmp_path / "out")
    read_vector(tmp_path / "out").apply_to(bert, tmp_path / "full")
    harness = open_harness(resolve_base(tmp_path / "full"), load_task(task))
    plain = open_harness(resolve_base(bert), load_task(task))
    model = plain.wrap(harness.fresh())  # label prompts are the original base's
    assert plain.score(model, load_task(task).split("test")).loss == made.loss_after


class Stop(Exception):
    pass


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_interrupted_run_ends_at_the_same_bytes(
    tmp_path: Path, bert: Path, task: Path, init: Path, recipe: str
) -> None:
    request = ask(task, bert, recipe, init=init, steps=16)
    whole = train(request, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done == 11:
            raise Stop

    with pytest.raises(Stop):
        train(request, tmp_path / "out", progress=stop)
    again = train(request, tmp_path / "out")
    assert (whole.resumed_from, again.resumed_from) == (None, 8)
    assert files(tmp_path / "whole") == files(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_run_ends_at_the_same_bytes(tmp_path: Path, bert: Path, task: Path, home: Path, recipe: str) -> None:
    options = ["--task", task, "--base", bert, "--recipe", recipe, "--steps", 40, "--learning-rate", 0.003, "--json"]

    def command(out: Path) -> list[str]:
        program = "from comgrad.cli.main import main; main()"
        return [sys.executable, "-c", program, "train", *map(str, options), "-o", str(out)]

    out, give_up = tmp_path / "out", time.monotonic() + 120
    first = tmp_path / "out.partial" / "checkpoints" / "checkpoint-10" / "complete.json"
    with subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        while not first.exists():
            assert running.poll() is None, running.stderr.read() if running.stderr else ""
            assert time.monotonic() < give_up
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
    assert not out.exists()
    done = subprocess.run(command(out), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["resumed_from"] >= 10
    subprocess.run(command(tmp_path / "whole"), capture_output=True, check=True)
    assert files(out) == files(tmp_path / "whole")


def test_other_settings_do_not_go_on_from_these_checkpoints(tmp_path: Path, bert: Path, task: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        train(ask(task, bert, "nonlinear"), tmp_path / "out", progress=stop)
    for recipe, options, named in (
        ("attention-linear", {}, "recipe"),
        ("nonlinear", {"precision": "bf16"}, "loop"),
        ("nonlinear", {"regulariser": "orthoreg", "regulariser_weight": 0.1}, "regulariser"),
    ):
        with pytest.raises(ComgradError, match=f"unfinished run with another .*{named}"):
            train(ask(task, bert, recipe, **options), tmp_path / "out")


# -- from a known vector -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("recipe", RECIPES)
def test_an_init_is_where_it_starts_and_nothing_of_it_is_lost(
    tmp_path: Path, bert: Path, task: Path, init: Path, recipe: str
) -> None:
    made = train(ask(task, bert, recipe, init=init, learning_rate=1e-9), tmp_path / "out")  # hardly moves
    start = TaskVector.from_peft(init, base=bert)
    assert made.loss_before == pytest.approx(loss_of(bert, start, task, recipe == "ntk"), abs=1e-5)
    assert made.loss_before != pytest.approx(made.loss_base, abs=1e-3)
    after = read_vector(tmp_path / "out")
    for name, d in start.tensors.items():
        torch.testing.assert_close(after.tensors[name].dense(), d.dense(), rtol=1e-5, atol=1e-5)
    card = Card.from_file(tmp_path / "out" / "task_card.json")
    assert "base with the init added" in card.notes
    assert [p.role for p in card.parents] == ["train"]


def test_a_dense_result_is_a_start_too(tmp_path: Path, bert: Path, task: Path) -> None:
    first = train(ask(task, bert, "attention-mlp-linear"), tmp_path / "first")
    again = train(TrainRequest(task, "nonlinear", init=tmp_path / "first", base=str(bert), steps=1), tmp_path / "again")
    assert again.loss_before == first.loss_after
    with pytest.raises(UnsupportedAdapter, match="is a dense delta"):
        train(ask(task, bert, "lora", init=tmp_path / "first"), tmp_path / "lora")


def test_an_init_of_another_base_or_shape_is_refused(tmp_path: Path, bert: Path, task: Path) -> None:
    twin = bert_base(tmp_path / "tiny-bert", seed=1)
    train(ask(task, twin, "attention-linear", steps=1), tmp_path / "first")
    with pytest.raises(BaseMismatch, match="use an init of this base"):
        train(ask(task, bert, "nonlinear", init=tmp_path / "first"), tmp_path / "out")
    name = "encoder.layer.0.attention.self.query.weight"
    for tensors, why in (
        ({name: LowRank(torch.ones(30, 1), torch.ones(1, 24))}, r"it has shape \(24, 24\)"),
        ({"nothing.weight": Dense(torch.ones(3))}, "there is none of that name"),
    ):
        folder = tmp_path / "odd"
        folder.mkdir()
        TaskVector(resolve_base(bert).ref, dict(tensors)).save(folder / VECTOR_FILE)
        with pytest.raises(BaseMismatch, match=why):
            train(ask(task, bert, "nonlinear", init=folder), tmp_path / "out")
        shutil.rmtree(folder)
    assert not (tmp_path / "out.partial").exists()


# -- other families, precision, regulariser --------------------------------------------------------------------------
@pytest.mark.parametrize("make", [llama_base, gpt2_base])
@pytest.mark.parametrize("recipe", ["nonlinear", "attention-linear", "ntk"])
def test_a_causal_model_learns_its_answers(tmp_path: Path, task: Path, make: Any, recipe: str) -> None:
    base = make(tmp_path / "tiny-causal")
    made = train(ask(task, base, recipe, steps=20), tmp_path / "out")
    assert made.model == "causal"
    assert made.loss_after < 0.95 * made.loss_base
    assert set(files(tmp_path / "out")) == {VECTOR_FILE, "task_card.json"}
    vector = read_vector(tmp_path / "out")
    assert loss_of(base, vector, task, made.linearised) == pytest.approx(made.loss_after, abs=1e-5)
    assert [a.status for a in add_paths([tmp_path / "out"], AddRequest())] == ["added"]


def test_tensors_have_the_names_of_the_bases_checkpoint(tmp_path: Path, task: Path) -> None:
    inner = bert_base(tmp_path / "plain")
    base = tmp_path / "tiny-bert"
    torch.manual_seed(0)
    transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(inner)).save_pretrained(base)
    for file in inner.glob("tokenizer*"):
        shutil.copy(file, base)
    train(ask(task, base, "nonlinear", steps=2), tmp_path / "out")
    vector = read_vector(tmp_path / "out")
    assert all(n.startswith("bert.") for n in vector.tensors)
    assert vector.apply_to(base, tmp_path / "full").changed >= len(vector.tensors)


@pytest.mark.parametrize("recipe", ["lora", *RECIPES])
def test_bf16_learns_too_and_weights_stay_fp32(tmp_path: Path, bert: Path, task: Path, recipe: str) -> None:
    exact = train(ask(task, bert, recipe, steps=10), tmp_path / "fp32")
    made = train(ask(task, bert, recipe, steps=10, precision="bf16"), tmp_path / "bf16")
    assert made.loss_after != exact.loss_after
    assert made.loss_after == pytest.approx(exact.loss_after, abs=0.15)
    assert made.loss_base == exact.loss_base  # readings are in fp32
    assert json.loads((tmp_path / "bf16" / "task_card.json").read_text())["training"]["precision"] == "bf16"


@pytest.mark.parametrize("recipe", ["lora", *RECIPES])
def test_the_regulariser_shapes_the_vector(tmp_path: Path, bert: Path, task: Path, recipe: str) -> None:
    def gap(folder: Path) -> float:
        low = {n: d for n, d in read_vector(folder, base=str(bert)).tensors.items() if "attention" in n and d.is_matrix}
        return sum(float((torch.linalg.svdvals(d.dense()).square() - 1).square().sum().sqrt()) for d in low.values())

    train(ask(task, bert, recipe), tmp_path / "plain")
    train(ask(task, bert, recipe, regulariser="orthoreg", regulariser_weight=10.0), tmp_path / "reg")
    assert gap(tmp_path / "reg") < gap(tmp_path / "plain") - 0.01
    told = json.loads((tmp_path / "reg" / "task_card.json").read_text())["training"]
    assert (told["regulariser"], told["regulariser_weight"]) == ("orthoreg", 10.0)


# -- refusals --------------------------------------------------------------------------------------------------------
def test_requests_that_make_no_sense_are_refused_early(tmp_path: Path, bert: Path, task: Path, init: Path) -> None:
    for recipe, options, match in (
        ("nonlinear", {"rank": 4}, "--rank with the recipe 'nonlinear'; it trains whole tensors"),
        ("ntk", {"share": 0.5}, "--share with the recipe 'ntk'; a share is of an adapter's directions"),
        ("attention-linear", {"init": init, "merge_init": True}, "--merge-init with .*; it merges its init always"),
        ("nonlinear", {"precision": "fp8"}, "the precision 'fp8'.*use one of: fp32, bf16, fp16"),
        ("nonlinear", {"regulariser": "orthoreg"}, "--regulariser without --regulariser-weight.*give both, or neither"),
        ("nonlinear", {"regulariser_weight": 1.0}, "give both, or neither"),
        ("nonlinear", {"regulariser": "l1", "regulariser_weight": 1.0}, "use one of: orthoreg"),
        ("qlora", {"init": init, "share": 0.5}, "weights of 4 bits"),
    ):
        with pytest.raises(ComgradError, match=match):
            train(ask(task, bert, recipe, **options), tmp_path / "out")
        assert not (tmp_path / "out.partial").exists()


def test_a_run_that_breaks_before_its_first_checkpoint_leaves_nothing(tmp_path: Path, bert: Path, task: Path) -> None:
    with pytest.raises(ComgradError, match="training diverged"):
        train(ask(task, bert, "nonlinear", learning_rate=1e30, steps=40, warmup_steps=0), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    train(ask(task, bert, "nonlinear", steps=1), tmp_path / "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_this_machine_cannot_do_is_refused(tmp_path: Path, bert: Path, task: Path) -> None:
    with pytest.raises(ComgradError, match="the recipe 'qlora' on this machine; 4-bit weights need"):
        train(ask(task, bert, "qlora"), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    with pytest.raises(ComgradError, match="fp16 arithmetic needs a CUDA GPU"):
        train(ask(task, bert, "nonlinear", precision="fp16"), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_a_base_of_no_known_family_is_refused_but_for_nonlinear(tmp_path: Path, bert: Path, task: Path) -> None:
    from safetensors.torch import load_file, save_file

    odd = shutil.copytree(bert, tmp_path / "odd")
    weights = {n.replace("attention", "mixing"): t for n, t in load_file(odd / "model.safetensors").items()}
    save_file(weights, odd / "model.safetensors", {"format": "pt"})
    with pytest.raises(ComgradError, match="of no family whose tensor names are known.*or the recipe nonlinear"):
        train(ask(task, odd, "attention-linear"), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
