"""Points placed on a finished map: where their neighbours are, each by itself, whatever the rest is."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.atlas.placing import centred, place

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, n: int, landmarks: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (n, landmarks)), rng.standard_normal((landmarks, 2))


@given(SEEDS, st.integers(1, 20), st.integers(1, 12), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_a_place_is_the_weighted_mean_of_the_nearest_and_depends_on_no_other_point(
    seed: int, n: int, landmarks: int, nearest: int
) -> None:
    s, at = drawn(seed, n, landmarks)
    found, first = place(s, at, nearest=nearest)
    for i in range(n):
        order = sorted(range(landmarks), key=lambda j: -s[i, j])[:nearest]
        weights = [max(s[i, j], 1e-3) ** 2 for j in order]
        expected = sum(w * at[j] for w, j in zip(weights, order, strict=True)) / sum(weights)
        np.testing.assert_allclose(found[i], expected, rtol=1e-9, atol=1e-12)
        assert first[i] == order[0]
        alone, _ = place(s[i : i + 1], at, nearest=nearest)
        np.testing.assert_array_equal(alone[0], found[i])


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_turning_the_map_turns_the_places_with_it(seed: int) -> None:
    s, at = drawn(seed, 7, 9)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    np.testing.assert_allclose(place(s, at @ turn + 3.0)[0], place(s, at)[0] @ turn + 3.0, atol=1e-9)


def test_centred_rows_have_the_centred_cosines_and_nothing_undefined() -> None:
    rows = np.random.default_rng(0).standard_normal((6, 5))
    mean = rows.mean(axis=0)
    made = centred(np.vstack([rows, mean]), mean)
    for i in range(6):
        for j in range(6):
            a, b = rows[i] - mean, rows[j] - mean
            assert np.isclose(made[i] @ made[j], a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert not made[6].any()
