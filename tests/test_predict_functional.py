"""The functional rule in a planted world: clusters of tasks whose vectors help each other and nobody else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comgrad.errors import Undefined
from comgrad.predict.evidence import Evidence, Query
from comgrad.predict.functional import FEWEST, Functional
from comgrad.predict.rules import RULES

CLUSTERS, EACH, WIDTH = 4, 6, 16


def world(seed: int = 0, *, helpful: bool = True) -> tuple[Evidence, np.ndarray]:
    """Evidence, and the centres of the clusters' descriptions. Without `helpful`, gains are drawn without a pattern."""
    rng = np.random.default_rng(seed)
    K = CLUSTERS * EACH
    centres = np.linalg.qr(rng.normal(size=(WIDTH, CLUSTERS)))[0].T
    of = np.repeat(np.arange(CLUSTERS), EACH)
    rows = centres[of] + 0.05 * rng.normal(size=(K, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gains = np.where(of[:, None] == of[None], 0.15, 0.0) + 0.02 * rng.normal(size=(K, K))
    if not helpful:
        gains = 0.15 * rng.choice([-1.0, 1.0], size=(K, 1)) * np.ones((K, K)) + 0.02 * rng.normal(size=(K, K))
    gram = 25.0 * np.eye(K) + 0.5
    return Evidence(gram, gains, rows, tuple(f"task {i}" for i in range(K))), centres


@given(st.integers(0, 100))
def test_a_description_in_a_cluster_gets_that_clusters_vectors(seed: int) -> None:
    evidence, centres = world(seed)
    for cluster in range(CLUSTERS):
        made = Functional.of(evidence).predict(Query("", centres[cluster]))
        weight = made.coefficients.reshape(CLUSTERS, EACH).sum(axis=1)
        assert not made.abstained and weight.argmax() == cluster and weight[cluster] > 0
        assert made.expected_gain is not None and made.expected_gain > 0


def test_where_gains_have_no_pattern_the_rule_abstains_and_says_why() -> None:
    evidence, centres = world(helpful=False)
    made = Functional.of(evidence).predict(Query("", centres[0]))
    assert made.abstained and "uncertainty" in made.reason
    assert made.confidence is not None and made.confidence < 0.95


@given(st.integers(0, 100))
def test_coefficients_are_where_the_objective_is_flat(seed: int) -> None:
    evidence, centres = world(seed)
    rule, query = Functional.of(evidence), Query("", centres[1])
    c = rule.predict(query).coefficients
    np.testing.assert_allclose(rule.penalty @ c, rule.gains_at(query), atol=1e-10)


@given(st.integers(0, 100))
def test_the_order_of_the_vectors_does_not_matter(seed: int) -> None:
    evidence, centres = world(seed)
    order = np.random.default_rng(seed).permutation(len(evidence))
    query = Query("", centres[2])
    a, b = Functional.of(evidence).predict(query), Functional.of(evidence.subset(order)).predict(query)
    np.testing.assert_allclose(a.coefficients[order], b.coefficients, atol=1e-8)
    assert a.strength == pytest.approx(b.strength)


def test_a_left_out_task_is_predicted_from_the_others_alone() -> None:
    evidence, _ = world()
    spoiled = evidence.gains.copy()
    spoiled[3] += 1000.0
    honest = Functional(evidence)._left_out[3]
    np.testing.assert_allclose(
        Functional(Evidence(evidence.gram, spoiled, evidence.embeddings, evidence.texts))._left_out[3], honest
    )


def test_vectors_without_a_gradient_still_serve() -> None:
    evidence, centres = world()
    gains = evidence.gains.copy()
    gains[0] = np.nan  # of the first cluster
    made = Functional.of(Evidence(evidence.gram, gains, evidence.embeddings, evidence.texts)).predict(
        Query("", centres[0])
    )
    assert made.coefficients[0] > 0.5 * made.coefficients[1:EACH].mean() > 0


def test_too_few_gradients_are_said_and_the_table_falls_back_to_the_vectors() -> None:
    evidence, centres = world()
    gains = evidence.gains.copy()
    gains[FEWEST - 1 :] = np.nan
    few = Evidence(evidence.gram, gains, evidence.embeddings, evidence.texts)
    with pytest.raises(Undefined, match="7 tasks with gradients; .* at least 8"):
        Functional.of(few)
    assert RULES["functional"](few, Query("", centres[0])).rule == "ridge"


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_gives_one_finite_coefficient_per_vector(name: str) -> None:
    evidence, centres = world()
    made = RULES[name](evidence, Query("task 3", centres[0]))
    assert made.coefficients.shape == (len(evidence),) and np.isfinite(made.coefficients).all()


def test_simple_rules_are_what_their_names_say() -> None:
    evidence, _ = world()
    query = Query("task 5", evidence.embeddings[7])
    assert RULES["nearest"](evidence, query).coefficients.argmax() == 7
    assert RULES["tfidf-nearest"](evidence, query).coefficients.argmax() == 5
    assert not RULES["tfidf-nearest"](evidence, Query("nothing alike", query.embedding)).coefficients.any()
    five = RULES["softmax5"](evidence, query).coefficients
    assert (five > 0).sum() == 5 and five.sum() == pytest.approx(1.0) and five.argmax() == 7
    assert RULES["mean"](evidence, query).coefficients.sum() == pytest.approx(1.0)


def test_eq1_finds_planted_coordinates_better_when_centred() -> None:
    """Vectors with a large common part: Eq. 1 as written gives all of them coefficients, and overshoots."""
    rng = np.random.default_rng(0)
    evidence, centres = world()
    common, own = rng.normal(size=60), rng.normal(size=(CLUSTERS, 60))
    vectors = 2 * common + own[np.repeat(np.arange(CLUSTERS), EACH)] + 0.3 * rng.normal(size=(CLUSTERS * EACH, 60))
    evidence = Evidence(vectors @ vectors.T, evidence.gains, evidence.embeddings, evidence.texts)
    truth = 2 * common + own[1]
    error = {}
    for name in ("eq1", "eq1-centred", "gram-corrected", "mean"):
        made = RULES[name](evidence, Query("", centres[1])).coefficients @ vectors
        error[name] = np.sum((made - truth) ** 2) / np.sum(truth**2)
    assert error["eq1"] > 10 > 1 > error["gram-corrected"]
