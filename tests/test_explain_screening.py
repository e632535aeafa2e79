"""The screen: finds what was planted, finds nothing in noise, is calibrated, and does not answer for strangers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from comgrad.errors import ComgradError
from comgrad.explain.screening import (
    CONSISTENT,
    REFUSED,
    SUSPICIOUS,
    UNEXPLAINED,
    Bank,
    Screen,
    fit,
)


def planted(n: int, gap: float, seed: int, features: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n vectors in groups of four, half of them poisoned, whose first feature is `gap` larger."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2 == 1
    X = rng.normal(size=(n, features))
    X[:, 0] += gap * y
    return X * np.array([1, 100, 0.01, 1, 1, 1])[:features] + 3.0, y, np.arange(n) // 4


def area(screen: Screen, X: np.ndarray, y: np.ndarray) -> float:
    return float(roc_auc_score(y, [j.score for j in screen.judge(X)]))


def test_what_is_separable_is_separated() -> None:
    X, y, groups = planted(160, 9.0, 0)
    more, truth, _ = planted(160, 9.0, 1)
    screen = fit(X, y, groups)
    assert area(screen, more, truth) == 1.0
    said = screen.judge(more)
    right = [j.answer == (SUSPICIOUS if t else CONSISTENT) for j, t in zip(said, truth, strict=True)]
    assert np.mean(right) > 0.75  # each side errs on its level, a tenth
    assert all((j.probability > 0.5) == t for j, t in zip(said, truth, strict=True))


def test_labels_that_mean_nothing_teach_nothing() -> None:
    areas = []
    for seed in range(6):
        X, y, groups = planted(120, 5.0, seed)
        rng = np.random.default_rng(seed)
        more, truth, _ = planted(200, 5.0, 50 + seed)
        areas.append(area(fit(X, rng.permutation(y), groups), more, rng.permutation(truth)))
    assert abs(np.mean(areas) - 0.5) < 0.06


def test_probabilities_are_calibrated_and_errors_keep_their_level() -> None:
    X, y, groups = planted(600, 1.5, 2)
    more, truth, _ = planted(3000, 1.5, 3)
    said = fit(X, y, groups).judge(more)
    chance = np.array([j.probability for j in said])
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
        part = (chance >= low) & (chance < high)
        assert abs(chance[part].mean() - truth[part].mean()) < 0.06
    answers = np.array([j.answer for j in said])
    assert (answers[~truth] == SUSPICIOUS).mean() < 0.14  # the level is 0.1
    assert (answers[truth] == CONSISTENT).mean() < 0.14
    assert (answers == REFUSED).mean() < 0.03
    assert (answers == UNEXPLAINED).mean() > 0.2  # the two kinds overlap
    p = np.sort([j.p_benign for j, t in zip(said, truth, strict=True) if not t])
    assert np.abs(p - np.linspace(0, 1, len(p))).max() < 0.1  # uniform


def test_a_vector_far_from_all_is_refused_whatever_its_score() -> None:
    X, y, groups = planted(200, 6.0, 4)
    screen = fit(X, y, groups)
    far = X.mean(axis=0) + 60.0 * X.std(axis=0) * np.array([[1, 1, 1, 1, 1, 1], [-1, 1, -1, 1, -1, 1]])
    for j in screen.judge(far):
        assert j.answer == REFUSED
        assert j.p_known < 0.01
    assert sum(j.answer == REFUSED for j in screen.judge(X)) < 8


def test_groups_are_never_divided_between_folds() -> None:
    """Features that only tell the group must not look like a skill: each group is of one kind."""
    rng = np.random.default_rng(6)
    groups = np.arange(240) // 8
    y = groups % 2 == 1
    X = rng.normal(size=(30, 5))[groups] + 0.01 * rng.normal(size=(240, 5))
    chance = np.array([j.probability for j in fit(X, y, groups).judge(rng.normal(size=(200, 5)))])
    assert np.abs(chance - 0.5).mean() < 0.25  # divided groups would make it sure of itself


@given(st.integers(0, 10**6), st.floats(0.1, 50.0))
@settings(max_examples=8)
def test_units_do_not_matter(seed: int, c: float) -> None:
    X, y, groups = planted(60, 2.0, seed)
    more, _, _ = planted(10, 2.0, seed + 1)
    factors = np.array([c, 1 / c, 1.0, c, 1.0, 1.0])
    a, b = fit(X, y, groups).judge(more), fit(X * factors, y, groups).judge(more * factors)
    np.testing.assert_allclose([j.score for j in a], [j.score for j in b], rtol=1e-3, atol=1e-3)


def test_what_cannot_be_fitted_is_refused() -> None:
    X, y, groups = planted(40, 2.0, 0)
    with pytest.raises(ComgradError, match="at least two groups of either kind") as refused:
        fit(X, np.arange(40) < 2, groups)
    assert refused.value.code == "too-few"
    broken = X.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ComgradError, match="1 entries that are no number"):
        fit(broken, y, groups)
    with pytest.raises(ComgradError, match="no number"):
        fit(X, y, groups).judge(broken)


# -- the bank ----------------------------------------------------------------------------------------------------------
def test_a_row_is_seen_beside_its_own_task_without_its_own_group() -> None:
    rng = np.random.default_rng(1)
    X, tasks, groups = rng.normal(size=(6, 3)), ("a", "a", "a", "b", "b", "c"), np.arange(6)
    inside = np.concatenate([X[:3] - X[:3].mean(0), X[3:5] - X[3:5].mean(0), X[5:] - X[5:]])
    spread = np.sqrt((inside**2).sum(0) / 3)  # six rows less three means
    bank = Bank(X, tasks, groups)
    new = rng.normal(size=(1, 3))
    np.testing.assert_allclose(bank.relative(new, ["a"], np.array([9])), (new - X[:3].mean(0)) / spread)
    np.testing.assert_allclose(bank.relative(X[:1], ["a"], np.array([0])), (X[:1] - X[1:3].mean(0)) / spread)
    np.testing.assert_allclose(bank.relative(new, ["d"], np.array([9])), (new - X.mean(0)) / spread)
    strict = Bank(X, tasks, groups, least=3)
    np.testing.assert_allclose(strict.relative(new, ["b"], np.array([9])), (new - X.mean(0)) / spread)


def test_a_bank_forgives_what_differs_between_tasks() -> None:
    """A shift of every task hides the poison from raw features, not from those beside the bank."""
    rng = np.random.default_rng(2)
    tasks = [f"t{i % 6}" for i in range(240)]
    groups = np.arange(240) // 4
    y = np.arange(240) // 6 % 2 == 1
    X = rng.normal(size=(240, 2)) + np.repeat(rng.normal(size=(6, 2)) * 30, 40, axis=0).reshape(6, 40, 2).swapaxes(
        0, 1
    ).reshape(240, 2)
    X[:, 0] += 4.0 * y
    bank = Bank(X[~y], tuple(t for t, b in zip(tasks, y, strict=True) if not b), groups[~y])
    beside = bank.relative(X, tasks, groups)
    assert roc_auc_score(y, beside[:, 0]) > 0.97
    assert roc_auc_score(y, X[:, 0]) < 0.75


def test_a_bank_of_the_row_s_own_group_alone_is_refused() -> None:
    bank = Bank(np.ones((2, 2)), ("a", "a"), np.array([1, 1]))
    with pytest.raises(ComgradError, match="a bank of one group"):
        bank.relative(np.ones((1, 2)), ["a"], np.array([1]))
    np.testing.assert_allclose(bank.relative(np.ones((1, 2)) * 3, ["a"], np.array([2])), 2.0)  # no spread counts as 1
