"""What vectors count for where several accounts share: nobody's voice is drowned by one account's many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.atlas.collection import Collection, Member
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.standing import VOTES, standing

SIZE = 400


def unread() -> TaskVector:
    raise AssertionError("the Gram matrix is enough")


def collection(vectors: list[np.ndarray], owners: list[str], texts: list[str] | None = None) -> Collection:
    rows = np.stack(vectors)
    said = texts or [f"task {i}" for i in range(len(rows))]
    members = [
        Member(f"v{i}", f"{owner}/v{i}", text, "", unread, owner=owner)
        for i, (owner, text) in enumerate(zip(owners, said, strict=True))
    ]
    return Collection(tuple(members), ("w",), (rows @ rows.T)[None])


def counts(atlas: Collection, owner: str) -> int:
    return sum(atlas.members[i].owner == owner for i in standing(atlas).kept)


def unit(rng: np.random.Generator) -> np.ndarray:
    v = rng.standard_normal(SIZE)
    return v / np.linalg.norm(v)


def flood(rng: np.random.Generator, many: int, noise: float) -> list[np.ndarray]:
    """Vectors of one task: cosine 1/(1 + noise²) with one another, from 0.67 on."""
    task = unit(rng)
    return [task + noise * unit(rng) for _ in range(many)]


@given(seed=st.integers(0, 2**32 - 1), many=st.integers(8, 60), noise=st.floats(0.4, 0.7), first=st.booleans())
@settings(max_examples=30)
def test_a_flood_has_three_votes_at_most_and_others_keep_theirs(
    seed: int, many: int, noise: float, first: bool
) -> None:
    rng = np.random.default_rng(seed)
    bob, eve = [unit(rng) for _ in range(12)], flood(rng, many, noise)
    parts = [(eve, "eve"), (bob, "bob")] if first else [(bob, "bob"), (eve, "eve")]
    atlas = collection([v for vs, _ in parts for v in vs], [o for vs, o in parts for _ in vs])
    assert 1 <= counts(atlas, "eve") <= VOTES  # some are told as made of many older ones already
    assert counts(atlas, "bob") == 12


@pytest.mark.parametrize("seed", range(5))
def test_too_few_to_be_made_of_one_another_are_told_apart_by_their_owner(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = [*flood(rng, 7, 0.6), *(unit(rng) for _ in range(12))]
    atlas = collection(vectors, ["eve"] * 7 + ["bob"] * 12)
    told = [doubt for doubt in standing(atlas).doubt if doubt]
    assert (counts(atlas, "eve"), counts(atlas, "bob")) == (VOTES, 12)
    assert told == ["its owner shares 3 older ones of the same task, and no more of one account count"] * (7 - VOTES)


def test_who_shares_alone_or_without_accounts_is_not_capped() -> None:
    rng = np.random.default_rng(0)
    for owner in ("eve", ""):
        atlas = collection(flood(rng, 20, 0.7), [owner] * 20)
        assert counts(atlas, owner) == 20


def test_many_tasks_of_one_account_all_count_also_with_a_direction_common_to_all() -> None:
    rng = np.random.default_rng(1)
    common = unit(rng)
    vectors = [unit(rng) + 1.5 * common for _ in range(8)]
    atlas = collection(vectors, ["bob"] * 6 + ["eve"] * 2)
    assert atlas.cosine()[0, 1] > 0.6
    assert not any(standing(atlas).doubt)
    more = collection([*vectors, *(unit(rng) + 1.5 * common for _ in range(6))], ["bob"] * 6 + ["eve"] * 8)
    assert not any("no more of one account count" in doubt for doubt in standing(more).doubt)


@pytest.mark.parametrize("few", [4, 6])
def test_the_same_words_are_one_task_where_too_few_vectors_are_known_to_centre(few: int) -> None:
    rng = np.random.default_rng(2)
    vectors = [*flood(rng, few, 0.7), unit(rng)]
    atlas = collection(vectors, ["eve"] * few + ["bob"], ["the very same words of a task"] * few + ["another one"])
    assert counts(atlas, "eve") == VOTES
    assert counts(atlas, "bob") == 1
