"""The table of measures: a row each, with its formula and source; nothing else knows a measure's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from comgrad.geometry import gram as _gram
from comgrad.geometry.kernels import HALF_PI
from comgrad.geometry.null import overlap_z
from comgrad.geometry.pairs import ANGLES, CORE, INNER, OVERLAP, SPECTRAL, PairTable

Pool = Literal["gram", "mean", "z"]
SLIDES = "task-vector similarity slides"


@dataclass(frozen=True)
class Measure:
    """One row.

    Args:
        symmetric: value(i, j) = value(j, i). Otherwise row i, column j reads 'i, then j' (frame of i, delta of j).
        needs_subspace: defined on matrices only, through their column spaces or singular frames.
        higher_is_nearer: True for similarities, False for distances, None where neither is meant.
        pool: how tensors make the total. `gram`: the formula on the summed Gram matrix; `mean`: mean over the tensors
            where it is defined; `z`: Σz/√T over them.
    """

    name: str
    symmetric: bool
    needs_subspace: bool
    higher_is_nearer: bool | None
    formula: str
    source: str
    needs: frozenset[str]
    pool: Pool
    on_gram: Callable[[Tensor], Tensor] | None = None
    on_table: Callable[[PairTable, bool], Tensor] | None = None


def _centred_cosine(G: Tensor) -> Tensor:
    """Of unit vectors: else one vector of a hundred times the norm would be the mean. Zero vectors are not in the mean."""
    cosine = _gram.cosine_from_gram(G)
    known = ~cosine.diagonal(dim1=-2, dim2=-1).isnan()
    out = _gram.cosine_from_gram(_gram.centred(cosine.nan_to_num(0.0), known), floor=1e-12)
    return torch.where(known[..., :, None] & known[..., None, :], out, torch.nan)


def _projection(G: Tensor) -> Tensor:
    energy = G.diagonal(dim1=-2, dim2=-1)
    return G / torch.where(energy > 0, energy, torch.nan)[..., None, :]


def _missing(t: PairTable, full: bool) -> Tensor:
    """(K, K) number of right angles added for unequal ranks: |r_i − r_j| in the full convention, else 0."""
    gap = (t.rank[:, None] - t.rank).abs().double()
    return gap if full else torch.zeros_like(gap)


def _grassmann_l1(t: PairTable, full: bool) -> Tensor:
    return t.pair["theta_sum"] + _missing(t, full) * HALF_PI


def _geodesic(t: PairTable, full: bool) -> Tensor:
    return (t.pair["theta_squared"] + _missing(t, full) * HALF_PI**2).sqrt()


def _chordal(t: PairTable, full: bool) -> Tensor:
    return (t.pair["sine_squared"] + _missing(t, full)).sqrt()


def _projection_metric(t: PairTable, full: bool) -> Tensor:
    sine = t.pair["theta_max"].sin()
    return torch.where((_missing(t, full) > 0) & ~sine.isnan(), 1.0, sine)


def _overlap(t: PairTable, full: bool) -> Tensor:
    join = torch.maximum if full else torch.minimum
    return t.pair["overlap"] / join(t.rank[:, None], t.rank).double()


def _overlap_z(t: PairTable, full: bool) -> Tensor:  # noqa: ARG001 the z-score is of ‖U₁ᵀU₂‖², one for both conventions
    m = t.shape[0] if t.shape else 1
    return overlap_z(t.pair["overlap"], m, t.rank[:, None], t.rank)


def _entropy_1(t: PairTable, full: bool) -> Tensor:  # noqa: ARG001
    return torch.where(t.pair["explained"].isnan(), torch.nan, t.entropy_1[:, None])


def _stored(key: str) -> Callable[[PairTable, bool], Tensor]:
    return lambda table, _full: table.pair[key]


def _inner(name: str, symmetric: bool, nearer: bool | None, formula: str, f: Callable[[Tensor], Tensor]) -> Measure:
    return Measure(name, symmetric, False, nearer, formula, "Frobenius inner product", frozenset({INNER}), "gram", f)


def _space(
    name: str, nearer: bool, formula: str, source: str, need: str, f: Callable[[PairTable, bool], Tensor], pool: Pool
) -> Measure:
    return Measure(name, True, True, nearer, formula, source, frozenset({need}), pool, on_table=f)


def _spectrum(name: str, nearer: bool | None, formula: str, key: str, need: str = SPECTRAL) -> Measure:
    f = _entropy_1 if key == "entropy_1" else _stored(key)
    return Measure(name, False, True, nearer, formula, SLIDES, frozenset({need}), "mean", on_table=f)


_ROWS = (
    _inner("inner", True, True, "⟨τ_i, τ_j⟩ = Σ_tensors tr(ΔW_iᵀ ΔW_j)", lambda G: G),
    _inner("cosine", True, True, "⟨τ_i, τ_j⟩ / (‖τ_i‖‖τ_j‖)", _gram.cosine_from_gram),
    _inner("centred_cosine", True, True, "cosine of u_i − ū and u_j − ū with u = τ/‖τ‖, ū their mean", _centred_cosine),
    _inner("l2", True, False, "‖τ_i − τ_j‖", _gram.distance_from_gram),
    _inner("projection", False, True, "⟨τ_i, τ_j⟩ / ⟨τ_j, τ_j⟩, the coefficient of i on j", _projection),
    _space("grassmann_l1", False, "Σ θ", SLIDES, ANGLES, _grassmann_l1, "mean"),
    _space("geodesic", False, "√Σ θ²", "Ye and Lim 2016", ANGLES, _geodesic, "mean"),
    _space("chordal", False, "√Σ sin²θ", "Ye and Lim 2016", ANGLES, _chordal, "mean"),
    _space(
        "projection_metric", False, "sin θ_max = ‖P_i − P_j‖₂", "Ye and Lim 2016", ANGLES, _projection_metric, "mean"
    ),
    _space("overlap", True, "‖U_iᵀU_j‖_F² / min(r_i, r_j)", "arXiv 2106.09685, §7.2", OVERLAP, _overlap, "mean"),
    _space("overlap_z", True, "(‖U_iᵀU_j‖² − r_i r_j/m) / σ₀", "random null, see `null`", OVERLAP, _overlap_z, "z"),
    _spectrum("spectral_explained", True, "Σ s2² / ‖ΔW_j‖², s2 = diag(U_iᵀ ΔW_j V_i)", "explained"),
    _spectrum("spectral_core_explained", True, "‖U_iᵀ ΔW_j V_i‖² / ‖ΔW_j‖²", "core_explained", CORE),
    _spectrum("spectral_l1", False, "Σ |s1 − s2|", "l1"),
    _spectrum("spectral_l2", False, "√Σ (s1 − s2)²", "l2"),
    _spectrum("spectral_rec", True, "Σ min(|s1|/Σ|s1|, |s2|/Σ|s2|)", "rec"),
    _spectrum("spectral_entropy_1", None, "H(s1/Σs1) / log r_i", "entropy_1"),
    _spectrum("spectral_entropy_2", None, "H(|s2|/Σ|s2|) / log r_i", "entropy_2"),
)

MEASURES: dict[str, Measure] = {row.name: row for row in _ROWS}
