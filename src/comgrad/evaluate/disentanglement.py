"""Weight-disentanglement error: how far a vector changes the outputs on another vector's data.

    ξ(α₁, …, α_T) = Σ_t E_{x∼μ_t} dist( f(x; θ₀ + α_t·τ_t), f(x; θ₀ + Σ_s α_s·τ_s) )

with two distances: `disagreement`, 1[the predicted labels differ], of the predictor; and `kl`, of the representation
model alone, J(p, q) = ½(KL(p‖q) + KL(q‖p)) = ½ Σ_i (p_i − q_i)(log p_i − log q_i) in nats between softmaxes over the
coordinates of the representations. ξ = 0 where all α are 0. Expectations are over all examples of the split,
weighted alike. Source: Ortiz-Jimenez et al. 2023 (arXiv 2305.12827), eq. 4 for the predictor; Jin et al. (arXiv
2407.07089), §4 for the representation model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from comgrad.evaluate.arithmetic import TEST, Progress, checked_grid, paired
from comgrad.evaluate.predictor import Cache, Predictor, Problem, Term
from comgrad.vectors.task_vector import TaskVector

DISTANCES = ("disagreement", "kl")
GRID = tuple(i * 0.5 - 2.0 for i in range(9))


def symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """J between softmax(a) and softmax(b) over the last axis, in nats and fp64; (b, d), (b, d) → (b,)."""
    p, q = a.double().log_softmax(dim=-1), b.double().log_softmax(dim=-1)
    return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(dim=-1)


@dataclass(frozen=True)
class Seen:
    """What a predictor answered on a split: representations (n, d) and predicted labels (n,), on the host."""

    features: Tensor
    labels: Tensor


def seen(predictor: Predictor, problem: Problem, split: str, terms: Sequence[Term]) -> Seen:
    """Representations and predicted labels of the whole split at θ₀ + Σ αᵢτᵢ."""
    with predictor.at(terms) as model:
        return seen_in(model, predictor, problem, split)


def seen_in(model: nn.Module, predictor: Predictor, problem: Problem, split: str) -> Seen:
    """`seen` for a module whose weights are where they should be."""
    rows = [(h.cpu(), z.argmax(dim=1).cpu()) for h, z, _ in predictor.passes(model, problem, split)]
    return Seen(torch.cat([h for h, _ in rows]), torch.cat([y for _, y in rows]))


def compared_in(
    model: nn.Module, predictor: Predictor, problem: Problem, split: str, reference: Seen
) -> tuple[float, float]:
    """Mean disagreement and mean J between a module's answers and a reference, batch by batch; nothing is kept."""
    start, differ, divergence = 0, 0, 0.0
    for h, z, _ in predictor.passes(model, problem, split):
        rows = slice(start, start + len(h))
        differ += int((z.argmax(dim=1).cpu() != reference.labels[rows]).sum())
        divergence += float(symmetric_kl(h, reference.features[rows].to(h.device)).sum())
        start += len(h)
    return differ / start, divergence / start


@dataclass(frozen=True)
class Error:
    """ξ at one point: the terms of each task, for both distances."""

    alphas: tuple[float, ...]
    disagreement: tuple[float, ...]
    kl: tuple[float, ...]

    def total(self, distance: str) -> float:
        """ξ itself."""
        return float(sum(getattr(self, distance)))

    def as_dict(self) -> dict[str, Any]:
        return {"alphas": list(self.alphas), "disagreement": list(self.disagreement), "kl": list(self.kl)}


@dataclass(frozen=True)
class Surface:
    """ξ of two tasks on a grid.

    Args:
        alphas: of both axes.
        terms: distance → (2, A, A); terms[d][t, i, j] is task t's term at (α₁, α₂) = (alphas[i], alphas[j]).
        n: examples of each task.
    """

    tasks: tuple[str, str]
    alphas: tuple[float, ...]
    terms: dict[str, np.ndarray]
    n: tuple[int, int]

    def xi(self, distance: str = "disagreement") -> np.ndarray:
        """(A, A): the sum over the two tasks; rows are α₁."""
        return np.asarray(self.terms[distance].sum(axis=0))

    def unit_mean(self, distance: str = "disagreement") -> float:
        """Mean of ξ over the grid's points in the unit square 0 ≤ α₁, α₂ ≤ 1, where merging looks for its α."""
        inside = [i for i, a in enumerate(self.alphas) if 0.0 <= a <= 1.0]
        return float(self.xi(distance)[np.ix_(inside, inside)].mean()) if inside else float("nan")

    def as_dict(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "n": list(self.n),
            "alphas": list(self.alphas),
            "unit_mean": {d: self.unit_mean(d) for d in DISTANCES},
            "mean": {d: float(self.xi(d).mean()) for d in DISTANCES},
            "xi": {d: self.xi(d).tolist() for d in DISTANCES},
            "terms": {d: self.terms[d].tolist() for d in DISTANCES},
        }


class _Alone:
    """f(x; θ₀ + α_t·τ_t) on task t's data: computed once for each α, when first asked for."""

    def __init__(self, predictor: Predictor, problems: Sequence[Problem], vectors: Sequence[TaskVector], split: str):
        self._predictor, self._problems, self._vectors, self._split = predictor, problems, vectors, split
        self._known: dict[tuple[int, float], Seen] = {}

    def at(self, t: int, alpha: float) -> Seen:
        key = (t, alpha)
        if key not in self._known:
            terms = [(alpha, self._vectors[t])]
            self._known[key] = seen(self._predictor, self._problems[t], self._split, terms)
        return self._known[key]

    def error(self, alphas: Sequence[float], cache: Cache | None) -> Error:
        terms = list(zip(alphas, self._vectors, strict=True))
        key = (
            "" if cache is None else self._predictor.key("disentanglement", self._problems, self._split, terms, *alphas)
        )
        if cache is not None and key in cache:
            row = cache[key]
            return Error(tuple(alphas), tuple(row["disagreement"]), tuple(row["kl"]))
        references = [self.at(t, alpha) for t, alpha in enumerate(alphas)]
        with self._predictor.at(terms) as model:
            found = [
                compared_in(model, self._predictor, problem, self._split, reference)
                for problem, reference in zip(self._problems, references, strict=True)
            ]
        out = Error(tuple(alphas), tuple(d for d, _ in found), tuple(k for _, k in found))
        if cache is not None:
            cache[key] = out.as_dict()
        return out


def disentanglement_error(
    predictor: Predictor,
    problems: Sequence[Problem],
    vectors: Sequence[TaskVector],
    alphas: Sequence[float],
    *,
    split: str = TEST,
    cache: Cache | None = None,
) -> Error:
    """ξ of any number of tasks at one point (α₁, …, α_T)."""
    paired(problems, vectors)
    return _Alone(predictor, problems, vectors, split).error([float(a) for a in alphas], cache)


def disentanglement(
    predictor: Predictor,
    problems: Sequence[Problem],
    vectors: Sequence[TaskVector],
    *,
    grid: Sequence[float] = GRID,
    split: str = TEST,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Surface:
    """ξ of two tasks on a grid of (α₁, α₂), one cell after the other; cells in the cache are not computed again.

    Each task alone is read once for each α, and kept: n·d numbers for each.

    Raises:
        ComgradError: not two tasks with a vector each, or an empty grid; (`not-finite`). BaseMismatch, ShapeMismatch.
    """
    paired(problems[:2] if len(problems) == 2 else (), vectors)
    alphas = checked_grid(grid)
    alone = _Alone(predictor, problems, vectors, split)
    terms = {d: np.zeros((2, len(alphas), len(alphas))) for d in DISTANCES}
    for i, a1 in enumerate(alphas):
        for j, a2 in enumerate(alphas):
            found = alone.error([a1, a2], cache)
            for d in DISTANCES:
                terms[d][:, i, j] = getattr(found, d)
            if progress:
                progress(i * len(alphas) + j + 1, len(alphas) ** 2)
    first, second = (sum(len(labels) for _, labels in p.part(split)) for p in problems)
    return Surface((problems[0].name, problems[1].name), alphas, terms, (first, second))
