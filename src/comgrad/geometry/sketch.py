"""Sketches: a short row of numbers for each task vector, whose inner products estimate those of the vectors.

    s(τ) = Σ_t vec(P_tᵀ ΔW_t Q_t),  E⟨s(τ), s(σ)⟩ = ⟨τ, σ⟩

with P_t, Q_t random, independent over tensors, and fixed for ever by the tensors' names and sizes. A sketch depends on its
own vector only, so a collection grows by one row at a time and its neighbours are one matrix-vector product.
"""

from __future__ import annotations

import hashlib
import math
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
    if isinstance(delta, LowRank):
        left = _probe(name, "out", delta.B.shape[0]).T @ working(delta.B).float()
        right = working(delta.A).float() @ _probe(name, "in", delta.A.shape[1])
        low: Tensor = delta.scale * (left @ right)
        return low
    assert isinstance(delta, Dense)
    W = working(delta.W).float().reshape(delta.W.shape[0] if delta.W.ndim else 1, -1)
    return _probe(name, "out", W.shape[0]).T @ W @ _probe(name, "in", W.shape[1])


def _probe(name: str, side: str, size: int) -> Tensor:
    """(size, 32) with entries of variance 1/32: random numbers of the size under random signs of the tensor."""
    return _signs(name, side, size)[:, None] * _numbers(side, size)


@lru_cache(maxsize=64)
def _numbers(side: str, size: int) -> Tensor:
    numbers = _random(f"{VERSION} {side}").standard_normal((size, SIDE), dtype=np.float32)
    return torch.from_numpy(numbers) / math.sqrt(SIDE)


@lru_cache(maxsize=4096)
def _signs(name: str, side: str, size: int) -> Tensor:
    return torch.from_numpy(_random(f"{VERSION} {side} {name}").integers(0, 2, size).astype(np.float32)) * 2 - 1


def _random(words: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "little")))
