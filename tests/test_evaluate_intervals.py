"""Bootstrap intervals against a bootstrap that resamples rows one by one."""

from __future__ import annotations

import numpy as np
import pytest

from comgrad.errors import Undefined
from comgrad.evaluate.intervals import mean_interval, ratio


def answers(seed: int, n: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


@pytest.mark.parametrize("over_tasks", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_multinomial_draw_is_the_plain_bootstrap(over_tasks: bool, normalised: bool) -> None:
    right = [answers(k, 150 + 20 * k, 0.4 + 0.1 * k) for k in range(4)]
    below = [answers(9 + k, len(a), 0.9) for k, a in enumerate(right)]
    rng = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        values = []
        for t in rng.integers(4, size=4) if over_tasks else range(4):
            rows = rng.integers(len(right[t]), size=len(right[t]))
            values.append(right[t][rows].mean() / (below[t][rows].mean() if normalised else 1.0))
        means.append(np.mean(values))
    low, high = np.quantile(means, [0.025, 0.975])
    found = mean_interval(right, below if normalised else None, over_tasks=over_tasks, draws=4000, seed=2)
    width = high - low
    assert abs(found.low - low) < 0.08 * width and abs(found.high - high) < 0.08 * width
    assert found == mean_interval(right, below if normalised else None, over_tasks=over_tasks, draws=4000, seed=2)


def test_a_model_divided_by_itself_is_one_in_every_draw() -> None:
    a = answers(0, 40, 0.5)
    found = mean_interval([a], [a], draws=500)
    assert found.low == found.high == 1.0


def test_tasks_add_to_the_spread() -> None:
    right = [answers(k, 400, 0.2 + 0.15 * k) for k in range(5)]
    wide, narrow = mean_interval(right), mean_interval(right, over_tasks=False)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_nothing_to_divide_by() -> None:
    none = np.zeros(10, dtype=bool)
    assert np.isnan(mean_interval([none], [none], draws=10).low)
    with pytest.raises(Undefined, match="the model fine-tuned on it has no right answer"):
        ratio(0.5, 0.0, "task")
    assert ratio(0.25, 0.5, "task") == 0.5
