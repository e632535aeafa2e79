"""Sketches estimate inner products, whatever the factors, and are the same on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from comgrad.geometry.gram import gram
from comgrad.geometry.sketch import NUMBERS, sketch
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.resolve import read_vector

BASE = BaseRef("acme/base")


def test_inner_products_of_real_vectors_are_estimated(zoo: list[Path]) -> None:
    taus = [read_vector(p) for p in zoo[:12]]
    rows = np.stack([sketch(t) / t.norm() for t in taus])
    estimate = rows @ rows.T
    norms = np.array([t.norm() for t in taus])
    true = gram(taus).numpy() / np.outer(norms, norms)
    assert np.abs(np.diag(estimate) - 1.0).max() < 0.25
    assert np.abs(estimate - true).max() < 0.25
    assert np.sqrt(((estimate - true) ** 2).mean()) < 0.06


def test_it_is_linear_and_blind_to_the_factors_and_to_the_form() -> None:
    g = torch.Generator().manual_seed(0)
    B, A = torch.randn(20, 3, generator=g), torch.randn(3, 30, generator=g)
    G = torch.randn(3, 3, generator=g) + 3 * torch.eye(3)
    low = TaskVector(BASE, {"a.weight": LowRank(B, A, 0.5)})
    turned = TaskVector(BASE, {"a.weight": LowRank(B @ G, torch.linalg.inv(G) @ A, 0.5)})
    dense = TaskVector(BASE, {"a.weight": Dense(0.5 * B @ A)})
    bias = TaskVector(BASE, {"a.bias": Dense(torch.randn(20, generator=g))})
    assert sketch(low).shape == (NUMBERS,)
    assert np.allclose(sketch(low), sketch(turned), atol=1e-3)
    assert np.allclose(sketch(low), sketch(dense), atol=1e-4)
    assert np.allclose(sketch(low * 2.0 + bias), 2 * sketch(low) + sketch(bias), atol=1e-3)


def test_the_random_numbers_are_fixed_for_ever() -> None:
    tau = TaskVector(BASE, {"a.weight": Dense(torch.ones(4, 5)), "b.bias": Dense(torch.ones(3))})
    found = sketch(tau)
    assert np.allclose([found.sum(), np.abs(found).sum()], [FIXED_SUM, FIXED_SIZE], rtol=1e-5)


FIXED_SUM, FIXED_SIZE = -1.951707, 107.47391
