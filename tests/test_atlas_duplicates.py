"""Copies and mixtures: planted ones are found whatever their factors and length, and a later upload moves no older vector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.atlas.collection import Collection, Member
from comgrad.atlas.duplicates import (
    APART,
    DUPLICATE,
    blends,
    centred_by,
    copies,
    derived,
    groups,
    other_factors,
    relation,
    residuals,
)
from comgrad.geometry.gram import gram
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, LowRank
from comgrad.vectors.task_vector import TaskVector

Array = np.ndarray[Any, np.dtype[np.float64]]
seeds = st.integers(0, 10**6)


def vector(seed: int, rank: int = 3) -> TaskVector:
    g = torch.Generator().manual_seed(seed)
    tensors: dict[str, Delta] = {
        f"{n}.weight": LowRank(torch.randn(30, rank, generator=g), torch.randn(rank, 20, generator=g), 0.5)
        for n in "ab"
    }
    return TaskVector(BaseRef("tiny"), tensors)


def refactored(v: TaskVector, seed: int) -> TaskVector:
    """(BG, G⁻¹A): the same matrices in other factors."""
    g = torch.Generator().manual_seed(seed)

    def change(d: Any) -> LowRank:
        G = torch.randn(d.rank, d.rank, generator=g, dtype=torch.float64) + 3 * torch.eye(d.rank, dtype=torch.float64)
        return replace(d, B=(d.B.double() @ G).float(), A=(torch.linalg.inv(G) @ d.A.double()).float())

    return TaskVector(v.base, {n: change(d) for n, d in v.tensors.items()})


def grams(vectors: list[TaskVector]) -> Array:
    return gram(vectors).numpy()


def cosines(G: Array) -> Array:
    size = np.sqrt(np.diag(G))
    return G / np.outer(size, size)


def collection(vectors: list[TaskVector]) -> Collection:
    return Collection.build([Member(f"id{i}", f"n{i}", "", "", lambda v=v: v) for i, v in enumerate(vectors)])


def random_gram(seed: int, K: int, dimension: int) -> Array:
    x = np.random.default_rng(seed).standard_normal((K, dimension))
    return x @ x.T


# -- copies ------------------------------------------------------------------------------------------------------------
def test_half_the_least_angle_between_trainings_is_the_threshold() -> None:
    assert np.arccos(DUPLICATE) == pytest.approx(np.arccos(APART) / 2)


@settings(max_examples=25)
@given(seeds, st.floats(1e-3, 1e3))
def test_factors_and_length_hide_no_copy(seed: int, times: float) -> None:
    v = vector(seed)
    G = grams([v, refactored(v, seed + 1) * times, vector(seed + 2)])
    found = groups(cosines(G))
    assert found.leader.tolist() == [0, 0, 2]
    (copy,) = copies(G, found)
    assert copy.cosine == pytest.approx(1.0, abs=1e-5)
    assert copy.length == pytest.approx(times, rel=1e-3)
    if abs(times - 1.0) > 0.01:
        assert copy.kind == "scaled"


def test_kinds() -> None:
    v, w = vector(1), vector(2)
    size = v.norm() / w.norm()
    made = [v, refactored(v, 5), v * 2.0, v + w * (0.3 * size), v * -1.0, v + w * (0.8 * size)]
    G = grams(made)
    found = groups(cosines(G))
    assert found.leader.tolist() == [0, 0, 0, 0, 4, 5]  # the negated one does the opposite; the last is half another
    assert [c.kind for c in copies(G, found)] == ["same", "scaled", "near"]
    assert found.copies(0) == [1, 2, 3] and found.leaders == [0, 4, 5]
    assert other_factors(v, made[1]) and not other_factors(v, v * 1.0)


@given(seeds, st.integers(2, 8), st.integers(2, 4))
def test_the_relation_is_symmetric(seed: int, K: int, dimension: int) -> None:
    G = random_gram(seed, K, dimension)
    for i in range(K):
        for j in range(K):
            one, other = relation(G, i, j), relation(G, j, i)
            assert one.cosine == other.cosine and one.length == pytest.approx(1 / other.length)
            assert one.kind == other.kind or {one.kind, other.kind} == {"same", "scaled"}


@given(seeds, st.integers(1, 30), st.integers(2, 4), st.integers(0, 29))
def test_a_later_upload_changes_no_older_group(seed: int, K: int, dimension: int, first: int) -> None:
    cosine = cosines(random_gram(seed, K, dimension))
    whole, part = groups(cosine), groups(cosine[:first, :first])
    np.testing.assert_array_equal(whole.leader[:first], part.leader)
    at = np.array(whole.leaders)
    between = cosine[np.ix_(at, at)][~np.eye(len(at), dtype=bool)]
    assert (between < DUPLICATE).all()
    assert all(cosine[i, j] >= DUPLICATE or i == j for i, j in enumerate(whole.leader))


def test_a_chain_of_uploads_joins_no_strangers() -> None:
    angles = np.deg2rad([0, 90, *range(10, 90, 10)])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert {0, 1} <= set(groups(x @ x.T).leaders)


def test_nothing_undefined_joins_a_group() -> None:
    cosine = np.array([[1.0, np.nan, 0.0], [np.nan, np.nan, np.nan], [0.0, np.nan, 1.0]])
    assert groups(cosine).leader.tolist() == [0, 1, 2]


# -- the centre --------------------------------------------------------------------------------------------------------
@settings(max_examples=60)
@given(seeds, st.integers(1, 12), st.integers(1, 60), st.floats(0.0, 0.2))
def test_one_uploader_moves_the_centre_by_one_share(seed: int, K: int, many: int, noise: float) -> None:
    draw = np.random.default_rng(seed)
    known = draw.standard_normal((K, 40))
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    new = draw.standard_normal(40)
    uploads = new / np.linalg.norm(new) + noise * draw.standard_normal((many, 40)) / 40**0.5
    crowd = np.vstack([known, uploads / np.linalg.norm(uploads, axis=1, keepdims=True)])
    before, after = groups(known @ known.T), groups(crowd @ crowd.T)
    centre = before.weights() @ known
    moved = after.weights() @ crowd
    new_groups = len(after.leaders) - len(before.leaders)
    assert np.linalg.norm(moved - centre) <= 2.0 * new_groups / len(after.leaders) + 1e-12
    if noise < 0.05:
        assert new_groups <= 1
    copied = np.vstack([known, known[0] + 0.01 * draw.standard_normal((many, 40))])
    copied /= np.linalg.norm(copied, axis=1, keepdims=True)
    np.testing.assert_allclose(groups(copied @ copied.T).weights() @ copied, centre, atol=1e-12)


@given(seeds)
def test_inner_products_about_the_centre_are_those_of_the_vectors(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, w = draw.standard_normal((5, 9)), draw.random(5)
    w /= w.sum()
    y = x - w @ x
    np.testing.assert_allclose(centred_by(x @ x.T, w), y @ y.T, atol=1e-9)


def test_copies_change_nobody_elses_neighbours_and_are_nobodys() -> None:
    draw = [vector(i) for i in range(12)]
    kin = [v + draw[i // 2 * 2] * 0.8 for i, v in enumerate(draw)]  # six pairs
    flood = [kin[3] + vector(100 + i) * 0.1 for i in range(60)]
    plain, poisoned = collection(kin), collection([*kin, *flood])
    for i in range(12):
        before, after = plain.neighbours(i), poisoned.neighbours(i)
        assert [m.id for m, _ in before] == [m.id for m, _ in after]
        assert [c for _, c in after] == pytest.approx([c for _, c in before])
    assert poisoned.neighbours(20)[0][0].id == "id3"  # a copy's own neighbour is what it copies


# -- mixtures ----------------------------------------------------------------------------------------------------------
@given(seeds, st.integers(2, 12), st.integers(1, 20))
def test_residuals_are_those_of_least_squares(seed: int, K: int, dimension: int) -> None:
    x = np.random.default_rng(seed).standard_normal((K, dimension))
    found = residuals(x @ x.T, list(range(K)))
    for k in range(K):
        c = np.linalg.lstsq(x[:k].T, x[k], rcond=None)[0] if k else np.zeros(0)
        rest = x[k] - c @ x[:k]
        assert found[k] == pytest.approx(rest @ rest / (x[k] @ x[k]), abs=1e-6)


def test_a_zero_vector_has_no_residual() -> None:
    assert residuals(np.diag([1.0, 0.0, 2.0]), [0, 1, 2]).tolist() == pytest.approx([1.0, 0.0, 1.0])


@settings(max_examples=30)
@given(seeds, st.lists(st.floats(0.2, 3.0), min_size=2, max_size=4))
def test_a_planted_merge_is_found_with_its_coefficients(seed: int, weights: list[float]) -> None:
    known = [vector(seed + i) for i in range(7)]
    merge = sum((v * c for v, c in zip(known[1:], weights, strict=False)), known[0] * 0.0)
    (found,) = derived(grams([*known, refactored(merge.compress(20)[0], 3)]), range(8))
    assert found.index == 7 and found.mixture and found.residual < 1e-6
    assert {i: pytest.approx(c, rel=1e-3) for i, c in found.parents} == dict(enumerate(weights, start=1))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 1, 2], [0, 3, 1, 2], [1, 3, 2, 0]])
def test_a_merge_is_told_from_its_parents_whenever_it_was_added(order: list[int]) -> None:
    a, b, c = (vector(i) for i in range(3))
    all_four = [a, b, c, a * 0.5 + b * 0.4]
    (found,) = derived(grams([all_four[i] for i in order]), range(4))
    assert order[found.index] == 3 and found.mixture
    assert {order[i]: pytest.approx(x, rel=1e-4) for i, x in found.parents} == {0: 0.5, 1: 0.4}


def test_a_difference_is_derived_and_no_mixture() -> None:
    a, b, c = (vector(i) for i in range(3))
    (found,) = derived(grams([a, b, c, a + b - c]), range(4))
    assert not found.mixture and found.residual < 1e-9
    assert dict(found.parents) == {0: pytest.approx(1.0), 1: pytest.approx(1.0), 2: pytest.approx(-1.0)}


def test_independent_vectors_are_not_derived() -> None:
    assert derived(grams([vector(i) for i in range(12)]), range(12)) == []


def test_the_mean_of_all_and_a_common_direction_are_blends_and_a_merge_is_none() -> None:
    common = vector(99)
    known = [vector(i) + common * 0.5 for i in range(15)]
    G = grams(known)
    size = np.sqrt(np.diag(G))
    _, axes = np.linalg.eigh(cosines(G))
    top = axes[:, -1] * np.sign(axes[:, -1].sum()) / size
    mean = sum(known[1:], known[0]) / 15.0
    direction = sum((v * float(c) for v, c in zip(known[1:], top[1:], strict=True)), known[0] * float(top[0]))
    merge = known[0] + known[4]
    poisoned = collection([*known, mean, merge, direction * 30.0])
    assert {d.index for d in blends(poisoned.gram, poisoned.groups.leaders)} | {17} == {15, 17}
    for i in range(15):
        assert not {"id15", "id17"} & {m.id for m, _ in poisoned.neighbours(i, most=18)}
    assert "id16" in {m.id for m, _ in poisoned.neighbours(0, most=3)}
