"""What a training step of every recipe costs, all in one run: the same base, the same batch, one thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from comgrad.engine.local import one_thread_per_task
from comgrad.evaluate.cost import Candidate, Running, costs
from comgrad.evaluate.harness import Harness, open_harness
from comgrad.finetune.recipes import Recipe, recipe_named
from comgrad.workflows.bench.keep import source_digest
from comgrad.workflows.bench_arithmetic.keep import Kept
from comgrad.workflows.bench_arithmetic.plan import Plan, Training
from comgrad.workflows.bench_arithmetic.train import request_of, task_folder
from comgrad.workflows.training_start import start_of

REFERENCE = "nonlinear"
_WARM_UP = 2


def known_costs(plan: Plan) -> dict[str, Any] | None:
    """The costs, where they were measured with these recipes."""
    return _kept(plan).read("cost", _depends(plan))


def measure_costs(plan: Plan, progress: Callable[[int, int], None] | None = None) -> None:
    """Time and weigh every recipe."""
    task = plan.suite.tasks[0]
    harness = open_harness(plan.base, plan.tasks[task])
    rows = harness.rows(plan.tasks[task].split("train")[: plan.suite.batch_size])
    batch = harness.collate(rows)
    candidates = [Candidate(r.name, partial(_ready, plan, r.name, harness, batch)) for r in plan.recipes]
    names = [c.name for c in candidates]
    reference = REFERENCE if REFERENCE in names else names[0]
    with one_thread_per_task():
        found = costs(candidates, reference=reference, warm_up=_WARM_UP, steps=plan.suite.cost_steps, progress=progress)
    shape = [int(x) for x in next(v for k, v in batch.items() if k != "labels").shape]
    record = {"reference": reference, "batch": shape, "costs": [c.as_dict() for c in found]}
    _kept(plan).write("cost", _depends(plan), record)


def _ready(plan: Plan, name: str, harness: Harness, batch: dict[str, Tensor]) -> Running:
    """The recipe at its first step, as the training loop has it: AdamW, clipped gradients."""
    recipe: Recipe = recipe_named(name)
    training = Training(name, plan.suite.tasks[0], 0, 1.0)
    request = request_of(plan, training, task_folder(plan, training.task))
    start, _ = start_of(request, recipe, plan.base, None)
    torch.manual_seed(0)
    ready = recipe.function(harness.fresh(), start)
    model = harness.wrap(ready.model).train()
    spec = request.spec(recipe)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    device = trained[0].device
    there = {k: v.to(device) for k, v in batch.items()}

    def step() -> None:
        model(**there)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained, spec.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return Running(model, optimizer, step)


def _kept(plan: Plan) -> Kept:
    return Kept(plan.request.out / "cells")


def _depends(plan: Plan) -> Any:
    suite = plan.suite
    code = [source_digest(m) for m in (__name__, "comgrad.evaluate.cost")]
    task = plan.digests[suite.tasks[0]]
    return [plan.base.fingerprint.root, suite.recipes, task, suite.batch_size, suite.cost_steps, code]
