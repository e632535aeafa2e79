"""TSV-M, Iso-C and KnOTS against ten lines of numpy on dense matrices, and the laws their formulas imply."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.merge import merge
from comgrad.vectors.merging import common
from comgrad.vectors.task_vector import Deferred, TaskVector
from merge_vectors import BASE, Array, Plain, difference, plain, same, vector
from test_vectors_merge_sparse import band, elected

EPS = 1e-6


def triples(x: Array) -> tuple[Array, Array, Array]:
    """SVD without the directions that carry nothing."""
    U, S, Vh = np.linalg.svd(x, full_matrices=False)
    k = int(np.count_nonzero(S / S[0] > 1e-5)) if S[0] > 1e-12 else 0
    return U[:, :k], S[:k], Vh[:k]


def polar(M: Array) -> Array:
    P, _, Qh = triples(M)
    return P @ Qh


def tsv_m(xs: list[Array]) -> Array:
    if xs[0].ndim < 2:
        return np.asarray(sum(xs) / len(xs))
    k = max(1, min(xs[0].shape) // len(xs))
    parts = [triples(x) for x in xs]
    U, V = np.hstack([p[0][:, :k] for p in parts]), np.hstack([p[2][:k].T for p in parts])
    return polar(U) @ np.diag(np.concatenate([p[1][:k] for p in parts])) @ polar(V).T


def iso_c(xs: list[Array]) -> Array:
    if xs[0].ndim < 2:
        return np.asarray(sum(xs) / len(xs))
    U, S, Vh = triples(np.asarray(sum(xs)))
    return S.mean() * U @ Vh


def knots(xs: list[Plain], weights: list[float], density: float, scope: str) -> Plain:
    basis = {
        n: triples(np.hstack([x[n] for x in xs]))[0] if xs[0][n].ndim == 2 else np.eye(len(xs[0][n])) for n in xs[0]
    }
    P = [{n: basis[n].T @ x[n] for n in x} for x in xs]
    kept = [band(p, set(p), density, 0.0, scope) for p in P]
    return {n: basis[n] @ elected([k[n] for k in kept], weights) for n in basis}


@settings(max_examples=25)
@given(
    kinds=st.sampled_from([["lL", "Ll"], ["lLb", "lLb", "lLb"], ["ldb", "ddb"], ["dtb", "dt-", "dt-"], ["lld"]]),
    seed=st.integers(0, 999),
    name=st.sampled_from(["tsv-m", "iso-c"]),
    data=st.data(),
)
def test_tsv_m_and_iso_c_are_their_formulas(kinds: list[str], seed: int, name: str, data: st.DataObject) -> None:
    weights = [data.draw(st.sampled_from([1.0, 0.5, -0.25, 2.0])) for _ in kinds]
    vectors = [vector(seed + i, k) for i, k in enumerate(kinds)]
    xs = plain(vectors)
    formula: Callable[[list[Array]], Array] = tsv_m if name == "tsv-m" else iso_c
    want = {n: formula([w * x[n] for w, x in zip(weights, xs, strict=True)]) for n in xs[0]}
    merged = merge(vectors, name, weights)
    assert difference(merged, want) < 1e-5
    for n, d in merged.tensors.items():
        assert isinstance(d, LowRank) == all(isinstance(v.tensors[n], LowRank) for v in vectors if n in v.tensors)


@settings(max_examples=20)
@given(
    kinds=st.sampled_from([["lL", "Ll"], ["lLb", "lLb", "lLb"], ["ldb", "ddb"]]),
    seed=st.integers(0, 999),
    density=st.floats(0.05, 1.0),
    scope=st.sampled_from(["global", "tensor"]),
    data=st.data(),
)
def test_knots_is_its_formula(kinds: list[str], seed: int, density: float, scope: str, data: st.DataObject) -> None:
    weights = [data.draw(st.sampled_from([1.0, 0.5, -0.25, 2.0])) for _ in kinds]
    vectors = [vector(seed + i, k) for i, k in enumerate(kinds)]
    merged = merge(vectors, "knots", weights, density=density, scope=scope)
    assert difference(merged, knots(plain(vectors), weights, density, scope)) < 1e-5
    for n, d in merged.tensors.items():
        terms = [v.tensors[n] for v in vectors]
        low = [t.rank for t in terms if isinstance(t, LowRank)]
        assert isinstance(d, LowRank) == (len(low) == len(terms))
        if isinstance(d, LowRank):
            assert d.rank <= sum(low)
            assert float(d.B.norm()) == pytest.approx(float(d.A.norm()), rel=1e-3)


@pytest.mark.parametrize("inner", ["sum", "dare"])
def test_knots_with_a_linear_inner_method_is_the_sum(inner: str) -> None:
    vectors = [vector(1), vector(2, "dL-b"), vector(3, "l-db")]
    weights = [1.0, -2.0, 0.5]
    merged = merge(vectors, "knots", weights, inner=inner, density=1.0)
    assert same(merged, merge(vectors, "sum", weights)) < EPS


METHODS = ["tsv-m", "iso-c", "knots"]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=6)
@given(seed=st.integers(0, 999), factor=st.sampled_from([0.25, 2.0, -1.0, -8.0]))
def test_laws_of_spectral_methods(method: str, seed: int, factor: float) -> None:
    vectors = [vector(seed + i, k) for i, k in enumerate(("lLdb", "lL-b", "Ll-b"))]
    weights = [1.0, 0.5, -2.0]
    merged = merge(vectors, method, weights)
    assert same(merge([v * factor for v in vectors], method, weights), merged, factor) < 1e-5
    order = [2, 0, 1]
    assert same(merge([vectors[i] for i in order], method, [weights[i] for i in order]), merged) < 1e-5
    opposite = (
        merge([vectors[0], -vectors[0]], method, density=1.0)
        if method == "knots"
        else merge([vectors[0], -vectors[0]], method)
    )
    assert max(float(d.dense().abs().max()) for d in opposite.tensors.values()) < 1e-6
    a, dense = vectors[0], TaskVector(BASE, {n: Dense(d.dense()) for n, d in vectors[0].tensors.items()})
    assert same(merge([dense, vectors[1]], method), merge([a, vectors[1]], method)) < 1e-4  # the form does not matter


def test_one_vector_and_copies_of_it() -> None:
    a = vector(3, "lLdb")
    for method, more in (("tsv-m", {}), ("knots", {"density": 1.0})):
        assert same(merge([a], method, **more), a) < EPS
    low = vector(3, "lL")  # two copies of a rank that fits into half the dimensions
    assert same(merge([low, low], "tsv-m"), low) < EPS
    assert same(merge([low, low], "knots", density=1.0), low) < EPS
    assert same(merge([low, low], "iso-c"), merge([low], "iso-c"), 2.0) < EPS


def test_iso_c_flattens_the_spectrum_and_keeps_the_spaces() -> None:
    vectors = [vector(1, "lL"), vector(2, "lL")]
    flat, summed = merge(vectors, "iso-c"), merge(vectors, "sum")
    for n in ("t0", "t1"):
        S = np.linalg.svd(flat.tensors[n].dense().numpy(), compute_uv=False)
        U, T, Vh = triples(summed.tensors[n].dense().double().numpy())
        assert flat.tensors[n].rank == len(T)  # type: ignore[union-attr]
        np.testing.assert_allclose(S[: len(T)], T.mean(), rtol=1e-5)
        W = flat.tensors[n].dense().double().numpy()
        np.testing.assert_allclose(U @ (U.T @ W), W, atol=1e-5)
        np.testing.assert_allclose((W @ Vh.T) @ Vh, W, atol=1e-5)


def test_tsv_m_of_vectors_that_do_not_interfere_is_their_sum() -> None:
    Q = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1))).Q
    parts = [TaskVector(BASE, {"t": LowRank(Q[:, i : i + 3] * (i + 1), Q[i : i + 3])}) for i in (0, 3, 6)]
    assert same(merge(parts, "tsv-m"), merge(parts, "sum")) < EPS


def test_more_vectors_than_dimensions() -> None:
    many = [TaskVector(BASE, {"t": Dense(vector(i, "d").tensors["t0"].dense()[:3, :2])}) for i in range(5)]
    out = merge(many, "tsv-m").tensors["t"].dense()
    leading = sorted(max(np.linalg.svd(p["t"], compute_uv=False)) for p in plain(many))[-2:]
    np.testing.assert_allclose(
        np.linalg.norm(out.numpy()), np.linalg.norm(leading), rtol=1e-5
    )  # two orthonormal pairs, each with one vector's strength
    assert bool(torch.isfinite(merge(many, "knots").tensors["t"].dense()).all())


@pytest.mark.parametrize("method", METHODS)
def test_zero_vectors(method: str) -> None:
    zero = TaskVector(BASE, {"l": LowRank(torch.zeros(6, 2), torch.randn(2, 5)), "d": Dense(torch.zeros(6, 5))})
    merged = merge([zero, zero], method)
    assert [float(d.dense().abs().max()) for d in merged.tensors.values()] == [0.0, 0.0]
    other = TaskVector(BASE, {"l": LowRank(torch.randn(6, 2), torch.randn(2, 5))})
    assert same(merge([other, zero * 1.0], method), merge([other, zero], method)) == 0.0
    no_part = (
        merge([other, TaskVector(BASE, {"l": zero.tensors["l"]})], method, density=1.0)
        if method == "knots"
        else (merge([other, TaskVector(BASE, {"l": zero.tensors["l"]})], method))
    )
    if method != "iso-c":
        assert same(no_part, other) < EPS


@pytest.mark.parametrize("method", METHODS)
def test_convolutions_and_transposed_layouts(method: str) -> None:
    g = torch.Generator().manual_seed(5)
    B, A = torch.randn(4, 2, generator=g), torch.randn(2, 12, generator=g)
    kernel: dict[str, Delta] = {"c": LowRank(B, A, weight_shape=(4, 3, 2, 2))}
    dense: dict[str, Delta] = {"c": Dense((B @ A).reshape(4, 3, 2, 2))}
    flat: dict[str, Delta] = {"c": LowRank(B, A)}
    other: dict[str, Delta] = {"c": LowRank(A[:, :4].T.clone(), A.flip(1))}
    shaped = merge([TaskVector(BASE, kernel), TaskVector(BASE, dense)], method).tensors["c"]
    low = merge([TaskVector(BASE, kernel), TaskVector(BASE, kernel)], method).tensors["c"]
    want = merge([TaskVector(BASE, flat), TaskVector(BASE, flat)], method).tensors["c"]
    for d in (shaped, low):
        assert tuple(d.in_base_layout().shape) == (4, 3, 2, 2)
        torch.testing.assert_close(d.in_base_layout().reshape(4, 12), want.dense(), rtol=1e-4, atol=1e-5)
    turned: dict[str, Delta] = {"c": LowRank(B, A, transposed=True)}
    pair = merge(
        [TaskVector(BASE, turned), TaskVector(BASE, {"c": LowRank(other["c"].B, other["c"].A, transposed=True)})],
        method,
    )  # type: ignore[union-attr]
    straight = merge([TaskVector(BASE, flat), TaskVector(BASE, other)], method)
    assert pair.tensors["c"].in_base_layout().T.equal(straight.tensors["c"].in_base_layout())


@pytest.mark.parametrize("method", METHODS)
def test_large_and_deferred_merges(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = [vector(1), vector(2)]
    now = merge(vectors, method)
    lazy = [TaskVector(BASE, Deferred(tuple(v.tensors), v.tensors.__getitem__)) for v in vectors]
    monkeypatch.setattr(common, "IN_MEMORY", 10)
    for later in (merge(vectors, method), merge(lazy, method)):
        assert isinstance(later.tensors, Deferred)
        assert all(later.tensors[n].dense().equal(now.tensors[n].dense()) for n in reversed(tuple(now.tensors)))


def test_knots_never_forms_a_low_rank_matrix() -> None:
    big = [TaskVector(BASE, {"t": LowRank(torch.randn(200_000, 1), torch.randn(1, 150_000))}) for _ in range(2)]
    merged = merge(big, "knots").tensors["t"]  # 120 GB each if it were formed
    assert isinstance(merged, LowRank)
    assert merged.shape == (200_000, 150_000)
