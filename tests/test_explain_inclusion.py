"""Laws of inclusion scores: self-projection, invariances, antisymmetry; and a planted inclusion that each must see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from comgrad.errors import ComgradError
from comgrad.explain.inclusion import CANDIDATES, Features, features, inclusion_score, scores
from comgrad.geometry.rank import canonical
from comgrad.geometry.spectral import SpectralProjection, spectral_projection
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("toy", "00ff")
M, N = 24, 20
SEEDS = st.integers(0, 2**31 - 1)
SETTINGS = settings(max_examples=20, deadline=None)


def low_rank(g: torch.Generator, rank: int, scale: float = 1.0) -> LowRank:
    B, A = torch.randn(M, rank, generator=g).double(), torch.randn(rank, N, generator=g).double()
    return LowRank(B, A, scale, torch.float64)


def vector(seed: int, ranks: tuple[int, ...] = (4, 3)) -> TaskVector:
    g = torch.Generator().manual_seed(seed)
    return TaskVector(BASE, {f"layer.{i}.weight": low_rank(g, r) for i, r in enumerate(ranks)})


def changed(v: TaskVector, seed: int) -> TaskVector:
    """The same adapter in another gauge: (BG, G⁻¹A)."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, d in v.tensors.items():
        assert isinstance(d, LowRank)
        G = (
            torch.linalg.qr(torch.randn(d.rank, d.rank, generator=g).double()).Q
            * torch.logspace(-2, 2, d.rank).double()
        )
        out[name] = LowRank(d.B @ G, torch.linalg.solve(G, d.A), d.scale, torch.float64)
    return TaskVector(BASE, out)


@SETTINGS
@given(SEEDS)
def test_a_vector_in_its_own_frame_is_itself(seed: int) -> None:
    found = features([vector(seed), vector(seed + 1)])
    for key, value in (("explained", 1.0), ("core_explained", 1.0), ("column", 1.0), ("rec", 1.0), ("l1", 0.0)):
        own = found.pairs[key].diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(own, torch.full_like(own, value), atol=1e-10, rtol=0)
    torch.testing.assert_close(
        found.pairs["entropy_2"].diagonal(dim1=1, dim2=2), found.own["entropy"], atol=1e-10, rtol=0
    )


@SETTINGS
@given(SEEDS, st.sampled_from(list(CANDIDATES)))
def test_scores_change_sign_with_the_order(seed: int, name: str) -> None:
    a, b = vector(seed), vector(seed + 1)
    assert inclusion_score(a, b, candidate=name) == pytest.approx(-inclusion_score(b, a, candidate=name), abs=1e-12)
    assert inclusion_score(a, a, candidate=name) == pytest.approx(0.0, abs=1e-10)


@SETTINGS
@given(SEEDS, SEEDS)
def test_scores_do_not_see_the_gauge(seed: int, gauge: int) -> None:
    a, b = vector(seed), vector(seed + 1)
    plain, other = features([a, b]), features([changed(a, gauge), b])
    for name in CANDIDATES:
        torch.testing.assert_close(scores(plain, name), scores(other, name), atol=1e-8, rtol=1e-8)


@SETTINGS
@given(SEEDS, st.floats(0.01, 100.0))
def test_scale_free_scores_do_not_see_the_scale(seed: int, c: float) -> None:
    a, b = vector(seed), vector(seed + 1)
    plain, scaled = features([a, b]), features([a * c, b])
    for name, row in CANDIDATES.items():
        same = bool(torch.allclose(scores(plain, name), scores(scaled, name), atol=1e-9))
        assert same or not row.scale_free, name
    assert float(scores(scaled, "norm")[0, 1] - scores(plain, "norm")[0, 1]) == pytest.approx(
        torch.tensor(c).double().log().item()
    )


@SETTINGS
@given(SEEDS)
def test_energies_are_ordered_and_shares(seed: int) -> None:
    pairs = features([vector(seed), vector(seed + 1), vector(seed + 2, (2, 5))]).pairs
    for lower, upper in (("explained", "core_explained"), ("core_explained", "column")):
        assert bool((pairs[lower] <= pairs[upper] + 1e-12).all())
    assert bool((pairs["column"] <= 1 + 1e-12).all()) and bool((pairs["explained"] >= 0).all())


@SETTINGS
@given(SEEDS)
def test_column_is_the_share_of_energy_in_the_column_space(seed: int) -> None:
    """Against the dense definition ‖P_a ΔW_b‖²/‖ΔW_b‖²."""
    a, b = vector(seed), vector(seed + 1, (2, 5))
    found = features([a, b]).pairs["column"]
    for t, name in enumerate(sorted(a.tensors)):
        U = torch.linalg.svd(a.tensors[name].dense(), full_matrices=False).U[:, : (4, 3)[t]]
        W = b.tensors[name].dense()
        assert float(found[t, 0, 1]) == pytest.approx(float((U.T @ W).square().sum() / W.square().sum()), rel=1e-9)


def spectrum(S: Tensor, seed: int = 0) -> TaskVector:
    """One tensor with given frames and spectrum."""
    g = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(m, len(S), generator=g).double()).Q for m in (M, N))
    return TaskVector(BASE, {"w": LowRank(U * S, V.T, 1.0, torch.float64)})


@pytest.mark.parametrize(
    "name", [n for n in CANDIDATES if n not in ("explained", "core", "column", "rec", "entropy-2")]
)
def test_a_diffuse_vector_is_the_general_one(name: str) -> None:
    """A flat spectrum against one of the same frames where one direction leads: more diffuse, and larger."""
    flat, peaked = spectrum(torch.ones(4).double()), spectrum(torch.tensor([0.9, 0.2, 0.1, 0.05]).double())
    if name == "l1":  # Σ|s1 − s2| on the same frames has no direction
        assert inclusion_score(flat, peaked, candidate=name) == pytest.approx(0.0, abs=1e-9)
    else:
        assert inclusion_score(flat, peaked, candidate=name) > 0.1


@pytest.mark.parametrize("name", ["explained", "core", "column"])
def test_a_space_with_more_directions_contains_its_part(name: str) -> None:
    """Where ranks differ, containment has a direction: all of the part is in the whole, not the reverse."""
    whole = spectrum(torch.tensor([4.0, 3.0, 2.0, 1.0]).double())
    d = whole.tensors["w"]
    assert isinstance(d, LowRank)
    part = TaskVector(BASE, {"w": LowRank(d.B[:, :2].clone(), d.A[:2].clone(), 1.0, torch.float64)})
    assert inclusion_score(whole, part, candidate=name) == pytest.approx(1.0 - 25.0 / 30.0)


def test_scores_of_projections_against_their_definitions() -> None:
    a, b = vector(5), vector(6)
    there, back = (spectral_projection(*pair) for pair in ((a, b), (b, a)))
    names = sorted(a.tensors)

    def mean(gap: Callable[[SpectralProjection, SpectralProjection], float]) -> float:
        return sum(gap(there[n], back[n]) for n in names) / len(names)

    assert inclusion_score(a, b, candidate="rec") == pytest.approx(mean(lambda f, g: f.rec - g.rec))
    assert inclusion_score(a, b, candidate="l1") == pytest.approx(mean(lambda f, g: g.lp(1) - f.lp(1)))
    assert inclusion_score(a, b, candidate="entropy-2") == pytest.approx(mean(lambda f, g: g.entropy_2 - f.entropy_2))
    assert inclusion_score(a, b, candidate="entropy") == pytest.approx(mean(lambda f, g: f.entropy_1 - g.entropy_1))


def test_undefined_tensors_are_left_out() -> None:
    a = vector(1)
    zero = LowRank(torch.zeros(M, 2).double(), torch.ones(2, N).double(), 1.0, torch.float64)
    b = TaskVector(BASE, {"layer.0.weight": zero, "layer.1.weight": vector(2).tensors["layer.1.weight"]})
    found = features([a, b])
    for name in CANDIDATES:
        per = CANDIDATES[name].per_tensor(found)
        assert bool(per[0, 0, 1].isnan()) and float(scores(found, name)[0, 1]) == pytest.approx(float(per[1, 0, 1]))


def test_dense_and_low_rank_and_biases_mix() -> None:
    a, b = vector(3), vector(4)
    W = {name: Dense(d.dense(), torch.float64) for name, d in b.tensors.items()}
    mixed = TaskVector(BASE, W | {"layer.0.bias": Dense(torch.ones(M).double(), torch.float64)})
    plain, other = features([a, b]), features([a, mixed])
    assert other.names == plain.names
    for name in CANDIDATES:
        torch.testing.assert_close(scores(plain, name), scores(other, name), atol=1e-8, rtol=1e-8)


def test_unknown_candidates_are_refused() -> None:
    with pytest.raises(
        ComgradError, match="inclusion score 'size'; there is none of that name; choose one of: entropy"
    ):
        inclusion_score(vector(1), vector(2), candidate="size")


def test_on_the_shipped_zoo(zoo: list[Path]) -> None:
    """Real adapters: entropy against a plain SVD of the dense delta."""
    some = [TaskVector.from_peft(p) for p in zoo[:3]]
    found: Features = features(some)
    assert len(found.names) == 24 and found.pairs["rec"].shape == (24, 3, 3)
    d = some[1].tensors[found.names[5]]
    S = torch.linalg.svdvals(d.dense().double())[: int(canonical(d).rank[0])]
    p = S / S.sum()
    assert float(found.own["entropy"][5, 1]) == pytest.approx(float(-(p * p.log()).sum() / torch.tensor(8.0).log()))
    assert float(found.own["stable_rank"][5, 1]) == pytest.approx(float(S.square().sum() / S[0] ** 2))
