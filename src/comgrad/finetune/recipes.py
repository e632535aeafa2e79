"""Fine-tuning recipes as rows of a table: a name, what is trained, and the defaults.

A recipe's function takes a fresh model at θ₀ and a start, makes some of its parameters trainable, and says how the task
vector is read off it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from comgrad.errors import ComgradError
from comgrad.finetune.adapter import Start, Trainable, on_adapter
from comgrad.finetune.loop import TrainSpec

RecipeFunction = Callable[[nn.Module, Start], Trainable]


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Args:
        name: what users write.
        function: (model at θ₀, start) → what is trained.
        meaning: one line.
        roles: which tensors a start from zero has, by role (`weights.roles.ROLES`).
        target: the roles in words, for the card.
        rank: of a start from zero.
        scale: α/r; it stays when the rank changes, so that the step size does.
        spec: the loop's defaults.
    """

    name: str
    function: RecipeFunction
    meaning: str
    roles: tuple[str, ...]
    target: str
    rank: int
    scale: float
    spec: TrainSpec


RECIPES: Mapping[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(
            name="lora",
            function=on_adapter,
            meaning="a LoRA adapter on the attention projections (arXiv 2106.09685), the starter zoo's recipe",
            roles=("q", "k", "v", "o"),
            target="attention query/key/value/output",
            rank=8,
            scale=2.0,
            spec=TrainSpec(),
        ),
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
