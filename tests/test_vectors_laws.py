"""The laws of the vector space, and low-rank against dense, by hypothesis; references are plain fp64 matrices."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import BaseMismatch, ComgradError, ShapeMismatch, Undefined
from comgrad.types import BaseRef
from comgrad.vectors import delta as _delta
from comgrad.vectors.delta import Delta, Dense, LowRank, Pinned
from comgrad.vectors.task_vector import Deferred, TaskVector

BASE = BaseRef("b")
M, N = 7, 5
Spec = tuple[int, str, float, int]
laws = settings(max_examples=40, deadline=None)


def make(spec: Spec, wide: bool = True) -> TaskVector:
    """Four possible tensors: a matrix, a transposed matrix, a kernel, a bias; in fp64, so that laws are tight."""
    seed, kinds, scale, r = spec
    g = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if wide else torch.float32

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    out: dict[str, Delta] = {}
    if kinds[0] != "-":
        out["a.weight"] = LowRank(rand(M, r), rand(r, N), scale) if kinds[0] == "l" else Dense(rand(M, N))
    if kinds[1] != "-":
        low = LowRank(rand(M, r), rand(r, N), scale, transposed=True)
        out["b.weight"] = low if kinds[1] == "l" else Dense(rand(M, N), transposed=True)
    if kinds[2] != "-":
        low = LowRank(rand(3, r), rand(r, 8), scale, weight_shape=(3, 2, 2, 2))
        out["c.weight"] = low if kinds[2] == "l" else Dense(rand(3, 2, 2, 2))
    if kinds[3] != "-":
        out["d.bias"] = Dense(rand(M))
    return TaskVector(BASE, out)


# Only the recipe is drawn: the run-time type checker draws random numbers, which a strategy must not.
specs = st.tuples(
    st.integers(0, 2**31),
    st.text("ld-", min_size=4, max_size=4).filter(lambda k: k != "----"),
    st.sampled_from([1.0, 2.0, -0.5, 1 / 3]),
    st.integers(1, 4),
)


def flat(tau: TaskVector) -> dict[str, torch.Tensor]:
    """τ as the base stores it, in fp64: the reference."""
    return {n: d.in_base_layout().double() for n, d in tau.tensors.items()}


def close(a: TaskVector, b: TaskVector, tol: float = 1e-11) -> None:
    x, y = flat(a), flat(b)
    assert set(x) == set(y)
    for n in x:
        torch.testing.assert_close(x[n], y[n], rtol=tol, atol=tol)


coefficients = st.floats(-4, 4).filter(lambda c: abs(c) > 1e-3)


@laws
@given(one=specs, two=specs, three=specs, a=coefficients, b=coefficients)
def test_vector_space(one: Spec, two: Spec, three: Spec, a: float, b: float) -> None:
    u, v, w = make(one), make(two), make(three)
    close(u + v, v + u)
    close((u + v) + w, u + (v + w))
    close(a * (u + v), a * u + a * v)
    close((a + b) * u, a * u + b * u)
    close(a * (b * u), (a * b) * u, 1e-10)
    close(1.0 * u, u)
    close(-u, -1.0 * u)
    close(u - v, u + (-v))
    close(u / a, (1 / a) * u)
    assert (u - u).norm() <= 1e-12 * u.norm()
    close((u + v) - v + (v - v), u + (v - v), 1e-10)


@laws
@given(one=specs, two=specs)
def test_sums_are_sums_of_the_dense_tensors(one: Spec, two: Spec) -> None:
    u, v = make(one), make(two)
    x, y, s = flat(u), flat(v), flat(u + v)
    for n in s:
        terms = [t[n] for t in (x, y) if n in t]
        torch.testing.assert_close(s[n], torch.stack(terms).sum(0), rtol=1e-12, atol=1e-12)
        both = [t.tensors[n] for t in (u, v) if n in t.tensors]
        assert isinstance((u + v).tensors[n], LowRank) == all(isinstance(d, LowRank) for d in both)


@laws
@given(one=specs, two=specs, three=specs, a=coefficients)
def test_inner_product(one: Spec, two: Spec, three: Spec, a: float) -> None:
    u, v, w = make(one), make(two), make(three)
    x, y = flat(u), flat(v)
    reference = math.fsum(float((x[n] * y[n]).sum()) for n in set(x) & set(y))
    size = u.norm() * v.norm() + 1
    assert u.inner(v) == pytest.approx(reference, abs=1e-11 * size)
    assert u.inner(v) == pytest.approx(v.inner(u), abs=1e-12 * size)
    assert (a * u + w).inner(v) == pytest.approx(a * u.inner(v) + w.inner(v), abs=1e-10 * (size + w.norm() * v.norm()))
    assert u.norm() == pytest.approx(math.sqrt(sum(float(t.square().sum()) for t in x.values())), rel=1e-12)
    assert abs(u.inner(v)) <= u.norm() * v.norm() * (1 + 1e-12)
    assert u.norm() > 0 and u.cosine(u) == pytest.approx(1.0) and u.cosine(-2.0 * u) == pytest.approx(-1.0)
    p = u.project_onto(v)
    assert (u - p).inner(v) == pytest.approx(0, abs=1e-9 * size)
    close(p.project_onto(v), p, 1e-9)


@laws
@given(spec=specs)
def test_low_rank_is_dense_on_every_operation(spec: Spec) -> None:
    v = make(spec, wide=False)
    dense = TaskVector(
        BASE, {n: Dense(d.dense().reshape(_full(d)), transposed=d.transposed) for n, d in v.tensors.items()}
    )
    close(v, dense, 1e-5)
    close(v + v, dense + dense, 1e-5)
    assert v.inner(dense) == pytest.approx(dense.inner(dense), rel=1e-5)
    assert dense.inner(v) == pytest.approx(v.inner(v), rel=1e-5)
    for rank in (1, 2, 9):
        one, kept = v.compress(rank)
        other, also = dense.compress(rank)
        assert kept == pytest.approx(also, abs=1e-6) and 0 <= kept <= 1 + 1e-12
        assert (one - other).norm() <= 1e-4 * (1 + v.norm()) or kept < 1 - 1e-9  # ties in σ may break either way


def _full(d: Delta) -> tuple[int, ...]:
    return d.weight_shape if isinstance(d, LowRank) and d.weight_shape else d.shape


@laws
@given(seed=st.integers(0, 2**31), exponent=st.floats(0, 6), r=st.integers(1, 5))
def test_gauge_invariance_up_to_condition_1e6(seed: int, exponent: float, r: int) -> None:
    """(B·G, G⁻¹·A) is the same adapter: inner product, norm and recompression agree for cond(G) ≤ 1e6."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    spectrum = torch.logspace(0, exponent, r, dtype=torch.float64) if r > 1 else torch.ones(1, dtype=torch.float64)
    Q1, Q2 = torch.linalg.qr(rand(r, r))[0], torch.linalg.qr(rand(r, r))[0]
    G, inverse = Q1 @ torch.diag(spectrum) @ Q2.T, Q2 @ torch.diag(1 / spectrum) @ Q1.T
    B, A = rand(30, r), rand(r, 20)
    one = TaskVector(BASE, {"x": LowRank(B, A, 0.5)})
    other = TaskVector(BASE, {"x": LowRank(B @ G, inverse @ A, 0.5)})
    third = TaskVector(BASE, {"x": LowRank(rand(30, 3), rand(3, 20))})
    assert other.norm() == pytest.approx(one.norm(), rel=1e-8)
    assert other.inner(third) == pytest.approx(one.inner(third), abs=1e-8 * one.norm() * third.norm())
    for rank in {1, r}:
        a, kept = one.compress(rank)
        b, also = other.compress(rank)
        assert kept == pytest.approx(also, rel=1e-8)
        torch.testing.assert_close(a.tensors["x"].dense(), b.tensors["x"].dense(), rtol=1e-5, atol=1e-6)


def test_compress_is_the_truncated_svd_and_balanced() -> None:
    W = torch.randn(8, 6, dtype=torch.float64)
    S = torch.linalg.svdvals(W)
    small, kept = TaskVector(BASE, {"x": Dense(W)}).compress(3)
    d = small.tensors["x"]
    assert isinstance(d, LowRank) and d.rank == 3
    assert kept == pytest.approx(float(S[:3].square().sum() / S.square().sum()))
    assert float((W - d.dense()).square().sum()) == pytest.approx(float(S[3:].square().sum()))
    torch.testing.assert_close(d.B.T @ d.B, d.A @ d.A.T)


@pytest.mark.parametrize("shape", [(40, 56), (56, 40)])
@pytest.mark.parametrize("falls_to", [0.0, -2.0, -30.0])  # the last: below what squares can see, so by the whole SVD
def test_compress_of_a_sum_of_many_is_the_truncated_svd(shape: tuple[int, int], falls_to: float) -> None:
    m, n = shape
    generator = torch.Generator().manual_seed(3)
    B = torch.randn(m, 200, generator=generator) * torch.logspace(0, falls_to, 200)
    d = LowRank(B, torch.randn(200, n, generator=generator), scale=-0.7)
    W = -0.7 * (d.B.double() @ d.A.double())
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    small, kept = TaskVector(BASE, {"x": d}).compress(4)
    best = (U[:, :4] * S[:4]) @ Vh[:4]
    assert float((small.tensors["x"].dense() - best).norm()) <= 2e-6 * float(best.norm())
    assert kept == pytest.approx(float(S[:4].square().sum() / S.square().sum()), rel=1e-12)
    again, _ = TaskVector(BASE, {"x": Dense(W)}).compress(4)
    torch.testing.assert_close(again.tensors["x"].dense(), best)


def test_deferred_vectors_stay_deferred_and_drop_pins() -> None:
    pinned = Pinned(torch.tensor([0]), torch.tensor([1.0]))

    def get(name: str) -> Delta:
        return Dense(torch.ones(2, 2), pinned=pinned)

    tau = TaskVector(BASE, Deferred(("x", "y"), get))
    result = 0.5 * (tau + tau) - tau
    assert isinstance(result.tensors, Deferred)
    assert result.norm() == 0
    for changed in (tau * 1.0, tau + TaskVector(BASE, {"z": Dense(torch.ones(1))})):
        assert all(d.pinned is None for d in changed.tensors.values() if isinstance(d, Dense))
    assert not isinstance(tau.loaded().tensors, Deferred)
    with pytest.raises(KeyError):
        tau.tensors["q"]


def test_what_has_no_meaning_is_refused() -> None:
    one, zero = TaskVector(BASE, {"x": Dense(torch.ones(2))}), TaskVector(BASE, {"x": Dense(torch.zeros(2))})
    with pytest.raises(Undefined, match="no direction"):
        one.cosine(zero)
    with pytest.raises(Undefined, match="spans nothing"):
        one.project_onto(zero)
    with pytest.raises(BaseMismatch, match="different bases"):
        one + TaskVector(BaseRef("c"), one.tensors)
    with pytest.raises(ShapeMismatch, match="must have its shape"):
        one + TaskVector(BASE, {"x": Dense(torch.ones(3))})
    with pytest.raises(ShapeMismatch, match="must have its layout"):
        square = TaskVector(BASE, {"x": Dense(torch.ones(2, 2))})
        square + TaskVector(BASE, {"x": Dense(torch.ones(2, 2), transposed=True)})
    with pytest.raises(ShapeMismatch, match="with one r"):
        LowRank(torch.ones(2, 2), torch.ones(3, 2))
    with pytest.raises(ShapeMismatch, match="transpose"):
        Dense(torch.ones(2), transposed=True)
    with pytest.raises(ComgradError, match="finite number"):
        one * float("inf")
    with pytest.raises(ComgradError, match="at least one column"):
        one.compress(0)
    with pytest.raises(ComgradError, match="no tensors"):
        TaskVector(BASE, {})


def test_kind_and_rank() -> None:
    low, dense = LowRank(torch.ones(2, 1), torch.ones(1, 2)), Dense(torch.ones(2, 2))
    assert TaskVector(BASE, {"x": low}).kind == "lowrank" and TaskVector(BASE, {"x": low}).rank == 1
    assert TaskVector(BASE, {"x": low, "y": dense}).kind == "dense" and TaskVector(BASE, {"y": dense}).rank is None
    assert _delta.coarser(torch.bfloat16, torch.float16) == torch.bfloat16


def test_sum_and_foreign_operands() -> None:
    tau = TaskVector(BaseRef("b"), {"w": LowRank(torch.ones(3, 1), torch.ones(1, 2))})
    torch.testing.assert_close(sum([tau, tau, tau]).tensors["w"].dense(), 3 * tau.tensors["w"].dense())  # type: ignore[union-attr]
    with pytest.raises(TypeError):
        tau + 1  # type: ignore[operator]
    assert repr(tau) == "TaskVector(1 tensors over 'b' (not verified))"
