"""The learned embedding: a planted similarity is found again, and what it must not depend on, it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comgrad.describe import targets
from comgrad.describe.head import fit_head
from comgrad.errors import ShapeMismatch


def _rows(K: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(K, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(st.integers(0, 1000))
def test_a_planted_bilinear_similarity_is_found_again_for_unseen_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    E = _rows(80, 5, seed)
    L = rng.normal(size=(2, 5))
    centred = E[:70] - E[:70].mean(axis=0)
    target = centred @ L.T @ L @ centred.T
    off = ~np.eye(70, dtype=bool)
    head = fit_head(E[:70], target, decay=1e-9)
    new = (E[70:] - E[:70].mean(axis=0)) @ L.T @ L @ centred.T
    assert np.corrcoef(head.similarity(E[70:], E[:70]).ravel(), new.ravel())[0, 1] > 0.97
    assert head.offset == pytest.approx(target[off].mean())


@given(st.integers(0, 1000))
def test_the_order_of_tasks_and_the_diagonal_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    E = _rows(12, 6, seed)
    raw = rng.normal(size=(12, 12))
    target = raw + raw.T
    order = rng.permutation(12)
    other = target[np.ix_(order, order)].copy()
    np.fill_diagonal(other, 99.0)
    a, b = fit_head(E, target), fit_head(E[order], other)
    np.testing.assert_allclose(a.similarity(E, E), b.similarity(E, E), atol=1e-9)


def test_more_decay_means_less_said_and_one_head_has_one_digest() -> None:
    E = _rows(20, 8, 0)
    target = targets.frobenius(E @ E.T)
    spread = [np.std(fit_head(E, target, decay=decay).similarity(E, E)) for decay in (0.01, 1.0, 100.0)]
    assert spread[0] > spread[1] > spread[2]
    assert fit_head(E, target).digest == fit_head(E, target).digest != fit_head(E, target, decay=1.0).digest


def test_targets_are_cosines_and_centring_removes_a_shared_part() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=30)
    vectors = rng.normal(size=(15, 30)) + 5.0 * common
    gram = vectors @ vectors.T
    plain, centred = targets.frobenius(gram), targets.centred(gram)
    np.testing.assert_allclose(np.diag(plain), 1.0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(centred, np.corrcoef((unit - unit.mean(axis=0)) @ np.eye(30)), atol=0.2)
    assert abs(centred[~np.eye(15, dtype=bool)].mean()) < 0.1 < plain[~np.eye(15, dtype=bool)].mean()


def test_functional_similarity_is_high_for_tasks_that_the_same_vectors_help() -> None:
    rng = np.random.default_rng(1)
    help_a, help_b = rng.normal(size=12), rng.normal(size=12)
    gains = np.stack([help_a, help_a * 0.5, help_b, help_b * 2.0]) + 0.01 * rng.normal(size=(4, 12))
    similarity = targets.functional(gains, np.eye(12), risk=1.0)
    assert similarity[0, 1] > 0.95 and similarity[2, 3] > 0.95 and abs(similarity[0, 2]) < 0.8


def test_targets_of_another_number_of_tasks_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="3 embeddings and a target of shape"):
        fit_head(_rows(3, 4, 0), np.eye(4))
