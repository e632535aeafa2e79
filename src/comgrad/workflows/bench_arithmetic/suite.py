"""What a run is made of, chosen before any run and kept in a frozen file: tasks, sizes, grids.

The rule that chose the tasks of `text8`. Families in the order of their number of tasks with examples, largest first, by
name among equals. In a family those tasks qualify that have at least 1,000 training and 300 test examples of at most 200
characters on average (an encoder that reads 64 tokens sees them whole); of these the one whose id has the least SHA-256
is taken. A family without such a task is passed over. The first eight are the suite. Of the others, the first two that the
base model can do already are the control tasks of negation: its validation accuracy is at least 1.5 times the share of the
commonest label (a task that it cannot do cannot be harmed). Learning rates are tuned on the first two of the rest. The
file also has a digest of every task's contents. `benchmarks/choose_text8.py` applies the rule.

`vision8` is the linear-layers paper's own: its eight image tasks, steps, batches, schedule and one learning rate for all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from typing import Any, Protocol

from comgrad.describe.task import Task
from comgrad.errors import ComgradError, NotFound
from comgrad.evaluate.digests import digest_of
from comgrad.workflows.bench.corpus import Item

LEAST_TRAIN, LEAST_TEST, MOST_CHARACTERS = 1000, 300, 200.0
CHOSEN, DEVELOPMENT, CONTROLS = 8, 2, 2
ABLE = 1.5
SUITES = ("text8", "vision8")
_RUNS = "comgrad.workflows.bench_arithmetic"


class Source(Protocol):
    """A task on disk: `workflows.bench.corpus.Item`, or `vision.ImageItem`."""

    @property
    def id(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def task(self) -> Task: ...


@dataclass(frozen=True)
class Suite:
    """A frozen run.

    Args:
        base: name or path of the base model.
        tasks: ids of the tasks whose vectors are added. development: those that learning rates are tuned on.
        controls: those that a negation must not harm; empty: the other tasks of the suite.
        digests: task's id → digest of its contents; a task that is not in it is not checked.
        pairs: of tasks, for disentanglement.
        recipes, seeds: what is trained. whole_recipes: those of them that are measured in every way; of the others only
            single tasks and sums.
        steps, batch_size, schedule, warmup_share: the loop, alike for all recipes.
        rates: what a recipe's own learning rate is multiplied by when it is tuned.
        validation, test: most examples that are read of a split. few: the same for measures of pairs.
        negation_grid: coefficients of negation. unit_grid: of disentanglement in the unit square, for every seed.
        whole_grid: of the heat maps, for the first seed.
        methods: merging methods. method_recipes: recipes whose vectors they merge.
        cost_steps: timed steps of each recipe.
        kind: of examples, `text` or `image`.
        learning_rate: of every recipe; None: a recipe's own, tuned with `rates`.
    """

    name: str
    base: str
    tasks: tuple[str, ...]
    development: tuple[str, ...]
    controls: tuple[str, ...]
    digests: Mapping[str, str]
    pairs: tuple[tuple[str, str], ...]
    recipes: tuple[str, ...]
    whole_recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    batch_size: int
    schedule: str
    warmup_share: float
    rates: tuple[float, ...]
    validation: int
    test: int
    few: int
    negation_grid: tuple[float, ...]
    unit_grid: tuple[float, ...]
    whole_grid: tuple[float, ...]
    methods: tuple[str, ...]
    method_recipes: tuple[str, ...]
    cost_steps: int
    kind: str = "text"
    learning_rate: float | None = None

    @property
    def every(self) -> tuple[str, ...]:
        """All tasks that are read."""
        return self.tasks + self.development + self.controls

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def suite_named(name: str) -> Suite:
    """The frozen suite of that name. Raises ComgradError (`bad-options`)."""
    if name not in SUITES:
        raise ComgradError(
            f"the suite '{name}'", "there is none of that name", f"use {' or '.join(SUITES)}", code="bad-options"
        )
    return _suite(read_run(name)["suite"])


def read_run(name: str) -> dict[str, Any]:
    """A frozen file of the package."""
    out: dict[str, Any] = json.loads((files(_RUNS) / "runs" / f"{name}.json").read_text("utf-8"))
    return out


def _suite(row: Mapping[str, Any]) -> Suite:
    return Suite(**{f.name: _frozen(row[f.name]) for f in fields(Suite) if f.name in row})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


# -- the rule ----------------------------------------------------------------------------------------------------------
def choose(items: Sequence[Item], wanted: int | None = None) -> tuple[str, ...]:
    """Ids of tasks of the first `wanted` families, or of all, by the module's rule. Raises NotFound for too few."""
    families: dict[str, list[Item]] = {}
    for item in items:
        families.setdefault(item.family, []).append(item)
    out = []
    for family in sorted(families, key=lambda f: (-len(families[f]), f)):
        fit = (i for i in sorted(families[family], key=_place) if _qualifies(i.task))
        first = next(fit, None)
        if first is not None:
            out.append(first.id)
        if len(out) == wanted:
            break
    if wanted is None or len(out) == wanted:
        return tuple(out)
    raise NotFound(f"tasks of {wanted} families", f"only {len(out)} families have one that qualifies", "give more data")


def can_do(accuracy: float, task: Task) -> bool:
    """Whether an accuracy on the validation part is that of a model that can do the task."""
    labels = [e.label for e in task.split("validation")]
    return accuracy >= ABLE * max(labels.count(x) for x in set(labels)) / len(labels)


def _place(item: Source) -> str:
    return hashlib.sha256(item.id.encode()).hexdigest()


def _qualifies(task: Task) -> bool:
    train = [e for e in task.examples if e.split == "train"]
    test = [e for e in task.examples if e.split == "test"]
    if len(train) < LEAST_TRAIN or len(test) < LEAST_TEST:
        return False
    return sum(len(e.text) for e in train) / len(train) <= MOST_CHARACTERS


# -- on somebody's data ------------------------------------------------------------------------------------------------
def contents(task: Task) -> str:
    """SHA-256 of a task's prompts and examples, whatever file they came in."""
    head = [list(task.label_prompts), *([list(task.templates)] if task.templates else [])]
    return digest_of([*head, [[e.text, e.label, e.split] for e in task.examples]])


def check_data(suite: Suite, items: Mapping[str, Source]) -> None:
    """Refuse a folder that lacks a task of the suite, or has it with other contents. Raises NotFound, ComgradError."""
    for identity in suite.every:
        if identity not in items:
            raise NotFound(
                f"the task '{identity}' of the suite '{suite.name}'",
                "the data has no task with examples of that id",
                "give a folder that has it with --data, or name tasks of your own with --tasks",
            )
        frozen = suite.digests.get(identity)
        if frozen is not None and contents(items[identity].task) != frozen:
            raise ComgradError(
                f"the task '{identity}'",
                f"its contents are not those that the suite '{suite.name}' was frozen with",
                "use the same data, or name the tasks with --tasks to run on others",
                code="other-data",
            )


def of_tasks(suite: Suite, tasks: Sequence[str], items: Mapping[str, Source]) -> Suite:
    """The suite on tasks of one's own: development and control tasks are the first two and the next two of the others,
    by the SHA-256 of their ids; where there are too few, rates are not tuned, and the suite's other tasks are controls.
    """
    if len(tasks) < 2 or len(set(tasks)) < len(tasks):
        raise ComgradError(
            f"the tasks {', '.join(tasks)}", "vectors of at least two tasks are added", "name more", code="bad-options"
        )
    others = tuple(i.id for i in sorted(items.values(), key=_place) if i.id not in tasks)
    return replace(
        suite,
        name="own tasks",
        tasks=tuple(tasks),
        development=others[:DEVELOPMENT],
        controls=others[DEVELOPMENT : DEVELOPMENT + CONTROLS],
        digests={},
        pairs=pairs_of(tasks),
    )


def pairs_of(tasks: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The first with the second, the third with the fourth, and so on; at most three."""
    return tuple(zip(tasks[::2], tasks[1::2], strict=False))[:3]


def quick(suite: Suite) -> Suite:
    """A small run of the same kind: three tasks, one seed, 30 steps, four recipes; to see that it works."""
    tasks = suite.tasks[:3]
    known = ("lora", "nonlinear", "attention-linear", "ntk")
    return replace(
        suite,
        name=f"{suite.name}, quick",
        tasks=tasks,
        development=suite.development[:1],
        controls=suite.controls[:1],
        pairs=pairs_of(tasks),
        recipes=tuple(r for r in known if r in suite.recipes),
        seeds=suite.seeds[:1],
        steps=30,
        rates=(1.0,),
        validation=40,
        test=60,
        few=24,
        negation_grid=(0.0, 0.5, 1.0),
        unit_grid=(0.0, 0.5, 1.0),
        whole_grid=(-2.0, -1.0, 0.0, 1.0, 2.0),
        methods=("mean", "ties"),
        method_recipes=("lora", "attention-linear"),
        cost_steps=3,
    )
