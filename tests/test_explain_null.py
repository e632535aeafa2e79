"""The null: its moments are those of vectors that are really drawn, and real structure is told from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comgrad.explain.decomposition import decompose
from comgrad.explain.null import random_inner, random_residuals, sampled, share_at_least, share_at_most
from comgrad.geometry.gram import gram_by_tensor
from comgrad.vectors.task_vector import TaskVector
from explain_models import NAMES, SIZE, planted, reference


def drawn_inner(vectors: list[TaskVector], energy: dict[str, float], rank: int, draws: int) -> np.ndarray:
    """Inner products with the vectors of adapters BA that are really drawn, with ‖ΔW_t‖² = energy_t."""
    g = torch.Generator().manual_seed(3)
    total = torch.zeros(draws, len(vectors), dtype=torch.float64)
    for n in NAMES:
        B, A = (torch.randn(draws, *shape, generator=g) for shape in ((SIZE, rank), (rank, SIZE)))
        W = (B @ A).flatten(1).double()
        W *= energy[n] ** 0.5 / W.norm(dim=1, keepdim=True)
        total += W @ torch.stack([v.tensors[n].dense().flatten().double() for v in vectors]).T
    return total.numpy()


def spread_of(vectors: list[TaskVector], energy: dict[str, float]) -> np.ndarray:
    g = gram_by_tensor(vectors)
    return sum(energy[n] / SIZE**2 * g.per_tensor[t].numpy() for t, n in enumerate(g.tensors))


@pytest.mark.parametrize("rank", [1, 6])
def test_inner_products_of_drawn_adapters_have_the_covariance_that_is_used(rank: int) -> None:
    vectors, energy = planted(each=2)[:5], {n: float(i + 1) for i, n in enumerate(NAMES)}
    covariance = spread_of(vectors, energy)
    inner = drawn_inner(vectors, energy, rank, 1500)
    size = np.sqrt(np.diag(covariance))
    found = (inner.T @ inner / len(inner)) / np.outer(size, size)
    np.testing.assert_allclose(found, covariance / np.outer(size, size), atol=0.15)
    assert np.abs(inner.mean(axis=0) / size).max() < 0.15
    model = random_inner(covariance, draws=4000, seed=1)
    np.testing.assert_allclose(model.T @ model / 4000, covariance, atol=0.12 * size.max() ** 2)


def test_residuals_of_drawn_adapters_look_like_the_null_s() -> None:
    ref, vectors, energy = reference(), planted(), {n: 1.0 / len(NAMES) for n in NAMES}
    null = random_residuals(ref.total, spread_of(vectors, energy), 1.0, draws=150)
    real = [decompose(ref.total, b, 1.0).residual for b in drawn_inner(vectors, energy, 6, 150)]
    error = np.hypot(null.std(), np.std(real)) / np.sqrt(150)
    assert abs(np.mean(real) - null.mean()) < 4 * error
    others, probe = ref.left_out(0)
    assert decompose(others.total, probe.inner.sum(axis=0), probe.total).residual < null.min()


def test_shares_never_claim_more_than_the_draws_can_show() -> None:
    values = np.arange(99.0)
    assert share_at_most(values, -1.0) == 0.01
    assert share_at_least(values, 1e9) == 0.01
    assert share_at_most(values, 1e9) == 1.0
    assert share_at_most(np.zeros(0), 0.0) == 1.0


def test_samples_are_even_and_whole_where_they_can_be() -> None:
    assert sampled(7) == list(range(7))
    found = sampled(1000, 150)
    assert len(found) == 150 and found[0] == 0 and found[-1] == 999
    assert sampled(0) == []
