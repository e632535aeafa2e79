"""What the column spaces of vectors share, and the shape of their spectra, one tensor at a time.

With P = UUᵀ the projector on the column space of a delta, the kernel between two vectors is

    k(i, j) = Σ_tensors cos(P_i, P_j) / √(T_i T_j),   cos(P_i, P_j) = ‖U_iᵀU_j‖_F² / √(r_i r_j)

an inner product of unit vectors (it is positive semi-definite), free of norms and of the factors' gauge; for equal ranks
it is the overlap of arXiv 2106.09685, §7.2. Beside it stands Σz/√T against random subspaces of the same dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from comgrad.engine.plan import MEMORY_BUDGET, plan_blocks
from comgrad.geometry.null import overlap_z, pooled_z
from comgrad.geometry.stack import Frames, same_base, stack_frames, take, tensor_names
from comgrad.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Subspaces:
    """n rows against K columns.

    Args:
        kernel: k (n, K).
        own: (n,) k of a row with itself: 1, or 0 where a vector has no matrix of positive rank.
        z: (n, K) pooled z of the overlap against random subspaces; NaN where it is undefined.
        first: (n,) the largest singular value's share of ‖ΔW‖², averaged over tensors with the energy as weight.
        rank: (n,) mean numerical rank over the tensors that have one.
    """

    kernel: Float[np.ndarray, "n k"]
    own: Float[np.ndarray, "n"]
    z: Float[np.ndarray, "n k"]
    first: Float[np.ndarray, "n"]
    rank: Float[np.ndarray, "n"]


def subspaces(rows: Sequence[TaskVector], columns: Sequence[TaskVector]) -> Subspaces:
    """The kernel of each row with each column. Raises BaseMismatch, ShapeMismatch and `not-finite` as the Gram does."""
    same_base([*rows, *columns])
    n, K = len(rows), len(columns)
    vectors = [*rows] if _same(rows, columns) else [*rows, *columns]
    at = np.arange(K) if _same(rows, columns) else np.arange(n, n + K)
    total = torch.zeros(n, K, dtype=torch.float64)
    count = torch.zeros(len(vectors), dtype=torch.float64)
    first, energy, ranks = (torch.zeros(len(vectors), dtype=torch.float64) for _ in range(3))
    zs = []
    for name in tensor_names(vectors):
        part = take(vectors, name)
        frames = stack_frames(part)
        if not frames:
            continue
        squared, rank = torch.zeros(n, K, dtype=torch.float64), torch.zeros(len(vectors), dtype=torch.int64)
        for f in frames:
            rank[f.index] = f.rank
            energy[f.index] += f.energy
            first[f.index] += f.S[:, 0].square() if f.width else 0.0
        _products(squared, frames, n, at)
        r1, r2 = rank[:n, None], rank[at][None]
        total += torch.where((r1 > 0) & (r2 > 0), squared / (r1 * r2).clamp_min(1).double().sqrt(), 0.0)
        zs.append(overlap_z(squared, part.shape[0], r1.expand(n, K), r2.expand(n, K)))
        count += (rank > 0).double()
        ranks += rank.double()
    scale = torch.where(count > 0, count, torch.inf).rsqrt()
    z = pooled_z(torch.stack(zs)) if zs else torch.full((n, K), torch.nan, dtype=torch.float64)
    return Subspaces(
        (total * scale[:n, None] * scale[at]).numpy(),
        (count[:n] > 0).double().numpy(),
        z.numpy(),
        (first / energy.clamp_min(1e-300))[:n].numpy(),
        (ranks / count.clamp_min(1))[:n].numpy(),
    )


def _same(a: Sequence[TaskVector], b: Sequence[TaskVector]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _products(out: Tensor, frames: list[Frames], n: int, at: np.ndarray) -> None:
    """‖U_iᵀU_j‖_F² of rows i < n with the columns, block of rows by block of rows."""
    place = {int(v): j for j, v in enumerate(at)}
    for p in frames:
        left = [c for c, i in enumerate(p.index.tolist()) if i < n]
        for q in frames:
            right = [c for c, i in enumerate(q.index.tolist()) if i in place]
            if not left or not right:
                continue
            V = q.Ut.view(len(q), q.width, -1)[right].flatten(0, 1)
            cols = torch.tensor([place[int(q.index[c])] for c in right])
            for block in plan_blocks(len(left), 8 * p.width * max(1, len(V)), MEMORY_BUDGET):
                some = left[block.slice]
                U = p.Ut.view(len(p), p.width, -1)[some].flatten(0, 1)
                M = (U @ V.T).view(len(some), p.width, len(right), q.width)
                out[p.index[some][:, None], cols] = M.square().sum((1, 3))
