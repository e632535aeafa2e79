import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import ComgradError, Undefined
from comgrad.geometry.kernels import entropy
from comgrad.geometry.spectral import SpectralProjection, project_delta, spectral_projection
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("tiny")


def lowrank(r: int, seed: int, m: int = 12, n: int = 9, scale: float = 1.5) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    B, A = torch.randn(m, r, generator=g, dtype=torch.float64), torch.randn(r, n, generator=g, dtype=torch.float64)
    return LowRank(B, A, scale=scale, stored=torch.float64)


def pair(a: Delta, b: Delta) -> SpectralProjection:
    found = project_delta(a, b)
    assert found is not None
    return found


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000), st.booleans())
@settings(max_examples=50, deadline=None)
def test_s2_solves_the_least_squares_over_diagonal_matrices(r1: int, r2: int, seed: int, dense: bool) -> None:
    a, b = lowrank(r1, seed), lowrank(r2, seed + 1)
    found = pair(a, Dense(b.dense(), stored=torch.float64) if dense else b)
    U, S, Vh = np.linalg.svd(a.dense().numpy())
    atoms = np.stack([np.outer(U[:, i], Vh[i]).ravel() for i in range(r1)], axis=1)  # (mn, r1)
    W2 = b.dense().numpy()
    solution, *_ = np.linalg.lstsq(atoms, W2.ravel(), rcond=None)
    np.testing.assert_allclose(found.s1.numpy(), S[:r1], rtol=1e-10)
    np.testing.assert_allclose(found.s2.numpy(), solution, atol=1e-10)
    residual = np.linalg.norm(atoms @ solution - W2.ravel()) ** 2
    assert found.explained == pytest.approx(1 - residual / np.linalg.norm(W2) ** 2, abs=1e-12)
    core = U[:, :r1].T @ W2 @ Vh[:r1].T
    assert found.core_explained == pytest.approx((core**2).sum() / (W2**2).sum(), abs=1e-12)
    assert found.core_explained >= found.explained - 1e-15


def test_measures_are_their_formulas() -> None:
    s1, s2 = torch.tensor([3.0, 2.0, 1.0]).double(), torch.tensor([-1.0, 0.5, 0.5]).double()
    p = SpectralProjection(s1, s2, energy=6.0, core_energy=3.0)
    assert p.explained == pytest.approx(1.5 / 6)
    assert p.core_explained == pytest.approx(0.5)
    assert p.lp(1) == pytest.approx(4 + 1.5 + 0.5)
    assert p.lp(2) == pytest.approx(math.sqrt(16 + 2.25 + 0.25))
    assert p.lp(3) == pytest.approx((64 + 3.375 + 0.125) ** (1 / 3))
    assert p.rec == pytest.approx(min(0.5, 0.5) + min(1 / 3, 0.25) + min(1 / 6, 0.25))
    assert p.lp(1, normalised=True) == pytest.approx(2 * (1 - p.rec))
    h = -(0.5 * math.log(0.5) + 1 / 3 * math.log(1 / 3) + 1 / 6 * math.log(1 / 6)) / math.log(3)
    assert p.entropy_1 == pytest.approx(h)
    assert p.entropy_2 == pytest.approx(1.5 * math.log(2) / math.log(3))
    with pytest.raises(ComgradError, match="at least 1"):
        p.lp(0.5)


def test_on_itself_a_delta_is_explained_whole() -> None:
    a = lowrank(3, 0)
    p = pair(a, a)
    torch.testing.assert_close(p.s1, p.s2, rtol=1e-12, atol=0)
    assert (p.explained, p.core_explained, p.rec) == pytest.approx((1.0, 1.0, 1.0), abs=1e-12)
    assert p.lp(1) < 1e-12
    assert p.entropy_1 == pytest.approx(p.entropy_2)
    negated = pair(a, a.scaled(-1.0))  # the sign is kept: L1 doubles, REC does not see it
    torch.testing.assert_close(negated.s2, -p.s1, rtol=1e-12, atol=0)
    assert negated.lp(1) == pytest.approx(2 * float(p.s1.sum()))
    assert negated.rec == pytest.approx(1.0)


def test_entropy_conventions() -> None:
    assert float(entropy(torch.ones(4).double(), torch.tensor(4))) == pytest.approx(1.0)
    assert float(entropy(torch.tensor([2.0]).double(), torch.tensor(1))) == 0.0
    assert float(entropy(torch.tensor([2.0, 0.0]).double(), torch.tensor(2))) == 0.0
    assert math.isnan(float(entropy(torch.zeros(3).double(), torch.tensor(3))))
    assert math.isnan(float(entropy(torch.zeros(3).double(), torch.tensor(0))))


def test_signs_and_gauge_do_not_matter() -> None:
    a, b = lowrank(4, 0), lowrank(3, 1)
    G = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    reference = pair(a, b)
    for other in (
        LowRank(-a.B, -a.A, a.scale, torch.float64),
        LowRank(-a.B, a.A, -a.scale, torch.float64),
        LowRank(a.B @ G, torch.linalg.solve(G, a.A), a.scale, torch.float64),
        Dense(a.dense(), stored=torch.float64),
    ):
        found = pair(other, b)
        torch.testing.assert_close(found.s1, reference.s1, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(found.s2, reference.s2, rtol=1e-10, atol=1e-11)


def test_vectors_are_walked_tensor_by_tensor_and_zeros_refused() -> None:
    zero = LowRank(torch.zeros(12, 2), torch.ones(2, 9))
    a = TaskVector(BASE, {"u": lowrank(2, 0), "v": lowrank(3, 1), "bias": Dense(torch.ones(3))})
    b = TaskVector(BASE, {"u": lowrank(2, 2), "v": zero, "bias": Dense(torch.ones(3))})
    assert set(spectral_projection(a, a)) == {"u", "v"}
    assert set(spectral_projection(a, b, skip_undefined=True)) == {"u"}
    with pytest.raises(Undefined, match="spectral projection on 'v'; a delta is zero there"):
        spectral_projection(a, b)
    with pytest.raises(Undefined, match="no matrix on which both"):
        spectral_projection(TaskVector(BASE, {"v": zero}), a, skip_undefined=True)
    ahead, back = (
        spectral_projection(a, b, skip_undefined=True)["u"],
        spectral_projection(b, a, skip_undefined=True)["u"],
    )
    assert ahead.explained != pytest.approx(back.explained)
