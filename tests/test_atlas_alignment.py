"""Procrustes: planted turns, reflections, shifts and scales are found, and nothing else is called the same shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comgrad.atlas.alignment import align, shuffled_drift

seeds = st.integers(0, 10**6)


def cloud(seed: int, n: int = 12, d: int = 2) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).standard_normal((n, d)) * [3.0, *([1.0] * (d - 1))]


def turned(
    x: np.ndarray[Any, np.dtype[np.float64]], angle: float, mirror: bool
) -> np.ndarray[Any, np.dtype[np.float64]]:
    R = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return x @ (R @ np.diag([1.0, -1.0 if mirror else 1.0]))


@given(seeds, st.floats(-7, 7), st.booleans(), st.floats(1e-3, 1e3), st.floats(-50, 50))
def test_a_planted_transform_is_undone(seed: int, angle: float, mirror: bool, scale: float, shift: float) -> None:
    y = cloud(seed)
    x = turned(y, angle, mirror) * scale + [shift, -shift]
    found = align(x, y)
    np.testing.assert_allclose(found.moved, y, atol=1e-8)
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(2), atol=1e-12)
    assert np.sign(np.linalg.det(found.rotation)) == (-1 if mirror else 1)
    assert found.scale == pytest.approx(1.0 / scale)
    assert found.overall < 1e-8
    np.testing.assert_allclose(found.apply(x[:3]), y[:3], atol=1e-8)


@given(seeds, seeds, st.floats(-7, 7), st.booleans(), st.floats(0.01, 100))
def test_drift_does_not_depend_on_how_either_map_lies(a: int, b: int, angle: float, mirror: bool, scale: float) -> None:
    x, y = cloud(a), cloud(b)
    plain = align(x, y)
    np.testing.assert_allclose(align(turned(x, angle, mirror) * scale + 4.0, y).drift, plain.drift, atol=1e-7)
    np.testing.assert_allclose(align(x, turned(y, angle, mirror) * scale - 1.0).drift, plain.drift, atol=1e-7)


@given(seeds, seeds, st.floats(-3, 3), st.floats(0.2, 3), st.booleans())
def test_no_other_transform_does_better(a: int, b: int, angle: float, scale: float, mirror: bool) -> None:
    x, y = cloud(a), cloud(b)
    best = align(x, y)
    other = turned(x - x.mean(axis=0), angle, mirror) * scale + y.mean(axis=0)
    assert ((best.moved - y) ** 2).sum() <= ((other - y) ** 2).sum() + 1e-9
    radius = ((y - y.mean(axis=0)) ** 2).sum(axis=1).mean() ** 0.5
    assert best.overall == pytest.approx(((best.moved - y) ** 2).sum(axis=1).mean() ** 0.5 / radius)
    assert 0.0 <= best.overall <= 1.0 + 1e-12


def test_one_moved_point_is_the_one_that_drifted() -> None:
    y = cloud(3, n=20)
    x = turned(y, 2.0, True) * 0.1
    x[7] += 0.5
    found = align(x, y)
    assert int(found.drift.argmax()) == 7
    assert found.drift[7] > 4 * np.sort(found.drift)[-2]


def test_a_flat_map_is_turned_and_not_mirrored() -> None:
    line = np.stack([np.arange(6.0), np.zeros(6)], axis=1)
    for mirror in (False, True):
        found = align(turned(line, 0.3, mirror), line)
        assert np.linalg.det(found.rotation) == pytest.approx(1.0)
        np.testing.assert_allclose(found.moved, line, atol=1e-9)


def test_maps_of_one_place_do_not_divide_by_zero() -> None:
    same = np.ones((4, 2))
    found = align(same, same)
    assert found.overall == 0.0 and not found.drift.any()


def test_shuffled_maps_drift_by_nearly_the_radius() -> None:
    y = cloud(5, n=40)
    null = shuffled_drift(y, y, rounds=50, seed=1)
    assert null.shape == (50,) and null.min() > 0.6 and null.max() <= 1.0
    np.testing.assert_array_equal(null, shuffled_drift(y, y, rounds=50, seed=1))
