import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import BaseMismatch, ComgradError, ShapeMismatch, Undefined
from comgrad.geometry.angles import (
    angles_of_deltas,
    grassmann,
    grassmann_by_tensor,
    principal_angles,
    undefined_tensors,
)
from comgrad.geometry.kernels import angles_exact, angles_inside
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("tiny")


def vector(**tensors: LowRank | Dense) -> TaskVector:
    return TaskVector(BASE, dict(tensors))


def lowrank(m: int, r: int, n: int, seed: int, dtype: torch.dtype = torch.float64) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    B, A = torch.randn(m, r, generator=g, dtype=torch.float64), torch.randn(r, n, generator=g, dtype=torch.float64)
    return LowRank(B.to(dtype), A.to(dtype), stored=dtype)


def at_angles(m: int, theta: list[float], seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal bases, rounded to dtype, of two spaces with the planted principal angles."""
    k = len(theta)
    g = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(m, 2 * k, generator=g, dtype=torch.float64))
    t = torch.tensor(theta, dtype=torch.float64)
    return Q[:, :k].to(dtype), (Q[:, :k] * t.cos() + Q[:, k:] * t.sin()).to(dtype)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_agrees_with_scipy_on_full_rank_fp64(r1: int, r2: int, seed: int) -> None:
    a, b = lowrank(24, r1, 13, seed), lowrank(24, r2, 13, seed + 1)
    found, ranks = angles_of_deltas(a, b)
    assert ranks == (r1, r2)
    expected = scipy.linalg.subspace_angles(a.B.numpy(), b.B.numpy())[::-1]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-10)


THETAS = [1e-4, 3e-4, 1e-3, 1e-2, 0.1, 0.5, 0.8, 1.2, 1.5, math.pi / 2 - 1e-4]


@pytest.mark.parametrize("seed", range(5))
def test_planted_angles_in_fp64(seed: int) -> None:
    small = [1e-10, 1e-8, 1e-6]
    B1, B2 = at_angles(384, small + THETAS, seed, torch.float64)
    found = angles_exact(B1.T[None], B2.T[None])[0]
    np.testing.assert_allclose(found.numpy(), small + THETAS, rtol=0, atol=4e-15)
    np.testing.assert_allclose(found[3:].numpy(), THETAS, rtol=1e-10)
    padded = torch.cat([B2.T, torch.zeros(3, 384).double()])[None]  # rows beyond a rank are zero in a batch
    for pair in ((B1.T[None], padded), (padded, B1.T[None]), (padded, torch.cat([B1.T, torch.zeros(3, 384)])[None])):
        again = angles_exact(*pair)[0][: found.numel()]
        np.testing.assert_allclose(again.numpy(), found.numpy(), rtol=0, atol=4e-15)


@pytest.mark.parametrize("theta", THETAS)
def test_planted_angle_of_fp32_factors(theta: float) -> None:
    """One angle on all 8 directions, factors rounded to fp32: their mean is right to 1e-5 or to 2e-9 rad.

    Rounding the factors turns the spaces by about 1e-9 rad, which is 1e-5 of an angle of 1e-4: that part no method
    can undo. What the method adds is measured against fp64 scipy on the same rounded factors.
    """
    worst = added = 0.0
    for seed in range(4):
        B1, B2 = at_angles(384, [theta] * 8, seed, torch.float64)
        g = torch.Generator().manual_seed(seed)
        mixes = [torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64))[0] for _ in range(2)]
        deltas = [
            LowRank((B @ mix).float(), torch.randn(8, 64, generator=g)) for B, mix in zip((B1, B2), mixes, strict=True)
        ]
        found, _ = angles_of_deltas(*deltas)
        exact = np.sort(scipy.linalg.subspace_angles(deltas[0].B.double().numpy(), deltas[1].B.double().numpy()))
        added = max(added, float(np.abs(found.numpy() / exact - 1).max()))
        worst = max(worst, float((found.mean() / theta - 1).abs()))
    assert worst <= max(1e-5, 2e-9 / theta)
    assert added <= 1e-9


def test_arccos_alone_fails_where_the_sine_form_does_not() -> None:
    """The guard can fail: the textbook formula, in the precision of the factors, loses an angle of 1e-4."""
    B1, B2 = at_angles(384, [1e-4] * 8, 0, torch.float32)
    naive = torch.linalg.svdvals(B1.T @ B2).clamp(max=1.0).arccos()
    assert float((naive.double() / 1e-4 - 1).abs().max()) > 0.5
    ours = angles_exact(B1.double().T[None], torch.linalg.qr(B2.double())[0].T[None])[0]
    assert float((ours / 1e-4 - 1).abs().max()) < 1e-2


@given(st.integers(0, 500), st.floats(1.1e-3, math.pi / 2 - 2e-5), st.floats(1.1e-3, math.pi / 2 - 2e-5))
@settings(max_examples=60, deadline=None)
def test_the_fast_form_agrees_with_the_exact_one_inside(seed: int, t1: float, t2: float) -> None:
    B1, B2 = at_angles(40, sorted([t1, t2, 0.7]), seed, torch.float64)
    fast, _ = angles_inside((B1.T @ B2)[None])
    exact = angles_exact(B1.T[None], B2.T[None])
    torch.testing.assert_close(fast, exact, rtol=0, atol=1e-10)


def test_self_distance_over_the_24_tensors_of_real_adapters(zoo: list[Path]) -> None:
    """Total over all tensors and angles: 1e-12 rad as read, and between the adapter and another form of it."""
    for folder in zoo[:6]:
        tau = TaskVector.from_peft(folder)
        assert len(tau.tensors) == 24
        assert sum(grassmann_by_tensor(tau, tau).values()) <= 1e-12
        g = torch.Generator().manual_seed(0)
        turned = {}
        for name, d in tau.tensors.items():
            assert isinstance(d, LowRank)
            G, _ = torch.linalg.qr(torch.randn(d.rank, d.rank, generator=g, dtype=torch.float64))
            turned[name] = LowRank(
                (d.B.double() @ G).float(), (G.T @ d.A.double()).float(), scale=d.scale, stored=torch.float32
            )
        other = TaskVector(tau.base, turned)
        total = sum(grassmann_by_tensor(other, other).values())
        assert total <= 1e-12
        assert sum(grassmann_by_tensor(tau, other).values()) <= 1e-4 * 24  # rounding of the rotated factors to fp32


@given(st.integers(0, 1000), st.floats(0.0, 6.0))
@settings(max_examples=40, deadline=None)
def test_gauge_invariance(seed: int, exponent: float) -> None:
    """(B, A) → (BG, G⁻¹A): forming BG rounds to eps·cond(G) of the space, and that is what the angle may differ by."""
    g = torch.Generator().manual_seed(seed)
    condition = 10.0**exponent
    a, b = lowrank(96, 6, 80, seed), lowrank(96, 6, 80, seed + 1)
    U, _ = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))
    S = torch.logspace(0, -exponent, 6, dtype=torch.float64)
    turned = LowRank(a.B @ (U * S) @ V.T, V @ ((U / S).T @ a.A), stored=torch.float64)
    before, _ = angles_of_deltas(a, b)
    after, ranks = angles_of_deltas(turned, b)
    assert ranks == (6, 6)
    np.testing.assert_allclose(after.numpy(), before.numpy(), rtol=0, atol=2e-15 * condition + 1e-13)


def test_rank_deficient_storage_is_at_distance_zero_from_itself() -> None:
    """The same 4-dimensional space stored twice with 16 columns; a QR of all columns says 13 to 17 radians."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(768, 4, generator=g, dtype=torch.float64)
    for dtype, limit in [(torch.bfloat16, 0.1), (torch.float16, 0.02), (torch.float32, 1e-5)]:
        stored = [
            LowRank(
                (X @ torch.randn(4, 16, generator=g, dtype=torch.float64)).to(dtype),
                torch.randn(16, 64, generator=g).to(dtype),
                stored=dtype,
            )
            for _ in range(2)
        ]
        theta, ranks = angles_of_deltas(*stored)
        assert ranks == (4, 4)
        assert float(theta.sum()) < limit
        plain = scipy.linalg.subspace_angles(stored[0].B.double().numpy(), stored[1].B.double().numpy())
        assert float(plain.sum()) > 10


def test_distances_and_conventions_for_equal_and_unequal_ranks() -> None:
    theta = [0.2, 0.9]
    B1, B2 = at_angles(30, theta, 0, torch.float64)
    extra = torch.linalg.qr(torch.cat([B1, B2, torch.eye(30).double()], 1))[0][:, 4:5]
    A2, A3 = torch.eye(2, 9).double(), torch.eye(3, 9).double()
    a = vector(w=LowRank(B1, A2, stored=torch.float64))
    b = vector(w=LowRank(B2, A2, stored=torch.float64))
    wide = vector(w=LowRank(torch.cat([B2, extra], 1), A3, stored=torch.float64))
    t = np.array(theta)
    sine, right = float((np.sin(t) ** 2).sum()), math.pi / 2
    expected = {
        "grassmann_l1": (t.sum(), t.sum() + right),
        "geodesic": (np.linalg.norm(t), math.sqrt((t**2).sum() + right**2)),
        "chordal": (math.sqrt(sine), math.sqrt(sine + 1)),
        "projection": (math.sin(0.9), 1.0),
        "overlap": ((np.cos(t) ** 2).sum() / 2, (np.cos(t) ** 2).sum() / 3),
    }
    for variant, (contained, full) in expected.items():
        assert grassmann(a, b, variant) == pytest.approx(contained, abs=1e-13)
        assert grassmann(a, b, variant, convention="full") == pytest.approx(contained, abs=1e-13)
        assert grassmann(a, wide, variant) == pytest.approx(contained, abs=1e-13)
        assert grassmann(wide, a, variant, convention="full") == pytest.approx(full, abs=1e-13)
    projectors = B1 @ B1.T - B2 @ B2.T
    assert grassmann(a, b, "projection") == pytest.approx(float(torch.linalg.matrix_norm(projectors, 2)), abs=1e-12)
    assert grassmann(a, b, "chordal") == pytest.approx(float(projectors.norm()) / math.sqrt(2), abs=1e-12)
    assert grassmann(b, wide) < 1e-12  # one space inside the other


def test_the_mean_over_tensors_skips_what_is_no_matrix() -> None:
    a = vector(u=lowrank(9, 2, 7, 0), v=lowrank(9, 3, 7, 1), bias=Dense(torch.ones(4)))
    b = vector(u=lowrank(9, 2, 7, 2), v=lowrank(9, 3, 7, 3), bias=Dense(torch.ones(4)))
    by_tensor = grassmann_by_tensor(a, b)
    assert set(by_tensor) == {"u", "v"}
    assert grassmann(a, b) == pytest.approx(sum(by_tensor.values()) / 2, rel=1e-15)
    assert {n: t.shape for n, t in principal_angles(a, b).items()} == {"u": (2,), "v": (3,)}


def test_a_zero_delta_has_no_angle() -> None:
    zero = LowRank(torch.zeros(9, 2), torch.ones(2, 7))
    a, b = vector(u=lowrank(9, 2, 7, 0), v=lowrank(9, 2, 7, 1)), vector(u=zero, v=lowrank(9, 2, 7, 2))
    with pytest.raises(Undefined, match="angles on 'u'; a delta is zero there.*skip_undefined=True"):
        grassmann(a, b)
    assert undefined_tensors(a, b) == ("u",)
    assert grassmann(a, b, skip_undefined=True) == pytest.approx(grassmann_by_tensor(a, b, skip_undefined=True)["v"])
    with pytest.raises(Undefined, match="no matrix on which both are different from zero"):
        principal_angles(vector(u=zero), a, skip_undefined=True)
    with pytest.raises(Undefined, match="no matrix on which both"):
        principal_angles(vector(x=zero), a)


def test_mistakes_are_refused_by_name() -> None:
    a = vector(u=lowrank(9, 2, 7, 0))
    with pytest.raises(ComgradError, match="variant 'riemann'.*use one of grassmann_l1"):
        grassmann(a, a, "riemann")
    with pytest.raises(BaseMismatch, match="different bases"):
        grassmann(a, TaskVector(BaseRef("other"), dict(a.tensors)))
    with pytest.raises(ShapeMismatch, match="tensor 'u'"):
        principal_angles(a, vector(u=lowrank(8, 2, 7, 0)))
