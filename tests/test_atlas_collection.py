"""Collections: grown one by one, from a cache, or at once, the same Gram matrix; nothing undefined wins a ranking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from comgrad.atlas.collection import Collection, Member
from comgrad.errors import ComgradError
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("tiny")


def vector(seed: int, *, extra: bool = False) -> TaskVector:
    g = torch.Generator().manual_seed(seed)
    tensors: dict[str, Delta] = {
        "a.weight": LowRank(torch.randn(6, 2, generator=g), torch.randn(2, 5, generator=g), 0.5),
        "b.weight": LowRank(torch.randn(4, 3, generator=g), torch.randn(3, 4, generator=g)),
    }
    if extra:
        tensors["c.bias"] = Dense(torch.randn(7, generator=g))
    return TaskVector(BASE, tensors)


def member(i: int, v: TaskVector | None = None) -> Member:
    made = v or vector(i, extra=i % 3 == 0)
    return Member(f"id{i}", f"n{i}", "words", "family", lambda: made)


def dense_gram(members: list[Member]) -> np.ndarray:
    """The reference: every vector written out in full."""
    names = sorted({n for m in members for n in m.load().tensors})
    shape = {n: d.dense().shape for m in members for n, d in m.load().tensors.items()}
    rows = []
    for m in members:
        t = m.load().tensors
        rows.append(
            np.concatenate(
                [(t[n].dense() if n in t else torch.zeros(shape[n])).double().numpy().ravel() for n in names]
            )
        )
    return np.stack(rows) @ np.stack(rows).T


def test_gram_is_that_of_the_dense_vectors() -> None:
    members = [member(i) for i in range(7)]
    np.testing.assert_allclose(Collection.build(members).gram, dense_gram(members), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 1, 5, 2, 4]])
@pytest.mark.parametrize("step", [1, 3])
def test_growing_with_a_cache_gives_the_same_matrix(tmp_path: Path, order: list[int], step: int) -> None:
    members = [member(i) for i in order]
    for n in range(step, len(members) + step, step):
        grown = Collection.build(members[:n], cache=tmp_path)
    whole = Collection.build(members)
    np.testing.assert_allclose(grown.gram, whole.gram, rtol=1e-12, atol=1e-12)
    by_name = dict(zip(whole.tensor_names, whole.per_tensor, strict=True))
    for name, block in zip(grown.tensor_names, grown.per_tensor, strict=True):
        np.testing.assert_allclose(block, by_name[name], rtol=1e-12, atol=1e-12)


def test_what_the_cache_knows_is_not_computed_again(tmp_path: Path) -> None:
    Collection.build([member(i) for i in range(5)], cache=tmp_path)
    reads = []
    lazy = [
        Member(f"id{i}", "", "", "", lambda i=i: (reads.append(i), vector(i, extra=i % 3 == 0))[1]) for i in range(5)
    ]
    Collection.build(lazy, cache=tmp_path)
    assert set(reads) <= {0}  # one look at the base's name


def test_a_removed_member_leaves_the_matrix(tmp_path: Path) -> None:
    Collection.build([member(i) for i in range(5)], cache=tmp_path)
    left = [member(i) for i in (0, 2, 3)]
    np.testing.assert_allclose(Collection.build(left, cache=tmp_path).gram, dense_gram(left), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("junk", [b"", b"junk", b"PK\x03\x04" + b"\0" * 40])
def test_a_broken_cache_costs_time_and_nothing_else(tmp_path: Path, junk: bytes) -> None:
    members = [member(i) for i in range(4)]
    Collection.build(members, cache=tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(junk)
    np.testing.assert_allclose(
        Collection.build(members, cache=tmp_path).gram, dense_gram(members), rtol=1e-6, atol=1e-6
    )


def test_the_mean_of_all_and_a_huge_copy_hijack_no_ranking() -> None:
    def drawn(seed: int) -> TaskVector:
        g = torch.Generator().manual_seed(seed)
        return TaskVector(BASE, {"w": Dense(torch.randn(2000, generator=g))})

    common, tasks = drawn(50) * 2.0, [drawn(60 + t) for t in range(5)]
    known = [common + tasks[i // 3] + drawn(i) * 1.5 for i in range(15)]  # five tasks, three vectors each
    mean = known[0]
    for v in known[1:]:
        mean = mean + v
    crowd = Collection.build([member(i, v) for i, v in enumerate([*known, mean / 15.0, known[0] * 100.0, common])])
    raw = crowd.cosine() - 2 * np.eye(18)
    assert {int(raw[i].argmax()) for i in range(3, 15)} <= {15, 17}  # the raw cosine does fall for them
    for i in range(3, 15):
        best, value = crowd.neighbours(i)[0]
        assert int(best.id[2:]) // 3 == i // 3
        assert np.isfinite(value)


def test_a_handful_is_ranked_by_the_plain_cosine() -> None:
    few = Collection.build([member(i, vector(i)) for i in range(4)])
    assert few.neighbours(0)[0][1] == pytest.approx(np.sort(few.cosine()[0])[-2])
    many = Collection.build([member(i, vector(i)) for i in range(12)])
    assert many.neighbours(0)[0][1] == pytest.approx(np.sort(many.centred_cosine()[0])[-2])


def test_a_vector_equal_to_the_mean_has_centred_cosine_zero() -> None:
    twins = [member(i, vector(7)) for i in range(3)]
    assert not Collection.build(twins).centred_cosine().any()


def test_an_empty_registry_is_refused() -> None:
    with pytest.raises(ComgradError, match="an empty registry; there is nothing to compare; add adapters"):
        Collection.build([])
