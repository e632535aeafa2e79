"""Digests of vectors, tensors and plain values: the names of cached results."""

from __future__ import annotations

import hashlib
import json
import weakref
from typing import Any

import torch
from torch import Tensor

from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector

_DIGESTS: weakref.WeakKeyDictionary[TaskVector, str] = weakref.WeakKeyDictionary()


def vector_digest(tau: TaskVector) -> str:
    """SHA-256 of a vector's tensors as they are held; computed once for each vector in memory."""
    if tau not in _DIGESTS:
        h = hashlib.sha256()
        for name, d in tau.tensors.items():
            h.update(json.dumps([name, d.kind, list(d.shape), d.transposed]).encode())
            if isinstance(d, LowRank):
                h.update(json.dumps([d.scale, tensor_digest(d.B), tensor_digest(d.A)]).encode())
            else:
                h.update(tensor_digest(d.W).encode())
        _DIGESTS[tau] = h.hexdigest()
    return _DIGESTS[tau]


def tensor_digest(x: Tensor) -> str:
    """SHA-256 of a tensor's dtype and numbers."""
    raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(str(x.dtype).encode() + raw.tobytes()).hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()
