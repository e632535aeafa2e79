"""The LoraHub-like search does what it says within its budget."""

from __future__ import annotations

import numpy as np
import pytest

from comgrad.workflows.bench.search import BOX, one_plus_one


@pytest.mark.parametrize("budget", [1, 40, 400])
def test_it_keeps_to_its_budget_and_its_box(budget: int) -> None:
    tried: list[np.ndarray] = []

    def objective(c: np.ndarray) -> float:
        tried.append(c.copy())
        return float(-c.sum())

    best = one_plus_one(objective, 20, budget, np.random.default_rng(0))
    assert len(tried) == budget
    assert not tried[0].any()
    assert np.abs(np.array(tried)).max() <= BOX
    assert -best.sum() == min(-c.sum() for c in tried)


def test_it_comes_near_a_minimum() -> None:
    goal = np.random.default_rng(1).uniform(-1.0, 1.0, 20)
    found = one_plus_one(lambda c: float(((c - goal) ** 2).sum()), 20, 400, np.random.default_rng(2))
    assert ((found - goal) ** 2).sum() < 0.15 * (goal**2).sum()


def test_it_repeats() -> None:
    runs = [one_plus_one(lambda c: float(np.cos(c).sum()), 5, 60, np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*runs)
