"""What a training leaves behind: an adapter's or a dense vector's folder, with its card and its task's gradient."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from comgrad.errors import ComgradError
from comgrad.finetune.quantised import QUANTISATION
from comgrad.finetune.trainable import renamed
from comgrad.finetune.workfolder import digest_of
from comgrad.registry.card import Card
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.layouts import layout_of
from comgrad.weights.names import NameIndex
from comgrad.weights.storage import atomic_directory, atomic_write_bytes
from comgrad.workflows.gradients import GradientMaker, write_gradient_file
from comgrad.workflows.lineage import parents_of_trained
from comgrad.workflows.resolve import VECTOR_FILE
from comgrad.workflows.training_run import Run
from comgrad.workflows.training_start import A_SEED, CARD_FILE


def write_result(run: Run, vector: TaskVector, out: Path, measured: Mapping[str, Any]) -> None:
    """Write the folder, atomically: a PEFT adapter, or `vector.safetensors` under the names of the base's checkpoint.

    Raises:
        StorageError; ComgradError: as `write_peft`.
    """
    extra = {CARD_FILE: card_of(run, measured), **(_gradient_files(run, vector) if run.request.gradient else {})}
    if not run.dense:
        write_peft(vector, out, extra_files=extra)
        return
    with run.base.open() as checkpoint:
        names = NameIndex(checkpoint.names)
    with atomic_directory(out) as folder:
        renamed(vector, names).save(folder / VECTOR_FILE)
        for name, data in extra.items():
            atomic_write_bytes(folder / name, data)


def _gradient_files(run: Run, vector: TaskVector) -> dict[str, bytes]:
    """The task's gradient at θ₀ on its training examples, which the registry predicts gains from, as files beside the
    result; none where the base has no prompt head. Embedding tables are left out: their gradient is as large as they."""
    layout = layout_of(vector.tensors)
    own = {n: d for n, d in vector.tensors.items() if layout is None or "embed" not in layout.role(n).roles}
    try:
        examples = replace(run.task, examples=tuple(run.data.train))
        made = GradientMaker().make(TaskVector(vector.base, own) if own else vector, examples, run.base)
    except ComgradError as error:
        if error.code != "no-prompt-head":
            raise
        return {}
    with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
        write_gradient_file(Path(folder), made)
        return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def card_of(run: Run, measured: Mapping[str, Any]) -> bytes:
    """The card; raises FileRefused for what a card cannot hold."""
    request = run.request
    fresh = not run.dense and (request.init is None or request.merge_init)
    training = _what(run, fresh) | _how(run) | dict(measured)
    card: dict[str, Any] = {
        "description": run.task.description,
        "label_names": list(run.task.label_names),
        "label_prompts": list(run.task.label_prompts),
        "base_model": run.base.name,
        "training": {k: v for k, v in training.items() if v is not None},
        "seeds": {"data": run.loop.seed} | ({"a": A_SEED} if fresh else {}),
        "extra": {"base_fingerprint": run.base.fingerprint.root, "task": run.task.name},
        "created_by": "comgrad train",
    }
    if request.init is not None:
        card["parents"] = parents_of_trained(request.init)
        card["extra"] |= {"init_digest": run.init_digest}
        card["notes"] = _note(run)
    return Card.make(**card).to_json().encode()


def _what(run: Run, fresh: bool) -> dict[str, Any]:
    """What is trained, for the card."""
    request, recipe = run.request, run.recipe
    told = {"recipe": recipe.name, "base_model": run.base.name}
    if run.dense:
        return told | {
            "target": recipe.target,
            "paradigm": recipe.paradigm or "all",
            "linearised": True if recipe.linearised else None,
        }
    own_target = fresh and (request.init is None or request.share == 1.0)
    return told | {
        "target": recipe.target if own_target else "as its init",
        "rank": request.rank or recipe.rank if fresh else None,
        "alpha": recipe.scale * (request.rank or recipe.rank) if request.init is None else None,
        "a_seed": A_SEED if request.init is None else _init_a_seed(request.init),
        "share": request.share,
        "quantisation": QUANTISATION if recipe.load is not None else None,
    }


def _how(run: Run) -> dict[str, Any]:
    """How it is trained, for the card."""
    loop = run.loop
    return {
        "data_seed": loop.seed,
        "steps": loop.steps,
        "batch_size": loop.batch_size,
        "learning_rate": loop.learning_rate,
        "optimizer": "AdamW",
        "weight_decay": loop.weight_decay,
        "schedule": loop.schedule,
        "warmup_steps": loop.warmup_steps,
        "precision": loop.precision if loop.precision != "fp32" else None,
        "regulariser": run.request.regulariser,
        "regulariser_weight": run.request.regulariser_weight,
        "train_examples": len(run.data.train),
        "test_examples": len(run.data.look),
        "evaluated_on": run.data.where,
        "trained_parameters": run.trained_parameters,
        "run_digest": digest_of(run.spec),
    }


def _init_a_seed(init: Path) -> int | None:
    if not (init / CARD_FILE).is_file():
        return None
    training = Card.from_file(init / CARD_FILE).training
    return training.a_seed if training is not None else None


def _note(run: Run) -> str:
    if run.dense:
        return (
            "trained from the base with the init added; this vector is the whole of it, relative to the original base"
        )
    if run.request.merge_init:
        return (
            "trained as a fresh adapter on the base with the init merged into it; this adapter is the whole of it, "
            "init + fresh, relative to the original base: the exact sum, whose ranks add"
        )
    if run.start.frozen is not None:
        return "trained from the init in part; the rest of the init is in here unchanged"
    return "trained from the init"
