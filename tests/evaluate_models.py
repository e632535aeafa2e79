"""Toy predictors over vectors of numbers, in fp64: two blocks of inputs that task vectors may keep apart or mix."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from comgrad.evaluate.predictor import Predictor, Problem
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense
from comgrad.vectors.task_vector import TaskVector

WIDTH, HIDDEN, OUT = 8, 6, 5
BASE = BaseRef("toy", "00ff")
BLOCKS = ((0, 4), (4, 8))


class Toy(nn.Module):
    """x → U·tanh(W·x + b)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(WIDTH, HIDDEN).double()
        self.second = nn.Linear(HIDDEN, OUT).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def read(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = model(batch["x"])
    return out


def predictor(seed: int = 0) -> Predictor:
    return Predictor(BASE, Toy(seed).eval(), read=read)


def problem(name: str, seed: int, block: tuple[int, int] = (0, WIDTH), sizes: tuple[int, ...] = (7, 7, 3)) -> Problem:
    """Random inputs in one block of coordinates, labels at random, batches of unequal sizes."""
    g = torch.Generator().manual_seed(seed)
    head = nn.functional.normalize(torch.randn(3, OUT, generator=g).double(), dim=1)
    parts = {}
    for split in ("validation", "test"):
        rows = []
        for size in sizes:
            x = torch.zeros(size, WIDTH).double()
            x[:, slice(*block)] = torch.randn(size, block[1] - block[0], generator=g).double()
            rows.append(({"x": x}, torch.randint(3, (size,), generator=g)))
        parts[split] = tuple(rows)
    return Problem(name, head, parts, {s: f"{name}-{seed}-{s}-{block}-{sizes}" for s in parts})


def vector(seed: int, block: tuple[int, int] = (0, WIDTH), *, whole: bool = False, size: float = 1.5) -> TaskVector:
    """A change of the first layer's columns in one block; with `whole`, of every tensor."""
    g = torch.Generator().manual_seed(seed)
    W = torch.zeros(HIDDEN, WIDTH).double()
    W[:, slice(*block)] = size * torch.randn(HIDDEN, block[1] - block[0], generator=g).double()
    tensors = {"first.weight": Dense(W)}
    if whole:
        tensors["first.bias"] = Dense(torch.randn(HIDDEN, generator=g).double())
        tensors["second.weight"] = Dense(torch.randn(OUT, HIDDEN, generator=g).double())
    return TaskVector(BASE, tensors)


def inputs(p: Problem, split: str) -> tuple[Tensor, Tensor]:
    rows = list(p.parts[split])
    return torch.cat([b["x"] for b, _ in rows]), torch.cat([y for _, y in rows])
