"""Fine-tuning recipes as rows of a table: a name, what is trained, and the defaults.

A recipe's function takes a fresh model at θ₀ and a start, makes some of its parameters trainable, and says how the task
vector is read off it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn

from comgrad.errors import ComgradError
from comgrad.finetune.adapter import on_adapter
from comgrad.finetune.dense import in_place
from comgrad.finetune.linearised import ntk
from comgrad.finetune.quantised import check_available, load_quantised, on_quantised
from comgrad.finetune.selection import PARADIGMS, Paradigm
from comgrad.finetune.spec import TrainSpec
from comgrad.finetune.trainable import Start, Trainable

RecipeFunction = Callable[[nn.Module, Start], Trainable]

# After Ilharco et al. and Ortiz-Jimenez et al.: AdamW, cosine with a tenth of warm-up, clipping at 1. The learning rates
# are for 80 steps of a small encoder, ten and thirty times theirs (2000 steps, 1e-5): a part of the parameters, or the
# linearised model, learns too little at the rate that suits all of them.
DENSE_SPEC = TrainSpec(learning_rate=1e-4, weight_decay=0.1, warmup_steps=8, schedule="cosine")
FASTER_SPEC = replace(DENSE_SPEC, learning_rate=3e-4)


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Args:
        name: what users write.
        function: (model at θ₀, start) → what is trained.
        meaning: one line.
        target: what is trained in words, for the card.
        spec: the loop's defaults.
        kind: an `adapter` is put on the model, or the model's own parameters are trained (`dense`).
        roles: which tensors an adapter from zero has, by role (`weights.roles.ROLES`).
        rank: of an adapter from zero.
        scale: α/r; it stays when the rank changes, so that the step size does.
        paradigm: the key of `selection.PARADIGMS` of a dense recipe; None is all parameters.
        linearised: trained, and to be evaluated, as the first-order model.
        check: refuses a machine that cannot run it.
        load: (the base's folder, kind of model) → the base as this recipe wants it; default: in fp32.
    """

    name: str
    function: RecipeFunction
    meaning: str
    target: str
    spec: TrainSpec
    kind: Literal["adapter", "dense"] = "adapter"
    roles: tuple[str, ...] = ()
    rank: int = 0
    scale: float = 1.0
    paradigm: str | None = None
    linearised: bool = False
    check: Callable[[], None] | None = None
    load: Callable[[Path, str], nn.Module] | None = None


def _of_paradigm(p: Paradigm) -> Recipe:
    return Recipe(
        name=p.name,
        function=partial(in_place, paradigm=p.name),
        meaning=f"{p.meaning} (arXiv 2407.07089, paradigm {p.number})",
        target=p.meaning,
        spec=FASTER_SPEC,
        kind="dense",
        roles=p.roles,
        paradigm=p.name,
    )


_ADAPTER_ROLES = ("q", "k", "v", "o")
_ADAPTER_TARGET = "attention query/key/value/output"

RECIPES: Mapping[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(
            name="lora",
            function=on_adapter,
            meaning="a LoRA adapter on the attention projections (arXiv 2106.09685), the starter zoo's recipe",
            target=_ADAPTER_TARGET,
            spec=TrainSpec(),
            roles=_ADAPTER_ROLES,
            rank=8,
            scale=2.0,
        ),
        Recipe(
            name="qlora",
            function=on_quantised,
            meaning="a LoRA adapter on a base in 4 bits (arXiv 2305.14314); needs bitsandbytes and a CUDA GPU",
            target=_ADAPTER_TARGET,
            spec=TrainSpec(precision="bf16"),
            roles=_ADAPTER_ROLES,
            rank=8,
            scale=2.0,
            check=check_available,
            load=load_quantised,
        ),
        Recipe(
            name="nonlinear",
            function=in_place,
            meaning="all parameters of the representation model (arXiv 2212.04089)",
            target="all parameters",
            spec=DENSE_SPEC,
            kind="dense",
        ),
        Recipe(
            name="ntk",
            function=ntk,
            meaning="all parameters of the first-order model f(x;θ₀) + J(x;θ₀)(θ − θ₀) (arXiv 2305.12827)",
            target="all parameters of the linearised model",
            spec=FASTER_SPEC,
            kind="dense",
            linearised=True,
        ),
        *map(_of_paradigm, PARADIGMS.values()),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name. Raises ComgradError that lists the known ones."""
    found = RECIPES.get(name)
    if found is None:
        raise ComgradError(
            f"the recipe '{name}'", "there is none of that name", f"use one of: {', '.join(RECIPES)}", code="bad-recipe"
        )
    return found
