"""Words from weights: the planted family and description are found, and nothing is found in shuffled cards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import fisher_exact

from comgrad.explain.calibration import calibrate, towards_mean
from comgrad.explain.evaluation import auroc, evaluate, mean_reciprocal_rank, shuffled
from comgrad.explain.reference import Reference, by_subspace, by_weights
from comgrad.explain.words import LAMBDAS, backwards, cosines_with, family_vote, fit_of, ranks, shared_words, words_of
from explain_models import labels, reference


@pytest.fixture(scope="module")
def ref() -> Reference:
    return reference()


def test_a_left_out_vector_is_like_its_family(ref: Reference) -> None:
    for i, label in enumerate(labels()):
        others, probe = ref.left_out(i)
        for row in (by_subspace(others, probe).row, by_weights(others, probe).row):
            assert family_vote(others, row).family == label.family


def test_fit_is_the_weighted_mean_that_it_says_and_leaves_out_what_it_is_told(ref: Reference) -> None:
    others, probe = ref.left_out(0)
    near = by_subspace(others, probe)
    mean = others.embeddings.mean(axis=0)
    unit = [(e - mean) / np.linalg.norm(e - mean) for e in others.embeddings]
    claim = (ref.embeddings[0] - mean) / np.linalg.norm(ref.embeddings[0] - mean)
    w = np.array([np.exp((claim @ u - 1) / 0.05) for u in unit])
    assert fit_of(others, near, ref.embeddings[:1])[0] == pytest.approx((w @ near.row) / w.sum())
    w[2] = 0.0
    without = fit_of(others, near, ref.embeddings[:1], without=np.array([2]))
    assert without[0] == pytest.approx((w @ near.row) / w.sum())
    own, other_family = fit_of(others, near, ref.embeddings[[0, 9]])
    assert own > 0.2 > other_family


def test_the_embedding_run_backwards_is_kernel_ridge_with_a_left_out_choice(ref: Reference) -> None:
    others, probe = ref.left_out(7)
    near = by_subspace(others, probe)
    found = backwards(others, near)
    F = others.embeddings - others.embeddings.mean(axis=0)
    expected = near.row @ np.linalg.solve(near.among + found.lam * np.eye(len(others)), F)
    np.testing.assert_allclose(found.direction, expected, atol=1e-9)
    errors = []
    for lam in LAMBDAS:  # refit without each one
        left = []
        for i in range(len(others)):
            rest = np.delete(np.arange(len(others)), i)
            A = near.among[np.ix_(rest, rest)] + lam * np.eye(len(rest))
            left.append(F[i] - near.among[i, rest] @ np.linalg.solve(A, F[rest]))
        errors.append(np.square(left).sum())
    assert found.lam == LAMBDAS[int(np.argmin(errors))]
    scores = cosines_with(others, found)
    assert others.families[int(scores.argmax())] == "family1"
    own = cosines_with(others, found, own_left_out=True)
    j = 3
    estimate = found.direction - found.coefficients[j] * F[j]
    assert own[j] == pytest.approx(estimate @ F[j] / np.linalg.norm(estimate) / np.linalg.norm(F[j]))


def test_shared_words_are_those_of_the_family_with_the_chance_that_is_stated(ref: Reference) -> None:
    others, probe = ref.left_out(0)
    found = shared_words(others, by_subspace(others, probe).row)
    assert {w.word for w in found} == {"weather", "rain", "cloud", "storm"}
    w = found[0]
    K, everywhere = len(others), round(w.share * len(others))
    table = [[w.near, w.among - w.near], [everywhere - w.near, K - w.among - everywhere + w.near]]
    assert w.p == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    assert words_of("Don't say CAFÉ 12 times, or x2!") == {"don", "say", "café", "times"}


def test_ranks_and_areas() -> None:
    assert ranks([0.3, 0.9, 0.1]).tolist() == [2, 1, 3]
    assert ranks([1.0, 1.0, 1.0]).tolist() == [2, 2, 2]  # nobody wins a tie
    assert auroc(np.array([3.0, 2.0]), np.array([1.0, np.nan, 2.0])) == pytest.approx(0.875)
    assert np.isnan(auroc(np.zeros(0), np.ones(2)))
    assert mean_reciprocal_rank(np.array([1, 2, 4])) == pytest.approx(7 / 12)


def test_evaluation_finds_what_is_planted_and_nothing_when_cards_are_shuffled(ref: Reference) -> None:
    found = evaluate(ref, shuffles=4)
    assert found.accuracy == 1.0 and found.majority == 0.25 and found.times_majority == 4.0
    assert found.shuffled_right.mean() < 0.5
    assert mean_reciprocal_rank(found.rank) > 0.3 > mean_reciprocal_rank(found.shuffled_rank)
    assert mean_reciprocal_rank(found.backwards_rank) > mean_reciprocal_rank(found.shuffled_backwards)
    assert found.claim_auroc_far > 0.95
    assert 0.2 < evaluate(shuffled(ref, np.random.default_rng(3)), shuffles=0).claim_auroc_far < 0.8
    assert sum(found.claim_rates["far"].values()) == pytest.approx(1.0)
    assert found.claim_rates["true"]["contradictory"] == 0.0
    assert found.claim_rates["far"]["contradictory"] > 0.5


def test_leaving_a_source_out_takes_its_relatives_along(ref: Reference) -> None:
    grouped = replace(ref, labels=tuple(replace(x, group=x.family) for x in ref.labels))
    others, probe = grouped.left_out(0, group=True)
    assert len(others) == 15 and probe.kernel.shape == (15,)
    assert evaluate(grouped, group=True, shuffles=0).accuracy == 0.0  # nobody of the family is left
    one = calibrate(replace(ref, labels=tuple(replace(x, group="all") for x in ref.labels)), group=True)
    assert one is not None and one.residual.tolist() == [1.0] * 20 and not one.right.any()
    ungrouped = replace(ref, labels=tuple(replace(x, group="") for x in ref.labels))
    assert len(ungrouped.left_out(0, group=True)[0]) == 19


def test_calibration_needs_ten_and_says_how_often_a_guess_is_right(ref: Reference) -> None:
    assert calibrate(ref.subset(range(9))) is None
    found = calibrate(ref)
    assert found is not None
    assert found.family_odds(1.0) == (20, 20)
    assert found.below_true(-1.0) == pytest.approx(1 / 21) and found.above_swapped(1.0) < 0.01
    assert np.isnan(found.swapped_fit[np.arange(20), found.places]).all()
    inner = ref.total[0]
    unit = ref.total / np.outer(ref.norms, ref.norms)
    expected = unit[0].mean() / np.sqrt(unit.mean())
    assert towards_mean(ref.total, inner, float(ref.total[0, 0])) == pytest.approx(expected)
