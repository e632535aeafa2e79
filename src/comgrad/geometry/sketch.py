"""Sketches: a short row of numbers for each task vector, whose inner products estimate those of the vectors.

    s(τ) = Σ_t vec(P_tᵀ ΔW_t Q_t),  E⟨s(τ), s(σ)⟩ = ⟨τ, σ⟩

with P_t, Q_t random, independent over tensors, and fixed for ever by the tensors' names and sizes. A sketch depends on its
own vector only, so a collection grows by one row at a time and its neighbours are one matrix-vector product.

A tensor is projected in blocks: what a sketch needs beside its vector is bounded, whatever the tensor's shape.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from comgrad.vectors.delta import Delta, Dense, LowRank, working
from comgrad.vectors.task_vector import TaskVector

SIDE = 32
NUMBERS = SIDE * SIDE
VERSION = 1  # of the random numbers: sketches of two versions have nothing in common
BLOCK = 1 << 16  # rows or columns that are projected at once; changing it changes the sketches of larger tensors


def identity() -> str:
    """32 hex digits that are others when the same vector has another sketch: what is kept of sketches is kept under them.

    They stand for the rule's version and sizes, and for the random numbers themselves, whose stream a newer NumPy may
    change.
    """
    told = hashlib.sha256(f"{VERSION} {SIDE} {BLOCK}".encode())
    for side in ("out", "in"):
        told.update(_random(f"{VERSION} {side}").standard_normal((SIDE, SIDE), dtype=np.float32).tobytes())
        told.update(_random(f"{VERSION} {side} tensor").integers(0, 2, SIDE).astype("i1").tobytes())
    return told.hexdigest()[:32]


def sketch(tau: TaskVector) -> Float[np.ndarray, "d"]:
    """s(τ) (1024,) fp32. Its relative error is about 1/32, times a little more for few tensors of low rank.

    For ΔW = s·B·A it costs (m + n)·r·32 products; no ΔW is formed. Source: Kronecker sketches of matrices (Woodruff,
    Sketching as a Tool for Numerical Linear Algebra, 2014, §2); summed over tensors with independent signs.
    """
    total = torch.zeros(SIDE, SIDE)
    for name, delta in tau.tensors.items():
        total += _of_tensor(name, delta)
    return np.asarray(total.numpy().ravel(), dtype=np.float32)


def _of_tensor(name: str, delta: Delta) -> Tensor:
    """P_tᵀ ΔW_t Q_t (32, 32); a tensor that is no matrix is one row for each of its first index."""
    total = torch.zeros(SIDE, SIDE)
    if isinstance(delta, LowRank):
        for cut in _cuts(delta.A.shape[0]):
            total += _projected(name, "out", delta.B[:, cut]) @ _projected(name, "in", delta.A[cut].T).T
        return delta.scale * total
    assert isinstance(delta, Dense)
    W = delta.W.flatten(1) if delta.W.ndim > 1 else delta.W.reshape(-1, 1)
    for cut in _cuts(W.shape[1]):
        columns = W[:, cut]
        total += _projected(name, "out", columns) @ _probe(name, "in", cut.start, columns.shape[1])
    return total


def _projected(name: str, side: str, X: Tensor) -> Tensor:
    """PᵀX (32, k) of (size, k)."""
    total = torch.zeros(SIDE, X.shape[1])
    for cut in _cuts(X.shape[0]):
        rows = working(X[cut]).float()
        total += _probe(name, side, cut.start, rows.shape[0]).T @ rows
    return total


def _cuts(size: int) -> Iterator[slice]:
    return (slice(at, at + BLOCK) for at in range(0, size, BLOCK))


def _probe(name: str, side: str, at: int, size: int) -> Tensor:
    """Rows `at` to `at + size` of P (or Q), of one block, with entries of variance 1/32: the same random numbers in each
    block, under random signs of the tensor's block."""
    return _signs(f"{name} {at}" if at else name, side, size)[:, None] * _numbers(side)[:size]


@lru_cache(maxsize=2)
def _numbers(side: str) -> Tensor:
    """Those of a whole block; a smaller one has the first of them."""
    numbers = _random(f"{VERSION} {side}").standard_normal((BLOCK, SIDE), dtype=np.float32)
    return torch.from_numpy(numbers) / math.sqrt(SIDE)


@lru_cache(maxsize=256)
def _signs(name: str, side: str, size: int) -> Tensor:
    return torch.from_numpy(_random(f"{VERSION} {side} {name}").integers(0, 2, size).astype(np.int8)) * 2 - 1


def _random(words: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "little")))
