"""The Frobenius Gram matrix of a collection, total and per tensor, and what follows from it.

G_ij = ⟨τ_i, τ_j⟩ = Σ_tensors ⟨ΔW_i, ΔW_j⟩. For low-rank deltas ⟨B₁A₁, B₂A₂⟩ = sum((B₁ᵀB₂) ∘ (A₁A₂ᵀ)), so all pairs are
two products of stacked factors and a block sum; no ΔW is formed. All sums are in fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comgrad.engine.local import map_ordered
from comgrad.engine.plan import CACHE_BUDGET, MEMORY_BUDGET, plan_blocks
from comgrad.errors import ShapeMismatch
from comgrad.geometry.stack import Factors, same_base, stack_factors, take, tensor_names
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import Deferred, TaskVector

Progress = Callable[[int, int], None]
_STEPS = 8  # blocks at least in which a bundle meets itself: below the diagonal nothing is computed


@dataclass(frozen=True, eq=False)
class Gram:
    """total (K, L); per_tensor (T, K, L) in the order of `tensors`. Fp64, entries add over tensors."""

    total: Tensor
    per_tensor: Tensor
    tensors: tuple[str, ...]


def gram(vectors: Sequence[TaskVector], *, workers: int | None = None, progress: Progress | None = None) -> Tensor:
    """G_ij = ⟨τ_i, τ_j⟩, (K, K) fp64, exactly symmetric. A tensor that a vector lacks counts as zero.

    Raises:
        BaseMismatch: the vectors stand on two bases. ShapeMismatch: one tensor has two shapes.
        ComgradError: an empty collection, or (`not-finite`) a vector with NaN or infinite numbers.
    """
    return gram_by_tensor(vectors, workers=workers, progress=progress).total


def gram_by_tensor(
    vectors: Sequence[TaskVector], *, workers: int | None = None, progress: Progress | None = None
) -> Gram:
    """The Gram matrix of every tensor, and their sum. Raises as `gram`.

    One tensor of all vectors is in memory at a time per worker, or two blocks of vectors when that passes the budget
    of `engine.plan`: deferred vectors larger than memory are walked, not loaded.
    """
    return _assemble(vectors, vectors, symmetric=True, workers=workers, progress=progress)


def gram_rows(
    new: Sequence[TaskVector],
    old: Sequence[TaskVector],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Gram:
    """⟨new_i, old_j⟩, (len(new), len(old)): the rows by which a collection's Gram matrix grows. Raises as `gram`."""
    same_base([*new, *old])
    return _assemble(new, old, symmetric=False, workers=workers, progress=progress)


def centred(G: Tensor, among: Tensor | None = None) -> Tensor:
    """Gram matrix of the vectors minus their mean (double centring): H G Hᵀ with H = I − 1wᵀ, w = 1/K.

    Args:
        G: (..., K, K). among: (..., K) bool, the vectors whose mean is taken; all when None.
    """
    ones = torch.ones(G.shape[:-1], dtype=G.dtype) if among is None else among.to(G.dtype)
    weight = ones / ones.sum(-1, keepdim=True).clamp_min(1.0)
    mean = (G * weight[..., None, :]).sum(-1)  # ⟨τ_i, τ̄⟩
    own = (mean * weight).sum(-1)
    centre = G - mean[..., :, None] - mean[..., None, :] + own[..., None, None]
    return (centre + centre.mT) / 2


def cosine_from_gram(G: Tensor, *, floor: float = 0.0) -> Tensor:
    """G_ij/√(G_ii G_jj) in [−1, 1]; NaN where a norm is zero, so that nobody mistakes it for 'orthogonal'.

    Args:
        floor: squared norms at most this count as zero. After centring, a vector equal to the mean has a norm that is
            only rounding, and its cosines would be noise.
    """
    energy = G.diagonal(dim1=-2, dim2=-1)
    norm = torch.where(energy > floor, energy, torch.nan).sqrt()
    cosine = (G / (norm[..., :, None] * norm[..., None, :])).clamp(-1.0, 1.0)
    at = torch.arange(G.shape[-1])
    cosine[..., at, at] = torch.where(norm.isnan(), torch.nan, 1.0).double()
    return cosine


def distance_from_gram(G: Tensor) -> Tensor:
    """‖τ_i − τ_j‖ = √(G_ii + G_jj − 2G_ij); the subtraction leaves an error of about 1e-8 of the norms."""
    energy = G.diagonal(dim1=-2, dim2=-1)
    return (energy[..., :, None] + energy[..., None, :] - 2 * G).clamp_min(0.0).sqrt()


# -- one tensor ----------------------------------------------------------------------------------------------------
def gram_of_tensor(vectors: Sequence[TaskVector], name: str, others: Sequence[TaskVector] | None = None) -> Tensor:
    """Block of the Gram matrix for one tensor: (K, K), or (K, L) against `others`."""
    other = vectors if others is None else others
    size = _bytes(name, *vectors, *other)
    plans = [plan_blocks(len(side), 2 * size, MEMORY_BUDGET) for side in (vectors, other)]
    out = torch.zeros(len(vectors), len(other), dtype=torch.float64)
    for i in plans[0]:
        left = None
        for j in plans[1]:
            if others is None and j.start < i.start:
                continue
            same = others is None and i == j
            left = left or stack_factors(take(vectors[i.slice], name)) if _any(vectors[i.slice], name) else None
            if left is None:
                break
            if not _any(other[j.slice], name):
                continue
            right = left if same else stack_factors(take(other[j.slice], name))
            out[i.slice, j.slice] = _products(left, right, len(i), len(j), name)
    return torch.triu(out) + torch.triu(out, 1).mT if others is None else out


def _any(vectors: Sequence[TaskVector], name: str) -> bool:
    return any(name in v.tensors for v in vectors)


def _bytes(name: str, *vectors: TaskVector) -> int:
    """Bytes one delta takes while the Gram is computed; of the deferred ones only the first is asked for."""
    most, asked = 1, False
    for v in vectors:
        if name in v.tensors and not (asked and isinstance(v.tensors, Deferred)):
            asked = asked or isinstance(v.tensors, Deferred)
            d = v.tensors[name]
            most = max(most, 8 * (d.rank * sum(d.shape) if isinstance(d, LowRank) else d.numel))
    return most


Stacked = tuple[list[Factors], dict[int, Tensor]]


def _products(left: Stacked, right: Stacked, K: int, L: int, name: str) -> Tensor:
    out = torch.zeros(K, L, dtype=torch.float64)
    (low1, full1), (low2, full2) = left, right
    for p in low1:
        for q in low2:
            out[p.index[:, None], q.index] = _low_low(p, q)
        for j, W in full2.items():
            out[p.index, j] = _low_full(p, W)
    for q in low2:
        for i, W in full1.items():
            out[i, q.index] = _low_full(q, W)
    if full1 and full2:
        out[torch.tensor([*full1])[:, None], torch.tensor([*full2])] = _full_full(full1, full2, name)
    return out


def _low_low(p: Factors, q: Factors) -> Tensor:
    """(c_p, c_q) inner products: block sums of (B₁ᵀB₂) ∘ (A₁A₂ᵀ). Of a bundle with itself the lower part stays zero."""
    c, d = p.index.numel(), q.index.numel()
    out = torch.zeros(c, d, dtype=torch.float64)
    budget = min(CACHE_BUDGET, -(-16 * p.width * q.width * d * c // _STEPS)) if p is q else CACHE_BUDGET
    for block in plan_blocks(c, 16 * p.width * q.width * d, budget):
        rows, first = slice(block.start * p.width, block.stop * p.width), block.start if p is q else 0
        others = slice(first * q.width, None)
        P = (p.Bt[rows] @ q.Bt[others].T).mul_(p.At[rows] @ q.At[others].T)
        out[block.slice, first:] = P.view(len(block), p.width, -1).sum(1).view(len(block), d - first, q.width).sum(2)
    return out


def _low_full(p: Factors, W: Tensor) -> Tensor:
    """(c,) inner products ⟨B A, W⟩ = sum(B ∘ W Aᵀ) of c low-rank deltas with one dense."""
    return ((p.At @ W.double().T) * p.Bt).view(-1, p.width * W.shape[0]).sum(1)


def _full_full(left: dict[int, Tensor], right: dict[int, Tensor], name: str) -> Tensor:
    """Inner products of dense deltas, over chunks of their entries so that no fp64 copy of a whole delta is made."""
    a, b = [*left.values()], [*right.values()]
    size = a[0].numel()
    if any(x.numel() != size for x in (*a, *b)):
        raise ShapeMismatch(
            f"tensor '{name}' has {size} entries in one vector and another number in the next",
            "deltas of one tensor must have its shape",
            "check that both were made from the same base and the same revision",
        )
    out = torch.zeros(len(a), len(b), dtype=torch.float64)
    for block in plan_blocks(size, 8 * (len(a) + len(b)), 64 << 20):
        X = torch.stack([x.reshape(-1)[block.slice] for x in a]).double()
        Y = X if left is right else torch.stack([y.reshape(-1)[block.slice] for y in b]).double()
        out += X @ Y.T
    return out


# -- all tensors ---------------------------------------------------------------------------------------------------
def _assemble(
    rows: Sequence[TaskVector],
    cols: Sequence[TaskVector],
    *,
    symmetric: bool,
    workers: int | None,
    progress: Progress | None,
) -> Gram:
    same_base(rows)
    names = tensor_names(rows, cols)
    _same_shapes(rows, cols, names, symmetric)
    parts = []
    results = map_ordered(lambda name: gram_of_tensor(rows, name, None if symmetric else cols), names, workers)
    for done, part in enumerate(results, start=1):
        parts.append(part)
        if progress is not None:
            progress(done, len(names))
    per_tensor = torch.stack(parts)
    return Gram(per_tensor.sum(0), per_tensor, names)


def _same_shapes(
    rows: Sequence[TaskVector], cols: Sequence[TaskVector], names: tuple[str, ...], symmetric: bool
) -> None:
    """Refuse a shape that only differs between the two collections; inside one, `take` sees it."""
    if symmetric:
        return
    for name in names:
        pair = [next((v for v in side if name in v.tensors), None) for side in (rows, cols)]
        if pair[0] is not None and pair[1] is not None:
            take([pair[0], pair[1]], name)


__all__ = [
    "Gram",
    "centred",
    "cosine_from_gram",
    "distance_from_gram",
    "gram",
    "gram_by_tensor",
    "gram_of_tensor",
    "gram_rows",
]
