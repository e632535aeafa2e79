"""The loop's checkpoints: whole or not there, of one run only, and a run that goes on from them ends the same."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comgrad.errors import ComgradError, FileRefused, StorageError
from comgrad.finetune.checkpoints import last_whole, load_into, seal, step_of, trainable_state_only
from comgrad.finetune.guard import memory_errors
from comgrad.finetune.loop import SCHEDULES, TrainSpec, fine_tune
from comgrad.finetune.recipes import RECIPES, recipe_named
from comgrad.finetune.workfolder import digest_of, kept, partial_path, work_folder


class Small(nn.Module):
    """A frozen layer, a trained layer and dropout."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.frozen = nn.Linear(4, width)
        self.trained = nn.Linear(width, 1)
        self.drop = nn.Dropout(0.3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.trained(self.drop(torch.relu(self.frozen(x)))).squeeze(-1) - y).square().mean()}


def data(n: int = 40) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(4, generator=generator), "y": float(i % 3)} for i in range(n)]


def collate(batch: Any) -> dict[str, Tensor]:
    return {"x": torch.stack([r["x"] for r in batch]), "y": torch.tensor([r["y"] for r in batch])}


class Stop(Exception):
    pass


def stopping_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Stop

    return progress


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_a_run_taken_up_again_ends_at_the_same_bits(tmp_path: Path, schedule: str, stop: int) -> None:
    spec = TrainSpec(steps=12, batch_size=8, schedule=schedule, warmup_steps=2, seed=3)  # 2.4 epochs
    whole, again = Small(), Small()
    losses = fine_tune(whole, data(), collate, spec, tmp_path / "a", save_every=3)
    with pytest.raises(Stop):
        fine_tune(again, data(), collate, spec, tmp_path / "b", save_every=3, progress=stopping_at(stop))
    again = Small()
    assert fine_tune(again, data(), collate, spec, tmp_path / "b", save_every=3) == losses
    assert [step for step, _ in losses] == list(range(1, 13))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    assert not torch.equal(whole.trained.weight, Small().trained.weight)


def test_checkpoints_or_not_the_numbers_are_the_same(tmp_path: Path) -> None:
    a, b = Small(), Small()
    spec = TrainSpec(steps=5, batch_size=8)
    assert fine_tune(a, data(), collate, spec, tmp_path / "a") == fine_tune(
        b, data(), collate, spec, tmp_path / "b", save_every=1
    )
    assert torch.equal(a.trained.weight, b.trained.weight)
    assert not list((tmp_path / "a").glob("checkpoint-*"))


def test_a_finished_run_is_loaded_not_trained_again(tmp_path: Path) -> None:
    spec, seen = TrainSpec(steps=4, batch_size=8), []
    first, again = Small(), Small()
    losses = fine_tune(first, data(), collate, spec, tmp_path, save_every=2)
    assert (
        fine_tune(again, data(), collate, spec, tmp_path, save_every=2, progress=lambda d, t: seen.append(d)) == losses
    )
    assert seen == []
    assert torch.equal(first.trained.weight, again.trained.weight)


def test_a_checkpoint_holds_the_trained_parameters_only(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    fine_tune(Small(), data(), collate, TrainSpec(steps=2, batch_size=8), tmp_path, save_every=1)
    last = last_whole(tmp_path)
    assert last is not None
    assert set(load_file(last / "model.safetensors")) == {"trained.weight", "trained.bias"}
    assert len(list(tmp_path.glob("checkpoint-*"))) <= 2


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "unsealed", "extra"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    fine_tune(Small(), data(), collate, TrainSpec(steps=4, batch_size=8), tmp_path, save_every=2)
    last = tmp_path / "checkpoint-4"
    file = last / "optimizer.pt"
    raw = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(raw[:-9])
        case "flip":
            file.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
        case "missing":
            file.unlink()
        case "unsealed":
            (last / "complete.json").unlink()
        case "extra":
            (last / "model.bin").write_bytes(b"x")
    found = last_whole(tmp_path)
    assert found is not None
    assert step_of(found) == 2
    assert not last.exists()


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    fine_tune(Small(), data(), collate, TrainSpec(steps=1, batch_size=8), tmp_path, save_every=1)
    other = Small()
    other.frozen.requires_grad_(True)
    with pytest.raises(FileRefused, match="it is of another set of trainable parameters"):
        load_into(other, tmp_path / "checkpoint-1")


def test_the_models_state_is_its_own_again_after_training() -> None:
    model = Small()
    with trainable_state_only(model):
        assert set(model.state_dict()) == {"trained.weight", "trained.bias"}
    assert len(model.state_dict()) == 4


def test_a_disk_that_takes_no_more_is_an_error_in_three_parts(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            fine_tune(Small(4000), data(), collate, TrainSpec(steps=2, batch_size=8), tmp_path, save_every=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert last_whole(tmp_path) is None


# -- what can go wrong ---------------------------------------------------------------------------------------------
class Sums(nn.Module):
    """A loss that is no number on examples without one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": ((x @ self.w) - y).square().mean()}


def test_a_batch_with_a_loss_that_is_no_number_is_named_and_earlier_checkpoints_stay(tmp_path: Path) -> None:
    rows = data(40)
    rows[17] = {**rows[17], "y": float("nan")}
    with pytest.raises(ComgradError, match=r"the loss of step \d+ is nan; training diverged") as caught:
        fine_tune(Sums(), rows, collate, TrainSpec(steps=12, batch_size=8, seed=1), tmp_path, save_every=1)
    step = int(str(caught.value).split("step ")[1].split(" ")[0])
    named = re.search(r"rows ([\d, ]+) of the training examples", str(caught.value))
    assert named is not None
    assert 17 in (batch := [int(i) for i in named[1].split(", ")])
    assert len(batch) == 8
    last = last_whole(tmp_path)
    assert (step_of(last) if last is not None else 0) == step - 1
    clean = [r for i, r in enumerate(rows) if i != 17]
    assert len(fine_tune(Sums(), clean, collate, TrainSpec(steps=12, batch_size=8, seed=1), tmp_path / "clean")) == 12


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    class Jumps(Sums):
        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.w * 0.0).sum() + torch.sqrt(self.w.abs().sum())}  # finite, its gradient is not

    with pytest.raises(ComgradError, match="the weights after step 1 are not finite; training diverged; lower"):
        fine_tune(Jumps(), data(), collate, TrainSpec(steps=3, batch_size=8), tmp_path, save_every=1)
    assert last_whole(tmp_path) is None


def test_a_full_memory_says_what_to_lower(tmp_path: Path) -> None:
    class Greedy(Sums):
        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"loss": torch.ones(2**46).sum() + self.w.sum()}  # 256 TiB

    pattern = (
        r"steps of 8 examples in fp32; the memory is not enough \(.*\); lower the batch size, shorten the texts or"
    )
    with pytest.raises(ComgradError, match=pattern) as caught:
        fine_tune(Greedy(), data(), collate, TrainSpec(steps=1, batch_size=8), tmp_path)
    assert caught.value.code == "out-of-memory"


def test_other_errors_are_not_taken_for_a_full_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(TrainSpec()):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


# -- precision -----------------------------------------------------------------------------------------------------
class Records(nn.Module):
    """What its arithmetic was done in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        out = self.layer(x)
        self.seen.append(out.dtype)
        return {"loss": (out.squeeze(-1).float() - y).square().mean()}


def test_bf16_is_for_the_arithmetic_only_and_for_this_run_only(tmp_path: Path) -> None:
    model = Records()
    spec = TrainSpec(steps=3, batch_size=8, precision="bf16")
    fine_tune(model, data(), collate, spec, tmp_path / "a")
    assert set(model.seen) == {torch.bfloat16}
    assert model.layer.weight.dtype == torch.float32
    model(**collate(data(2)))
    assert model.seen[-1] == torch.float32
    plain = Records()
    fine_tune(plain, data(), collate, replace(spec, precision="fp32"), tmp_path / "b")
    assert set(plain.seen) == {torch.float32}


def test_a_bf16_run_taken_up_again_ends_at_the_same_bits(tmp_path: Path) -> None:
    spec = TrainSpec(steps=6, batch_size=8, precision="bf16", seed=3)
    whole, again = Small(), Small()
    losses = fine_tune(whole, data(), collate, spec, tmp_path / "a", save_every=2)
    with pytest.raises(Stop):
        fine_tune(again, data(), collate, spec, tmp_path / "b", save_every=2, progress=stopping_at(5))
    again = Small()
    assert fine_tune(again, data(), collate, spec, tmp_path / "b", save_every=2) == losses
    assert torch.equal(whole.trained.weight, again.trained.weight)


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    spec = TrainSpec(steps=1, batch_size=8, precision="fp16")
    with pytest.raises(
        ComgradError, match="'fp16'; fp16 arithmetic needs a CUDA GPU, .* on cpu; use bf16 or fp32"
    ) as caught:
        fine_tune(Small(), data(), collate, spec, tmp_path)
    assert caught.value.code == "no-precision"


# -- the work folder -----------------------------------------------------------------------------------------------
def test_a_work_folder_belongs_to_one_specification(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with work_folder(out, {"seed": 0, "rank": 8}) as folder:
        assert folder.path == partial_path(out) == tmp_path / "out.partial"
        assert folder.remembered("a", lambda: {"loss": 0.1}) == {"loss": 0.1}
    with work_folder(out, {"rank": 8, "seed": 0}) as folder:  # the order of keys is no difference
        assert folder.remembered("a", lambda: pytest.fail("computed twice")) == {"loss": 0.1}
    with (
        pytest.raises(ComgradError, match=r"unfinished run with another seed \(0, now 1\); .*mix two runs; .*remove"),
        work_folder(out, {"seed": 1, "rank": 8}),
    ):
        pass


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path / "out", {"a": 1}),
        pytest.raises(ComgradError, match="another process is training there"),
        work_folder(tmp_path / "out", {"a": 1}),
    ):
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    with (
        pytest.raises(ComgradError, match="holds 'thesis.txt'; it is no work folder"),
        work_folder(tmp_path / "out", {}),
    ):
        pass
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]


def test_a_specification_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "run.json").write_text("{")
    with pytest.raises(StorageError, match="it cannot be read"), work_folder(tmp_path / "out", {}):
        pass


def test_what_is_kept_is_said_in_words(tmp_path: Path) -> None:
    assert kept(tmp_path / "out").startswith("nothing is trained yet")
    checkpoint = tmp_path / "out.partial" / "checkpoints" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (checkpoint / "x").write_text("x")
    assert kept(tmp_path / "out").startswith("nothing is trained yet")  # not sealed
    checkpoint.mkdir()
    (checkpoint / "x").write_text("x")
    seal(checkpoint)
    assert "keeps the training up to step 7" in kept(tmp_path / "out")


def test_digests_depend_on_every_value() -> None:
    spec = {"a": 1, "b": {"c": "x"}}
    assert digest_of(spec) == digest_of(json.loads(json.dumps(spec)))
    assert len({digest_of(s) for s in (spec, {"a": 2, "b": {"c": "x"}}, {"a": 1, "b": {"c": "y"}})}) == 3


# -- recipes ---------------------------------------------------------------------------------------------------------
def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ComgradError, match="the recipe 'qlorb'; there is none of that name; use one of: lora, "):
        recipe_named("qlorb")
    assert all(name == r.name for name, r in RECIPES.items())


@pytest.mark.parametrize(
    "bad",
    [
        {"schedule": "zigzag"},
        {"precision": "fp8"},
        {"seed": -1},
        {"seed": 2**32},
        {"warmup_steps": -1},
        {"steps": 8, "warmup_steps": 8},
        {"learning_rate": float("nan")},
    ],
)
def test_impossible_loops_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ComgradError):
        TrainSpec(**bad)


def test_a_shorter_run_warms_up_for_the_same_share() -> None:
    from comgrad.workflows.training_start import TrainRequest

    recipe = recipe_named("nonlinear")
    assert TrainRequest(Path("task"), "nonlinear", steps=40).spec(recipe).warmup_steps == 4
    assert TrainRequest(Path("task"), "nonlinear", steps=1).spec(recipe).warmup_steps == 0
    assert TrainRequest(Path("task"), "nonlinear", steps=40, warmup_steps=7).spec(recipe).warmup_steps == 7
    assert TrainRequest(Path("task"), "nonlinear").spec(recipe) == recipe.spec
