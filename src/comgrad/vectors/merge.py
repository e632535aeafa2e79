"""Merging methods as rows of a table: a name, a function, its parameters and its source.

Every method maps task vectors over one base, and one weight for each, to a task vector. The meaning of a row never
changes once released: where published tools differ, the meaning says which formula is computed here, and `match` asks
for a tool's. A tensor that a vector lacks is a delta of zero. The functions are in `vectors.merging`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comgrad.errors import ComgradError
from comgrad.vectors.merging.knots import INNER, knots
from comgrad.vectors.merging.linear import weighted_mean, weighted_sum
from comgrad.vectors.merging.settings import SCOPES, Settings, checked, described
from comgrad.vectors.merging.sparse import breadcrumbs, dare, magnitude, ties
from comgrad.vectors.merging.spectral import iso_c, tsv_m
from comgrad.vectors.task_vector import TaskVector

__all__ = ["METHODS", "Method", "merge", "parameters_of", "weighted_mean", "weighted_sum"]

MergeFunction = Callable[[Sequence[TaskVector], Sequence[float], Settings], TaskVector]


@dataclass(frozen=True)
class Method:
    """One merging method.

    Args:
        name: what users write.
        function: (vectors, weights, settings) → vector.
        meaning: the formula in one line.
        source: paper that published it.
        parameters: the parameters it reads, name → what it means.
        defaults: their values when left out.
        words: parameters that are words → the words allowed.
        linear: whether the result is Σ cᵢ·τᵢ with cᵢ that depend on the weights only.
    """

    name: str
    function: MergeFunction
    meaning: str
    source: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    defaults: Settings = field(default_factory=Settings)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    linear: bool = False

    @property
    def default_values(self) -> dict[str, Any]:
        """Parameter → default, in the order of `parameters`."""
        return described(self.defaults, self.parameters)


_DENSITY = "share of the elements each vector keeps, in (0, 1]"
_SCOPE = "what the share is counted over: global (the whole vector) or tensor (each tensor by itself)"
_SEED = "of the random masks; one seed gives one result, in any order of tensors and with any number of threads"
_ELECTED = (
    "γ = sgn(Σ wᵢτ̂ᵢ), then Σ wᵢτ̂ᵢ / Σ|wᵢ| over the i with sgn(wᵢτ̂ᵢ) = γ, 0 where γ = 0 (so only the weights' "
    "proportions count)"
)

METHODS: Mapping[str, Method] = {
    m.name: m
    for m in (
        Method(
            "sum", weighted_sum, "Σ wᵢ·τᵢ (task arithmetic); exact on factors",
            "https://arxiv.org/abs/2212.04089", linear=True,
        ),
        Method(
            "mean", weighted_mean, "Σ wᵢ·τᵢ / Σ wᵢ (weight averaging); exact on factors",
            "https://arxiv.org/abs/2203.05482", linear=True,
        ),
        Method(
            "magnitude", magnitude,
            "Σ wᵢ·τ̂ᵢ, τ̂ᵢ = the max(1, round(density·n)) largest elements of τᵢ by magnitude; equals of the last are kept",
            "https://arxiv.org/abs/1506.02626",
            {"density": _DENSITY, "scope": _SCOPE, "match": "peft: tensor by tensor, ⌊density·n⌋ elements"},
            Settings(density=0.2), {"scope": SCOPES, "match": ("none", "peft")},
        ),
        Method(
            "ties", ties, f"trim as 'magnitude' does, elect {_ELECTED}",
            "https://arxiv.org/abs/2306.01708",
            {
                "density": _DENSITY,
                "scope": _SCOPE,
                "match": "mergekit: tensor by tensor, γ = + where the sum is 0; peft: also γ = sgn(Σ τ̂ᵢ), divided by "
                "the number of survivors",
            },
            Settings(density=0.2), {"scope": SCOPES, "match": ("none", "mergekit", "peft")},
        ),
        Method(
            "dare", dare,
            "Σ wᵢ·mᵢ∘τᵢ / density, mᵢ = 1 with probability density, drawn for each vector and element by itself",
            "https://arxiv.org/abs/2311.03099",
            {"density": _DENSITY, "seed": _SEED, "inner": "sum, or ties: instead of the sum elect as 'ties' does"},
            Settings(density=0.5), {"inner": ("sum", "ties")},
        ),
        Method(
            "breadcrumbs", breadcrumbs,
            "Σ wᵢ·τ̂ᵢ, τ̂ᵢ = τᵢ without its ⌊gamma·n⌋ largest elements by magnitude, and of the others the largest "
            "max(1, round(density·n))",
            "https://arxiv.org/abs/2312.06795",
            {
                "density": _DENSITY,
                "gamma": "share of the largest elements removed, in [0, 1 − density]",
                "scope": _SCOPE,
                "inner": "sum, or ties: instead of the sum elect as 'ties' does",
            },
            Settings(density=0.9, gamma=0.01, scope="tensor"), {"scope": SCOPES, "inner": ("sum", "ties")},
        ),
        Method(
            "tsv-m", tsv_m,
            "for each matrix the leading max(1, ⌊min(m,n)/T⌋) singular triples of every wᵢ·τᵢ, U = [U₁…U_T] and "
            "V = [V₁…V_T] replaced by M(MᵀM)^{+1/2}, then U·diag(S)·Vᵀ; other tensors Σ wᵢτᵢ / T",
            "https://arxiv.org/abs/2412.00081",
        ),
        Method(
            "iso-c", iso_c,
            "for each matrix Σ wᵢ·τᵢ = U·diag(σ)·Vᵀ with every non-zero σ replaced by their mean; other tensors Σ wᵢτᵢ / T",
            "https://arxiv.org/abs/2502.04959",
        ),
        Method(
            "knots", knots,
            "for each matrix [τ₁…τ_T] = U·S·[V₁ᵀ…V_Tᵀ]; the inner method on Pᵢ = S·Vᵢᵀ; then U·P",
            "https://arxiv.org/abs/2410.19735",
            {
                "inner": "the method used on the Pᵢ: ties, sum or dare",
                "density": "of the inner method, counted over the elements of the Pᵢ",
                "scope": "of an inner ties",
                "seed": "of an inner dare",
            },
            Settings(density=0.2, inner="ties"), {"inner": tuple(INNER), "scope": SCOPES},
        ),
    )
}  # fmt: skip


def _row(method: str) -> Method:
    row = METHODS.get(method)
    if row is None:
        raise ComgradError(
            f"the method '{method}'", "no merging method has that name", f"use one of {', '.join(METHODS)}"
        )
    return row


def parameters_of(method: str, **given: Any) -> dict[str, Any]:
    """The parameters a merge would use: what was given, checked, over the method's defaults. Raises ComgradError."""
    row = _row(method)
    return described(_settings(row, given), row.parameters)


def _settings(row: Method, given: Mapping[str, Any]) -> Settings:
    return checked(row.name, row.defaults, {p: row.words.get(p, ()) for p in row.parameters}, given)


def merge(
    vectors: Sequence[TaskVector],
    method: str = "sum",
    weights: Sequence[float] | None = None,
    *,
    density: float | None = None,
    gamma: float | None = None,
    scope: str | None = None,
    seed: int | None = None,
    inner: str | None = None,
    match: str | None = None,
) -> TaskVector:
    """Merge task vectors over one base by a named method.

    Args:
        vectors: one or more vectors.
        method: a name in `METHODS`.
        weights: one finite number for each vector; 1 each when left out.
        density, gamma, scope, seed, inner, match: parameters of some methods (`METHODS[method].parameters`); None is
            the method's default. See `merging.settings.Settings`.

    Returns:
        the merge. Where the formula allows it, low-rank vectors give a low-rank one (sum, mean, tsv-m, iso-c, knots).

    Raises:
        ComgradError: unknown method, no vectors, wrong number of weights; a parameter that the method does not read or
            whose value is out of range.
        BaseMismatch, ShapeMismatch: vectors that cannot be added.
    """
    row = _row(method)
    if not vectors:
        raise ComgradError("no vectors", "there is nothing to merge", "name at least one vector")
    used = [1.0] * len(vectors) if weights is None else [float(w) for w in weights]
    if len(used) != len(vectors):
        raise ComgradError(
            f"{len(used)} weights for {len(vectors)} vectors",
            "each vector needs one weight",
            "give one weight per vector",
        )
    if not all(math.isfinite(w) for w in used):
        raise ComgradError(f"the weights {used}", "a weight must be a finite number", "check the weights")
    given = {"density": density, "gamma": gamma, "scope": scope, "seed": seed, "inner": inner, "match": match}
    return row.function(vectors, used, _settings(row, given))
