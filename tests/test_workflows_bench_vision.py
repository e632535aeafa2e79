"""The suite of images on a tiny random open_clip model: layouts, heads, trainings and figures, against the library itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from comgrad.cli.main import app
from comgrad.describe.task import Example, Task, load_task
from comgrad.errors import ComgradError, NotFound
from comgrad.evaluate.classifier import Bench
from comgrad.evaluate.harness import open_harness
from comgrad.evaluate.images import ImageBench, image_problem
from comgrad.evaluate.predictor import Predictor
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from comgrad.workflows.bench_arithmetic.measure import Stage
from comgrad.workflows.bench_arithmetic.plan import Plan, Request
from comgrad.workflows.bench_arithmetic.run import Result, run
from comgrad.workflows.bench_arithmetic.suite import suite_named
from comgrad.workflows.bench_arithmetic.train import folder_of, task_folder, trainings
from comgrad.workflows.bench_arithmetic.vision import open_images
from comgrad.workflows.bench_arithmetic.vision_sets import DATA_SETS
from comgrad.workflows.training import TrainRequest, train
from training_models import bert_base
from vision_data import OWN, clip_base, eight, open_clip, picture, splits

RECIPES = ("nonlinear", "ntk", "attention-linear")
MEASURED = RECIPES[:2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_base(tmp_path_factory.mktemp("clip") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eight(tmp_path_factory.mktemp("images") / "data")


def request(data: Path, base: Path, out: Path, **changes: Any) -> Request:
    asked = Request("addition", data, out, suite="vision8", base=str(base), recipes=MEASURED, steps=2, quick=True)
    return replace(asked, **changes)


@pytest.fixture(scope="module")
def finished(data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Both benchmarks in one folder, on three of the eight."""
    out = tmp_path_factory.mktemp("vision") / "out"
    run(request(data, base, out), page_file=out / "page.md")
    return out, run(request(data, base, out, what="disentanglement"), page_file=out / "page.md")


# -- folders -----------------------------------------------------------------------------------------------------------
def test_all_eight_are_read_in_the_layouts_people_have(data: Path, tmp_path: Path) -> None:
    items = {i.id: i for i in open_images(data, tmp_path)}
    assert sorted(items) == sorted(suite_named("vision8").tasks) == sorted(d.id for d in DATA_SETS)
    words = {k: i.task.label_prompts for k, i in items.items()}
    assert words["cars"] == ("Maker Model One 2012", "Maker Model Two 2007")
    assert words["gtsrb"] == ("speed limit 20 km/h", "speed limit 30 km/h")
    assert words["eurosat"] == ("annual crop land", "river", "lake or sea")
    assert words["sun397"] == ("abbey", "baseball field")
    assert words["resisc45"] == ("baseball diamond", "river")
    assert (words["mnist"], words["svhn"]) == (("0", "1", "2"), ("0", "1"))
    for name, item in items.items():
        counts = {(s, c): 0 for s in ("train", "test") for c in range(item.task.n_labels)}
        for e in item.task.examples:
            counts[e.split, e.label] += 1
        more = 2 if name in ("dtd", "resisc45", "eurosat") else 0  # their validation part is training data
        assert counts == {(s, c): 6 if s == "test" else 30 + more for s, c in counts}, name


def test_an_image_keeps_its_label_and_its_pixels(data: Path, tmp_path: Path) -> None:
    """Of the arrays, which are unpacked without loss: every file is one picture of its label, once."""
    from PIL import Image

    for name, side in (("mnist", 28), ("svhn", 32)):
        task = next(i for i in open_images(data, tmp_path) if i.id == name).task
        for label in range(task.n_labels):
            found = {np.asarray(Image.open(e.image)).tobytes() for e in task.examples if e.label == label}
            wanted = [picture(label, k, side) for k in range(36)]
            if name == "mnist":
                wanted = [w[:, :, label % 3] for w in wanted]
            assert found == {np.ascontiguousarray(w).tobytes() for w in wanted}


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_folder_without_its_parts_says_what_is_missing(name: str, tmp_path: Path) -> None:
    (tmp_path / OWN[name][0] / "stuff").mkdir(parents=True)
    item = open_images(tmp_path, tmp_path / "cache")[0]
    with pytest.raises(NotFound, match=f"images of the task '{name}'.*train and test"):
        _ = item.task


def test_own_names_of_classes_and_own_tasks(tmp_path: Path) -> None:
    splits(tmp_path / "pets", ("c", "d"), {"train": 3, "test": 2})
    (tmp_path / "pets" / "class_names.json").write_text(json.dumps({"c": "tabby cat"}))
    task = open_images(tmp_path, tmp_path / ".cache")[0].task
    assert (task.name, task.label_prompts) == ("pets", ("tabby cat", "d"))


def test_digests_are_kept_until_a_file_changes(tmp_path: Path) -> None:
    splits(tmp_path / "pets", ("c", "d"), {"train": 2, "test": 1})

    def texts() -> list[str]:
        return [e.text for e in open_images(tmp_path, tmp_path / ".cache")[0].task.examples]

    before = texts()
    file = tmp_path / "pets" / "train" / "c" / "0000.png"
    file.write_bytes((tmp_path / "pets" / "train" / "d" / "0000.png").read_bytes() + b"\0")
    assert len(set(before) - set(texts())) == 1
    assert texts() == texts()


def test_a_list_with_a_missing_image_is_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "dtd", tmp_path / "dtd")
    next((tmp_path / "dtd" / "dtd" / "images").rglob("*.jpg")).unlink()
    with pytest.raises(NotFound, match="it is not there"):
        _ = open_images(tmp_path, tmp_path / ".cache")[0].task


# -- the model ---------------------------------------------------------------------------------------------------------
def toy(folder: Path) -> Task:
    splits(folder / "toy", ("red", "blue"), {"train": 8, "test": 6})
    return next(i for i in open_images(folder, folder / ".cache") if i.id == "toy").task


def written(task: Task, folder: Path) -> Path:
    """The folder that `load_task` reads."""
    folder.mkdir()
    card = {
        "description": task.description,
        "label_names": list(task.label_names),
        "label_prompts": list(task.label_prompts),
        "templates": list(task.templates),
    }
    (folder / "task_card.json").write_text(json.dumps(card))
    rows = [{"image": e.image, "label": e.label, "split": e.split} for e in task.examples]
    (folder / "examples.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    return folder


def test_logits_are_those_of_the_library(base: Path, tmp_path: Path) -> None:
    """Head and image tower against open_clip used by hand, one image and one template at a time."""
    from PIL import Image

    library, task = open_clip(), toy(tmp_path)
    model, _, transform = library.create_model_and_transforms(f"local-dir:{base}", precision="fp32")
    model.eval()
    tokenizer = library.get_tokenizer(f"local-dir:{base}")
    head = []
    with torch.no_grad():
        for words in task.label_prompts:
            texts = [model.encode_text(tokenizer([t.format(words)]), normalize=True)[0] for t in task.templates]
            mean = sum(texts) / len(texts)
            head.append(mean / mean.norm())
        bench = ImageBench.open(resolve_base(base))
        assert torch.allclose(bench.prompts(task), torch.stack(head), atol=1e-6)
        problem = image_problem(bench, task, splits=("test",), batch_size=4)
        wrapped = open_harness(resolve_base(base), task).wrap(bench.encoder())
        seen = 0
        for (batch, labels), start in zip(problem.part("test"), range(0, 12, 4), strict=True):
            logits = wrapped(**batch, labels=labels)["logits"]
            for row, e in zip(logits, task.split("test")[start : start + 4], strict=True):
                h = model.encode_image(transform(Image.open(e.image)).unsqueeze(0), normalize=True)[0]
                assert torch.allclose(row, model.logit_scale.exp() * torch.stack(head) @ h, atol=1e-4)
                seen += 1
        assert seen == 12


@pytest.mark.parametrize(
    "recipe", [*RECIPES, "attention-linear-bias", "attention-mlp-linear", "attention-mlp-linear-bias"]
)
def test_a_recipe_trains_the_image_tower_alone(recipe: str, base: Path, tmp_path: Path) -> None:
    """The vector has the tower's tensors that the paradigm names, and base + vector learns what was trained."""
    folder = written(toy(tmp_path), tmp_path / "task")
    done = train(
        TrainRequest(folder, recipe=recipe, base=str(base), steps=12, batch_size=8, learning_rate=3e-3),
        tmp_path / "out",
    )
    assert done.model == "image"
    assert done.loss_after < done.loss_before
    vector = TaskVector.load(tmp_path / "out" / "vector.safetensors")
    names = set(load_file(base / "open_clip_model.safetensors"))
    assert set(vector.tensors) <= {n for n in names if n.startswith("visual.")}
    attention = {n for n in names if n.startswith("visual.transformer") and ".attn." in n}
    weights = {n for n in attention if n.endswith("weight")}
    if recipe == "attention-linear":
        assert set(vector.tensors) == weights
    if recipe == "attention-linear-bias":
        assert set(vector.tensors) == attention
    bench = ImageBench.open(resolve_base(base))
    problem = image_problem(bench, load_task(folder), splits=("test",))
    if recipe != "ntk":
        predictor = Predictor(bench.base.ref, bench.encoder(), lambda m, b: m(**b), logit_scale=bench.logit_scale)
        outcome = predictor.outcome(problem, "test", [(1.0, vector)])
        assert outcome.loss == pytest.approx(done.loss_after, abs=1e-4)


def test_a_stopped_training_on_images_ends_at_the_same_weights(base: Path, tmp_path: Path) -> None:
    folder = written(toy(tmp_path), tmp_path / "task")
    asked = TrainRequest(folder, recipe="attention-linear", base=str(base), steps=8, batch_size=4)

    class Stop(BaseException):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        train(asked, tmp_path / "a", progress=stop)
    assert train(asked, tmp_path / "a").resumed_from is not None
    train(asked, tmp_path / "b")
    a, b = (load_file(tmp_path / x / "vector.safetensors") for x in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- the benchmark -----------------------------------------------------------------------------------------------------
def test_the_benchmark_measures_everything_on_images(finished: tuple[Path, Result], data: Path, base: Path) -> None:
    out, result = finished
    count: dict[tuple[str, str], int] = {}
    for r in result.rows:
        count[r["measure"], r["recipe"]] = count.get((r["measure"], r["recipe"]), 0) + 1
    for recipe in MEASURED:
        assert count["accuracy", recipe] == count["cosine", recipe] == count["negation-satisfied", recipe] == 3
        assert count["xi-unit-kl", recipe] == 1
        assert count["inputs-other", recipe] == 6
        assert count["cost-seconds", recipe] == 1
    page = (out / "page.md").read_text()
    assert "vision8" in page and "the paper's own tasks" in page


def test_figures_are_those_of_a_model_of_the_library(finished: tuple[Path, Result], data: Path, base: Path) -> None:
    """The sum's accuracy again: weights added to open_clip's own state, images read one at a time."""
    from PIL import Image

    out, result = finished
    library, plan = open_clip(), Plan(request(data, base, out))
    alpha = next(r["value"] for r in result.rows if (r["measure"], r["recipe"]) == ("addition-alpha", "nonlinear"))
    model, _, transform = library.create_model_and_transforms(f"local-dir:{base}", precision="fp32")
    model.eval()
    state = model.state_dict()
    for training in trainings(plan, "nonlinear", 0) or ():
        vector = TaskVector.load(folder_of(plan, training) / "vector.safetensors")
        for name, d in vector.tensors.items():
            state[name] += alpha * d.in_base_layout()
    bench = ImageBench.open(plan.base)
    with torch.no_grad():
        for t in plan.suite.tasks:
            task, head = plan.tasks[t], bench.prompts(plan.tasks[t])
            right = []
            for e in task.split("test"):
                h = model.encode_image(transform(Image.open(e.image).convert("RGB")).unsqueeze(0))[0]
                right.append(int((head @ h).argmax()) == e.label)
            row = next(
                r for r in result.rows
                if (r["measure"], r["recipe"], r["method"], r["task"]) == ("added-accuracy", "nonlinear", "sum", t)
            )  # fmt: skip
            assert row["value"] == pytest.approx(np.mean(right))


def test_a_task_of_images_is_written_for_training_with_its_files(data: Path, base: Path, tmp_path: Path) -> None:
    plan = Plan(request(data, base, tmp_path))
    name = plan.suite.tasks[0]
    written = load_task(task_folder(plan, name))
    wanted = {(e.text, e.label, e.image) for e in plan.tasks[name].examples if e.split != "test"}
    assert {(e.text, e.label, e.image) for e in written.examples} == wanted
    assert written.templates == plan.tasks[name].templates
    assert not {e.text for e in plan.tasks[name].split("test")} & {e.text for e in written.examples}


def test_the_one_learning_rate_is_the_papers(data: Path, base: Path, tmp_path: Path) -> None:
    from comgrad.finetune.recipes import recipe_named
    from comgrad.workflows.bench_arithmetic.train import request_of

    plan = Plan(replace(request(data, base, tmp_path), quick=False, steps=None))
    for recipe in plan.suite.recipes:
        training = (trainings(plan, recipe, 0) or [])[0]
        loop = request_of(plan, training, tmp_path).spec(recipe_named(recipe))
        told = (loop.learning_rate, loop.steps, loop.batch_size, loop.warmup_steps, loop.schedule)
        assert told == (1e-5, 2000, 128, 200, "cosine")


# -- bad input ---------------------------------------------------------------------------------------------------------
def test_what_does_not_fit_is_refused(data: Path, base: Path, tmp_path: Path) -> None:
    bert = bert_base(tmp_path / "bert")
    for asked, said in (
        (request(data, bert, tmp_path / "a"), "kind 'image'"),
        (replace(request(data, base, tmp_path / "b"), suite="text8", data=None), "kind 'text'"),
        (request(tmp_path / "none", base, tmp_path / "c"), "there is no such folder"),
        (replace(request(data, base, tmp_path / "d"), data=None), "its images are not shipped"),
    ):
        with pytest.raises(ComgradError, match=said):
            run(asked)
    images = toy(tmp_path)
    texts = Task("t", "d", ("a", "b"), ("a", "b"), (Example("x", 0), Example("y", 1)))
    with pytest.raises(ComgradError, match="this base reads texts"):
        open_harness(resolve_base(bert), images)
    with pytest.raises(ComgradError, match="this base reads texts"):
        Bench.open(resolve_base(bert)).prompts(images)
    with pytest.raises(ComgradError, match="whose image tower is trained"):
        open_harness(resolve_base(base), texts)


def test_an_adapter_recipe_says_why_it_cannot(base: Path, tmp_path: Path) -> None:
    folder = written(toy(tmp_path), tmp_path / "task")
    with pytest.raises(ComgradError, match="attention-linear"):
        train(TrainRequest(folder, base=str(base)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_or_broken_image_stops_with_its_name(base: Path, tmp_path: Path) -> None:
    task = toy(tmp_path)
    bench = ImageBench.open(resolve_base(base))
    e = task.examples[0]
    whole = Path(e.image).read_bytes()
    Path(e.image).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ComgradError, match="not those that the task states"):
        bench.pixels([e])
    import hashlib

    half = replace(e, text="sha256:" + hashlib.sha256(whole[: len(whole) // 2]).hexdigest())
    with pytest.raises(ComgradError, match="no image that can be opened"):
        bench.pixels([half])
    Path(e.image).unlink()
    with pytest.raises(ComgradError, match="cannot be read"):
        bench.pixels([e])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "none.png", "label": 0}, "which is not there"),
        ({"image": "a.png", "text": "x", "label": 0}, "a text beside it"),
        ({"image": "a.png", "sha256": "12", "label": 0}, "64 hexadecimal digits"),
        ({"image": 3, "label": 0}, "no path"),
    ],
)
def test_a_row_of_an_image_is_checked(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    card = {"description": "d", "label_names": ["a", "b"], "label_prompts": ["a", "b"]}
    (tmp_path / "task_card.json").write_text(json.dumps(card))
    (tmp_path / "examples.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ComgradError, match=said):
        load_task(tmp_path)


def test_texts_and_images_are_not_mixed_and_templates_have_a_place(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    card = {"description": "d", "label_names": ["a", "b"], "label_prompts": ["a", "b"]}
    (tmp_path / "task_card.json").write_text(json.dumps(card))
    rows = [{"image": "a.png", "label": 0}, {"text": "t", "label": 1}]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(ComgradError, match="two tasks"):
        load_task(tmp_path)
    (tmp_path / "task_card.json").write_text(json.dumps(card | {"templates": ["a photo"]}))
    with pytest.raises(ComgradError, match="one {}"):
        load_task(tmp_path)


def test_the_command_says_what_the_suite_needs(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["bench", "addition", "--suite", "vision8", "-o", str(tmp_path / "o"), "--base", "x"]
    )
    assert done.exit_code != 0
    assert "base model 'x'" in str(done.exception)


def test_stage_reads_a_linearised_tower_as_its_recipe_trained_it(
    finished: tuple[Path, Result], data: Path, base: Path
) -> None:
    """h at θ₀ + τ of the first-order model against a finite difference of open_clip's tower."""
    out, _ = finished
    plan = Plan(request(data, base, out))
    bench = ImageBench.open(plan.base)
    stage = Stage(plan, "ntk", 0, bench, {})
    vector = stage.vectors[0]
    batch, _ = next(iter(stage.problems[0].part("test")))
    with stage.predictor.at([(1.0, vector)]) as model:
        linear = stage.predictor.represented(model, batch).double()
    tower = bench.encoder().double()
    parameters, pixels = dict(tower.named_parameters()), batch["pixels"].double()
    with torch.no_grad():
        origin, ends = tower(pixels), []
        for step in (1e-3, -2e-3):
            for name, d in vector.tensors.items():
                parameters[name].add_(step * d.in_base_layout().double())
            ends.append(tower(pixels))
    slope = (ends[0] - ends[1]) / 2e-3
    assert torch.allclose(linear - origin, slope, atol=1e-4, rtol=1e-3)
    assert float(slope.abs().max()) > 1e-5
