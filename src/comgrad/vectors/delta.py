"""A delta ΔW of one tensor: dense, or low-rank ΔW = s·B·A. Both are immutable values with one algebra.

Orientation: every matrix here is (m, n) = (output side, input side), whatever the base stores. GPT-2's Conv1D and
embedding tables store the transpose; `transposed` says so, and `in_base_layout` turns the delta back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from comgrad.errors import ShapeMismatch

UNIT_ROUNDOFF: dict[torch.dtype, float] = {
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}


def working(x: Tensor) -> Tensor:
    """The tensor in the precision arithmetic is done in: fp64 stays, everything narrower becomes fp32 (exactly)."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The dtype of the two with the larger unit roundoff: a sum is no better known than its worst term."""
    return a if UNIT_ROUNDOFF[a] >= UNIT_ROUNDOFF[b] else b


@dataclass(frozen=True, eq=False)
class Pinned:
    """Elements whose fine-tuned value cannot be had back from base + fp32 delta; kept as they were stored.

    Used only when the unchanged vector is applied with scale 1 to its own base. `index` is flat, in the base's layout.
    """

    index: Tensor  # (p,) int64
    value: Tensor  # (p,) in the stored dtype


@dataclass(frozen=True, eq=False)
class Dense:
    """ΔW kept in full.

    Args:
        W: (m, n) output × input; any other shape for tensors that are no matrix (biases, norms, convolutions).
        stored: dtype of the checkpoint the delta came from; its unit roundoff is the noise floor.
        transposed: the base stores the transpose of W.
        pinned: see `Pinned`; dropped by every arithmetic operation.
    """

    W: Tensor
    stored: torch.dtype = torch.float32
    transposed: bool = False
    pinned: Pinned | None = None

    def __post_init__(self) -> None:
        if self.transposed and self.W.ndim != 2:
            raise ShapeMismatch(
                f"a transposed delta of shape {tuple(self.W.shape)}",
                "only a matrix has a transpose",
                "pass a 2-D tensor",
            )

    @property
    def kind(self) -> str:
        return "dense"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.W.shape)

    @property
    def is_matrix(self) -> bool:
        return self.W.ndim >= 2

    @property
    def numel(self) -> int:
        return self.W.numel()

    def dense(self) -> Tensor:
        """ΔW (m, n), output side first."""
        return self.W

    def in_base_layout(self) -> Tensor:
        """ΔW as the base stores this tensor."""
        return self.W.T if self.transposed else self.W

    def scaled(self, c: float) -> Dense:
        return replace(self, W=self.W * c, pinned=None)


@dataclass(frozen=True, eq=False)
class LowRank:
    """ΔW = scale · B · A, never formed unless asked for.

    Args:
        B: (m, r) output side. Its columns span the column space of ΔW when A has full row rank.
        A: (r, n) input side.
        scale: α/r, or α/√r for rsLoRA; kept apart so that what was read is written back bit for bit.
        stored: dtype the factors were stored in; numerical rank is decided by its roundoff.
        transposed: the base stores the transpose (Conv1D, embeddings).
        weight_shape: shape of the base's tensor when it is no matrix (convolution kernels).
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0
    stored: torch.dtype = torch.float32
    transposed: bool = False
    weight_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise ShapeMismatch(
                f"factors B {tuple(self.B.shape)} and A {tuple(self.A.shape)}",
                "ΔW = s·B·A needs B (m, r) and A (r, n) with one r",
                "check which tensor is lora_B and which is lora_A",
            )

    @property
    def kind(self) -> str:
        return "lowrank"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.B.shape[0], self.A.shape[1])

    @property
    def is_matrix(self) -> bool:
        return True

    @property
    def rank(self) -> int:
        """Number of stored columns r; the numerical rank can be lower."""
        return self.B.shape[1]

    @property
    def numel(self) -> int:
        return self.B.shape[0] * self.A.shape[1]

    def dense(self) -> Tensor:
        """ΔW (m, n), output side first."""
        return self.scale * (working(self.B) @ working(self.A))

    def in_base_layout(self) -> Tensor:
        """ΔW as the base stores this tensor."""
        full = self.dense()
        if self.weight_shape is not None:
            return full.reshape(self.weight_shape)
        return full.T if self.transposed else full

    def scaled(self, c: float) -> LowRank:
        return replace(self, scale=self.scale * c)

    def folded(self) -> tuple[Tensor, Tensor]:
        """(s·B, A) in working precision."""
        return working(self.B) * self.scale, working(self.A)


Delta = Dense | LowRank


def same_place(a: Delta, b: Delta, name: str) -> None:
    """Refuse two deltas that cannot be deltas of one tensor.

    Raises:
        ShapeMismatch: different shapes, or the base stores the transpose for one of them only.
    """
    if a.shape != b.shape and matrix_shape(a) != matrix_shape(b):
        raise ShapeMismatch(
            f"tensor '{name}' has shape {a.shape} in one vector and {b.shape} in the other",
            "deltas of one tensor must have its shape",
            "check that both were made from the same base and the same revision",
        )
    if a.transposed != b.transposed:
        raise ShapeMismatch(
            f"tensor '{name}' is stored as (input, output) by one vector and as (output, input) by the other",
            "deltas of one tensor must have its layout",
            "read the adapter again with its base at hand",
        )


def matrix_shape(d: Delta) -> tuple[int, ...]:
    """(m, n) of the delta seen as a matrix: convolution kernels are (out, in·kh·kw)."""
    return (d.shape[0], math.prod(d.shape[1:])) if len(d.shape) > 2 else d.shape


def add(a: Delta, b: Delta) -> Delta:
    """a + b. Low-rank plus low-rank stays low-rank: [s₁B₁ s₂B₂]·[A₁; A₂]; with a dense term the sum is dense."""
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        return concatenate([a, b])
    stored = coarser(a.stored, b.stored)
    left, right = a.dense(), b.dense()
    if left.shape != right.shape:  # a convolution kernel in one, its matrix form in the other
        kernel = max(a.shape, b.shape, key=len)
        left, right = left.reshape(kernel), right.reshape(kernel)
    return Dense(left + right, stored=stored, transposed=a.transposed)


def concatenate(deltas: Sequence[LowRank], times: Sequence[float] | None = None) -> LowRank:
    """Exact sum Σ t_i ΔW_i of low-rank deltas of one tensor; its rank is the sum of the ranks. Default: t = 1."""
    scales = [d.scale * t for d, t in zip(deltas, times or [1.0] * len(deltas), strict=True)]
    first = deltas[0]
    stored = first.stored
    for d in deltas[1:]:
        stored = coarser(stored, d.stored)
    if len(deltas) == 1:
        return replace(first, scale=scales[0])
    B = working(_joined([d.B for d in deltas], dim=1))
    A = working(_joined([d.A for d in deltas], dim=0))
    each = torch.repeat_interleave(torch.tensor(scales, dtype=torch.float64), torch.tensor([d.rank for d in deltas]))
    return replace(first, B=B * each.to(B), A=A, scale=1.0, stored=stored)


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """One tensor, in the stored dtype where all have one: it is widened once, not part by part."""
    alike = all(x.dtype == parts[0].dtype for x in parts)
    return torch.cat([*parts] if alike else [working(x) for x in parts], dim=dim)


def inner(a: Delta, b: Delta) -> float:
    """Frobenius inner product ⟨a, b⟩, accumulated in fp64.

    For two low-rank deltas s₁s₂·sum((B₁ᵀB₂) ∘ (A₁A₂ᵀ)), which costs r₁r₂(m+n); when that exceeds the m·n·r of forming
    the smaller delta, it is formed.
    """
    if isinstance(a, Dense) and isinstance(b, LowRank):
        a, b = b, a
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        return a.scale * b.scale * _inner_factors(a.B.double(), a.A.double(), b.B.double(), b.A.double())
    if isinstance(a, LowRank):  # ⟨sBA, W⟩ = s·sum(B ∘ (W Aᵀ)): no (m, n) temporary beyond W itself
        W = b.dense().reshape(matrix_shape(b))
        return a.scale * float((a.B.double() * (W.double() @ a.A.double().T)).sum())
    return _dot64(a.dense(), b.dense())


def _inner_factors(B1: Tensor, A1: Tensor, B2: Tensor, A2: Tensor) -> float:
    """sum((B₁ᵀB₂) ∘ (A₁A₂ᵀ)) in fp64, accurate whatever gauge (B·G, G⁻¹·A) the factors are in.

    The terms can be cond(G)² larger than their sum. Where that would cost more than 1e-9 of it, A is made orthonormal
    first (A = RᵀQᵀ, B·Rᵀ in place of B), which leaves an error of cond(G) roundoffs.
    """

    def summed(P1: Tensor, Q1: Tensor, P2: Tensor, Q2: Tensor) -> float:
        return float(((P1.T @ P2) * (Q1 @ Q2.T)).sum())

    def size(P: Tensor, Q: Tensor) -> float:
        return float((P.norm(dim=0) * Q.norm(dim=1)).sum())

    result = summed(B1, A1, B2, A2)
    if size(B1, A1) * size(B2, A2) * UNIT_ROUNDOFF[torch.float64] <= 1e-9 * abs(result):
        return result
    (Q1, R1), (Q2, R2) = torch.linalg.qr(A1.T), torch.linalg.qr(A2.T)
    return summed(B1 @ R1.T, Q1.T, B2 @ R2.T, Q2.T)


def _dot64(x: Tensor, y: Tensor, block: int = 1 << 22) -> float:
    """x·y in fp64 without an fp64 copy of either whole tensor."""
    x, y = x.reshape(-1), y.reshape(-1)
    return float(
        sum(torch.dot(x[i : i + block].double(), y[i : i + block].double()) for i in range(0, x.numel(), block))
    )
