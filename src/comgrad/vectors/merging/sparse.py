"""Methods that thin the vectors out and then put them together: magnitude, TIES, DARE, breadcrumbs.

Each is a mask (`masks`) and a combination: the weighted sum of what is kept, or the mean of the kept elements that
agree with an elected sign. All tensors are treated element by element, matrices or not. One tensor of every vector is
in memory at a time, and sums are formed in fp64 and cast once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from comgrad.errors import ComgradError
from comgrad.vectors.delta import Delta
from comgrad.vectors.merging.common import BLOCK, all_names, dense_from, dense_like, held, one_base, result_dtype
from comgrad.vectors.merging.masks import Keep, at_random, by_magnitude
from comgrad.vectors.merging.settings import Settings
from comgrad.vectors.task_vector import TaskVector

Combine = Callable[[Tensor, Tensor], Tensor]  # kept elements (t, n) and weights (t, 1) in fp64 → merged (n,)


def add_up(x: Tensor, w: Tensor) -> Tensor:
    """Σ wᵢ·xᵢ."""
    return (w * x).sum(0)


def elect(x: Tensor, w: Tensor) -> Tensor:
    """γ = sgn(Σ wᵢxᵢ); the mean Σ wᵢxᵢ / Σ|wᵢ| over the i with sgn(wᵢxᵢ) = γ; 0 where γ = 0."""
    y = w * x
    sign = y.sum(0).sign()
    agree = (y.sign() == sign) & (sign != 0)
    weight = torch.where(agree, w.abs(), 0.0).sum(0)
    return torch.where(agree, y, 0.0).sum(0) / torch.where(weight > 0, weight, 1.0)


def elect_mergekit(x: Tensor, w: Tensor) -> Tensor:
    """As `elect`, with γ = + where the sum is 0 (weights are non-negative)."""
    y = w * x
    agree = (y > 0) == (y.sum(0) >= 0)
    agree &= y != 0
    weight = torch.where(agree, w, 0.0).sum(0)
    return torch.where(agree, y, 0.0).sum(0) / torch.where(weight > 0, weight, 1.0)


def elect_peft(x: Tensor, w: Tensor) -> Tensor:
    """γ = sgn(Σ xᵢ), + where that is 0; Σ wᵢxᵢ over the i with sgn(xᵢ) = γ, divided by their number."""
    agree = ((x > 0) == (x.sum(0) >= 0)) & (x != 0)
    return torch.where(agree, w * x, 0.0).sum(0) / agree.sum(0).clamp(min=1)


def magnitude(vectors: Sequence[TaskVector], weights: Sequence[float], settings: Settings) -> TaskVector:
    """Σ wᵢ·trim(τᵢ). See `merge.METHODS`."""
    return _merged(vectors, weights, by_magnitude(vectors, settings), add_up)


def breadcrumbs(vectors: Sequence[TaskVector], weights: Sequence[float], settings: Settings) -> TaskVector:
    """Σ wᵢ·band(τᵢ), or the elected mean of the bands. See `merge.METHODS`."""
    return _merged(vectors, weights, by_magnitude(vectors, settings), _inner(settings))


def ties(vectors: Sequence[TaskVector], weights: Sequence[float], settings: Settings) -> TaskVector:
    """Trim, elect, disjoint mean. See `merge.METHODS`. Raises ComgradError: a negative weight with match mergekit."""
    if settings.match == "mergekit" and min(weights) < 0:
        raise ComgradError(
            f"the weight {min(weights):g} with match 'mergekit'",
            "dividing by the surviving weights has no meaning when they have two signs",
            "leave match out, or give weights of 0 or more",
            code="merge-parameter",
        )
    combine = {"none": elect, "mergekit": elect_mergekit, "peft": elect_peft}[settings.match]
    return _merged(vectors, weights, by_magnitude(vectors, settings), combine)


def dare(vectors: Sequence[TaskVector], weights: Sequence[float], settings: Settings) -> TaskVector:
    """Drop at random, rescale by 1/density, put together. See `merge.METHODS`."""
    keep = at_random(settings.density, settings.seed)
    return _merged(vectors, weights, keep, _inner(settings), rescale=1.0 / settings.density)


def _inner(settings: Settings) -> Combine:
    return elect if settings.inner == "ties" else add_up


def _merged(
    vectors: Sequence[TaskVector], weights: Sequence[float], keep: Keep, combine: Combine, rescale: float = 1.0
) -> TaskVector:
    def of_tensor(name: str) -> Delta:
        terms = held(vectors, weights, name)
        flat = [t.delta.dense().reshape(-1) for t in terms]
        w = torch.tensor([[t.weight] for t in terms], dtype=torch.float64)
        windows = [keep(t.vector, name, x) for t, x in zip(terms, flat, strict=True)]
        out = torch.empty(flat[0].numel(), dtype=result_dtype(terms))
        for i in range(0, out.numel(), BLOCK):
            j = min(i + BLOCK, out.numel())
            kept = [torch.where(stays(i, j), x[i:j].double(), 0.0) for x, stays in zip(flat, windows, strict=True)]
            out[i:j] = combine(torch.stack(kept) * rescale, w)
        return dense_from(out, terms)

    return TaskVector(one_base(vectors), dense_like(all_names(vectors), of_tensor, vectors))
