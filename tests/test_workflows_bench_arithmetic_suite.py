"""The frozen suite: chosen by its rule, checked against the data, cut down for a quick look."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from arithmetic_data import TASKS, data_folder
from comgrad.describe.task import Example, Task
from comgrad.errors import ComgradError, NotFound
from comgrad.finetune.recipes import RECIPES
from comgrad.vectors.merge import METHODS
from comgrad.workflows.bench.corpus import Item, open_tasks
from comgrad.workflows.bench_arithmetic.plan import Plan, Request
from comgrad.workflows.bench_arithmetic.suite import (
    Suite,
    can_do,
    check_data,
    choose,
    contents,
    of_tasks,
    pairs_of,
    quick,
    read_run,
    suite_named,
)


def item(name: str, family: str, *, train: int = 1000, test: int = 300, characters: int = 200) -> Item:
    made = Item(name, name, "words", family, name, ("no", "yes"), ("It is not.", "It is."), Path("none"))
    examples = [Example("x" * characters, i % 2, "train") for i in range(train)]
    examples += [Example("y", i % 2, "test") for i in range(test)]
    task = Task(name, "words", ("no", "yes"), ("It is not.", "It is."), tuple(examples))
    made.__dict__["task"] = task
    return made


def test_the_rule() -> None:
    """Largest family first, the least digest within; families without a task that qualifies are passed over."""
    large = [item(f"large-{i}", "z-large") for i in range(4)]
    long = [item(f"long-{i}", "b-long", characters=201) for i in range(3)]
    few = [item(f"few-{i}", "few", train=999) for i in range(3)]
    untested = [item(f"untested-{i}", "untested", test=299) for i in range(3)]
    first, second = [item("a", "first")], [item("b", "second")]
    found = choose([*second, *large, *few, *long, *untested, *first], 3)
    least = min((i.id for i in large), key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    assert found == (least, "a", "b")
    with pytest.raises(NotFound, match="only 3 families have one"):
        choose([*second, *large, *few, *first], 4)


def test_text8_is_whole() -> None:
    suite = suite_named("text8")
    assert (len(suite.tasks), len(suite.development), len(suite.controls)) == (8, 2, 2)
    assert len(set(suite.every)) == 12
    assert set(suite.digests) == set(suite.every)
    assert all(len(d) == 64 for d in suite.digests.values())
    assert set(suite.recipes) <= set(RECIPES)
    assert {"nonlinear", "ntk", "lora", "attention-linear"} <= set(suite.recipes)
    assert set(suite.methods) | {"sum"} == set(METHODS)
    assert len(suite.seeds) >= 3
    assert all(set(pair) <= set(suite.tasks) for pair in suite.pairs)
    assert set(read_run("text8")["suite"]) == {f.name for f in fields(Suite)} - {"kind", "learning_rate"}
    assert (suite.kind, suite.learning_rate) == ("text", None)


def test_the_papers_file_names_what_is_measured() -> None:
    paper = read_run("linear_layers_only")
    assert [r["id"] for r in paper["runs"]] == ["table-1", "table-2", *(f"figure-{k}" for k in range(3, 8))]
    known = {*RECIPES, "pre-trained"}
    assert {o[k] for o in paper["orderings"] for k in ("better", "worse")} <= known
    assert len(paper["orderings"]) == 32
    one = paper["runs"][0]["published"]
    assert one["Ours (attention-linear)"]["ViT-L/14"] == [87.91, 93.66]
    absolute = {p["recipe"]: p["ViT-B/32"][0] for p in one.values()}
    for o in paper["orderings"]:  # the paper's own figures are in the paper's order
        if o["measure"] == "addition-absolute" and {o["better"], o["worse"]} <= set(absolute):
            assert absolute[o["better"]] > absolute[o["worse"]]


def test_other_data_is_refused(tmp_path: Path) -> None:
    items = {i.id: i for i in open_tasks(data_folder(tmp_path))}
    own = of_tasks(suite_named("text8"), TASKS[:3], items)
    check_data(own, items)
    frozen = replace(own, digests={TASKS[0]: contents(items[TASKS[0]].task)})
    check_data(frozen, items)
    wrong = replace(own, digests={TASKS[0]: "0" * 64})
    with pytest.raises(ComgradError, match="its contents are not those") as caught:
        check_data(wrong, items)
    assert caught.value.code == "other-data"
    with pytest.raises(NotFound, match="the data has no task with examples of that id"):
        check_data(suite_named("text8"), items)


def test_tasks_of_ones_own(tmp_path: Path) -> None:
    items = {i.id: i for i in open_tasks(data_folder(tmp_path))}
    suite = of_tasks(suite_named("text8"), TASKS[:2], items)
    assert suite.tasks == TASKS[:2]
    assert len(suite.development) == 2
    assert len(suite.controls) == 1
    assert set(suite.every) == set(TASKS)
    assert suite.pairs == (TASKS[:2],)
    alone = of_tasks(suite_named("text8"), TASKS, items)
    assert alone.development == alone.controls == ()
    with pytest.raises(ComgradError, match="vectors of at least two tasks are added"):
        of_tasks(suite, (TASKS[0], TASKS[0]), items)


def test_what_is_measured_of_which_recipe() -> None:
    """Sums for all; everything for the paper's three and LoRA; KnOTS on adapters alone."""
    plan = Plan(Request("addition", None, Path("out")))
    cells = list(plan.cells())
    assert len(cells) == len({(c.recipe, c.seed, c.name) for c in cells})
    sums = {(c.recipe, c.seed) for c in cells if c.name == "addition--sum"}
    assert sums == {(r, s) for r in plan.suite.recipes for s in plan.suite.seeds}
    assert len(sums) == 21
    whole = {"nonlinear", "ntk", "attention-linear", "lora"}
    for kind in ("negation", "disentanglement", "cosine", "proposition"):
        assert {c.recipe for c in cells if c.kind == kind} == whole
    assert {c.recipe for c in cells if c.detail == ("knots",)} == {"lora"}
    assert {c.recipe for c in cells if c.detail == ("ties",)} == {"nonlinear", "attention-linear", "lora"}
    assert {c.kind for c in plan.cells("disentanglement")} == {"cosine", "disentanglement", "proposition"}
    named = Plan(Request("addition", None, Path("out"), recipes=("attention-linear-bias",)))
    assert "negation" in {c.kind for c in named.cells()}


def test_a_task_that_the_base_cannot_do_is_no_control() -> None:
    examples = tuple(Example("x", int(i < 6), "validation") for i in range(10))
    task = Task("t", "words", ("no", "yes"), ("It is not.", "It is."), examples)
    assert not can_do(0.89, task)  # the commonest label has 0.6
    assert can_do(0.91, task)


def test_pairs_and_quick() -> None:
    assert pairs_of("abcdefgh") == (("a", "b"), ("c", "d"), ("e", "f"))
    small = quick(suite_named("text8"))
    assert (len(small.tasks), len(small.seeds), small.steps) == (3, 1, 30)
    assert small.recipes == ("lora", "nonlinear", "attention-linear", "ntk")
    assert small.tasks == suite_named("text8").tasks[:3]


def test_tasks_without_adapters(tmp_path: Path) -> None:
    assert [i.id for i in open_tasks(data_folder(tmp_path))] == sorted(TASKS)
    assert [i.id for i in open_tasks(None)] == [
        "abstract-sentence-role", "acceptability-irregular-forms", "banking-intent",
    ]  # fmt: skip
    with pytest.raises(NotFound, match="it has no folder 'tasks'"):
        open_tasks(tmp_path / "tasks" / TASKS[0])
