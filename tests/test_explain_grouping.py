"""Laws of the figures that say whether labels follow a similarity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score

from comgrad.errors import ComgradError
from comgrad.explain.grouping import (
    Null,
    above,
    agreement,
    answerable,
    codes,
    filled,
    linkage_clusters,
    majority_right,
    mantel,
    nearest,
    over_groups,
    principal_positions,
    ranks,
    shuffled,
    spearman_intervals,
    spectral_clusters,
    voted_right,
)

SEEDS = st.integers(0, 2**32 - 1)


def blobs(rng: np.random.Generator, sizes: tuple[int, ...], noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and minus the distances of points around far corners."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    points = 5.0 * np.eye(len(sizes))[labels] + noise * rng.standard_normal((len(labels), len(sizes)))
    return labels, -np.linalg.norm(points[:, None] - points, axis=2)


# -- ARI and NMI -------------------------------------------------------------------------------------------------------
@given(SEEDS, st.integers(2, 30), st.integers(1, 6), st.integers(1, 6))
def test_agreement_is_that_of_sklearn(seed, n, a, b):
    rng = np.random.default_rng(seed)
    clusters, labels = codes(list(map(str, rng.integers(a, size=n)))), rng.integers(b, size=(3, n))
    ari, nmi = agreement(clusters, labels)
    for d in range(3):
        assert ari[d] == pytest.approx(adjusted_rand_score(labels[d], clusters), abs=1e-9)
        if len(set(clusters)) > 1 or len(set(labels[d])) > 1:  # of two constants sklearn says 1, and so do we
            assert nmi[d] == pytest.approx(normalized_mutual_info_score(labels[d], clusters), abs=1e-9)
        else:
            assert nmi[d] == 1.0


@given(SEEDS, st.integers(4, 25))
def test_agreement_does_not_depend_on_the_names_of_labels(seed, n):
    rng = np.random.default_rng(seed)
    clusters, labels = rng.integers(3, size=n), rng.integers(4, size=n)
    renamed = rng.permutation(4)[labels]
    before, after = agreement(clusters, labels[None]), agreement(rng.permutation(3)[clusters], renamed[None])
    assert np.allclose(before, after, rtol=0, atol=1e-12)


@given(SEEDS)
@settings(max_examples=10)
def test_both_ways_of_clustering_find_planted_groups_and_no_others(seed):
    rng = np.random.default_rng(seed)
    labels, S = blobs(rng, (14, 12, 15))
    draws = shuffled(labels, np.arange(len(labels)), 200, rng)
    for clusters in (linkage_clusters(S, 3), spectral_clusters(S, 3)):
        assert agreement(clusters, labels[None])[0][0] == pytest.approx(1.0)
        ari = agreement(clusters, draws)[0]
        assert abs(ari.mean()) < 0.03
        assert Null.of(1.0, ari).p == pytest.approx(1 / 201)


@given(SEEDS, st.floats(0.1, 50), st.floats(-20, 20))
@settings(max_examples=20)
def test_clusters_do_not_depend_on_the_unit_of_a_similarity(seed, scale, shift):
    S = np.random.default_rng(seed).standard_normal((12, 12))
    for make in (linkage_clusters, spectral_clusters):
        assert agreement(make(S, 3), make(scale * S + shift, 3)[None])[0][0] == pytest.approx(1.0)


def test_undefined_pairs_are_the_farthest_and_all_undefined_is_refused():
    S = np.array([[9.0, 1.0, np.nan], [1.0, 9.0, 0.2], [np.nan, 0.2, 9.0]])
    assert filled(S)[0, 2] == pytest.approx(0.2)
    with pytest.raises(ComgradError, match="undefined everywhere"):
        filled(np.full((3, 3), np.nan))


# -- shuffles and bootstrap --------------------------------------------------------------------------------------------
@given(SEEDS, st.integers(2, 20), st.integers(1, 5))
def test_shuffles_keep_the_counts_of_labels(seed, n, g):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(4, size=n), codes(list(map(str, rng.integers(g, size=n))))
    for row in shuffled(labels, groups, 5, rng):
        assert np.array_equal(np.sort(row), np.sort(labels))


def test_labels_of_equal_groups_move_together():
    groups = np.repeat(np.arange(6), 3)
    labels = np.repeat(np.arange(6) % 2, 3)
    draws = shuffled(labels, groups, 50, np.random.default_rng(0))
    assert (draws.reshape(50, 6, 3) == draws.reshape(50, 6, 3)[:, :, :1]).all()
    assert len({tuple(r) for r in draws}) > 10


@given(SEEDS)
@settings(max_examples=20)
def test_an_interval_over_groups_holds_the_mean_and_is_wider_for_fewer_groups(seed):
    rng = np.random.default_rng(seed)
    effect = rng.permutation(np.repeat([0.0, 1.0], 5))
    values = np.repeat(effect, 8)
    low, high = over_groups(values, np.repeat(np.arange(10), 8), 400, rng)
    alone = over_groups(values, np.arange(80), 400, rng)
    assert low <= values.mean() <= high
    assert high - low > alone[1] - alone[0]


def test_p_counts_the_figure_itself():
    null = Null.of(0.5, np.linspace(0, 0.4, 99))
    assert null.p == pytest.approx(0.01)
    assert Null.of(0.0, np.zeros(9)).p == 1.0


# -- neighbours --------------------------------------------------------------------------------------------------------
@given(SEEDS, st.integers(1, 5))
def test_votes_are_those_of_a_plain_count(seed, k):
    rng = np.random.default_rng(seed)
    n = 9
    S, labels = rng.standard_normal((n, n)), rng.integers(3, size=n)
    allowed = ~np.eye(n, dtype=bool) & (rng.random((n, n)) > 0.3)
    got = voted_right(nearest(S, allowed, k), labels[None])[0]
    for i in range(n):
        near = sorted((j for j in range(n) if allowed[i, j]), key=lambda j: -S[i, j])[:k]
        votes = [labels[j] for j in near]
        winner = max(votes, key=lambda v: (votes.count(v), -votes.index(v))) if votes else None
        assert got[i] == float(winner == labels[i])


def test_planted_families_are_found_and_shuffled_ones_are_not():
    rng = np.random.default_rng(3)
    labels, S = blobs(rng, (10, 10, 10, 10))
    other = ~np.eye(40, dtype=bool)
    near = nearest(S, other, 1)
    assert voted_right(near, labels[None]).mean() == 1.0
    drawn = voted_right(near, shuffled(labels, np.arange(40), 500, rng)).mean(1)
    assert drawn.mean() == pytest.approx(9 / 39, abs=0.02)


def test_left_out_neighbours_do_not_answer():
    labels, groups = np.array([0, 0, 1, 1, 0]), np.array([0, 0, 1, 1, 2])
    S = -np.abs(np.arange(5.0)[:, None] - np.arange(5.0))
    away = groups[:, None] != groups
    assert nearest(S, away, 1)[:, 0].tolist() == [2, 2, 1, 4, 3]
    assert answerable(labels, away).tolist() == [True, True, False, False, True]
    assert nearest(S, np.zeros((5, 5), dtype=bool), 2).tolist() == [[-1, -1]] * 5


@given(SEEDS)
def test_the_baseline_answers_the_most_frequent_label(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=10)
    allowed = ~np.eye(10, dtype=bool)
    for i, right in enumerate(majority_right(labels, allowed)):
        others = np.bincount(np.delete(labels, i), minlength=3)
        assert right == float(others.argmax() == labels[i])


# -- identification ----------------------------------------------------------------------------------------------------
@given(SEEDS, st.integers(1, 6), st.integers(1, 9))
def test_ranks_are_between_first_and_last_and_do_not_change_with_the_scale(seed, q, k):
    rng = np.random.default_rng(seed)
    S, right = rng.standard_normal((q, k)), rng.integers(k, size=q)
    r = ranks(S, right)
    assert ((r >= 1) & (r <= k)).all()
    assert np.array_equal(r, ranks(np.exp(2 * S) - 3, right))
    S[np.arange(q), right] = S.max() + 1
    assert (ranks(S, right) == 1).all()


def test_equals_count_against_the_right_one_and_undefined_is_last():
    S = np.array([[1.0, 1.0, 0.0], [np.nan, 0.0, 1.0], [2.0, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    assert ranks(S, np.array([0, 0, 0, 1])).tolist() == [2, 3, 1, 3]


def test_random_similarities_find_a_task_by_chance_only():
    rng = np.random.default_rng(0)
    r = ranks(rng.standard_normal((4000, 10)), rng.integers(10, size=4000))
    assert (r == 1).mean() == pytest.approx(0.1, abs=0.02)
    assert (1 / r).mean() == pytest.approx((1 / np.arange(1, 11)).mean(), abs=0.02)


@given(SEEDS, st.integers(1, 6), st.integers(2, 8))
def test_the_mean_of_above_is_the_auc(seed, q, k):
    rng = np.random.default_rng(seed)
    S, right = rng.integers(5, size=(q, k)).astype(float), rng.integers(k, size=q)
    own = np.zeros((q, k), dtype=int)
    own[np.arange(q), right] = 1
    assert above(S, right).mean() == pytest.approx(roc_auc_score(own.ravel(), S.ravel()))


# -- agreement of matrices ---------------------------------------------------------------------------------------------
@given(SEEDS)
@settings(max_examples=20)
def test_correlations_are_spearmans_over_pairs_and_do_not_change_with_a_monotone_map(seed):
    X = np.random.default_rng(seed).standard_normal((2, 8, 8))
    X = X + X.transpose(0, 2, 1)
    found, p = mantel(np.stack([*X, np.exp(X[0])]), 50, np.random.default_rng(0))
    i, j = np.triu_indices(8, 1)
    assert found[0, 1] == pytest.approx(spearmanr(X[0][i, j], X[1][i, j]).statistic)
    assert found[0, 2] == pytest.approx(1.0)
    assert p[0, 2] <= 3 / 51
    assert ((p > 0) & (p <= 1)).all()


def test_mantels_p_is_uniform_for_unrelated_matrices_that_share_their_things():
    """Pairs' own p-value would reject nearly always here: each thing's own level is in all of its pairs."""
    rng = np.random.default_rng(5)
    values = []
    for _ in range(60):
        a, b = rng.standard_normal((2, 12))
        X = np.stack([a[:, None] + a, b[:, None] + b])
        values.append(mantel(X, 99, rng)[1][0, 1])
    assert np.mean(np.array(values) < 0.2) == pytest.approx(0.2, abs=0.15)


def test_an_interval_of_a_correlation_holds_it():
    rng = np.random.default_rng(2)
    a = rng.standard_normal((20, 20))
    X = np.stack([a + a.T, a + a.T + 2 * rng.standard_normal((20, 20))])
    found, _ = mantel(X, 20, rng)
    low, high = spearman_intervals(X, np.arange(20), 100, rng)
    assert low[0, 1] < found[0, 1] < high[0, 1]
    assert low[0, 0] == pytest.approx(1.0)


@given(SEEDS)
@settings(max_examples=20)
def test_principal_positions_keep_distances_of_a_plane(seed):
    rng = np.random.default_rng(seed)
    plane = rng.standard_normal((7, 2)) @ rng.standard_normal((2, 7))
    scores, shares = principal_positions(plane)
    assert shares.sum() == pytest.approx(1.0)
    here = np.linalg.norm(scores[:, None] - scores, axis=2)
    assert np.allclose(here, np.linalg.norm(plane[:, None] - plane, axis=2))
    assert np.array_equal(scores, principal_positions(plane)[0])
