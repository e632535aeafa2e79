"""Journey: train. A task and a start become a task vector; an interrupted run goes on where it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from comgrad.errors import ComgradError, StorageError
from comgrad.evaluate.harness import Harness, open_harness
from comgrad.finetune.checkpoints import last_whole, step_of
from comgrad.finetune.guard import memory_errors
from comgrad.finetune.loop import fine_tune
from comgrad.finetune.regularisers import regulariser_named, weighted
from comgrad.finetune.trainable import Trainable
from comgrad.finetune.workfolder import WorkFolder, kept, partial_path, remove_finished, work_folder
from comgrad.registry.card import Card
from comgrad.vectors.delta import Delta, LowRank, matrix_shape
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.storage import check_free
from comgrad.workflows.training_data import Data, divided
from comgrad.workflows.training_record import card_of, write_result
from comgrad.workflows.training_run import Run, check_space, prepare
from comgrad.workflows.training_start import CARD_FILE, TrainRequest

SAVES = 10  # checkpoints in a run of an adapter, at most one every step
DENSE_SAVES = 4  # of whole tensors, which are large


@dataclass(frozen=True)
class Trained:
    """What came of it. Losses are on `evaluated_on`: at the base (θ₀), at the start, and at the end.

    `share` is the part of what the recipe can train, `trainable_share` the part of the model's parameters.
    """

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
    trainable_share: float
    full_parameters: int
    linearised: bool
    trainable: dict[str, int] = field(repr=False)
    resumed_from: int | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self)


def train(request: TrainRequest, out: Path, *, progress: Callable[[int, int], None] | None = None) -> Trained:
    """Train and write the result with its card: a PEFT folder, or a dense vector's.

    The run is kept in `DIR.partial` until the folder is whole; the same request goes on from its last checkpoint and
    ends at the same numbers as an uninterrupted one.

    Args:
        progress: called after every step with (done, total).

    Raises:
        ComgradError: a request, task, init or base that cannot be used; (`diverged`) the last good checkpoint stays;
            (`out-of-memory`); another run's work folder.
        StorageError: `out` is taken, or the disk is full.
    """
    began = time.perf_counter()
    try:
        check_free(out)
    except StorageError:
        _remove_leftover(out)
        raise
    run = prepare(request)
    card_of(run, {})  # what a card would refuse is refused before training, not after
    harness = open_harness(run.base, run.task)
    check_space(out, run)
    with work_folder(out, run.spec) as folder:
        last = last_whole(folder.checkpoints)
        try:
            with memory_errors(run.loop):
                vector, scores, ready = _train(run, harness, folder, progress)
        except ComgradError as error:
            if last_whole(folder.checkpoints) is None:
                folder.remove()  # nothing to go on from
                raise
            raise _with_what_is_kept(error, out) from error
        measured = {"trained_parameters": ready.parameters, "trainable_share": ready.share}
        write_result(run, vector, out, {**scores, **harness.facts, **measured})
        folder.remove()
    full = ready.parameters if run.dense else run.full
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
        share=ready.parameters / full,
        trainable_parameters=ready.parameters,
        trainable_share=ready.share,
        full_parameters=full,
        linearised=ready.linearised,
        trainable=_ranks(run, vector),
        resumed_from=step_of(last) if last is not None else None,
        seconds=time.perf_counter() - began,
    )


def _ranks(run: Run, vector: TaskVector) -> dict[str, int]:
    """Tensor → rank that its change was free to have."""
    trained = (run.start.trained or vector).tensors
    return {n: d.rank if isinstance(d, LowRank) else _full_rank(d) for n, d in trained.items()}


def _full_rank(d: Delta) -> int:
    return min(matrix_shape(d)) if d.is_matrix else 1


def _with_what_is_kept(error: ComgradError, out: Path) -> ComgradError:
    """A run that diverged says where its last good checkpoint is, and that it would diverge again from there."""
    if error.code != "diverged":
        return error
    saved = kept(out).split(";")[0]
    remedy = f"{error.remedy}; {saved}; remove '{partial_path(out)}' before another try with this -o"
    return type(error)(error.given, error.why, remedy, code=error.code)


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
    run: Run, harness: Harness, folder: WorkFolder, progress: Callable[[int, int], None] | None
) -> tuple[TaskVector, dict[str, float], Trainable]:
    """The whole task vector, the six readings, and what was trained."""
    torch.manual_seed(run.loop.seed)
    load = run.recipe.load
    model = harness.fresh() if load is None else load(run.base.path, harness.kind)
    at_base = folder.remembered("base", lambda: _score(harness, model, run.data))
    ready = run.recipe.function(model, run.start)
    headed = harness.wrap(ready.model)
    at_start = at_base
    if run.request.init is not None:
        at_start = folder.remembered("start", lambda: _score(harness, ready.model, run.data))
    name, weight = run.request.regulariser, run.request.regulariser_weight
    extra = (
        weighted(regulariser_named(name).function, ready, weight) if name is not None and weight is not None else None
    )
    fine_tune(
        headed,
        harness.rows(run.data.train),
        harness.collate,
        run.loop,
        folder.checkpoints,
        regulariser=extra,
        progress=progress,
        save_every=max(1, run.loop.steps // (DENSE_SAVES if run.dense else SAVES)),
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
    return ready.collect(), scores, ready


def _score(harness: Harness, model: torch.nn.Module, data: Data) -> dict[str, float]:
    score = harness.score(harness.wrap(model), data.look)
    return {"loss": score.loss, "accuracy": score.accuracy}


__all__ = ["Data", "TrainRequest", "Trained", "divided", "train", "what_is_kept"]
