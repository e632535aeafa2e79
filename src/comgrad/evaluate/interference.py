"""Interference between task vectors, and whether a measure of pairs predicts it.

Interference of vector t with task s is what task s loses when τ_t is added to its own fine-tuned model:

    I[s, t] = loss_s(θ₀ + α·τ_s + α·τ_t) − loss_s(θ₀ + α·τ_s)   in nats, or the drop of accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comgrad.errors import Undefined
from comgrad.evaluate.arithmetic import TEST, Progress, paired
from comgrad.evaluate.orthogonality import Norm, VectorRatio, layer_inputs, vector_ratio
from comgrad.evaluate.predictor import Cache, Predictor, Problem
from comgrad.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Interference:
    """(T, T) matrices over tasks (rows) and added vectors (columns); the diagonal is NaN."""

    names: tuple[str, ...]
    loss: np.ndarray
    accuracy: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        return {"tasks": list(self.names), "loss": self.loss.tolist(), "accuracy": self.accuracy.tolist()}


def interference(
    predictor: Predictor,
    problems: Sequence[Problem],
    vectors: Sequence[TaskVector],
    *,
    alpha: float = 1.0,
    split: str = TEST,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Interference:
    """The rise of loss and the drop of accuracy of every task by every other vector; T² evaluations."""
    paired(problems, vectors)
    count = len(problems)
    loss, accuracy = np.full((count, count), np.nan), np.full((count, count), np.nan)
    for s, problem in enumerate(problems):
        own = predictor.outcome(problem, split, [(alpha, vectors[s])], cache)
        for t in range(count):
            if t != s:
                both = predictor.outcome(problem, split, [(alpha, vectors[s]), (alpha, vectors[t])], cache)
                loss[s, t], accuracy[s, t] = both.loss - own.loss, own.accuracy - both.accuracy
            if progress:
                progress(s * count + t + 1, count**2)
    return Interference(tuple(p.name for p in problems), loss, accuracy)


def ratio_table(
    predictor: Predictor,
    problems: Sequence[Problem],
    vectors: Sequence[TaskVector],
    *,
    norm: Norm = "frobenius",
    own_weights: bool = False,
    split: str = TEST,
    progress: Progress | None = None,
) -> list[list[VectorRatio]]:
    """Proposition 1's measurement of every vector (columns) on every task's inputs (rows).

    Args:
        own_weights: inputs at the task's own fine-tuned weights θ₀ + τ_s; else at θ₀.
    """
    paired(problems, vectors)
    names = sorted({name for v in vectors for name in v.tensors})
    table = []
    for s, problem in enumerate(problems):
        at = [(1.0, vectors[s])] if own_weights else []
        inputs = layer_inputs(predictor, problem, names, split=split, at=at)
        row = [
            vector_ratio(v, inputs, vector=q.name, task=problem.name, norm=norm)
            for v, q in zip(vectors, problems, strict=True)
        ]
        table.append(row)
        if progress:
            progress(s + 1, len(problems))
    return table


@dataclass(frozen=True)
class Association:
    """Spearman's ρ over the ordered pairs of different tasks, and its one-sided p by permutation of the tasks."""

    rho: float
    p: float
    pairs: int
    permutations: int

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def predicts(measure: np.ndarray, harm: np.ndarray, *, permutations: int = 5000, seed: int = 0) -> Association:
    """Whether larger entries of one (T, T) matrix go with larger entries of another, off the diagonal.

    Pairs that share a task are not independent, so the null permutes the tasks of one matrix, rows and columns alike
    (Mantel's test): p = (1 + #{ρ of a permutation ≥ ρ}) / (1 + permutations).

    Raises:
        Undefined: fewer than three tasks, or a matrix that is constant or has a gap off the diagonal.
    """
    measure, harm = np.asarray(measure, dtype=np.float64), np.asarray(harm, dtype=np.float64)
    count = len(measure)
    off = ~np.eye(count, dtype=bool)
    x, y = measure[off], harm[off]
    if count < 3 or measure.shape != harm.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise Undefined(
            f"the association of matrices of shapes {measure.shape} and {harm.shape}",
            "it needs one finite number for each pair of at least three tasks",
            "measure all pairs of more tasks",
        )
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise Undefined("the association with a constant", "it has no order", "measure something that varies")
    ranks = np.zeros((count, count))
    ranks[off] = _ranks(x)
    target = _ranks(y)
    rho = _correlation(ranks[off], target)
    rng = np.random.default_rng(seed)
    above = 0
    for _ in range(permutations):
        order = rng.permutation(count)
        above += _correlation(ranks[np.ix_(order, order)][off], target) >= rho - 1e-12
    return Association(rho, (1 + above) / (1 + permutations), len(x), permutations)


def _ranks(x: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return np.asarray(rankdata(x))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
