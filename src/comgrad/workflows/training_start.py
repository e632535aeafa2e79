"""What a training was asked for, and where it starts: from zero, from a known vector, or on top of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from comgrad.describe.encoder import DEFAULT_ENCODER
from comgrad.errors import BaseMismatch, ComgradError
from comgrad.evaluate.images import TOWER, is_open_clip
from comgrad.finetune.recipes import Recipe
from comgrad.finetune.regularisers import regulariser_named
from comgrad.finetune.selection import select
from comgrad.finetune.spec import TrainSpec
from comgrad.finetune.trainable import Start
from comgrad.predict.start import zero_start
from comgrad.predict.trainable import low_rank_parts, parameters, split, trainable_set
from comgrad.registry.card import Card
from comgrad.vectors.delta import Delta, LowRank
from comgrad.vectors.peft import read_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import BaseModel, resolve_base
from comgrad.weights.layouts import is_input_embedding, layout_of
from comgrad.workflows.resolve import VECTOR_FILE

A_SEED = 0  # vectors whose A factors start alike can be compared by cosine
CARD_FILE = "task_card.json"


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for; None is the recipe's default.

    Args:
        task_dir: the task folder.
        init: a PEFT adapter to start from; `merge_init` merges it into the base and trains a fresh one on top. A recipe
            that trains the model's own parameters starts at base + init, and takes a dense vector's folder too.
        base: name or path; default: the init's, else the packaged encoder.
        rank: of a start from zero.
        share: part of the adapter's parameters to train, see `predict.trainable`.
        limit_examples: train on so many examples, drawn with the seed.
        precision: of the arithmetic, see `finetune.spec.TrainSpec`.
        regulariser: one of `finetune.regularisers.REGULARISERS`, added to the loss times its weight.
        gradient: keep the task's gradient beside the result, which the registry predicts gains from.
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
    precision: str | None = None
    regulariser: str | None = None
    regulariser_weight: float | None = None
    gradient: bool = True

    def spec(self, recipe: Recipe) -> TrainSpec:
        """The recipe's loop with what was asked for; a warm-up not asked for keeps its share of the steps."""
        keys = ("steps", "learning_rate", "batch_size", "schedule", "warmup_steps", "seed", "precision")
        asked = {k: v for k in keys if (v := getattr(self, k)) is not None}
        if self.steps and self.warmup_steps is None:
            asked["warmup_steps"] = recipe.spec.warmup_steps * self.steps // recipe.spec.steps
        return replace(recipe.spec, **asked)


def check_options(request: TrainRequest, recipe: Recipe) -> None:
    """Refuse options that contradict one another or the recipe. Raises ComgradError."""
    if recipe.kind == "dense":
        _check_dense(request, recipe)
    if recipe.load is not None and request.init is not None and (request.merge_init or request.share != 1.0):
        raise ComgradError(
            f"--merge-init or --share with the recipe '{recipe.name}'",
            "part of the init would have to be merged into weights of 4 bits, which cannot take a small change",
            "train the whole init, or use the recipe lora",
            code="frozen-in-4bit",
        )
    if (request.regulariser is None) != (request.regulariser_weight is None):
        raise ComgradError(
            "--regulariser without --regulariser-weight, or the other way round",
            "how strong it should be depends on the task",
            "give both, or neither",
            code="bad-options",
        )
    if request.regulariser is not None:
        regulariser_named(request.regulariser)
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


def _check_dense(request: TrainRequest, recipe: Recipe) -> None:
    for option, given, why in (
        ("--rank", request.rank is not None, "it trains whole tensors, which have no rank to choose"),
        ("--share", request.share != 1.0, "a share is of an adapter's directions"),
        ("--merge-init", request.merge_init, "it merges its init always"),
    ):
        if given:
            raise ComgradError(
                f"{option} with the recipe '{recipe.name}'",
                why,
                "leave it out, or use the recipe lora",
                code="bad-options",
            )


def opened(init: Path, base: Path | None = None) -> TaskVector:
    """The vector of an init's folder: a PEFT adapter, or comgrad's own format.

    Raises:
        ComgradError: as `vectors.peft.read_peft` and `vectors.container.load`.
    """
    if not (init / "adapter_config.json").exists() and (init / VECTOR_FILE).exists():
        return TaskVector.load(init / VECTOR_FILE)
    return read_peft(init, base=base)


def base_of(request: TrainRequest) -> BaseModel:
    """The base that was named, else the init's, else the packaged encoder. Raises NotFound, ComgradError."""
    name = request.base
    if name is None and request.init is not None:
        name = opened(request.init).base.name
    base = resolve_base(name or DEFAULT_ENCODER)
    if not base.path.is_dir():
        raise ComgradError(
            f"the base '{base.path}'",
            "it is a file of weights, without config and tokenizer",
            "pass the model's folder",
            code="base-no-config",
        )
    return base


def init_of(request: TrainRequest, recipe: Recipe, base: BaseModel) -> TaskVector:
    """The init over the training's base.

    Raises:
        BaseMismatch: it stands on another base, or does not fit this one. UnsupportedAdapter: it is not low-rank, and
            the recipe goes on from factors.
    """
    assert request.init is not None
    declared = opened(request.init).base
    claimed = _claimed_fingerprint(request.init) or declared.fingerprint
    same = claimed == base.fingerprint.root if claimed else _last(declared.name) == _last(base.name)
    if not same and (claimed or request.base is None):
        raise BaseMismatch(
            f"the init '{request.init}' over {declared.label}",
            f"the base to train is {base.ref.label}",
            "use an init of this base, or name its own with --base",
        )
    init = opened(request.init, base.path)
    if recipe.kind == "dense":
        _check_shapes(request.init, init, base)
        return init
    for name in low_rank_parts(init):
        if is_input_embedding(name):
            raise ComgradError(
                f"the init '{request.init}' with the embedding '{name}'",
                "training goes on from attention and MLP matrices only",
                "leave the embedding out",
                code="init-embedding",
            )
    return init


def _check_shapes(path: Path, init: TaskVector, base: BaseModel) -> None:
    with base.open() as checkpoint:
        for name, d in init.tensors.items():
            entry = checkpoint.entries.get(name)
            stored = getattr(d, "weight_shape", None) or (d.shape[::-1] if d.transposed else d.shape)
            if entry is None or tuple(entry.shape) != tuple(stored):
                there = f"it has shape {tuple(entry.shape)}" if entry is not None else "there is none of that name"
                raise BaseMismatch(
                    f"the init '{path}' with '{name}' of shape {tuple(stored)}",
                    f"in the base {base.ref.label} {there}",
                    "use an init of this base",
                )


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
    the ranks that `trainable_set` gives the init at the fresh adapter's rank. A recipe that trains the model's own
    parameters starts at base + init, and its number of parameters is that of its tensors in the base's checkpoint.

    Raises:
        ComgradError: (`no-targets`, `layout-unknown`) the base has nothing that the recipe trains.
    """
    tower = TOWER if is_open_clip(base.path) else None
    if recipe.kind == "dense":
        with base.open() as checkpoint:
            shapes = {n: tuple(e.shape) for n, e in checkpoint.entries.items() if e.is_float}
        chosen = select(shapes, recipe.paradigm, tower=tower)
        return Start(base.ref, base.path, frozen=init, tower=tower), chosen.parameters
    if tower is not None:
        raise ComgradError(
            f"the recipe '{recipe.name}' on the base '{base.name}' of open_clip",
            "its attention keeps query, key and value in one tensor that is no module, which an adapter cannot be put on",
            "use a recipe that trains the tensors themselves, such as attention-linear",
            code="no-targets",
        )
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
