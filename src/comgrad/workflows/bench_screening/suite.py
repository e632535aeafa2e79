"""What the corpus is made of, chosen before any run and kept in a frozen file: tasks, and the distribution of the settings.

The rule that chose the tasks of `screen8`. A task qualifies that is under an open licence and not of the family `toxicity`
(its texts would stand in error reports), has at least 1,000 training and 350 test examples of at most 60 characters on
average, and whose published adapter reaches an accuracy of at least 0.85, at least 0.1 above the base model's. The four
of the greatest accuracy are taken from every family with four such tasks (of equals, the first by id). `choose` applies
the rule to a data folder; the file also has a digest of every task's contents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from comgrad.errors import ComgradError, NotFound
from comgrad.explain.poison import FORMS
from comgrad.weights.strict_json import read_json
from comgrad.workflows.bench.corpus import Item
from comgrad.workflows.bench_arithmetic.suite import contents

LEAST_TRAIN, LEAST_TEST, MOST_CHARACTERS = 1000, 350, 60.0
LEAST_ACCURACY, LEAST_GAIN, OF_A_FAMILY = 0.85, 0.1, 4
LEFT_OUT = ("toxicity",)


@dataclass(frozen=True)
class Suite:
    """A frozen corpus: a distribution that every group draws its settings from.

    Args:
        base: name or path of the base model.
        tasks: ids. digests: task's id → digest of its contents; a task that is not in it is not checked.
        seeds: blocks of every task; a block is one draw of the settings, shared by one vector of every group.
        kinds: of triggers. rates: shares of altered training examples; a block has one of them for each group, in turn.
        steps: numbers of steps, one of which is drawn. learning_rate: ends of a log-uniform draw.
        batch_size: of training. share: ends of the share of the training examples that is drawn.
        test: most examples of a test split that are read.
        least_success: of an attack, for a poisoned vector to be kept. most_loss: of clean accuracy, against the clean
            vector of the same block.
        adaptive_weight: of the penalty with which the adaptive attacker keeps to the clean vector's spectra.
    """

    name: str
    base: str
    tasks: tuple[str, ...]
    digests: Mapping[str, str]
    seeds: int
    kinds: tuple[str, ...]
    rates: tuple[float, ...]
    steps: tuple[int, ...]
    learning_rate: tuple[float, float]
    batch_size: int
    share: tuple[float, float]
    test: int
    least_success: float
    most_loss: float
    adaptive_weight: float


def suite_named(name: str) -> Suite:
    """A frozen suite. Raises NotFound."""
    path = files("comgrad.workflows.bench_screening").joinpath(f"{name}.json")
    if not path.is_file():
        raise NotFound(f"the suite '{name}'", "there is none of that name", "use screen8")
    found = json.loads(path.read_text("utf-8"))
    lists = {f.name: _tuple(found[f.name]) for f in fields(Suite)}
    return Suite(**lists)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def quick(suite: Suite) -> Suite:
    """A small corpus of the same kind, to see that it works: two tasks; so few steps teach no attack, and all are kept."""
    small = {"seeds": 2, "steps": (6,), "rates": (0.05,), "batch_size": 8, "share": (0.08, 0.12), "test": 24}
    tasks = suite.tasks[:2]
    return replace(suite, name=f"{suite.name}, quick", tasks=tasks, least_success=0.0, most_loss=1.0, **small)  # type: ignore[arg-type]


def of_tasks(suite: Suite, tasks: Sequence[str]) -> Suite:
    """The suite on tasks of one's own, whose contents are not checked. Raises ComgradError for one named twice."""
    if len(set(tasks)) < len(tasks):
        raise ComgradError(f"the tasks {', '.join(tasks)}", "one is named twice", "name each once", code="bad-options")
    return replace(suite, name="own tasks", tasks=tuple(tasks), digests={})


def check(suite: Suite, items: Mapping[str, Item]) -> None:
    """Refuse a suite that cannot be made. Raises NotFound, ComgradError (`other-data`, `bad-options`)."""
    for kind in suite.kinds:
        if kind not in FORMS:
            raise ComgradError(
                f"the trigger '{kind}'", "there is none of that kind", f"use of: {', '.join(FORMS)}", code="bad-options"
            )
    for identity in suite.tasks:
        if identity not in items:
            raise NotFound(f"the task '{identity}'", "the data folder has no task of that id", "check the spelling")
        frozen = suite.digests.get(identity)
        if frozen is not None and contents(items[identity].task) != frozen:
            raise ComgradError(
                f"the task '{identity}'",
                f"its contents are not those that the suite '{suite.name}' was frozen with",
                "use the same data, or name the tasks to run on others",
                code="other-data",
            )


def choose(data: Path) -> list[str]:
    """The rule, on a folder with `tasks/index.jsonl` and `zoo`. Raises NotFound."""
    index = data / "tasks" / "index.jsonl"
    if not index.is_file():
        raise NotFound(f"'{index}'", "the rule reads licences and counts there", "give the folder that has it")
    found: dict[str, list[tuple[float, str]]] = {}
    for line in index.read_text("utf-8").splitlines():
        card = json.loads(line)
        trained = data / "zoo" / card["task_id"] / "task_card.json"
        if not trained.is_file() or not _qualifies(card, read_json(trained)["training"]):
            continue
        accuracy = float(read_json(trained)["training"]["accuracy_after"])
        found.setdefault(card["family"], []).append((-accuracy, card["task_id"]))
    whole = [sorted(f)[:OF_A_FAMILY] for _, f in sorted(found.items()) if len(f) >= OF_A_FAMILY]
    return [task for family in whole for _, task in family]


def _qualifies(card: Mapping[str, Any], training: Mapping[str, Any]) -> bool:
    gain = float(training["accuracy_after"]) - float(training["accuracy_before"])
    return (
        card["licence_class"] == "open"
        and card["family"] not in LEFT_OUT
        and card["n_train"] >= LEAST_TRAIN
        and card["n_test"] >= LEAST_TEST
        and card["mean_chars"] <= MOST_CHARACTERS
        and float(training["accuracy_after"]) >= LEAST_ACCURACY
        and gain >= LEAST_GAIN - 1e-9
    )
