"""First-order gains of a collection: the plain inner products, however it grew, and nothing computed twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from comgrad.atlas.collection import Collection, Member
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("tiny")
Reads = list[str]


def drawn(seed: int, *, bias: bool = False, only: str = "") -> TaskVector:
    g = torch.Generator().manual_seed(seed)
    tensors: dict[str, Delta] = {
        "a.weight": LowRank(torch.randn(6, 2, generator=g), torch.randn(2, 5, generator=g), 0.5),
        "b.weight": Dense(torch.randn(4, 4, generator=g)),
    }
    if bias:
        tensors["c.bias"] = Dense(torch.randn(7, generator=g))
    return TaskVector(BASE, {n: d for n, d in tensors.items() if only in n})


def member(i: int, reads: Reads | None = None, *, gradient: bool | None = None, digest: str = "") -> Member:
    """Every third vector has a bias too; every vector but each fourth has a gradient, which holds no bias."""
    log = [] if reads is None else reads

    def reading(what: str, make: Callable[[], TaskVector]) -> Callable[[], TaskVector]:
        return lambda: (log.append(f"{what}{i}"), make())[1]

    plain = Member(f"id{i}", "", "", "", reading("v", lambda: drawn(i, bias=i % 3 == 0)))
    if not (i % 4 != 0 if gradient is None else gradient):
        return plain
    seed = 1000 + i + len(digest)
    return replace(plain, gradient=reading("g", lambda: drawn(seed)), gradient_digest=digest or f"d{i}")


def expected(members: list[Member]) -> np.ndarray:
    out = np.full((len(members), len(members)), np.nan)
    for q, a in enumerate(members):
        for k, b in enumerate(members):
            if a.gradient is not None:
                g, v = a.gradient().tensors, b.load().tensors
                out[q, k] = -sum(float((g[n].dense() * v[n].dense()).sum()) for n in g if n in v)
    return out


def close(members: list[Member], cache: Path | None) -> None:
    found = Collection.build(members, cache=cache).gains()
    np.testing.assert_allclose(found.total, expected(members), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.per_tensor.sum(axis=0)[found.known], found.total[found.known])
    assert np.isnan(found.per_tensor[:, ~found.known]).all()
    assert found.known.tolist() == [m.gradient is not None for m in members]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [4, 0, 6, 1, 5, 2, 3]])
@pytest.mark.parametrize("step", [1, 3, 7])
def test_gains_are_the_inner_products_however_the_collection_grew(tmp_path: Path, order: list[int], step: int) -> None:
    members = [member(i) for i in order]
    for n in range(step, len(members) + step, step):
        close(members[:n], tmp_path)
    close(members, None)
    close([m for m in members if m.id != "id5"], tmp_path)  # one was removed
    close(members[::-1], tmp_path)


def test_adding_one_vector_or_one_gradient_computes_one_column_or_one_row(tmp_path: Path) -> None:
    Collection.build([member(i) for i in range(1, 7)], cache=tmp_path).gains()
    reads: Reads = []
    whole = Collection.build([member(i, reads) for i in (*range(1, 7), 8)], cache=tmp_path)  # id8 has no gradient
    reads.clear()
    whole.gains()
    assert {r for r in reads if r[0] == "v"} == {"v8"}
    reads.clear()
    later = [member(i, reads) for i in range(1, 7)] + [member(8, reads, gradient=True)]
    whole = replace(whole, members=tuple(later))
    whole.gains()
    assert {r for r in reads if r[0] == "g"} <= {"g8", "g1"}  # one look at the base's name
    assert {r for r in reads if r[0] == "v"} == {f"v{i}" for i in (*range(1, 7), 8)}
    reads.clear()
    whole.gains()
    assert reads == ["g1"]


def test_another_gradient_of_the_same_vector_is_computed_anew(tmp_path: Path) -> None:
    close([member(i) for i in range(5)], tmp_path)
    close([member(i, digest="another" if i == 2 else "") for i in range(5)], tmp_path)


def test_a_gradient_that_lacks_a_tensor_of_the_vector_says_so(tmp_path: Path) -> None:
    members = [member(i) for i in range(7)]
    for cache in (None, tmp_path, tmp_path):
        covered = Collection.build(members, cache=cache).gains().covered
        assert covered.tolist() == [[q % 4 != 0 and k % 3 != 0 for k in range(7)] for q in range(7)]


def test_a_gradient_that_shares_no_tensor_with_a_vector_has_gain_zero_and_covers_nothing() -> None:
    one = replace(member(1), load=lambda: drawn(1, only="b"), gradient=lambda: drawn(2, only="a"))
    found = Collection.build([one]).gains()
    assert (found.total.tolist(), found.covered.tolist(), found.known.tolist()) == ([[0.0]], [[False]], [True])


def test_without_gradients_nothing_is_known(tmp_path: Path) -> None:
    found = Collection.build([member(i, gradient=False) for i in range(3)], cache=tmp_path).gains()
    assert found.total.shape == (3, 3)
    assert np.isnan(found.total).all()
    assert not found.known.any()


def test_gains_of_a_subset_are_the_subset_of_the_gains(tmp_path: Path) -> None:
    whole = Collection.build([member(i) for i in range(7)], cache=tmp_path)
    part = whole.subset([5, 0, 2])
    np.testing.assert_allclose(part.gains().total, whole.gains().total[np.ix_([5, 0, 2], [5, 0, 2])])


def test_a_broken_cache_costs_time_and_nothing_else(tmp_path: Path) -> None:
    members = [member(i) for i in range(4)]
    close(members, tmp_path)
    for file in tmp_path.glob("gains-*"):
        file.write_bytes(b"junk")
    close(members, tmp_path)


@pytest.mark.parametrize("odd", ["base", "shape"])
def test_a_gradient_of_another_base_or_shape_costs_its_own_row_only(odd: str, tmp_path: Path) -> None:
    made = drawn(9)
    if odd == "base":
        made = TaskVector(BaseRef("another"), made.tensors)
    else:
        made = TaskVector(BASE, {**made.tensors, "b.weight": Dense(torch.ones(2, 2))})
    members = [member(i) for i in range(1, 4)]
    members[1] = replace(members[1], gradient=lambda: made, gradient_digest="odd")
    for _ in range(2):  # computed, then from the cache
        found = Collection.build(members, cache=tmp_path).gains()
        assert found.known.tolist() == [True, False, True]
        assert np.isnan(found.total[1]).all()
        bare = expected([members[0], replace(members[1], gradient=None), members[2]])
        np.testing.assert_allclose(found.total, bare, rtol=1e-5, atol=1e-5)
    grown = Collection.build([*members, member(5)], cache=tmp_path).gains()
    assert grown.known.tolist() == [True, False, True, True]


def test_without_a_seen_base_most_gradients_decide_which_it_is() -> None:
    members = [member(i) for i in (1, 2, 3)]
    prints = ["a" * 64, "b" * 64, "a" * 64]
    members = [
        replace(
            m, gradient=lambda i=i, p=p: TaskVector(BaseRef("tiny", p), drawn(i).tensors), gradient_digest=p + str(i)
        )
        for i, (m, p) in enumerate(zip(members, prints, strict=True))
    ]
    assert Collection.build(members).gains().known.tolist() == [True, False, True]
