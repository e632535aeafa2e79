"""What a training was asked for, and where it starts: from zero, from an adapter, or on top of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from comgrad.describe.encoder import DEFAULT_ENCODER
from comgrad.errors import BaseMismatch, ComgradError
from comgrad.finetune.adapter import Start
from comgrad.finetune.loop import TrainSpec
from comgrad.finetune.recipes import Recipe
from comgrad.predict.start import zero_start
from comgrad.predict.trainable import low_rank_parts, parameters, split, trainable_set
from comgrad.registry.card import Card
from comgrad.vectors.delta import Delta, LowRank
from comgrad.vectors.peft import read_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import BaseModel, resolve_base
from comgrad.weights.layouts import is_input_embedding, layout_of

A_SEED = 0  # vectors whose A factors start alike can be compared by cosine
CARD_FILE = "task_card.json"


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for; None is the recipe's default.

    Args:
        task_dir: the task folder.
        init: a PEFT adapter to start from; `merge_init` merges it into the base and trains a fresh one on top.
        base: name or path; default: the init's, else the packaged encoder.
        rank: of a start from zero.
        share: part of the adapter's parameters to train, see `predict.trainable`.
        limit_examples: train on so many examples, drawn with the seed.
    """

    task_dir: Path
    recipe: str = "lora"
    init: Path | None = None
    merge_init: bool = False
    base: str | None = None
    rank: int | None = None
    share: float = 1.0
    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    schedule: str | None = None
    warmup_steps: int | None = None
    seed: int = 0
    limit_examples: int | None = None

    def spec(self, recipe: Recipe) -> TrainSpec:
        """The recipe's loop with what was asked for."""
        keys = ("steps", "learning_rate", "batch_size", "schedule", "warmup_steps", "seed")
        return replace(recipe.spec, **{k: v for k in keys if (v := getattr(self, k)) is not None})


def check_options(request: TrainRequest) -> None:
    """Refuse options that contradict one another. Raises ComgradError."""
    if request.merge_init and request.init is None:
        raise ComgradError(
            "--merge-init without --init",
            "there is nothing to merge",
            "name an adapter with --init",
            code="bad-options",
        )
    if request.rank is not None and request.init is not None and not request.merge_init:
        raise ComgradError(
            f"--rank {request.rank} with --init",
            "an init is trained with its own ranks",
            "leave --rank out, or train a fresh adapter on top with --merge-init",
            code="bad-options",
        )
    if request.rank is not None and request.rank < 1:
        raise ComgradError(f"rank {request.rank}", "an adapter has at least rank 1", "ask for more", code="bad-options")


def base_of(request: TrainRequest) -> BaseModel:
    """The base that was named, else the init's, else the packaged encoder. Raises NotFound, ComgradError."""
    name = request.base
    if name is None and request.init is not None:
        name = read_peft(request.init).base.name
    base = resolve_base(name or DEFAULT_ENCODER)
    if not base.path.is_dir():
        raise ComgradError(
            f"the base '{base.path}'",
            "it is a file of weights, without config and tokenizer",
            "pass the model's folder",
            code="base-no-config",
        )
    return base


def init_of(request: TrainRequest, base: BaseModel) -> TaskVector:
    """The init over the training's base.

    Raises:
        BaseMismatch: it stands on another base, or does not fit this one. UnsupportedAdapter: it is not low-rank.
    """
    assert request.init is not None
    declared = read_peft(request.init).base
    claimed = _claimed_fingerprint(request.init) or declared.fingerprint
    same = claimed == base.fingerprint.root if claimed else _last(declared.name) == _last(base.name)
    if not same and (claimed or request.base is None):
        raise BaseMismatch(
            f"the init '{request.init}' over {declared.label}",
            f"the base to train is {base.ref.label}",
            "use an init of this base, or name its own with --base",
        )
    init = read_peft(request.init, base=base.path)
    for name in low_rank_parts(init):
        if is_input_embedding(name):
            raise ComgradError(
                f"the init '{request.init}' with the embedding '{name}'",
                "training goes on from attention and MLP matrices only",
                "leave the embedding out",
                code="init-embedding",
            )
    return init


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].casefold()


def _claimed_fingerprint(init: Path) -> str | None:
    """The base's fingerprint that the init's card carries, where it does."""
    if not (init / CARD_FILE).is_file():
        return None
    found = Card.from_file(init / CARD_FILE).extra.get("base_fingerprint")
    return found if isinstance(found, str) else None


def start_of(request: TrainRequest, recipe: Recipe, base: BaseModel, init: TaskVector | None) -> tuple[Start, int]:
    """The start, and the parameters of the adapter it is a share of.

    On top of a merged init comes a fresh adapter on the recipe's tensors; with a share below 1, on the init's own, with
    the ranks that `trainable_set` gives the init at the fresh adapter's rank.
    """
    rank = request.rank or recipe.rank
    if init is None:
        fresh = _zero(recipe, base, rank)
        part = split(fresh, trainable_set(fresh, request.share))
        return Start(base.ref, base.path, part.trained), parameters(fresh)
    if not request.merge_init:
        part = split(init, trainable_set(init, request.share))
        return Start(base.ref, base.path, part.trained, part.frozen), parameters(init)
    merged = _without_zeros(init)
    if request.share == 1.0:
        fresh = _zero(recipe, base, rank)
        return Start(base.ref, base.path, fresh, merged), parameters(fresh)
    small, _ = init.compress(rank)
    shape = zero_start(base.ref, small.tensors, rank, scale=recipe.scale, seed=A_SEED).vector
    fresh = split(shape, trainable_set(small, request.share)).trained
    return Start(base.ref, base.path, fresh, merged), parameters(small)


def _without_zeros(init: TaskVector) -> TaskVector | None:
    """The init without tensors whose factors are zero: they would add rank and nothing else."""
    kept = {n: d for n, d in low_rank_parts(init).items() if bool(d.B.any()) and bool(d.A.any())}
    return TaskVector(init.base, kept) if kept else None


def _zero(recipe: Recipe, base: BaseModel, rank: int) -> TaskVector:
    """ΔW = 0 on the recipe's tensors of the base."""
    shapes: dict[str, Delta] = {}
    with base.open() as checkpoint:
        layout = layout_of(checkpoint.names)
        names = layout.select(checkpoint.names, recipe.roles, kind="weight") if layout is not None else []
        for name in names:
            shape, turned = tuple(checkpoint.entries[name].shape), bool(layout and layout.role(name).transposed)
            if len(shape) == 2:
                m, n = shape[::-1] if turned else shape
                shapes[name] = LowRank(torch.zeros(m, 1), torch.zeros(1, n), transposed=turned)
    if not shapes:
        raise ComgradError(
            f"the base '{base.name}'",
            f"none of its tensors plays a part that the recipe '{recipe.name}' trains ({recipe.target})",
            "use a model of a known family (BERT, RoBERTa, Llama, Mistral, GPT-2), or start from an adapter with --init",
            code="no-targets",
        )
    least = min(min(d.shape) for d in shapes.values())
    if rank > least:
        raise ComgradError(
            f"rank {rank}",
            f"the smallest matrix to train has rank {least}",
            f"ask for {least} or less",
            code="rank-too-large",
        )
    return zero_start(base.ref, shapes, rank, scale=recipe.scale, seed=A_SEED).vector
