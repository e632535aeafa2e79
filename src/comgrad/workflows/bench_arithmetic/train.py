"""Trainings: one vector for each recipe, task and seed, in a folder named by all that decides it; and learning rates."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comgrad.describe.task import IMAGE_TEXT, Example, Task
from comgrad.errors import ComgradError
from comgrad.evaluate.digests import digest_of
from comgrad.finetune.recipes import recipe_named
from comgrad.finetune.workfolder import partial_path
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.storage import atomic_directory, atomic_write_bytes
from comgrad.workflows.bench.keep import source_digest
from comgrad.workflows.bench_arithmetic.keep import Kept
from comgrad.workflows.bench_arithmetic.plan import Plan, Training
from comgrad.workflows.resolve import read_vector
from comgrad.workflows.training import TrainRequest, train
from comgrad.workflows.training_start import CARD_FILE

_CODE = ("comgrad.finetune.recipes", "comgrad.finetune.loop", "comgrad.finetune.dense", "comgrad.finetune.adapter",
         "comgrad.finetune.linearised", "comgrad.finetune.selection")  # fmt: skip
Progress = Callable[[int, int], None]


def request_of(plan: Plan, training: Training, task_dir: Path) -> TrainRequest:
    """The training as `comgrad train` takes it. All recipes have the same steps, batches and schedule."""
    suite, recipe = plan.suite, recipe_named(training.recipe)
    return TrainRequest(
        task_dir=task_dir,
        recipe=recipe.name,
        base=str(plan.base.path),
        steps=suite.steps,
        learning_rate=(suite.learning_rate or recipe.spec.learning_rate) * training.rate,
        batch_size=suite.batch_size,
        schedule=suite.schedule,
        warmup_steps=round(suite.warmup_share * suite.steps),
        seed=training.seed,
        gradient=False,
    )


def key_of(plan: Plan, training: Training) -> str:
    """Digest of all that decides the vector: base, contents of the task, recipe, loop, seed, code."""
    recipe = recipe_named(training.recipe)
    loop = asdict(request_of(plan, training, Path("task")).spec(recipe))
    parts = [plan.base.fingerprint.root, plan.digests[training.task], recipe.name, recipe.rank, recipe.scale, loop]
    return digest_of([*parts, [source_digest(m) for m in _CODE]])


def folder_of(plan: Plan, training: Training) -> Path:
    """Where the vector is kept."""
    name = f"{training.task}-s{training.seed}-{key_of(plan, training)[:16]}"
    return plan.request.out / "vectors" / training.recipe / name


def is_trained(plan: Plan, training: Training) -> bool:
    """Whether the vector is there, whole: folders take their name when they are."""
    return (folder_of(plan, training) / CARD_FILE).is_file()


def train_one(plan: Plan, training: Training, progress: Progress | None = None) -> Path:
    """Train a vector, or go on with a training that was stopped. Raises as `training.train`."""
    out = folder_of(plan, training)
    if not is_trained(plan, training):
        out.parent.mkdir(parents=True, exist_ok=True)
        done = train(request_of(plan, training, task_folder(plan, training.task)), out, progress=progress)
        _times(plan).write(out.name, training.recipe, {"seconds": done.seconds})
    return out


def seconds_of(plan: Plan, training: Training) -> float | None:
    """How long the training took (its last part, where it was stopped on the way), where that is known."""
    found = _times(plan).read(folder_of(plan, training).name, training.recipe)
    return None if found is None else float(found["seconds"])


def _times(plan: Plan) -> Kept:
    return Kept(plan.request.out / "seconds")


def opened(plan: Plan, training: Training) -> TaskVector:
    """The vector, on the base's own reference."""
    return read_vector(folder_of(plan, training), base=str(plan.base.path))


def task_folder(plan: Plan, identity: str) -> Path:
    """The task as a training run may see it: the validation part stands where a run looks at its test split."""
    folder = plan.request.out / "tasks" / f"{identity}-{plan.digests[identity][:16]}"
    if not folder.is_dir():
        _write(plan.tasks[identity], folder)
    return folder


def _write(task: Task, folder: Path) -> None:
    parts = {"train": "train", "validation": "test"}
    rows = [{**_what(e), "label": e.label, "split": parts[e.split]} for e in task.examples if e.split in parts]
    card = {
        "name": task.name,
        "description": task.description,
        "label_names": list(task.label_names),
        "label_prompts": list(task.label_prompts),
        **({"templates": list(task.templates)} if task.templates else {}),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(folder, replace=True) as there:
        atomic_write_bytes(there / "task_card.json", json.dumps(card, ensure_ascii=False, indent=1).encode())
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        atomic_write_bytes(there / "examples.jsonl", lines.encode())


def _what(e: Example) -> dict[str, str]:
    if e.image:
        return {"image": str(Path(e.image).absolute()), "sha256": e.text.removeprefix(IMAGE_TEXT)}
    return {"text": e.text}


# -- learning rates ----------------------------------------------------------------------------------------------------
def tried(plan: Plan, trial: Training) -> float | None:
    """The validation loss of a trial, where it is known; infinite where training diverged."""
    found = _trials(plan).read(_name(trial), key_of(plan, trial))
    return None if found is None else math.inf if found["loss"] is None else float(found["loss"])


def try_one(plan: Plan, trial: Training) -> float:
    """Train on a development task for its validation loss; the vector is thrown away."""
    known = tried(plan, trial)
    if known is not None:
        return known
    out = plan.request.out / "tuning" / f"{_name(trial)}-{key_of(plan, trial)[:16]}"
    loss = math.inf
    try:
        if out.exists():
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        loss = train(request_of(plan, trial, task_folder(plan, trial.task)), out).loss_after
    except ComgradError as error:
        if error.code != "diverged":
            raise
    _trials(plan).write(_name(trial), key_of(plan, trial), {"loss": loss if math.isfinite(loss) else None})
    for leftover in (out, partial_path(out)):
        shutil.rmtree(leftover, ignore_errors=True)
    return loss


def rate_of(plan: Plan, recipe: str) -> dict[str, Any] | None:
    """The factor of a recipe's learning rate with the least mean validation loss over the development tasks, the
    smallest of equals; None while a trial is missing. `edge`: it is the first or last of those tried."""
    trials = plan.trials(recipe)
    if not trials:
        return {"factor": 1.0, "losses": {}, "edge": False}
    found = {t: tried(plan, t) for t in trials}
    if any(v is None for v in found.values()):
        return None
    losses = {r: [v for t, v in found.items() if t.rate == r and v is not None] for r in sorted(plan.suite.rates)}
    means = {r: math.fsum(v) / len(v) for r, v in losses.items()}
    best = min(means, key=lambda r: (means[r], r))
    return {
        "factor": best,
        "losses": {f"{r:.6g}": v for r, v in means.items()},
        "edge": best in (min(means), max(means)),
    }


def trainings(plan: Plan, recipe: str, seed: int) -> list[Training] | None:
    """The trainings of a recipe and seed, in the suite's order of tasks; None while its rate is not chosen."""
    rate = rate_of(plan, recipe)
    return None if rate is None else [Training(recipe, t, seed, rate["factor"]) for t in plan.suite.tasks]


def _trials(plan: Plan) -> Kept:
    return Kept(plan.request.out / "tuning")


def _name(trial: Training) -> str:
    return f"{trial.recipe}-{trial.task}-s{trial.seed}-x{trial.rate:.4g}"
