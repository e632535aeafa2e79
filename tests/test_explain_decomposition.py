"""Decomposition: planted sums come back, the optimum is one, and nothing depends on lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from comgrad.explain.decomposition import ENOUGH, decompose, non_negative

SEEDS = st.integers(0, 10_000)


def vectors(seed: int, K: int, n: int = 200) -> np.ndarray:
    """K vectors with a common part, of different lengths."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((K, n)) + 0.5 * rng.standard_normal(n)
    return X * rng.uniform(0.1, 10.0, size=(K, 1))


@given(SEEDS, st.integers(2, 12))
@settings(max_examples=25)
def test_a_planted_sum_is_found(seed: int, K: int) -> None:
    X = vectors(seed, K)
    rng = np.random.default_rng(seed + 1)
    c = np.where(rng.random(K) < 0.5, rng.uniform(0.5, 2.0, K), 0.0)
    c[0] = 1.0
    tau = c @ X
    found = decompose(X @ X.T, X @ tau, float(tau @ tau), most=K)
    assert found.full_residual < 1e-9
    # the path ends once it explains nine tenths of what all vectors explain, which is everything here
    assert found.explained >= ENOUGH - 1e-9
    everything = non_negative(X @ X.T, X @ tau)
    np.testing.assert_allclose(everything, c, atol=1e-6 * np.abs(c).max())


@given(SEEDS, st.integers(1, 10))
@settings(max_examples=25)
def test_the_solution_satisfies_the_conditions_of_an_optimum(seed: int, K: int) -> None:
    """c ≥ 0; the residual is orthogonal to what is used and at no acute angle to what is not."""
    X = vectors(seed, K)
    tau = np.random.default_rng(seed + 2).standard_normal(X.shape[1]) + 0.3 * X[0]
    G, b = X @ X.T, X @ tau
    c = non_negative(G, b)
    slope = (b - G @ c) / np.sqrt(np.diag(G)) / np.linalg.norm(tau)
    assert (c >= 0).all()
    assert np.abs(slope[c > 0]).max(initial=0.0) < 1e-8
    assert slope[c == 0].max(initial=-1.0) < 1e-8


def test_it_is_the_minimum_that_a_general_solver_finds() -> None:
    X = vectors(5, 6)
    tau = np.random.default_rng(6).standard_normal(X.shape[1]) + X[1] / 3 - X[2] / 5
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    reference = minimize(
        lambda c: ((tau - c @ X) ** 2).sum(),
        np.zeros(6),
        jac=lambda c: -2 * X @ (tau - c @ X),
        bounds=[(0, None)] * 6,
        options={"ftol": 1e-15, "gtol": 1e-12},
    )
    np.testing.assert_allclose(non_negative(X @ X.T, X @ tau), reference.x, atol=1e-5)
    found = decompose(X @ X.T, X @ tau, float(tau @ tau), most=6)
    assert found.full_residual == pytest.approx(reference.fun / (tau @ tau), abs=1e-9)


@given(SEEDS, st.integers(2, 12), st.integers(1, 4))
@settings(max_examples=25)
def test_the_sparse_solution_is_optimal_on_what_it_uses_and_is_what_it_says(seed: int, K: int, most: int) -> None:
    X = vectors(seed, K)
    tau = np.random.default_rng(seed + 3).standard_normal(X.shape[1]) + X[:2].sum(axis=0) / 4
    found = decompose(X @ X.T, X @ tau, float(tau @ tau), most=most)
    used = np.flatnonzero(found.coefficients)
    assert set(used) == set(found.order.tolist())
    assert len(used) <= most
    rest = tau - found.coefficients @ X
    assert found.residual == pytest.approx(rest @ rest / (tau @ tau), abs=1e-9)
    assert found.full_residual <= found.residual + 1e-9
    angles = X[used] @ rest / np.linalg.norm(X[used], axis=1) / np.linalg.norm(tau)
    assert np.abs(angles).max(initial=0.0) < 1e-8
    shares = found.coefficients * (X @ tau) / (tau @ tau)
    assert shares.sum() == pytest.approx(1 - found.residual, abs=1e-9)  # what reports call shares adds up


@given(SEEDS, st.floats(0.01, 100.0))
@settings(max_examples=25)
def test_lengths_change_only_the_coefficients(seed: int, factor: float) -> None:
    X = vectors(seed, 8)
    rng = np.random.default_rng(seed + 4)
    tau = rng.standard_normal(X.shape[1]) + X[0] / 2 + X[3] / 2
    scale = rng.uniform(0.01, 100.0, size=8)
    a = decompose(X @ X.T, X @ tau, float(tau @ tau))
    Y, nu = X * scale[:, None], tau * factor
    b = decompose(Y @ Y.T, Y @ nu, float(nu @ nu))
    assert a.order.tolist() == b.order.tolist()
    assert a.residual == pytest.approx(b.residual, abs=1e-9)
    np.testing.assert_allclose(b.coefficients, a.coefficients * factor / scale, rtol=1e-5, atol=1e-12)


def test_copies_zeros_and_opposites_are_no_trouble() -> None:
    X = vectors(7, 4)
    X = np.concatenate([X, X[:1], 0 * X[:1], -X[1:2]])
    tau = X[0] * 2.0
    found = decompose(X @ X.T, X @ tau, float(tau @ tau))
    assert found.residual < 1e-12
    assert np.isfinite(found.coefficients).all()
    assert found.coefficients[[0, 4]].sum() == pytest.approx(2.0)
    assert found.coefficients[5] == 0.0
    away = decompose(X @ X.T, -(X @ tau), float(tau @ tau))
    assert away.coefficients[0] == 0.0  # a negative coefficient is no explanation


def test_a_zero_vector_has_no_decomposition() -> None:
    X = vectors(8, 3)
    found = decompose(X @ X.T, np.zeros(3), 0.0)
    assert (found.residual, found.full_residual, len(found.order)) == (1.0, 1.0, 0)
