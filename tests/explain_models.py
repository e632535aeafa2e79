"""Small task vectors of planted families, for the tests of `explain`."""

from __future__ import annotations

import numpy as np
import torch

from comgrad.explain.reference import Label, Reference
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.explain_known import reference_of

BASE = BaseRef("planted/base", "0" * 64)
NAMES = tuple(f"encoder.layer.{i}.attention.self.{p}.weight" for i in range(2) for p in ("query", "value"))
SIZE, RANK = 48, 3
WORDS = ("weather rain cloud storm", "music piano violin concert", "cooking recipe oven flour", "football goal referee")


def lowrank(generator: torch.Generator, scale: float = 1.0, rank: int = RANK) -> LowRank:
    B, A = (torch.randn(*shape, generator=generator) for shape in ((SIZE, rank), (rank, SIZE)))
    return LowRank(B * scale, A, 1.0)


def planted(seed: int = 0, families: int = 4, each: int = 5, noise: float = 1.0) -> list[TaskVector]:
    """Vectors that share a family's part and have one of their own."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(families):
        shared = {n: lowrank(g) for n in NAMES}
        for _ in range(each):
            parts = {}
            for n in NAMES:
                own = lowrank(g, noise)
                B = torch.cat([shared[n].B, own.B], dim=1)
                A = torch.cat([shared[n].A, own.A], dim=0)
                parts[n] = LowRank(B, A, 1.0)
            out.append(TaskVector(BASE, parts))
    return out


def noise(seed: int, rank: int = RANK) -> TaskVector:
    g = torch.Generator().manual_seed(seed)
    return TaskVector(BASE, {n: lowrank(g, rank=rank) for n in NAMES})


def dense_noise(seed: int) -> TaskVector:
    g = torch.Generator().manual_seed(seed)
    return TaskVector(BASE, {n: Dense(torch.randn(SIZE, SIZE, generator=g)) for n in NAMES})


def labels(families: int = 4, each: int = 5) -> list[Label]:
    return [
        Label(f"id{f}{i}", f"task-{f}-{i}", f"Decide about {WORDS[f]} number {i}", f"family{f}", f"source{f}{i}")
        for f in range(families)
        for i in range(each)
    ]


def embeddings(seed: int = 0, families: int = 4, each: int = 5, d: int = 16) -> np.ndarray:
    """Unit rows that lie near each other within a family."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((families, d))
    rows = np.repeat(centre, each, axis=0) + 0.4 * rng.standard_normal((families * each, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def reference(seed: int = 0) -> Reference:
    return reference_of(planted(seed), labels(), embeddings(seed))
