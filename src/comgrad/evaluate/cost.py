"""What a training step of each recipe costs: trainable parameters, seconds, peak memory, all in one run.

Steps of the candidates are timed in turn, one of each a round, so that a busy machine slows all alike and their ratios
stay fair; all of them are in memory for that. Peak memory is of one candidate at a time:

- `cuda`: `torch.cuda.max_memory_allocated` during a step, minus what other tensors held before the candidate was made.
- `cpu`: torch's own accounting. What parameters, buffers, gradients and optimiser state hold before a step, plus the
  highest running sum of the allocator's events during it (as its profiler records them). It counts tensors, not the
  process: no interpreter, no scratch memory of libraries that do not allocate through torch.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from comgrad.errors import ComgradError

WARM_UP = 3
STEPS = 10


@dataclass(frozen=True)
class Running:
    """A recipe ready to train.

    Args:
        step: one whole training step: batch, forward, backward, optimiser, gradients cleared.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], object]


@dataclass(frozen=True)
class Candidate:
    """A recipe by name, and how to make it anew."""

    name: str
    make: Callable[[], Running]


@dataclass(frozen=True)
class Cost:
    """What a recipe costs.

    Args:
        trainable, parameters: numbers that are trained, and all.
        seconds: median over steps. quartiles: of the same.
        peak_bytes: see the module. memory: how it was measured, `cuda` or `cpu`.
        speed_up: seconds of the reference / own seconds, the median over rounds; memory_share: own peak / its peak.
    """

    name: str
    trainable: int
    parameters: int
    seconds: float
    quartiles: tuple[float, float]
    steps: int
    peak_bytes: int
    memory: str
    speed_up: float
    memory_share: float

    @property
    def trainable_share(self) -> float:
        return self.trainable / self.parameters

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "quartiles": list(self.quartiles), "trainable_share": self.trainable_share}


def costs(
    candidates: Sequence[Candidate],
    *,
    reference: str | None = None,
    warm_up: int = WARM_UP,
    steps: int = STEPS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cost]:
    """The cost of each candidate, in one run.

    Args:
        reference: name of the candidate that ratios are to; the first when left out.
        warm_up: untimed steps of each before, at least 1, so that the optimiser has its state.

    Raises:
        ComgradError: (`bad-options`) no candidates, names that repeat, an unknown reference, no steps; (`zero-parameters`)
            a candidate that trains nothing.
    """
    names = [c.name for c in candidates]
    first = names[0] if names and reference is None else reference
    if not names or len(set(names)) < len(names) or first not in names or warm_up < 1 or steps < 1:
        raise ComgradError(
            f"the candidates {names}, reference '{first}', {warm_up} warm-up steps and {steps} steps",
            "costs are compared between candidates of different names, over at least one step each",
            "correct them",
            code="bad-options",
        )
    peaks = [_peak(c, warm_up) for c in candidates]
    made = [c.make() for c in candidates]
    for running in made:
        for _ in range(warm_up):
            running.step()
    seconds: list[list[float]] = [[] for _ in made]
    for done in range(steps):
        for k in _turn(len(made), done):
            seconds[k].append(_timed(made[k]))
        if progress:
            progress(done + 1, steps)
    at = names.index(str(first))
    out = []
    for k, (name, running) in enumerate(zip(names, made, strict=True)):
        trainable, every = _counts(running.model)
        ratios = [r / own for r, own in zip(seconds[at], seconds[k], strict=True)]
        quartiles = statistics.quantiles(seconds[k], n=4, method="inclusive") if steps > 1 else seconds[k] * 3
        out.append(
            Cost(
                name, trainable, every, statistics.median(seconds[k]), (quartiles[0], quartiles[2]), steps,
                peaks[k], _device(running.model).type, statistics.median(ratios), peaks[k] / peaks[at],
            )
        )  # fmt: skip
    return out


def _turn(count: int, done: int) -> list[int]:
    """The order of a round: it starts with another candidate each time, so that none always follows the same one."""
    return [(done + i) % count for i in range(count)]


def _timed(running: Running) -> float:
    device = _device(running.model)
    _finish(device)
    start = time.perf_counter()
    running.step()
    _finish(device)
    return time.perf_counter() - start


def _peak(candidate: Candidate, warm_up: int) -> int:
    """Peak bytes of one step of a fresh candidate, which is thrown away."""
    gc.collect()
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    running = candidate.make()
    if not _counts(running.model)[0]:
        raise ComgradError(
            f"the recipe '{candidate.name}'",
            "it has no trainable parameter, so a step does nothing",
            "choose tensors that the model has",
            code="zero-parameters",
        )
    for _ in range(warm_up):
        running.step()
    device = _device(running.model)
    if device.type == "cuda":
        _finish(device)
        torch.cuda.reset_peak_memory_stats(device)
        running.step()
        _finish(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _resident(running) + _rise(running.step)


def _rise(step: Callable[[], object]) -> int:
    """Highest running sum of the host allocator's events during a step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    results = recorded.profiler.kineto_results if recorded.profiler is not None else None
    events = [e for e in results.events() if e.name() == "[memory]"] if results is not None else []
    if not events:
        raise ComgradError(
            "the memory of a step",
            "this build of torch recorded no allocation",
            "measure on a GPU, or with another build",
            code="no-memory-events",
        )
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return int(peak)


def _resident(running: Running) -> int:
    """Bytes of parameters, buffers, gradients and optimiser state, shared storages once."""
    tensors: list[Tensor] = [*running.model.parameters(), *running.model.buffers()]
    tensors += [p.grad for p in running.model.parameters() if p.grad is not None]
    tensors += [x for state in running.optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def _counts(model: nn.Module) -> tuple[int, int]:
    every = list(model.parameters())
    return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
