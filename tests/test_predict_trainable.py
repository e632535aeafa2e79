"""The trainable set: laws of the choice, and that nothing of the start is lost by dividing it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import ComgradError, UnsupportedAdapter
from comgrad.predict.start import zero_start
from comgrad.predict.trainable import parameters, split, trainable_set
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("b")


Spec = list[tuple[int, int, int, int, float]]
# built outside the strategies: the run-time type checker draws random numbers, which strategies must not
specs = st.lists(
    st.tuples(
        st.integers(4, 20), st.integers(4, 20), st.integers(1, 4), st.integers(-1, 1), st.sampled_from([0.5, 1.0, -2.0])
    ),
    min_size=1,
    max_size=5,
)


def built(spec: Spec) -> TaskVector:
    generator = torch.Generator().manual_seed(hash(tuple(spec)) % 2**31)
    return TaskVector(
        BASE,
        {
            f"t{i}.weight": LowRank(
                torch.randn(m, r, generator=generator) * 10.0**size, torch.randn(r, n, generator=generator), scale
            )
            for i, (m, n, r, size, scale) in enumerate(spec)
        },
    )


def cost(vector: TaskVector, ranks: dict[str, int]) -> int:
    return sum(k * sum(vector.tensors[n].shape) for n, k in ranks.items())


def smallest(vector: TaskVector) -> float:
    """A share that surely holds the first direction."""
    return max(sum(d.shape) for d in vector.tensors.values()) / parameters(vector)


@settings(deadline=None)
@given(specs, st.floats(0.0, 1.0))
def test_the_share_is_kept_and_used_up(spec: Spec, part: float) -> None:
    vector = built(spec)
    share = max(smallest(vector), part)
    used, whole = cost(vector, trainable_set(vector, share)), parameters(vector)
    assert used <= share * whole * (1 + 1e-9)
    assert used == whole or used + max(sum(d.shape) for d in vector.tensors.values()) > share * whole


@settings(deadline=None)
@given(specs)
def test_the_whole_share_is_the_whole_adapter(spec: Spec) -> None:
    vector = built(spec)
    assert trainable_set(vector, 1.0) == {n: d.rank for n, d in vector.tensors.items() if isinstance(d, LowRank)}


@settings(deadline=None)
@given(specs, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_larger_share_only_adds(spec: Spec, a: float, b: float) -> None:
    vector = built(spec)
    few, many = sorted((max(a, smallest(vector)), max(b, smallest(vector))))
    less, more = trainable_set(vector, few), trainable_set(vector, many)
    assert all(more.get(n, 0) >= k for n, k in less.items())


@settings(deadline=None)
@given(specs, st.floats(0.0, 1.0), st.integers(0, 10_000))
def test_the_factors_and_the_scale_of_the_vector_do_not_matter(spec: Spec, part: float, seed: int) -> None:
    vector = built(spec)
    share = max(smallest(vector), part)
    turned = {}
    for name, d in vector.tensors.items():
        assert isinstance(d, LowRank)
        generator = torch.Generator().manual_seed(seed)
        G = torch.linalg.qr(torch.randn(d.rank, d.rank, generator=generator, dtype=torch.float64))[0]
        turned[name] = LowRank(d.B.double() @ G, G.T @ d.A.double(), -7.0 * d.scale)
    assert trainable_set(TaskVector(BASE, turned), share) == trainable_set(vector, share)


@settings(deadline=None)
@given(specs, st.floats(0.0, 1.0))
def test_no_direction_left_out_has_more_energy_per_parameter(spec: Spec, part: float) -> None:
    vector = built(spec)
    chosen = trainable_set(vector, max(smallest(vector), part))
    inside, outside = [], []
    for name, d in vector.tensors.items():
        values = torch.linalg.svdvals(d.dense().double())[: d.rank].square() / sum(d.shape)  # type: ignore[union-attr]
        k = chosen.get(name, 0)
        inside += values[:k].tolist()
        outside += values[k:].tolist()
    assert not outside or min(inside) >= max(outside) * (1 - 1e-6)


@settings(deadline=None)
@given(specs, st.floats(0.0, 1.0))
def test_the_parts_add_up_to_the_start_and_are_balanced(spec: Spec, part: float) -> None:
    vector = built(spec)
    ranks = trainable_set(vector, max(smallest(vector), part))
    made = split(vector, ranks)
    assert {n: d.rank for n, d in made.trained.tensors.items()} == ranks  # type: ignore[union-attr]
    whole = made.trained if made.frozen is None else made.trained + made.frozen
    for name, d in vector.tensors.items():
        torch.testing.assert_close(
            whole.tensors[name].dense(), d.dense(), rtol=1e-4, atol=1e-5 * float(d.dense().norm())
        )
    for d in made.trained.tensors.values():
        assert isinstance(d, LowRank)
        torch.testing.assert_close(d.B.norm(dim=0), d.A.norm(dim=1), rtol=1e-4, atol=1e-6)
        assert d.scale > 0
    if made.frozen is not None:  # they share no direction, so energies add up as well
        assert made.trained.inner(made.frozen) == pytest.approx(0.0, abs=1e-4 * vector.inner(vector))


def test_without_energy_the_rank_is_cut_evenly_and_the_start_stays_what_it_was() -> None:
    shapes = {f"t{i}.weight": Dense(torch.zeros(6 + i, 8)) for i in range(4)}
    zero = zero_start(BASE, shapes, 4, scale=2.0).vector
    ranks = trainable_set(zero, 0.5)
    assert set(ranks.values()) == {2}
    trained = split(zero, ranks).trained
    assert split(zero, ranks).frozen is None
    for name, d in trained.tensors.items():
        assert isinstance(d, LowRank)
        assert torch.equal(d.A, zero.tensors[name].A[:2])  # type: ignore[union-attr]
        assert not d.B.any()
        assert d.scale == 4.0  # α = 8 is kept: 2 of 4 ranks at twice the scaling


def test_a_direction_without_energy_can_still_be_trained() -> None:
    B, A = torch.randn(10, 4), torch.randn(4, 12)
    B[:, 2:] = 0.0
    d = split(TaskVector(BASE, {"t.weight": LowRank(B, A, 2.0)}), {"t.weight": 4}).trained.tensors["t.weight"]
    assert isinstance(d, LowRank)
    torch.testing.assert_close(d.dense(), 2.0 * B @ A, rtol=1e-4, atol=1e-5)
    assert not d.B[:, 2:].any()
    torch.testing.assert_close(d.A[2:].norm(dim=1), torch.full((2,), 3.0**-0.5))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_shares_out_of_range_are_refused(share: float) -> None:
    vector = TaskVector(BASE, {"t.weight": LowRank(torch.ones(4, 1), torch.ones(1, 4))})
    with pytest.raises(ComgradError, match="more than 0 and at most 1; give a number such as 0.25"):
        trainable_set(vector, share)


def test_a_share_too_small_says_which_one_would_do() -> None:
    vector = TaskVector(BASE, {f"t{i}.weight": LowRank(torch.ones(4, 1), torch.ones(1, 4)) for i in range(3)})
    with pytest.raises(ComgradError, match="less than one rank .* give at least 0.3334"):
        trainable_set(vector, 0.1)
    assert trainable_set(vector, 0.3334) == {"t0.weight": 1}


def test_a_dense_delta_is_refused_by_name() -> None:
    vector = TaskVector(BASE, {"head.weight": Dense(torch.ones(4, 4))})
    with pytest.raises(UnsupportedAdapter, match="'head.weight' is a dense delta"):
        trainable_set(vector, 0.5)
