"""Starting adapters: a weighted sum of known vectors recompressed to one rank, or a plain zero start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from comgrad.errors import ComgradError
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, LowRank, concatenate, inner, matrix_shape
from comgrad.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Start:
    """A starting adapter; `energy_kept` is the share Σσ²(kept)/Σσ² that its rank keeps of the prediction."""

    vector: TaskVector
    energy_kept: float


def combination(vectors: Sequence[TaskVector], coefficients: Sequence[float]) -> TaskVector:
    """Σ c_k τ_k without forming any ΔW; vectors with coefficient 0 are left out.

    Raises:
        ComgradError: all coefficients are zero.
        BaseMismatch: vectors of two bases.
    """
    used = [(v, float(c)) for v, c in zip(vectors, coefficients, strict=True) if c != 0.0]
    if not used:
        raise ComgradError("a combination with no vectors", "all coefficients are zero", "use a zero start instead")
    base = used[0][0].base
    for v, _ in used[1:]:
        base = base.joined(v.base)
    parts: dict[str, tuple[list[LowRank], list[float]]] = {}
    rest: TaskVector | None = None
    for v, c in used:
        if v.kind == "lowrank":
            for name, d in v.tensors.items():
                assert isinstance(d, LowRank)
                deltas, times = parts.setdefault(name, ([], []))
                deltas.append(d)
                times.append(c)
        else:
            rest = v * c if rest is None else rest + v * c
    if not parts:
        assert rest is not None
        return rest
    low = TaskVector(base, {name: concatenate(*part) for name, part in parts.items()})
    return low if rest is None else low + rest


def predicted_start(vector: TaskVector, rank: int, *, scale: float = 1.0) -> Start:
    """The prediction at one rank with balanced factors (U√Σ, √ΣVᵀ), so that both train at the same rate.

    Tensors that are no matrix cannot be part of an adapter and are left out; their energy counts as lost.

    Args:
        scale: α/r of the adapter written. It changes how fast training moves ΔW, not ΔW itself.
    """
    matrices = {n: d for n, d in vector.tensors.items() if d.is_matrix}
    small, kept = TaskVector(vector.base, matrices).compress(rank)
    energy = small.inner(small)  # of few columns; the prediction itself has all its sources'
    if energy == 0.0:
        raise ComgradError(
            "a prediction with no matrices", "an adapter holds matrices only", "use a zero start instead"
        )
    rest = sum(inner(d, d) for d in vector.tensors.values() if not d.is_matrix)
    written: dict[str, Delta] = {}
    for name, d in small.tensors.items():
        assert isinstance(d, LowRank)
        root = (d.scale / scale) ** 0.5
        written[name] = replace(d, B=d.B * root, A=d.A * root, scale=scale)
    return Start(TaskVector(vector.base, written), energy / (energy / kept + rest))


def zero_start(base: BaseRef, shapes: Mapping[str, Delta], rank: int, *, scale: float = 1.0, seed: int = 0) -> Start:
    """ΔW = 0 as stock LoRA starts: B = 0 and A uniform in ±1/√n, drawn from the seed.

    Args:
        shapes: deltas whose shape and orientation the adapter takes over; those that are no matrix are passed over.
        scale: α/r of the adapter.

    Raises:
        ComgradError: no matrix among them.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Delta] = {}
    for name, like in sorted((n, d) for n, d in shapes.items() if d.is_matrix):
        m, n = matrix_shape(like)
        r = min(rank, m, n)
        A = (torch.rand((r, n), generator=generator) * 2 - 1) / n**0.5
        tensors[name] = LowRank(B=torch.zeros(m, r), A=A, scale=scale, transposed=like.transposed)
    if not tensors:
        raise ComgradError("vectors without matrices", "an adapter holds matrices only", "add vectors that have some")
    return Start(TaskVector(base, tensors), 1.0)


def trainable_ranks(vector: TaskVector) -> dict[str, int]:
    """Tensor → rank of the adapter: what there is to train."""
    return {name: d.rank for name, d in vector.tensors.items() if isinstance(d, LowRank)}
