"""`add --examples`: the gradient beside the vector, for one adapter or a zoo; what cannot be had is a warning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from comgrad.cli.main import app
from comgrad.describe.task import Task, load_task
from comgrad.errors import BaseMismatch, ComgradError, FileRefused, NotFound
from comgrad.evaluate.classifier import Bench
from comgrad.evaluate.tangent import tangent, task_gradient
from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from comgrad.workflows.adding import AddRequest, add_one, add_paths
from comgrad.workflows.gradients import (
    FACTS_FILE,
    GRADIENT_FILE,
    Gradient,
    GradientMaker,
    chosen,
    read_gradient_file,
    write_gradient_file,
)
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection
from vectors_models import llama, save_base

BASE = "sentence-transformers/all-MiniLM-L6-v2"
KEYS = {"examples", "energy_kept", "loss", "seconds"}


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.open(resolve_base(BASE))


@pytest.fixture(scope="module")
def zoo(zoo: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three shipped adapters without the gradients that they come with."""
    folder = tmp_path_factory.mktemp("bare")
    bare = shutil.ignore_patterns(GRADIENT_FILE, FACTS_FILE)
    return [Path(shutil.copytree(z, folder / z.name, ignore=bare)) for z in zoo[:3]]


@pytest.fixture
def few(tasks: list[Path], tmp_path: Path) -> Path:
    """A shipped task with twelve of its training examples."""
    folder = tmp_path / "few"
    folder.mkdir()
    shutil.copy(tasks[1] / "task_card.json", folder)
    task = load_task(tasks[1])
    rows = [{"text": e.text, "label": e.label, "split": e.split} for e in task.split("train")[:12]]
    (folder / "examples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture
def gradient(few: Path, zoo: list[Path]) -> Gradient:
    return GradientMaker().make(TaskVector.from_peft(zoo[0]), load_task(few))


def test_the_gradient_is_computed_attached_and_not_computed_twice(few: Path, zoo: list[Path], bench: Bench) -> None:
    request = AddRequest(task_dir=few)
    first = add_paths([zoo[0]], request)[0]
    assert first.status == "added"
    assert first.gradient is not None
    assert set(first.gradient) == KEYS
    registry = Registry()
    entry = registry.get(first.id or "")
    record, stored = entry.gradient(), entry.load_gradient()
    assert record is not None
    assert stored is not None
    assert (record.facts.examples, record.facts.rank, stored.rank) == (12, 16, 16)
    task = load_task(few)
    full = task_gradient(bench, task, chosen(task), names=list(stored.tensors))
    assert (full - stored).norm() ** 2 / full.norm() ** 2 == pytest.approx(1 - record.facts.energy_kept, abs=1e-3)
    again = add_paths([zoo[0]], request)[0]
    assert again.status == "exists"
    assert again.gradient is not None
    assert {**again.gradient, "seconds": 0} == {**first.gradient, "seconds": 0}
    assert entry.gradient() == record  # not even its time of creation changed


def test_a_vector_that_is_there_already_gets_its_gradient(few: Path, zoo: list[Path]) -> None:
    plain = add_paths([zoo[0]], AddRequest())[0]
    assert plain.gradient is None
    assert Registry().get(plain.id or "").gradient() is None
    later = add_paths([zoo[0]], AddRequest(task_dir=few))[0]
    assert (later.status, later.id) == ("exists", plain.id)
    assert later.gradient is not None
    assert Registry().get(plain.id or "").gradient() is not None


def test_a_zoo_with_a_folder_of_tasks_is_one_command(few: Path, zoo: list[Path], tmp_path: Path, bench: Bench) -> None:
    parent, adapters = tmp_path / "tasks", tmp_path / "zoo"
    for i, name in enumerate(("by-folder", "other-folder", "no-task")):
        shutil.copytree(zoo[i], adapters / name)
    shutil.copytree(few, parent / "by-folder")
    task_id = json.loads((zoo[1] / "task_card.json").read_text())["task_id"]
    shutil.copytree(few, parent / task_id)
    results = add_paths([adapters], AddRequest(task_dir=parent))
    assert [r.status for r in results] == ["added"] * 3
    by_path = {Path(r.path).name: r for r in results}
    assert [by_path[n].gradient is None for n in ("by-folder", "other-folder", "no-task")] == [False, False, True]
    assert any("no gradient:" in w and "holds no task of that name" in w for w in by_path["no-task"].warnings)
    own = json.loads((zoo[0] / "task_card.json").read_text())["description"]
    assert Registry().get(by_path["by-folder"].id or "").description == own  # the adapter's own card comes first
    atlas = collection(Registry())
    gains = atlas.gains()
    assert gains.covered[gains.known].all()
    task = load_task(few)
    picture = tangent(bench, task, chosen(task), atlas.vectors())
    for q in np.flatnonzero(gains.known):  # both tasks are the same one here
        np.testing.assert_allclose(gains.total[q], picture.gains, atol=0.1 * float(np.abs(picture.gains).max()))


def test_a_missing_folder_of_examples_is_refused(zoo: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no such folder of examples"):
        add_paths([zoo[0]], AddRequest(task_dir=tmp_path / "nope"))
    assert Registry().list() == []


def test_without_training_examples_the_vector_is_added_and_the_reason_said(few: Path, zoo: list[Path]) -> None:
    (few / "examples.jsonl").unlink()
    result = add_paths([zoo[0]], AddRequest(task_dir=few))[0]
    assert (result.status, result.gradient) == ("added", None)
    assert any("no gradient:" in w and "no examples in split 'train'" in w for w in result.warnings)


def on_base(zoo: list[Path], folder: Path, name: str) -> Path:
    adapter = Path(shutil.copytree(zoo[0], folder / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
    (adapter / "task_card.json").unlink()
    return adapter


def test_a_base_that_is_not_here_is_a_warning(few: Path, zoo: list[Path], tmp_path: Path) -> None:
    result = add_one(Registry(), on_base(zoo, tmp_path, "no-such/base"), AddRequest(task_dir=few))
    assert (result.status, result.gradient) == ("added", None)
    assert any("no gradient: base model 'no-such/base'; it is no path" in w for w in result.warnings)


@pytest.mark.parametrize("kind", ["causal", "bare"])
def test_a_base_without_a_prompt_head_is_refused_for_what_it_is(few: Path, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    folder = save_base(llama(), tmp_path / "llama")
    if kind == "bare":
        (folder / "config.json").unlink()
    vector = TaskVector(
        BaseRef(str(folder)),
        {"model.layers.0.self_attn.q_proj.weight": LowRank(torch.ones(24, 1), torch.ones(1, 24))},
    )
    with pytest.raises(ComgradError, match="causal language model" if kind == "causal" else "config"):
        GradientMaker().make(vector, load_task(few))


# -- carried in a folder -----------------------------------------------------------------------------------------------
def test_a_folder_that_carries_its_gradient_brings_it_along(
    zoo: list[Path], tmp_path: Path, gradient: Gradient
) -> None:
    adapter = Path(shutil.copytree(zoo[0], tmp_path / "adapter"))
    write_gradient_file(adapter, gradient)
    back = read_gradient_file(adapter)
    assert back is not None
    assert back.facts == gradient.facts
    assert (back.vector - gradient.vector).norm() < 1e-12
    result = add_paths([adapter], AddRequest())[0]
    assert result.gradient is not None
    assert result.gradient["examples"] == 12
    entry = Registry().get(result.id or "")
    found = entry.gradient()
    assert found is not None
    assert found.facts == gradient.facts
    assert read_gradient_file(zoo[0]) is None


def change_facts(folder: Path, **changes: object) -> None:
    data = json.loads((folder / FACTS_FILE).read_text())
    (folder / FACTS_FILE).write_text(json.dumps(data | changes))


def test_a_broken_gradient_file_is_refused_and_keeps_no_vector_out(
    zoo: list[Path], tmp_path: Path, gradient: Gradient
) -> None:
    adapter = Path(shutil.copytree(zoo[0], tmp_path / "adapter"))

    def spoiled(match: str, kind: type[ComgradError] = ComgradError) -> None:
        with pytest.raises(kind, match=match):
            read_gradient_file(adapter)
        result = add_paths([adapter], AddRequest())[0]
        assert (result.status in ("added", "exists"), result.gradient) == (True, None)
        assert any(w.startswith("no gradient: ") for w in result.warnings)
        write_gradient_file(adapter, gradient)

    write_gradient_file(adapter, gradient)
    (adapter / FACTS_FILE).unlink()
    spoiled("is described by it", NotFound)
    (adapter / GRADIENT_FILE).write_bytes(b"\x80\x04\x95")
    spoiled("pickle", FileRefused)
    change_facts(adapter, digest="0" * 64)
    spoiled("its bytes are not those", FileRefused)
    change_facts(adapter, loss=-1.0)
    spoiled("counts are positive and figures finite")
    change_facts(adapter, base={"name": "another", "fingerprint": None})
    spoiled("different bases", BaseMismatch)
    zero = TaskVector(gradient.vector.base, {n: d.scaled(0.0) for n, d in gradient.vector.tensors.items()})
    write_gradient_file(adapter, Gradient(zero, gradient.facts))
    spoiled("its norm is 0.0", FileRefused)
    assert len(Registry().list()) == 1


def test_a_gradient_of_another_base_than_the_vectors_is_not_attached(
    zoo: list[Path], tmp_path: Path, gradient: Gradient
) -> None:
    adapter = Path(shutil.copytree(zoo[0], tmp_path / "adapter"))
    base = BaseRef("another")
    facts = type(gradient.facts).from_dict(gradient.facts.as_dict() | {"base": {"name": "another"}})
    write_gradient_file(adapter, Gradient(TaskVector(base, gradient.vector.tensors), facts))
    result = add_paths([adapter], AddRequest())[0]
    assert (result.status, result.gradient) == ("added", None)
    assert any("different bases" in w for w in result.warnings)


# -- choice and words --------------------------------------------------------------------------------------------------
def test_the_examples_are_at_most_160_from_training_and_always_the_same(tasks: list[Path]) -> None:
    task = load_task(tasks[2])
    assert chosen(task) == chosen(Task(**task.__dict__))
    assert len(chosen(task)) == 160
    assert {e.split for e in chosen(task)} == {"train"}
    assert chosen(task) != list(task.split("train")[:160])  # files are often sorted by label


def test_show_and_json_say_whether_there_is_a_gradient(few: Path, zoo: list[Path]) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["add", str(zoo[0]), "--examples", str(few), "--json"])
    assert done.exit_code == 0
    item = json.loads(done.stdout)[0]
    assert set(item["gradient"]) == KEYS
    shown = runner.invoke(app, ["show", item["id"]]).stdout
    assert "of 12 examples, rank 16 with" in shown
    data = json.loads(runner.invoke(app, ["show", item["id"], "--json"]).stdout)
    assert data["gradient"]["examples"] == 12
    plain = json.loads(runner.invoke(app, ["add", str(zoo[1]), "--json"]).stdout)[0]
    assert plain["gradient"] is None
    assert "none; add it again with --examples TASK_DIR" in runner.invoke(app, ["show", plain["id"]]).stdout


def test_doctor_names_the_vector_whose_gradient_is_damaged(few: Path, zoo: list[Path]) -> None:
    from comgrad.workflows.doctor import doctor

    added = add_paths([zoo[0]], AddRequest(task_dir=few))[0]
    assert doctor().ok
    found = Registry().store.gradient(added.id or "")
    assert found is not None
    found[1].unlink()
    digests = next(c for c in doctor().checks if c.name == "digests")
    assert not digests.ok
    assert f"gradients of ['{added.id}'] are not whole: add with --examples again" in digests.detail
    atlas = collection(Registry())  # the vector itself is whole, and the gradient simply not known
    assert not atlas.gains().known.any()
    assert add_paths([zoo[0]], AddRequest(task_dir=few))[0].gradient is not None
    assert doctor().ok
