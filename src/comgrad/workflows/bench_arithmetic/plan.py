"""A request made definite: which tasks with which contents, which trainings, which measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from comgrad.describe.task import Task
from comgrad.errors import ComgradError
from comgrad.evaluate.images import is_open_clip
from comgrad.evaluate.splits import LeakReport, leak_guard, three_way
from comgrad.finetune.recipes import RECIPES, Recipe, recipe_named
from comgrad.weights.bases import BaseModel, resolve_base
from comgrad.workflows.bench.corpus import open_tasks
from comgrad.workflows.bench_arithmetic.suite import (
    Source,
    Suite,
    check_data,
    contents,
    of_tasks,
    quick,
    suite_named,
)
from comgrad.workflows.bench_arithmetic.vision import open_images

ADDITION, DISENTANGLEMENT = "addition", "disentanglement"
LOW_RANK = ("knots",)  # for adapters alone: it is made for them, and embedding tables side by side take too long
SPLIT_SEED = 0  # of the validation part, for every training seed


@dataclass(frozen=True)
class Request:
    """What a run is asked for.

    Args:
        what: `addition` or `disentanglement`; they share everything that is trained.
        data: folder with tasks; None: those shipped.
        out: folder of everything kept.
        tasks: ids in the place of the suite's own.
        base: in the place of the suite's own.
        recipes, seeds, steps: in the place of the suite's own; empty and None: the suite's.
        kept: write rows and page of what is there, and work on nothing.
    """

    what: str
    data: Path | None
    out: Path
    suite: str = "text8"
    tasks: tuple[str, ...] = ()
    base: str | None = None
    recipes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    steps: int | None = None
    jobs: int = 1
    quick: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Training:
    """One vector to be trained; `rate` multiplies the recipe's own learning rate."""

    recipe: str
    task: str
    seed: int
    rate: float


@dataclass(frozen=True)
class Cell:
    """One measurement of a recipe's vectors of one seed: its kind, and a method, a task or a pair where it needs one."""

    recipe: str
    seed: int
    kind: str
    detail: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For a file."""
        return "--".join((self.kind, *self.detail))


@dataclass
class Plan:
    """A request on its data; what is read, is read once."""

    request: Request

    @cached_property
    def items(self) -> Mapping[str, Source]:
        """Task's id → task. Raises ComgradError, NotFound."""
        asked = self.request
        if suite_named(asked.suite).kind == "text":
            return {i.id: i for i in open_tasks(asked.data)}
        if asked.data is None:
            raise ComgradError(
                f"the suite '{asked.suite}' without --data",
                "its images are not shipped",
                "give the folder that holds one folder per task with --data",
                code="bad-options",
            )
        return {i.id: i for i in open_images(asked.data, asked.out / "images")}

    @cached_property
    def suite(self) -> Suite:
        """The suite as asked for. Raises ComgradError, NotFound."""
        asked = self.request
        suite = suite_named(asked.suite)
        if asked.tasks:
            suite = of_tasks(suite, asked.tasks, self.items)
        suite = quick(suite) if asked.quick else suite
        given = {"base": asked.base, "recipes": asked.recipes, "seeds": asked.seeds, "steps": asked.steps}
        return replace(suite, **{k: v for k, v in given.items() if v})  # type: ignore[arg-type]

    def check(self) -> None:
        """Refuse a request that cannot be run, before anything is made. Raises ComgradError, NotFound."""
        _check(self.suite)
        base = resolve_base(self.suite.base)
        if (self.suite.kind == "image") != is_open_clip(base.path):
            raise ComgradError(
                f"the base '{base.name}' for the suite '{self.suite.name}'",
                f"its tasks are of kind '{self.suite.kind}', which this base does not read",
                "give a model of open_clip for images and a text encoder for texts with --base",
                code="bad-options",
            )
        check_data(self.suite, self.items)

    @cached_property
    def base(self) -> BaseModel:
        return resolve_base(self.suite.base)

    @cached_property
    def guarded(self) -> LeakReport:
        """The tasks in three parts, without texts that are in the test part of another."""
        parts = [three_way(self.items[t].task, SPLIT_SEED).as_task() for t in self.suite.every]
        return leak_guard(parts, across="drop")

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """Task's id → the task with its splits `train`, `validation` and `test`."""
        return dict(zip(self.suite.every, self.guarded.tasks, strict=True))

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """Task's id → digest of what is trained and measured on."""
        return {name: contents(t) for name, t in self.tasks.items()}

    # -- what there is to do -------------------------------------------------------------------------------------------
    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return tuple(RECIPES[r] for r in self.suite.recipes)

    def trials(self, recipe: str) -> list[Training]:
        """Trainings that the recipe's learning rate is chosen by; none where there is nothing to choose."""
        if len(self.suite.rates) < 2:
            return []
        seed = self.suite.seeds[0]
        return [Training(recipe, t, seed, rate) for rate in self.suite.rates for t in self.suite.development]

    def cells(self, what: str | None = None) -> Iterator[Cell]:
        """Measurements of one of the two benchmarks, or of both."""
        for recipe in self.suite.recipes:
            for seed in self.suite.seeds:
                if what in (None, ADDITION):
                    yield from self._added(recipe, seed)
                if what in (None, DISENTANGLEMENT) and self.is_whole(recipe):
                    yield Cell(recipe, seed, "cosine")
                    yield from (Cell(recipe, seed, "disentanglement", pair) for pair in self.suite.pairs)
                    yield Cell(recipe, seed, "proposition")

    def _added(self, recipe: str, seed: int) -> Iterator[Cell]:
        yield Cell(recipe, seed, "single")
        yield Cell(recipe, seed, "addition", ("sum",))
        if recipe in self.suite.method_recipes:
            low = recipe_named(recipe).kind == "adapter"
            yield from (Cell(recipe, seed, "addition", (m,)) for m in self.suite.methods if low or m not in LOW_RANK)
        if self.is_whole(recipe):
            yield from (Cell(recipe, seed, "negation", (t,)) for t in self.suite.tasks)

    def is_whole(self, recipe: str) -> bool:
        """Whether a recipe is measured in every way: those of the suite's list, and all that were asked for by name."""
        return recipe in self.suite.whole_recipes or recipe in self.request.recipes


def _check(suite: Suite) -> None:
    for name in suite.recipes:
        recipe = recipe_named(name)
        if recipe.check is not None:
            recipe.check()
    if len(set(suite.seeds)) < len(suite.seeds) or len(set(suite.recipes)) < len(suite.recipes):
        raise ComgradError(
            f"the recipes {', '.join(suite.recipes)} with the seeds {', '.join(map(str, suite.seeds))}",
            "one of them is named twice",
            "name each once",
            code="bad-options",
        )
