"""Few-shot coefficients: the convex problem against an independent solver, and the loop's promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from comgrad.predict.fewshot import Linearised, fit, mode, precision


def _world(seed: int, n: int = 40, C: int = 3, K: int = 6) -> Linearised:
    rng = np.random.default_rng(seed)
    return Linearised(rng.normal(size=(n, C)), rng.normal(size=(n, C, K)), rng.integers(0, C, n))


def _loss(model: Linearised, c: np.ndarray) -> float:
    z = model.logits + model.jacobian @ c
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return float(-np.log(p[np.arange(len(z)), model.labels]).mean())


@pytest.mark.parametrize("decay", [0.03, 0.3])
def test_two_classes_without_prior_are_logistic_regression(decay: float) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), rng.integers(0, 2, 60)
    phi = np.stack([-X / 2, X / 2], axis=1)
    found = mode(Linearised(np.zeros((60, 2)), phi, y), np.zeros(4), np.zeros(4), decay * np.eye(4))
    reference = LogisticRegression(C=1 / (60 * decay), fit_intercept=False, tol=1e-10).fit(X, y).coef_[0]
    np.testing.assert_allclose(found, reference, atol=2e-3)


@given(st.integers(0, 500))
def test_the_mode_is_a_minimum_of_the_penalised_loss(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, prior = _world(seed), rng.normal(size=6)
    raw = rng.normal(size=(6, 6))
    P = raw @ raw.T / 6 + 0.2 * np.eye(6)

    def value(c: np.ndarray) -> float:
        return _loss(model, c) + 0.5 * (c - prior) @ P @ (c - prior)

    best = mode(model, np.zeros(6), prior, P)
    assert all(value(best) <= value(best + 0.05 * rng.normal(size=6)) + 1e-6 for _ in range(20))


@given(st.integers(0, 200))
def test_the_mode_does_not_depend_on_where_a_linear_model_is_expanded(seed: int) -> None:
    model, P = _world(seed), 0.3 * np.eye(6)
    at = np.random.default_rng(seed + 1).normal(size=6)
    moved = Linearised(model.logits + model.jacobian @ at, model.jacobian, model.labels)
    zero = np.zeros(6)
    np.testing.assert_allclose(mode(model, zero, zero, P), mode(moved, at, zero, P), atol=3e-3)


def test_a_strong_prior_wins_and_no_information_returns_it() -> None:
    prior = np.arange(6.0)
    np.testing.assert_allclose(mode(_world(0), np.zeros(6), prior, 1e6 * np.eye(6)), prior, atol=1e-3)
    silent = Linearised(np.zeros((5, 2)), np.zeros((5, 2, 6)), np.zeros(5, dtype=int))
    np.testing.assert_allclose(mode(silent, np.zeros(6), prior, np.eye(6)), prior, atol=1e-4)


@given(st.integers(0, 100))
def test_the_loop_never_ends_above_the_base_model(seed: int) -> None:
    """A true loss that the linearisation misjudges: bent logits."""
    model = _world(seed, n=12)

    def bent(c: np.ndarray) -> float:
        return _loss(model, c - 0.5 * c * np.abs(c))

    found = fit(lambda c: model, bent, np.zeros(6), 0.1 * np.eye(6))
    assert bent(found) <= bent(np.zeros(6))


def test_nothing_better_than_the_base_is_exactly_zero() -> None:
    model = _world(3)
    found = fit(lambda c: model, lambda c: 1.0 + float(np.abs(c).sum()), np.zeros(6), 0.3 * np.eye(6))
    assert not found.any()


def test_the_prior_weighs_less_with_more_examples() -> None:
    S = np.diag([0.0, 1.0])
    few, many = precision(np.eye(2), S, 16), precision(np.eye(2), S, 160)
    assert few[0, 0] == many[0, 0] and few[1, 1] > many[1, 1]
