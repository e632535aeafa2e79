"""What the load benchmark stands on: thousands of real adapters, derived from the shipped ones, in a registry.

Each vector is two of the shipped adapters' leading directions mixed, and a third one's turned to another place, so that its
spectrum and norm are those of a trained adapter and its direction is its own; then a random change of gauge and a little
noise. Descriptions are those of the two tasks under other words. Nothing depends on anything but the number and the seed.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from comgrad.registry.card import Card
from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.adding import store_vector
from comgrad.workflows.demo import starter
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import read_vector

RANK = 3
OWN = 0.8  # norm of a vector's own part beside that of the mixture
NOISE = 0.02
WHO = (
    "nurses",
    "bank clerks",
    "teachers",
    "lawyers",
    "farmers",
    "pilots",
    "editors",
    "shop owners",
    "engineers",
    "students",
)
WHERE = (
    "a hospital",
    "an archive",
    "a call centre",
    "a newsroom",
    "a shop",
    "an airline",
    "a school",
    "a court",
    "a town hall",
)
WHAT = (
    "short messages",
    "long letters",
    "transcripts",
    "reviews",
    "reports",
    "forum posts",
    "questions",
    "notes",
    "headlines",
)
WHEN = (
    "from last year",
    "in plain English",
    "with spelling mistakes",
    "written in haste",
    "translated by machine",
    "of one day",
)
WHY = ("to sort them", "before a person answers", "for a yearly report", "to find the odd ones", "as a first filter")


@dataclass(frozen=True)
class Parts:
    """One shipped adapter: its card, and per tensor the columns of B·√s and rows of √s·A, largest first."""

    card: Card
    base: BaseRef
    factors: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]
    norm: float


@functools.lru_cache(maxsize=1)
def shipped() -> tuple[Parts, ...]:
    """The shipped adapters by their singular directions."""
    found = []
    for path in sorted(p for p in starter("zoo").iterdir() if p.is_dir()):
        tau = read_vector(path)
        factors = {}
        for name, d in tau.tensors.items():
            assert isinstance(d, LowRank)
            qb, rb = torch.linalg.qr(d.B.double() * d.scale)
            qa, ra = torch.linalg.qr(d.A.double().T)
            u, s, v = torch.linalg.svd(rb @ ra.T)
            root = s.sqrt()
            factors[name] = ((qb @ u * root).numpy(), (root[:, None] * (v @ qa.T)).numpy())
        found.append(Parts(Card.from_file(path / "task_card.json"), tau.base, factors, tau.norm()))
    return tuple(found)


def vector(number: int, seed: int = 0) -> tuple[TaskVector, Card]:
    """The vector of a number, and its card."""
    rng = np.random.default_rng([seed, number])
    zoo = shipped()
    a, b, c = (zoo[int(i)] for i in rng.choice(len(zoo), 3, replace=False))
    share = float(rng.uniform(0.3, 0.7))
    length = float(rng.lognormal(0.0, 0.25))
    tensors: dict[str, LowRank] = {}
    for name in a.factors:
        m, n = a.factors[name][0].shape[0], a.factors[name][1].shape[1]
        turn, swap = rng.permutation(n), rng.permutation(m)
        pick = rng.integers(0, 3, size=3)
        columns = [
            np.sqrt(share) * a.factors[name][0][:, pick[0]],
            np.sqrt(1 - share) * b.factors[name][0][:, pick[1]],
            OWN * c.factors[name][0][swap, pick[2]],
        ]
        rows = [
            np.sqrt(share) * a.factors[name][1][pick[0]],
            np.sqrt(1 - share) * b.factors[name][1][pick[1]],
            c.factors[name][1][pick[2]][turn],
        ]
        B, A = np.stack(columns, axis=1), np.stack(rows)
        B += NOISE * B.std() * rng.standard_normal(B.shape)
        gauge = np.linalg.qr(rng.standard_normal((RANK, RANK)))[0]
        B, A = length * B @ gauge, gauge.T @ A
        tensors[name] = LowRank(torch.from_numpy(B).half(), torch.from_numpy(A).half(), 1.0, stored=torch.float16)
    return TaskVector(a.base, tensors), _card(a.card, b.card, number, rng)


def _card(a: Card, b: Card, number: int, rng: np.random.Generator) -> Card:
    """A card in words of its own: who, where and what before the first task's description, a part of the second's after."""

    def one(words: tuple[str, ...]) -> str:
        return str(words[int(rng.integers(len(words)))])

    first, second = a.description.split(". ")[0], b.description.split(". ")[0].split(", ")[0]
    text = f"For {one(WHO)} in {one(WHERE)}, on {one(WHAT)} {one(WHEN)}: {first}; beside it {second} {one(WHY)} ({number})."
    return Card.make(
        name=f"load-{number:05d}",
        description=text,
        family=a.family,
        label_names=list(a.label_names),
        source_group=f"load-{number}",
        base_model=a.base_model,
    )


def prepare(folder: Path, count: int, seed: int = 0, tell: Callable[[int, int], None] | None = None) -> int:
    """Register the vectors that the folder lacks, one durable transaction each; how many were new."""
    registry = Registry(folder)
    have = {r.name for r in registry.store.list()}
    new = 0
    for number in range(count):
        if f"load-{number:05d}" not in have:
            tau, card = vector(number, seed)
            store_vector(registry, tau, card, card.name, what=f"the vector {number}")
            new += 1
        if tell and number % 100 == 99:
            tell(number + 1, count)
    registry.store.close()
    return new


def upload_files(number: int, size: int = 600_000, seed: int = 1) -> dict[str, bytes]:
    """A PEFT adapter of about that size, new for each number: what is uploaded under load."""
    rng = np.random.default_rng([seed, number])
    zoo = shipped()
    part = zoo[int(rng.integers(len(zoo)))]
    rank = max(1, size // (4 * sum(f[0].shape[0] + f[1].shape[1] for f in part.factors.values())))
    tensors: dict[str, torch.Tensor] = {}
    for name, (B, A) in part.factors.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        own = [rng.standard_normal((B.shape[0], rank)), rng.standard_normal((rank, A.shape[1]))]
        k = min(rank, 4)
        own[0], own[1] = own[0] * B.std() * 0.3, own[1] * A.std() * 0.3
        own[0][:, :k] += B[:, :k]
        own[1][:k] += A[:k]
        tensors[f"{module}.lora_B.weight"] = torch.from_numpy(own[0]).float().contiguous()
        tensors[f"{module}.lora_A.weight"] = torch.from_numpy(own[1]).float().contiguous()
    modules = sorted({n.removesuffix(".weight").split(".", 3)[-1] for n in part.factors})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": part.base.name,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
    }
    card = _card(part.card, zoo[int(rng.integers(len(zoo)))].card, number, rng).replaced(name=f"sent-{seed}-{number}")
    return {
        "adapter_model.safetensors": save(tensors, {"format": "pt"}),
        "adapter_config.json": json.dumps(config).encode(),
        "task_card.json": card.to_json().encode(),
    }


def digest(data: bytes) -> str:
    """SHA-256."""
    return hashlib.file_digest(io.BytesIO(data), "sha256").hexdigest()
