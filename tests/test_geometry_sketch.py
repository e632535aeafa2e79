"""Sketches estimate inner products, whatever the factors, and are the same on every machine."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from comgrad.geometry.gram import gram
from comgrad.geometry.sketch import BLOCK, NUMBERS, SIDE, sketch
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


def _blocks(name: str, side: str, size: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """P of each block of one side, from nothing but its definition."""
    for at in range(0, size, BLOCK):
        cut, block = slice(at, min(size, at + BLOCK)), name if at == 0 else f"{name} {at}"
        seeds = [hashlib.sha256(words.encode()).digest()[:16] for words in (f"1 {side}", f"1 {side} {block}")]
        numbers, signs = (np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little"))) for seed in seeds)
        n = cut.stop - cut.start
        P = numbers.standard_normal((n, SIDE), dtype=np.float32) * (2 * signs.integers(0, 2, n) - 1)[:, None]
        yield cut, torch.from_numpy(P / SIDE**0.5).float()


@pytest.mark.parametrize(
    "shape", [(), (7,), (5, 9), (4, 3, 2), (BLOCK, 2), (BLOCK + 100,), (3, BLOCK + 5), (BLOCK + 1, 2)]
)
def test_a_sketch_is_the_sum_of_those_of_its_tensors_blocks(shape: tuple[int, ...]) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    M = W.reshape(shape[0] if shape else 1, -1)
    expected = sum(
        P.T @ M[rows, columns] @ Q
        for rows, P in _blocks("w", "out", M.shape[0])
        for columns, Q in _blocks("w", "in", M.shape[1])
    )
    assert isinstance(expected, torch.Tensor)
    found = torch.from_numpy(sketch(TaskVector(BASE, {"w": Dense(W)})))
    assert torch.allclose(found, expected.ravel(), atol=1e-4 * float(W.norm()))
    if len(shape) == 2:
        low = LowRank(M.float(), torch.eye(M.shape[1]), 1.0) if M.shape[1] < 9 else LowRank(torch.eye(shape[0]), M, 1.0)
        assert torch.allclose(
            torch.from_numpy(sketch(TaskVector(BASE, {"w": low}))), found, atol=1e-4 * float(W.norm())
        )


def test_a_large_tensor_needs_no_more_room_than_a_block() -> None:
    tau = TaskVector(
        BASE, {"w": Dense(torch.ones(1 << 20)), "v": LowRank(torch.ones(1 << 20, 1), torch.ones(1, 2), 1.0)}
    )
    tracemalloc.start()  # of the random numbers, which are numpy's
    try:
        sketch(tau)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_tensors_without_elements_are_sketched() -> None:
    tau = TaskVector(BASE, {"a.weight": Dense(torch.zeros(0, 3)), "b.bias": Dense(torch.zeros(0))})
    assert not sketch(tau).any()
