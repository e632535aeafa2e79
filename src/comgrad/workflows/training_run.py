"""One training run, made up and refused before anything heavy is loaded."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from comgrad.describe.task import Task, load_task
from comgrad.errors import StorageError
from comgrad.finetune.recipes import Recipe, recipe_named
from comgrad.finetune.spec import TrainSpec
from comgrad.finetune.trainable import Start
from comgrad.predict.trainable import parameters
from comgrad.vectors.delta import Dense
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import BaseModel
from comgrad.workflows.resolve import VECTOR_FILE
from comgrad.workflows.training_data import Data, divided
from comgrad.workflows.training_start import A_SEED, TrainRequest, base_of, check_options, init_of, start_of

_INIT_FILES = ("adapter_config.json", "adapter_model.safetensors")
_CHECKPOINTS = 3  # two that are kept, and the one being written


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        full: parameters of the adapter that the start is a share of; of the tensors that a dense recipe trains, as the
            base's checkpoint has them.
        spec: all that decides the result; what an interrupted run must have in common to go on.
        init_digest: of the init's files.
    """

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

    @property
    def dense(self) -> bool:
        return self.recipe.kind == "dense"

    @property
    def trained_parameters(self) -> int:
        """As far as the checkpoint's header tells."""
        return self.full if self.start.trained is None else parameters(self.start.trained)


def prepare(request: TrainRequest) -> Run:
    """The run that a request asks for.

    Raises:
        ComgradError: a recipe, task, option, base or init that cannot be used.
    """
    recipe = recipe_named(request.recipe)
    loop = request.spec(recipe)
    task = load_task(request.task_dir)
    data = divided(task, seed=request.seed, limit=request.limit_examples)
    check_options(request, recipe)
    if recipe.check is not None:
        recipe.check()
    loop.check_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    base = base_of(request)
    init = init_of(request, recipe, base) if request.init is not None else None
    start, full = start_of(request, recipe, base, init)
    digest = _init_digest(request.init) if request.init is not None else None
    spec = {
        "recipe": recipe.name,
        "loop": asdict(loop),
        "rank": request.rank or recipe.rank,
        "share": request.share,
        "merge_init": request.merge_init,
        "limit_examples": request.limit_examples,
        "regulariser": [request.regulariser, request.regulariser_weight],
        "a_seed": A_SEED,
        "base": base.fingerprint.root,
        "init": digest,
        "task": data.digest(task),
    }
    return Run(request, recipe, loop, task, data, base, start, full, spec, digest)


def _init_digest(init: Path) -> str:
    names = _INIT_FILES if (init / _INIT_FILES[0]).exists() else (VECTOR_FILE,)
    digest = hashlib.sha256()
    for name in names:
        with (init / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_space(out: Path, run: Run) -> None:
    """Refuse a disk without room for the checkpoints (parameters and two moments each) and the result."""
    trained, frozen = run.trained_parameters, run.start.frozen
    rest = _numbers(frozen) if frozen is not None else 0
    need = 4 * (_CHECKPOINTS * 3 * trained + trained + rest) + 2**20
    place = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise StorageError(
            f"'{place}' with {free / 2**20:.0f} MiB free",
            f"checkpoints and result need about {need / 2**20:.0f} MiB",
            "free some space, or write elsewhere",
        )


def _numbers(vector: TaskVector) -> int:
    return parameters(vector) + sum(d.numel for d in vector.tensors.values() if isinstance(d, Dense))
