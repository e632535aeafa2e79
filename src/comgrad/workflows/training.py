"""Journey: train. A task and a start become an adapter; an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from comgrad.describe.task import Task, load_task
from comgrad.errors import ComgradError, StorageError
from comgrad.evaluate.harness import Harness, open_harness
from comgrad.finetune.adapter import Start, Trainable
from comgrad.finetune.checkpoints import last_whole, step_of
from comgrad.finetune.loop import TrainSpec, fine_tune
from comgrad.finetune.recipes import Recipe, recipe_named
from comgrad.finetune.workfolder import WorkFolder, digest_of, kept, remove_finished, work_folder
from comgrad.predict.trainable import parameters
from comgrad.registry.card import Card
from comgrad.vectors.delta import LowRank
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import BaseModel
from comgrad.weights.storage import check_free
from comgrad.workflows.gradients import GradientMaker, write_gradient_file
from comgrad.workflows.training_data import Data, divided
from comgrad.workflows.training_start import A_SEED, CARD_FILE, TrainRequest, base_of, check_options, init_of, start_of

SAVES = 10  # checkpoints in a run, at most one every step


@dataclass(frozen=True)
class Trained:
    """What came of it. Losses are on `evaluated_on`: at the base (θ₀), at the start, and at the end."""

    path: str
    recipe: str
    model: str
    base: str
    steps: int
    evaluated_on: str
    examples: dict[str, int]
    loss_base: float
    accuracy_base: float
    loss_before: float
    accuracy_before: float
    loss_after: float
    accuracy_after: float
    rank: int
    share: float
    trainable_parameters: int
    full_parameters: int
    trainable: dict[str, int] = field(repr=False)
    resumed_from: int | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    """One run, made up before anything heavy is loaded."""

    request: TrainRequest
    recipe: Recipe
    loop: TrainSpec
    task: Task
    data: Data
    base: BaseModel
    start: Start
    full: int
    spec: Mapping[str, Any]
    init_digest: str | None


def train(request: TrainRequest, out: Path, *, progress: Callable[[int, int], None] | None = None) -> Trained:
    """Train and write a PEFT folder with its card.

    The run is kept in `DIR.partial` until the folder is whole; the same request goes on from its last checkpoint and
    ends at the same numbers as an uninterrupted one.

    Args:
        progress: called after every step with (done, total).

    Raises:
        ComgradError: a request, task, init or base that cannot be used; a diverging run; another run's work folder.
        StorageError: `out` is taken, or the disk is full.
    """
    began = time.perf_counter()
    try:
        check_free(out)
    except StorageError:
        _remove_leftover(out)
        raise
    run = _prepare(request)
    _card(run, {})  # what a card would refuse is refused before training, not after
    harness = open_harness(run.base, run.task)
    _check_space(out, run)
    with work_folder(out, run.spec) as folder:
        last = last_whole(folder.checkpoints)
        try:
            vector, scores, count = _train(run, harness, folder, progress)
        except ComgradError as error:
            if error.code == "diverged":
                folder.remove()  # going on from it could only diverge again
            raise
        card = {CARD_FILE: _card(run, {**scores, **harness.facts})}
        write_peft(vector, out, extra_files={**card, **_gradient_files(run, vector)})
        folder.remove()
    return Trained(
        path=str(out),
        recipe=run.recipe.name,
        model=harness.kind,
        base=run.base.name,
        steps=run.loop.steps,
        evaluated_on=run.data.where,
        examples={"train": len(run.data.train), "evaluated": len(run.data.look), "left_out": run.data.left_out},
        **scores,
        rank=vector.rank or 0,
        share=count / run.full,
        trainable_parameters=count,
        full_parameters=run.full,
        trainable={n: d.rank for n, d in run.start.trained.tensors.items() if isinstance(d, LowRank)},
        resumed_from=step_of(last) if last is not None else None,
        seconds=time.perf_counter() - began,
    )


def _remove_leftover(out: Path) -> None:
    """Remove the work folder of a result that is whole, left by a process that ended between the two."""
    with suppress(ComgradError, OSError, ValueError):
        training = Card.from_file(out / CARD_FILE).training
        if training is not None:
            remove_finished(out, str((training.model_extra or {}).get("run_digest")))


def what_is_kept(out: Path) -> str:
    """What an interrupted run leaves behind, in words."""
    return kept(out)


def _train(
    run: _Run, harness: Harness, folder: WorkFolder, progress: Callable[[int, int], None] | None
) -> tuple[TaskVector, dict[str, float], int]:
    """The whole task vector, the six readings, and the number of trained parameters."""
    torch.manual_seed(run.loop.seed)
    model = harness.fresh()
    at_base = folder.remembered("base", lambda: _score(harness, model, run.data))
    ready: Trainable = run.recipe.function(model, run.start)
    headed = harness.wrap(ready.model)
    at_start = at_base
    if run.request.init is not None:
        at_start = folder.remembered("start", lambda: _score(harness, ready.model, run.data))
    fine_tune(
        headed,
        harness.rows(run.data.train),
        harness.collate,
        run.loop,
        folder.checkpoints,
        progress=progress,
        save_every=max(1, run.loop.steps // SAVES),
    )
    at_end = _score(harness, ready.model, run.data)
    if not math.isfinite(at_end["loss"]):
        raise ComgradError(
            "a trained model whose loss is not a number",
            "training diverged in its last step",
            "lower the learning rate",
            code="diverged",
        )
    named = (("base", at_base), ("before", at_start), ("after", at_end))
    scores = {f"{what}_{when}": reading[what] for when, reading in named for what in ("loss", "accuracy")}
    return ready.collect(), scores, ready.parameters


def _gradient_files(run: _Run, vector: TaskVector) -> dict[str, bytes]:
    """The task's gradient at θ₀ on its training examples, which the registry predicts gains from, as files beside the
    adapter; none where the base has no prompt head."""
    try:
        made = GradientMaker().make(vector, replace(run.task, examples=tuple(run.data.train)), run.base)
    except ComgradError as error:
        if error.code != "no-prompt-head":
            raise
        return {}
    with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
        write_gradient_file(Path(folder), made)
        return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def _score(harness: Harness, model: torch.nn.Module, data: Data) -> dict[str, float]:
    score = harness.score(harness.wrap(model), data.look)
    return {"loss": score.loss, "accuracy": score.accuracy}


def _prepare(request: TrainRequest) -> _Run:
    recipe = recipe_named(request.recipe)
    loop = request.spec(recipe)
    task = load_task(request.task_dir)
    data = divided(task, seed=request.seed, limit=request.limit_examples)
    check_options(request)
    base = base_of(request)
    init = init_of(request, base) if request.init is not None else None
    start, full = start_of(request, recipe, base, init)
    digest = _init_digest(request.init) if request.init is not None else None
    spec = {
        "recipe": recipe.name,
        "loop": asdict(loop),
        "rank": request.rank or recipe.rank,
        "share": request.share,
        "merge_init": request.merge_init,
        "limit_examples": request.limit_examples,
        "a_seed": A_SEED,
        "base": base.fingerprint.root,
        "init": digest,
        "task": data.digest(task),
    }
    return _Run(request, recipe, loop, task, data, base, start, full, spec, digest)


# -- what is recorded --------------------------------------------------------------------------------------------------
def _init_digest(init: Path) -> str:
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update(hashlib.sha256((init / name).read_bytes()).digest())
    return digest.hexdigest()


def _card(run: _Run, measured: Mapping[str, Any]) -> bytes:
    """The card; raises FileRefused for what a card cannot hold."""
    request, loop = run.request, run.loop
    fresh = request.init is None or request.merge_init
    training = {
        "recipe": run.recipe.name,
        "base_model": run.base.name,
        "target": run.recipe.target if fresh and (request.init is None or request.share == 1.0) else "as its init",
        "rank": request.rank or run.recipe.rank if fresh else None,
        "alpha": run.recipe.scale * (request.rank or run.recipe.rank) if request.init is None else None,
        "a_seed": A_SEED if request.init is None else _init_a_seed(request.init),
        "data_seed": loop.seed,
        "steps": loop.steps,
        "batch_size": loop.batch_size,
        "learning_rate": loop.learning_rate,
        "optimizer": "AdamW",
        "weight_decay": loop.weight_decay,
        "schedule": loop.schedule,
        "warmup_steps": loop.warmup_steps,
        "train_examples": len(run.data.train),
        "test_examples": len(run.data.look),
        "evaluated_on": run.data.where,
        "share": request.share,
        "trained_parameters": parameters(run.start.trained),
        "run_digest": digest_of(run.spec),
        **measured,
    }
    card: dict[str, Any] = {
        "description": run.task.description,
        "label_names": list(run.task.label_names),
        "label_prompts": list(run.task.label_prompts),
        "base_model": run.base.name,
        "training": {k: v for k, v in training.items() if v is not None},
        "seeds": {"data": loop.seed} | ({"a": A_SEED} if fresh else {}),
        "extra": {"base_fingerprint": run.base.fingerprint.root, "task": run.task.name},
        "created_by": "comgrad train",
    }
    if request.init is not None:
        card["parents"] = [{"id": request.init.resolve().name[:200] or "init", "role": "train", "coefficient": 1.0}]
        card["extra"] |= {"init_digest": run.init_digest}
        card["notes"] = _note(run)
    made = Card.make(**card)
    return made.to_json().encode()


def _init_a_seed(init: Path) -> int | None:
    if not (init / CARD_FILE).is_file():
        return None
    training = Card.from_file(init / CARD_FILE).training
    return training.a_seed if training is not None else None


def _note(run: _Run) -> str:
    if run.request.merge_init:
        return (
            "trained as a fresh adapter on the base with the init merged into it; this adapter is the whole of it, "
            "init + fresh, relative to the original base: the exact sum, whose ranks add"
        )
    if run.start.frozen is not None:
        return "trained from the init in part; the rest of the init is in here unchanged"
    return "trained from the init"


def _check_space(out: Path, run: _Run) -> None:
    """Refuse a disk without room for the checkpoints (parameters and two moments, three at once) and the result."""
    trained, frozen = parameters(run.start.trained), run.start.frozen
    need = 4 * (3 * 3 * trained + trained + (parameters(frozen) if frozen is not None else 0)) + 2**20
    place = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise StorageError(
            f"'{place}' with {free / 2**20:.0f} MiB free",
            f"checkpoints and result need about {need / 2**20:.0f} MiB",
            "free some space, or write elsewhere",
        )


__all__ = ["Data", "TrainRequest", "Trained", "divided", "train", "what_is_kept"]
