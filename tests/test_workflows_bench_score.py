"""The benchmark's figures against references written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comgrad.workflows.bench.score import (
    Losses,
    calibration,
    common,
    figures,
    gap_recovered,
    gr_difference,
    gr_interval,
    wilson,
)


def losses(loss: list[float], base: list[float], own: list[float], **more: object) -> Losses:
    n = len(loss)
    given = {
        "gap_error": np.zeros(n),
        "abstained": np.zeros(n, dtype=bool),
        "strength": np.full(n, np.nan),
        "expected": np.full(n, np.nan),
    } | {k: np.asarray(v) for k, v in more.items()}
    return Losses(tuple(f"t{i}" for i in range(n)), np.array(loss), np.array(base), np.array(own), **given)


@given(st.integers(1, 300), st.data())
def test_wilson_solves_the_score_test(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    for end, outside in zip(wilson(k, n), (0.0, 1.0), strict=True):
        if end not in (0.0, 1.0):  # an end is where the share observed is 1.96 standard errors of THAT share away
            assert abs(k / n - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), rel=1e-9)
        assert 0.0 <= end <= 1.0
        assert abs(end - outside) <= abs(k / n - outside) + 1e-12
    if k not in (0, n):
        assert wilson(k, n)[0] < k / n < wilson(k, n)[1]


def test_wilson_of_a_published_example() -> None:
    low, high = wilson(54, 60)  # "54/60 = 90 % -> [80, 95]"
    assert (round(low, 2), round(high, 2)) == (0.80, 0.95)
    assert all(math.isnan(x) for x in wilson(0, 0))


def test_the_figures_by_hand() -> None:
    x = losses([0.5, 1.0, 1.02, 1.2], [1.0] * 4, [0.0, 0.5, 0.9, 0.99], abstained=[False, True, False, False],
               gap_error=[0.0, 0.0, 0.0, 0.5])  # fmt: skip
    mean = losses([0.9, 0.9, 1.0, 1.0], [1.0] * 4, [0.0, 0.5, 0.9, 0.99], gap_error=[0.0, 0.0, 0.0, 0.5])
    f = figures(x, mean)
    gr, gr_mean = (0.5 + 0.0 - 0.02) / 1.6, 0.2 / 1.6  # the last task's gap of 0.01 is within two errors
    assert f["gr_tasks"] == 3
    assert f["gr"] == pytest.approx(gr)
    assert f["gr_median"] == pytest.approx(0.0)
    assert f["gr_beyond"] == pytest.approx((gr - gr_mean) / (1 - gr_mean))
    assert f["improved"] == 0.25
    assert f["improved_or_abstained"] == 0.5
    assert f["harmed"] == 0.5
    assert f["abstained"] == 0.25
    assert f["rld"] == pytest.approx((0.5 + 0.0 - 0.02 - 0.2) / 4)


def test_one_per_cent_worse_is_no_harm() -> None:
    assert figures(losses([1.01, 1.0101], [1.0, 1.0], [0.5, 0.5]), None)["harmed"] == 0.5


def test_an_abstention_that_kept_the_base_is_good_whatever_it_would_have_done() -> None:
    x = losses([1.0], [1.0], [0.5], abstained=[True])
    f = figures(x, None)
    assert (f["improved"], f["improved_or_abstained"], f["harmed"], f["gr"]) == (0.0, 1.0, 0.0, 0.0)


def test_without_own_adapters_there_is_no_gap() -> None:
    x = losses([0.5, 0.6], [1.0, 1.0], [np.nan, np.nan], gap_error=[np.nan, np.nan])
    assert math.isnan(gap_recovered(x))
    assert math.isnan(gr_difference(x, x).value)
    assert figures(x, x)["rld"] == pytest.approx(0.45)


def test_the_bootstrap_against_resampling_written_out() -> None:
    rng = np.random.default_rng(3)
    n = 25
    own = 1.0 - rng.uniform(0.1, 0.6, n)
    a, b = 1.0 - rng.uniform(-0.1, 0.3, n), 1.0 - rng.uniform(-0.1, 0.2, n)
    found = gr_difference(losses(list(a), [1.0] * n, list(own)), losses(list(b), [1.0] * n, list(own)))
    drawn = []
    for _ in range(10_000):
        at = rng.integers(0, n, n)
        drawn.append(sum(b[i] - a[i] for i in at) / sum(1.0 - own[i] for i in at))
    assert found.value == pytest.approx((b - a).sum() / (1.0 - own).sum())
    spread = float(np.std(drawn))
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.06 * spread)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.06 * spread)


def test_pairing_makes_a_constant_advantage_certain() -> None:
    rng = np.random.default_rng(0)
    b = 1.0 - rng.uniform(-0.5, 0.5, 30)
    found = gr_difference(losses(list(b - 0.1), [1.0] * 30, [0.0] * 30), losses(list(b), [1.0] * 30, [0.0] * 30))
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)
    assert found.p == pytest.approx(2e-4)  # the least that 10,000 draws can show


def test_equal_methods_do_not_differ() -> None:
    x = losses([0.8, 0.9, 1.1], [1.0] * 3, [0.2] * 3)
    found = gr_difference(x, x)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_the_bootstrap_repeats_and_follows_the_seed() -> None:
    x = losses([0.5, 0.9, 1.1, 0.2], [1.0] * 4, [0.1] * 4)
    assert gr_interval(x, seed=1) == gr_interval(x, seed=1)
    assert gr_interval(x, seed=1, draws=100) != gr_interval(x, seed=2, draws=100)


def test_a_comparison_is_on_the_tasks_both_have() -> None:
    a = losses([0.1, 0.2, 0.3], [1.0] * 3, [0.0] * 3)
    b = Losses(
        ("t2", "t0"),
        np.array([0.7, 0.8]),
        np.ones(2),
        np.zeros(2),
        np.zeros(2),
        np.zeros(2, bool),
        *[np.full(2, np.nan)] * 2,
    )
    with pytest.raises(ValueError, match="same tasks in the same order"):
        gr_difference(a, b)
    left, right = common([a, b])
    assert left.tasks == right.tasks == ("t0", "t2")
    assert list(left.loss) == [0.1, 0.3]
    assert list(right.loss) == [0.8, 0.7]


def test_calibration_of_a_method_that_knows() -> None:
    gain = np.array([0.1, 0.2, 0.3, -0.1])
    x = losses(list(1.0 - gain), [1.0] * 4, [0.0] * 4, strength=[2.0, 3.0, 5.0, -1.0], expected=2.0 * gain)
    found = calibration(x)
    assert found["strength_spearman"] == pytest.approx(1.0)
    assert found["expected_slope"] == pytest.approx(0.5)
