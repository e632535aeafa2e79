"""Which part of an adapter to train: the singular directions of a start with the most energy per parameter.

A direction i of tensor t has energy σ²_{t,i} and costs m_t + n_t parameters (a column of B and a row of A). Directions
are taken in the order of σ²/(m + n) until the share of parameters asked for is used up. Directions without energy come
last, one of every tensor in turn, so that a start from zero is cut to the same rank everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from comgrad.errors import ComgradError, UnsupportedAdapter
from comgrad.vectors.cutting import factored_svd
from comgrad.vectors.delta import Delta, LowRank, working
from comgrad.vectors.task_vector import TaskVector

DEAD = 1e-6  # σ below this share of the vector's largest is roundoff, not energy
START_NORM = 3.0**-0.5  # of a row of A at a usual LoRA start: √n entries uniform in ±1/√n


@dataclass(frozen=True)
class Split:
    """A start in two parts whose sum it is: what is trained, and what stays as it is (None when that is nothing)."""

    trained: TaskVector
    frozen: TaskVector | None


def trainable_set(vector: TaskVector, share: float) -> dict[str, int]:
    """Tensor → rank to train, so that at most `share` of the adapter's parameters Σ r·(m + n) are trained.

    Sets are nested: a larger share only adds. Tensors that are not in the answer are not trained.

    Args:
        vector: the start; only its product s·B·A counts, not the factors.
        share: in (0, 1]; 1 is the whole adapter.

    Raises:
        ComgradError: a share out of range, or too small for the first direction.
        UnsupportedAdapter: a tensor that is not low-rank.
    """
    if not (math.isfinite(share) and 0.0 < share <= 1.0):
        raise ComgradError(
            f"the share {share}",
            "a part of the parameters is more than 0 and at most 1",
            "give a number such as 0.25",
            code="bad-share",
        )
    low = low_rank_parts(vector)
    spectra = {name: _spectrum(d) for name, d in low.items()}
    floor = DEAD * max((s[0] for s in spectra.values() if s), default=0.0)
    order: list[tuple[float, int, str]] = []
    for name, sigmas in spectra.items():
        cost = sum(low[name].shape)
        order += [(-(s * s) / cost if s > floor else 0.0, i, name) for i, s in enumerate(sigmas)]
    order.sort()
    whole = sum(len(s) * sum(low[n].shape) for n, s in spectra.items())
    budget = share * whole * (1 + 1e-12)
    chosen: dict[str, int] = {}
    used = 0
    for _, _, name in order:
        used += sum(low[name].shape)
        if used > budget:
            break
        chosen[name] = chosen.get(name, 0) + 1
    if not chosen:
        first = sum(low[order[0][2]].shape) / whole
        raise ComgradError(
            f"the share {share}",
            "it is less than one rank of the tensor with the most energy",
            f"give at least {math.ceil(first * 1e4) / 1e4}",
            code="bad-share",
        )
    return dict(sorted(chosen.items()))


def parameters(vector: TaskVector) -> int:
    """Parameters of an adapter, Σ r·(m + n) over its low-rank tensors."""
    return sum(d.rank * sum(d.shape) for d in vector.tensors.values() if isinstance(d, LowRank))


def split(vector: TaskVector, ranks: Mapping[str, int]) -> Split:
    """The start as a part to train, of the given ranks with balanced factors, and the rest; their sum is the start.

    With B = U√(Σ/s) and A = √(Σ/s)Vᵀ both factors train at one rate. s is the tensor's own α/r with α kept when the
    rank is cut, so that fewer directions move ΔW about as fast as all of them would. A direction without
    energy gets B = 0 and a row of A as long as a usual start's, so that it can train; a tensor without any keeps its A.
    """
    trained: dict[str, Delta] = {}
    frozen: dict[str, Delta] = {}
    for name, d in low_rank_parts(vector).items():
        k = ranks.get(name, 0)
        U, S, Vh = factored_svd(d)
        alive = int((DEAD * S[:1] < S).sum()) if float(S[:1].sum()) > 0.0 else 0
        if k:
            trained[name] = _balanced(d, U, S, Vh, k, alive)
        if alive > k:
            root = S[k:alive].sqrt()
            dtype = working(d.B).dtype
            frozen[name] = replace(
                d, B=(U[:, k:alive] * root).to(dtype), A=(root[:, None] * Vh[k:alive]).to(dtype), scale=1.0
            )
    return Split(TaskVector(vector.base, trained), TaskVector(vector.base, frozen) if frozen else None)


def low_rank_parts(vector: TaskVector) -> dict[str, LowRank]:
    """The tensors of a vector that is low-rank throughout. Raises UnsupportedAdapter by name."""
    out: dict[str, LowRank] = {}
    for name, d in vector.tensors.items():
        if not isinstance(d, LowRank):
            raise UnsupportedAdapter(
                f"'{name}' is a dense delta",
                "training goes on from the factors of a LoRA adapter, and this has none",
                "recompress it with: comgrad merge A B --rank 8, or leave biases, heads and DoRA out",
                code="start-not-low-rank",
            )
        out[name] = d
    return out


def _spectrum(d: LowRank) -> list[float]:
    return [float(s) for s in factored_svd(d)[1]]


def _balanced(d: LowRank, U: torch.Tensor, S: torch.Tensor, Vh: torch.Tensor, k: int, alive: int) -> LowRank:
    scale = (abs(d.scale) or 1.0) * d.rank / k
    dtype = working(d.B).dtype
    if alive == 0 and bool(d.A.any()):
        return replace(d, B=torch.zeros_like(d.B[:, :k], dtype=dtype), A=d.A[:k].to(dtype), scale=scale)
    root = (S[:k] / scale).sqrt()
    B, A = U[:, :k] * root, root[:, None] * Vh[:k]
    B[:, alive:] = 0.0
    A[alive:] = Vh[alive:k] * START_NORM
    return replace(d, B=B.to(dtype), A=A.to(dtype), scale=scale)
