"""Small task vectors for the tests of merging, and their plain numpy form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("b")
Array = NDArray[np.float64]
Plain = dict[str, Array]


def vector(seed: int, kinds: str = "lLdb", *, whole_numbers: bool = False) -> TaskVector:
    """One tensor for each kind: l, L low-rank of rank 2, 3; d dense; t dense and transposed; b a bias; '-' nothing.

    With whole numbers many magnitudes are equal and many sums are exactly zero.
    """
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        if whole_numbers:
            return torch.randint(-2, 3, shape, generator=g).float()
        return torch.randn(shape, generator=g)

    out: dict[str, Delta] = {}
    for i, kind in enumerate(kinds):
        if kind in "lL":
            r = 2 if kind == "l" else 3
            out[f"t{i}"] = LowRank(draw(9, r), draw(r, 8), 1.0 if whole_numbers else 0.5 + seed % 3)
        elif kind in "dt":
            out[f"t{i}"] = Dense(draw(9, 8), transposed=kind == "t")
        elif kind == "b":
            out[f"t{i}"] = Dense(draw(7))
    return TaskVector(BASE, out)


def plain(vectors: Sequence[TaskVector]) -> list[Plain]:
    """Every vector as name → dense fp64 array; tensors that a vector lacks are zero."""
    shapes = {n: tuple(v.tensors[n].shape) for v in vectors for n in v.tensors}
    return [
        {
            n: v.tensors[n].dense().double().numpy() if n in v.tensors else np.zeros(shapes[n])
            for n in sorted(shapes)
        }
        for v in vectors
    ]  # fmt: skip


def difference(merged: TaskVector, want: Plain) -> float:
    """Largest difference of an element, over the largest element wanted (or 1); every tensor must be there."""
    assert set(merged.tensors) == set(want)
    size = max(1.0, *(float(np.abs(x).max()) for x in want.values()))
    return max(float(np.abs(merged.tensors[n].dense().double().numpy() - want[n]).max()) for n in want) / size


def same(a: TaskVector, b: TaskVector, scale: float = 1.0) -> float:
    """`difference` of one merge and scale × another."""
    return difference(a, {n: scale * x for n, x in plain([b])[0].items()})
