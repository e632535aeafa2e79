"""Kernel ridge over descriptions: the closed forms against refitting without the left-out task."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.predict.ridge import fit, leave_one_out, left_out_confidence, left_out_weights


def problem(seed: int, K: int = 9, d: int = 5, D: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Random unit embeddings (K, d) and vectors (K, D)."""
    rng = np.random.default_rng(seed)
    E = rng.normal(size=(K, d))
    return E / np.linalg.norm(E, axis=1, keepdims=True), rng.normal(size=(K, D))


def kernel_of(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    return np.exp((a @ b.T - 1) / width)


def refit_and_predict(E: np.ndarray, T: np.ndarray, e: np.ndarray, lam: float, width: float) -> np.ndarray:
    """Kernel ridge with a free intercept, by its normal equations: minimise ‖T − 1b − KA‖² + λ tr(AᵀKA)."""
    K, n = kernel_of(E, E, width), len(E)
    system = np.block([[K + lam * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    solution = np.linalg.solve(system, np.vstack([T, np.zeros((1, T.shape[1]))]))
    return kernel_of(e[None], E, width)[0] @ solution[:n] + solution[n]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), lam=st.floats(0.01, 50.0))
def test_left_out_weights_equal_refitting_without_the_task(seed: int, lam: float) -> None:
    E, T = problem(seed)
    L = left_out_weights(kernel_of(E, E, 0.5), lam)
    for i in range(len(E)):
        others = [j for j in range(len(E)) if j != i]
        expected = refit_and_predict(E[others], T[others], E[i], lam, 0.5)
        np.testing.assert_allclose(L[i] @ T, expected, atol=1e-9)
    np.testing.assert_allclose(np.diag(L), 0.0, atol=0)
    np.testing.assert_allclose(L.sum(axis=1), 1.0, atol=1e-10)


def test_infinite_lambda_is_the_mean_of_the_others() -> None:
    E, T = problem(1)
    L = left_out_weights(kernel_of(E, E, 0.5), np.inf)
    np.testing.assert_allclose(L @ T, (T.sum(axis=0) - T) / (len(T) - 1), atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_reported_error_is_the_error_of_the_vectors(seed: int) -> None:
    E, T = problem(seed)
    found = leave_one_out(kernel_of(E, E, 0.5), T @ T.T, 1.0)
    predicted, own = left_out_weights(kernel_of(E, E, 0.5), 1.0) @ T, (T**2).sum(axis=1)

    def best_scale(tasks: list[int]) -> float:  # least squares, each task's residual measured in its own norm
        x = np.concatenate([predicted[i] / own[i] ** 0.5 for i in tasks])
        y = np.concatenate([T[i] / own[i] ** 0.5 for i in tasks])
        return float(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])

    assert found.scale == pytest.approx(best_scale(list(range(len(T)))), rel=1e-9)
    for i in range(len(T)):
        scale = best_scale([j for j in range(len(T)) if j != i])
        assert found.per_task[i] == pytest.approx(((T[i] - scale * predicted[i]) ** 2).sum() / own[i], rel=1e-9)


def test_coefficients_equal_refitting_on_all() -> None:
    E, T = problem(3)
    T = T[:, :1] * 0 + E @ np.random.default_rng(0).normal(size=(5, 40))  # descriptions do predict these vectors
    predictor = fit(E, T @ T.T)
    assert predictor.rule == "ridge"
    e = problem(77)[0][0]
    expected = predictor.chosen.scale * refit_and_predict(E, T, e, predictor.chosen.lam, predictor.width)
    np.testing.assert_allclose(predictor.coefficients(e) @ T, expected, atol=1e-8)


def test_vectors_that_share_only_a_mean_are_predicted_by_the_mean() -> None:
    rules = []
    for seed in range(8):
        E, T = problem(seed, K=30, D=2000)
        predictor = fit(E, (T + 3.0) @ (T + 3.0).T)
        rules.append(predictor.rule)
        assert predictor.chosen.error < 0.5
        if predictor.rule == "mean":
            assert len(set(predictor.coefficients(E[0]).round(12))) == 1
    assert rules.count("mean") >= 7  # two standard errors let chance through about once in forty


def test_unrelated_vectors_are_not_predicted_at_all() -> None:
    rules = []
    for seed in range(40):
        E, T = problem(seed, K=20, D=300)
        predictor = fit(E, T @ T.T)
        rules.append(predictor.rule)
        assert predictor.coefficients(E[0]).any() == (predictor.rule != "zero")
    assert rules.count("zero") >= 38


def test_a_zero_vector_makes_no_prediction_rather_than_nan() -> None:
    E, T = problem(2)
    T[3] = 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        predictor = fit(E, T @ T.T)
    assert predictor.rule == "zero"


@pytest.mark.parametrize("K", [1, 2])
def test_too_few_vectors_to_leave_one_out(K: int) -> None:
    E, T = problem(7, K=K)
    assert fit(E, T @ T.T).rule == "zero"


def test_left_out_confidence_equals_refitting() -> None:
    E, _ = problem(8)
    T = E @ np.random.default_rng(1).normal(size=(5, 40))
    predictor = fit(E, T @ T.T)
    kernel, lam = kernel_of(E, E, predictor.width), predictor.chosen.lam
    for i, found in enumerate(left_out_confidence(predictor)):
        o = [j for j in range(len(E)) if j != i]
        k = kernel[i, o]
        expected = k @ np.linalg.solve(kernel[np.ix_(o, o)] + lam * np.eye(len(o)), k)
        assert found == pytest.approx(expected, abs=1e-10)
