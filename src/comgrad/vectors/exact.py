"""Bit-exact differences: what to store so that base + delta gives the fine-tuned tensor back, bit for bit.

W = ft − base is formed in fp64 and kept in fp32 (fp64 when the fine-tuned tensor is fp64). Then base + W is formed in
fp64, rounded to the stored dtype, and compared with the fine-tuned bits; the few elements that differ (a large base
cancelled, −0.0, an overflow of the difference) are pinned: index and value. Both directions run `recombine`, so the
comparison made here is the sum made later. Everything goes in blocks: no fp64 copy of a whole tensor exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from comgrad.vectors.delta import Pinned

BLOCK = 1 << 18  # elements in fp64 at once
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def recombine(base: Tensor, delta: Tensor, out: torch.dtype, scale: float = 1.0) -> Tensor:
    """base + scale·delta, formed in fp64 and rounded once to `out`; any shape, both of one shape."""
    b, d = base.reshape(-1), delta.reshape(-1)
    result = torch.empty(b.numel(), dtype=out)
    for i in range(0, b.numel(), BLOCK):
        term = d[i : i + BLOCK].double()
        if scale != 1.0:
            term = term * scale
        result[i : i + BLOCK] = (b[i : i + BLOCK].double() + term).to(out)
    return result.reshape(base.shape)


def same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise: the same bit pattern. Unlike ==, it tells −0.0 from 0.0."""
    kind = _BITS[a.element_size()]
    return a.contiguous().view(kind) == b.contiguous().view(kind)


def subtract(base: Tensor, finetuned: Tensor) -> tuple[Tensor, Pinned | None]:
    """W ≈ finetuned − base and what must be pinned so that `recombine(base, W, finetuned.dtype)` is exact.

    Returns:
        W in the base's layout (fp32, or fp64 when `finetuned` is), and the pinned elements, None when there are none.
    """
    b, f = base.reshape(-1), finetuned.reshape(-1)
    kept = torch.float64 if f.dtype == torch.float64 else torch.float32
    limit = torch.finfo(kept).max
    W = torch.empty(f.numel(), dtype=kept)
    index: list[Tensor] = []
    for i in range(0, f.numel(), BLOCK):
        part = slice(i, i + BLOCK)
        difference = f[part].double() - b[part].double()
        W[part] = difference.clamp_(-limit, limit).to(kept)  # ±1.7e308 apart: the difference overflows, so it is pinned
        back = (b[part].double() + W[part].double()).to(f.dtype)
        wrong = (~same_bits(back, f[part])).nonzero().reshape(-1)
        if wrong.numel():
            index.append(wrong + i)
    if not index:
        return W.reshape(finetuned.shape), None
    where = torch.cat(index)
    return W.reshape(finetuned.shape), Pinned(where, f[where].clone())


def put_pinned(out: Tensor, pinned: Pinned) -> Tensor:
    """Set the pinned elements of a tensor in the base's layout, in place."""
    out.view(-1)[pinned.index] = pinned.value
    return out
