"""The work in this process or in several: try learning rates, train, measure. Everything finished stays finished."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from typing import TypeVar

import torch
from torch import Tensor

from comgrad.engine.local import one_thread_per_task
from comgrad.evaluate.classifier import Bench
from comgrad.evaluate.images import ImageBench, open_bench
from comgrad.workflows.bench_arithmetic.costs import known_costs, measure_costs
from comgrad.workflows.bench_arithmetic.measure import Stage, measure, measured
from comgrad.workflows.bench_arithmetic.plan import ADDITION, Cell, Plan, Request, Training
from comgrad.workflows.bench_arithmetic.train import (
    is_trained,
    rate_of,
    task_folder,
    train_one,
    trainings,
    tried,
    try_one,
)

T = TypeVar("T")
Tell = Callable[[str, int, int], None]
"""What is done, how many of it, of how many."""


@dataclass
class Worker:
    """One process's view of a run."""

    request: Request
    heads: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def plan(self) -> Plan:
        return Plan(self.request)

    @cached_property
    def bench(self) -> Bench | ImageBench:
        return open_bench(self.plan.base)

    def attempt(self, trial: Training) -> None:
        """A learning rate on a development task."""
        try_one(self.plan, trial)

    def train(self, training: Training) -> None:
        """A vector."""
        train_one(self.plan, training)

    def measure(self, cells: Sequence[Cell]) -> None:
        """Cells of one recipe and seed, whose vectors are opened once."""
        stage = Stage(self.plan, cells[0].recipe, cells[0].seed, self.bench, self.heads)
        for cell in cells:
            if measured(self.plan, cell) is None:
                measure(stage, cell)


def do_all(plan: Plan, tell: Tell) -> None:
    """All that the request's benchmark still lacks, in its order."""
    request = plan.request
    for identity in (*plan.suite.tasks, *plan.suite.development):
        task_folder(plan, identity)  # before several processes want it
    trials = [t for r in plan.suite.recipes for t in plan.trials(r) if tried(plan, t) is None]
    _each(request, trials, Worker.attempt, lambda d, t: tell("learning rates", d, t))
    wanted = [
        t
        for r in plan.suite.recipes
        for s in plan.suite.seeds
        for t in trainings(plan, r, s) or ()
        if not is_trained(plan, t)
    ]
    _each(request, wanted, Worker.train, lambda d, t: tell("trainings", d, t))
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in plan.cells(request.what):
        if measured(plan, cell) is None:
            groups.setdefault((cell.recipe, cell.seed), []).append(cell)
    _each(request, list(groups.values()), Worker.measure, lambda d, t: tell("recipes measured", d, t))
    if request.what == ADDITION and known_costs(plan) is None:
        measure_costs(plan, lambda d, t: tell("cost rounds", d, t))


def rates_of(plan: Plan) -> dict[str, dict[str, object]]:
    """Recipe → its chosen learning rate, where it is chosen."""
    return {r: found for r in plan.suite.recipes if (found := rate_of(plan, r)) is not None}


# -- in one process or several -----------------------------------------------------------------------------------------
_worker: Worker | None = None


def _start(request: Request) -> None:
    global _worker
    warnings.simplefilter("ignore", FutureWarning)  # as the command line does
    torch.set_num_threads(1)
    _worker = Worker(request)


def _there(here: Callable[[Worker, T], None], thing: T) -> None:
    assert _worker is not None
    here(_worker, thing)


def _each(
    request: Request,
    things: Sequence[T],
    here: Callable[[Worker, T], None],
    progress: Callable[[int, int], None],
) -> None:
    """Every thing once, in `jobs` processes of one thread; what is done stays done when one fails."""
    if not things:
        return
    if request.jobs == 1 or len(things) < 2:
        worker = Worker(request)
        with one_thread_per_task():
            for done, thing in enumerate(things, 1):
                here(worker, thing)
                progress(done, len(things))
        return
    with ProcessPoolExecutor(request.jobs, get_context("spawn"), _start, (request,)) as pool:
        futures = [pool.submit(_there, here, thing) for thing in things]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                progress(done, len(things))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
