"""Properties 1 to 4 of the linear-layers paper as measurements at one choice of coefficients.

With θ = θ₀ + Σ_s α_s·τ_s, task supports D_t, f the predictor (head included) and h the representation model:

- Property 1, task arithmetic: f(x; θ) = f(x; θ₀ + α_t·τ_t) for x ∈ D_t, and f(x; θ) = f(x; θ₀) for x outside all D_t.
- Property 2, weight disentanglement: f(x; θ) = Σ_t g_t(x; α_t·τ_t) + g_0(x), with g_t(x; ·) = 0 for x ∉ D_t and
  g_0(x) = 0 for x in some D_t. The g_t are not given; it holds at α just when both of these do:
  locality, f(x; θ₀ + α_t·τ_t) = f(x; θ₀) for x ∈ D_s, s ≠ t, and
  additivity, f(x; θ) − f(x; θ₀) = Σ_t [f(x; θ₀ + α_t·τ_t) − f(x; θ₀)].
- Properties 3 and 4: the same with h in the place of f.

Distances are those of `disentanglement`: disagreement of labels for f, J for h. Additivity is the relative residual
‖left − right‖/‖left‖ over all examples, of logits for f and of representations for h. Every measure is 0 where the
property holds. Source: Jin et al. (arXiv 2407.07089), §§2 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from comgrad.evaluate.arithmetic import TEST, paired
from comgrad.evaluate.disentanglement import Seen, seen, seen_in, symmetric_kl
from comgrad.evaluate.predictor import Predictor, Problem, Term
from comgrad.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Arithmetic:
    """Property 1 (`disagreement`) or 3 (`kl`): task or outside data → mean distance."""

    inside: dict[str, float]
    outside: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return {"inside": dict(self.inside), "outside": dict(self.outside)}


@dataclass(frozen=True)
class Separation:
    """Property 2 or 4.

    Args:
        locality: (T, T); [s, t] is how far vector t alone moves the outputs on task s's data from the base's. The
            diagonal, a vector on its own data, is what it is there for.
        additivity: task → relative residual on its data.
    """

    names: tuple[str, ...]
    locality: np.ndarray
    additivity: dict[str, float]

    @property
    def elsewhere(self) -> float:
        """Mean of the entries off the diagonal; NaN for one task."""
        off = self.locality[~np.eye(len(self.names), dtype=bool)]
        return float(off.mean()) if off.size else float("nan")

    def as_dict(self) -> dict[str, Any]:
        return {
            "tasks": list(self.names),
            "locality": self.locality.tolist(),
            "elsewhere": self.elsewhere,
            "additivity": dict(self.additivity),
        }


@dataclass(frozen=True)
class Properties:
    """The four properties at `alphas`; `first` and `second` are of the predictor, `third` and `fourth` of h alone."""

    alphas: tuple[float, ...]
    first: Arithmetic
    second: Separation
    third: Arithmetic
    fourth: Separation

    def as_dict(self) -> dict[str, Any]:
        return {
            "alphas": list(self.alphas),
            "property_1": self.first.as_dict(),
            "property_2": self.second.as_dict(),
            "property_3": self.third.as_dict(),
            "property_4": self.fourth.as_dict(),
        }


def properties(
    predictor: Predictor,
    problems: Sequence[Problem],
    vectors: Sequence[TaskVector],
    alphas: Sequence[float] | None = None,
    *,
    outside: Sequence[Problem] = (),
    split: str = TEST,
) -> Properties:
    """Measure the four properties, with T + 2 settings of the weights on T tasks each.

    Args:
        alphas: one for each vector; 1 each when left out.
        outside: tasks that none of the vectors was trained on.
    """
    paired(problems, vectors)
    used = [1.0] * len(vectors) if alphas is None else [float(a) for a in alphas]
    terms: list[Term] = list(zip(used, vectors, strict=True))
    base = [seen(predictor, p, split, []) for p in problems]
    alone, moved, local = _one_by_one(predictor, problems, terms, split, base)
    inside: tuple[dict[str, float], dict[str, float]] = ({}, {})
    beyond: tuple[dict[str, float], dict[str, float]] = ({}, {})
    residual: tuple[dict[str, float], dict[str, float]] = ({}, {})
    apart = [seen(predictor, p, split, []) for p in outside]
    with predictor.at(terms) as model:
        for s, problem in enumerate(problems):
            found = seen_in(model, predictor, problem, split)
            for k, distance in enumerate(_distances(found, alone[s])):
                inside[k][problem.name] = distance
            change = (_logits(predictor, problem, found, base[s]), found.features - base[s].features)
            for k in range(2):
                residual[k][problem.name] = _relative(change[k], moved[s][k])
        for problem, before in zip(outside, apart, strict=True):
            for k, distance in enumerate(_distances(seen_in(model, predictor, problem, split), before)):
                beyond[k][problem.name] = distance
    names = tuple(p.name for p in problems)
    return Properties(
        tuple(used),
        Arithmetic(inside[0], beyond[0]),
        Separation(names, local[0], residual[0]),
        Arithmetic(inside[1], beyond[1]),
        Separation(names, local[1], residual[1]),
    )


def _one_by_one(
    predictor: Predictor, problems: Sequence[Problem], terms: Sequence[Term], split: str, base: Sequence[Seen]
) -> tuple[list[Seen], list[list[Tensor]], tuple[np.ndarray, np.ndarray]]:
    """Each vector alone on its own data; the summed changes of logits and of representations; both localities."""
    alone: list[Seen] = []
    moved: list[list[Tensor]] = [[torch.zeros(1), torch.zeros(1)] for _ in problems]
    local = (np.zeros((len(problems), len(terms))), np.zeros((len(problems), len(terms))))
    for t, term in enumerate(terms):
        with predictor.at([term]) as model:
            for s, problem in enumerate(problems):
                found = seen_in(model, predictor, problem, split)
                for k, distance in enumerate(_distances(found, base[s])):
                    local[k][s, t] = distance
                moved[s][0] = moved[s][0] + _logits(predictor, problem, found, base[s])
                moved[s][1] = moved[s][1] + (found.features - base[s].features)
                if s == t:
                    alone.append(found)
    return alone, moved, local


def _distances(a: Seen, b: Seen) -> tuple[float, float]:
    return float((a.labels != b.labels).double().mean()), float(symmetric_kl(a.features, b.features).mean())


def _logits(predictor: Predictor, problem: Problem, after: Seen, before: Seen) -> Tensor:
    """(n, C) change of the logits."""
    unit = [nn.functional.normalize(x.features, dim=-1) for x in (after, before)]
    return predictor.logit_scale * (unit[0] - unit[1]) @ problem.head.to(unit[0]).T


def _relative(whole: Tensor, parts: Tensor) -> float:
    """‖whole − parts‖/‖whole‖; 0 when both are 0."""
    gap, size = float((whole - parts).double().norm()), float(whole.double().norm())
    if gap == 0.0:
        return 0.0
    return gap / size if size > 0 else float("inf")
