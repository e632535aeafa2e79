"""Measurements of one recipe's vectors of one seed. What a kind of cell does is a row of a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from comgrad.errors import ComgradError, Undefined
from comgrad.evaluate.arithmetic import GRID, TEST, VALIDATION, addition, single_task
from comgrad.evaluate.classifier import Bench
from comgrad.evaluate.disentanglement import disentanglement
from comgrad.evaluate.editing import negation
from comgrad.evaluate.images import ImageBench, problem_of, reading
from comgrad.evaluate.interference import interference, predicts, ratio_table
from comgrad.evaluate.linear import LinearPredictor
from comgrad.evaluate.predictor import Predictor, Problem
from comgrad.finetune.linearised import Linearised
from comgrad.finetune.recipes import recipe_named
from comgrad.finetune.trainable import renamed
from comgrad.geometry.measures import matrix
from comgrad.vectors.merge import merge
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.names import NameIndex
from comgrad.workflows.bench.keep import source_digest
from comgrad.workflows.bench_arithmetic.keep import Kept, Outcomes
from comgrad.workflows.bench_arithmetic.plan import Cell, Plan
from comgrad.workflows.bench_arithmetic.train import key_of, opened, trainings

Record = dict[str, Any]


@dataclass
class Stage:
    """The vectors of a recipe and seed beside their base; what is opened, is opened once."""

    plan: Plan
    recipe: str
    seed: int
    bench: Bench | ImageBench
    heads: dict[str, Tensor]

    @cached_property
    def predictor(self) -> Predictor:
        """At θ₀ + τ as the vectors were trained: a linearised recipe's by the first-order model."""
        encoder = self.bench.encoder()
        for p in encoder.parameters():
            p.requires_grad_(False)
        how = reading(self.bench)
        if not recipe_named(self.recipe).linearised:
            return Predictor(self.bench.base.ref, encoder, how.read, logit_scale=how.logit_scale)
        lin = Linearised(encoder)
        return LinearPredictor.of(self.bench.base.ref, lin, encoder, read=how.read, logit_scale=how.logit_scale)

    @cached_property
    def vectors(self) -> list[TaskVector]:
        """In the order of the suite's tasks, under the encoder's own names."""
        names = NameIndex([n for n, _ in self.predictor.encoder.named_parameters()])
        found = trainings(self.plan, self.recipe, self.seed)
        assert found is not None  # rates come first
        return [renamed(opened(self.plan, t), names) for t in found]

    @cached_property
    def cache(self) -> Outcomes:
        return Outcomes(self.plan.request.out / "outcomes")

    @cached_property
    def problems(self) -> list[Problem]:
        return [self._problem(t, self.plan.suite.validation, self.plan.suite.test) for t in self.plan.suite.tasks]

    @cached_property
    def few(self) -> dict[str, Problem]:
        """With few test examples, for measures of pairs."""
        few = self.plan.suite.few
        return {t: self._problem(t, few, few, (TEST,)) for t in self.plan.suite.tasks}

    @cached_property
    def controls(self) -> dict[str, Problem]:
        suite = self.plan.suite
        return {t: self._problem(t, suite.validation, suite.test) for t in suite.controls}

    def place(self, task: str) -> int:
        return self.plan.suite.tasks.index(task)

    def _problem(
        self, identity: str, validation: int, test: int, splits: Sequence[str] = (VALIDATION, TEST)
    ) -> Problem:
        """The two splits, each cut to its own size; the problem's name is the task's id."""
        task = self.plan.tasks[identity]
        if identity not in self.heads:
            self.heads[identity] = self.bench.prompts(task)
        sizes = {VALIDATION: validation, TEST: test}
        parts: dict[str, Any] = {}
        digests: dict[str, str] = {}
        for split in splits:
            one = problem_of(self.bench, task, splits=(split,), limit=sizes[split], head=self.heads[identity])
            parts |= one.parts
            digests |= one.digests
        return Problem(identity, self.heads[identity], parts, digests)


def _single(stage: Stage, _detail: Sequence[str]) -> Record:
    rows = [
        single_task(stage.predictor, p, v, split=s, cache=stage.cache).as_dict()
        for s in (VALIDATION, TEST)
        for p, v in zip(stage.problems, stage.vectors, strict=True)
    ]
    return {"tasks": rows}


def _addition(stage: Stage, detail: Sequence[str]) -> Record:
    """α is chosen by `addition` on validation data alone."""
    method = detail[0]
    merged = None if method == "sum" else merge(stage.vectors, method)
    found = addition(
        stage.predictor, stage.problems, stage.vectors, merged=merged, method=method, grid=GRID, cache=stage.cache
    )
    return found.as_dict()


def _negation(stage: Stage, detail: Sequence[str]) -> Record:
    t = stage.place(detail[0])
    controls = list(stage.controls.values()) or [p for i, p in enumerate(stage.problems) if i != t]
    grid = stage.plan.suite.negation_grid
    found = negation(stage.predictor, stage.problems[t], stage.vectors[t], controls, grid=grid, cache=stage.cache)
    return found.as_dict()


def _cosine(stage: Stage, _detail: Sequence[str]) -> Record:
    return {"cosine": matrix(stage.vectors, "cosine", workers=1).values.tolist()}


def _disentanglement(stage: Stage, detail: Sequence[str]) -> Record:
    """In the unit square for every seed; the whole square, for the picture, for the first."""
    suite = stage.plan.suite
    problems, vectors = [stage.few[t] for t in detail], [stage.vectors[stage.place(t)] for t in detail]
    grids = {"unit": suite.unit_grid} | ({"whole": suite.whole_grid} if stage.seed == suite.seeds[0] else {})
    return {
        name: disentanglement(stage.predictor, problems, vectors, grid=grid, cache=stage.cache).as_dict()
        for name, grid in grids.items()
    }


def _proposition(stage: Stage, _detail: Sequence[str]) -> Record:
    """How far every vector is from orthogonal to every task's inputs, what it does to it, and their association."""
    problems = list(stage.few.values())
    ratios = ratio_table(stage.predictor, problems, stage.vectors)
    relative = np.array([[r.relative for r in row] for row in ratios])
    harm = interference(stage.predictor, problems, stage.vectors, cache=stage.cache)
    try:
        association = predicts(relative, harm.loss).as_dict()
    except Undefined:  # too few tasks to tell
        association = None
    return {
        "relative": relative.tolist(),
        "ratio": [[r.ratio for r in row] for row in ratios],
        "z": [[r.z for r in row] for row in ratios],
        "unseen": list(ratios[0][0].unseen),
        "interference": harm.as_dict(),
        "association": association,
    }


KINDS: Mapping[str, Callable[[Stage, Sequence[str]], Record]] = {
    "single": _single,
    "addition": _addition,
    "negation": _negation,
    "cosine": _cosine,
    "disentanglement": _disentanglement,
    "proposition": _proposition,
}
_CODE: Mapping[str, tuple[str, ...]] = {
    "single": ("comgrad.evaluate.arithmetic",),
    "addition": ("comgrad.evaluate.arithmetic", "comgrad.vectors.merge"),
    "negation": ("comgrad.evaluate.editing",),
    "cosine": ("comgrad.geometry.measures",),
    "disentanglement": ("comgrad.evaluate.disentanglement",),
    "proposition": ("comgrad.evaluate.orthogonality", "comgrad.evaluate.interference"),
}


# -- cells -------------------------------------------------------------------------------------------------------------
def measured(plan: Plan, cell: Cell) -> Record | None:
    """A finished cell, unless something it depends on has changed since."""
    depends = _depends(plan, cell)
    return None if depends is None else _kept(plan, cell).read(cell.name, depends)


def measure(stage: Stage, cell: Cell) -> None:
    """Do a cell. Raises ComgradError: what its measure raises, with the cell's name in it."""
    plan, began = stage.plan, time.perf_counter()
    try:
        record = KINDS[cell.kind](stage, cell.detail)
    except ComgradError as error:
        given = f"{cell.recipe}, seed {cell.seed}, {cell.kind} {' '.join(cell.detail)}: {error.given}"
        raise type(error)(given, error.why, error.remedy, code=error.code) from error
    record["seconds"] = time.perf_counter() - began
    _kept(plan, cell).write(cell.name, _depends(plan, cell), record)


def _depends(plan: Plan, cell: Cell) -> Any:
    """All that decides a cell; None while the recipe's learning rate is not chosen."""
    found = trainings(plan, cell.recipe, cell.seed)
    if found is None:
        return None
    suite = plan.suite
    sizes = [suite.validation, suite.test, suite.few, suite.negation_grid, suite.unit_grid, suite.whole_grid]
    code = [source_digest(m) for m in (__name__, *_CODE[cell.kind])]
    tasks = [plan.digests[t] for t in suite.tasks + suite.controls]
    first = cell.seed == suite.seeds[0]
    return [cell.recipe, cell.seed, cell.kind, cell.detail, first, [key_of(plan, t) for t in found], tasks, sizes, code]


def _kept(plan: Plan, cell: Cell) -> Kept:
    return Kept(plan.request.out / "cells" / f"{cell.recipe}-s{cell.seed}")
