"""Encoder layers for few words at a time: on a CPU most of their time is reading weights, so these are laid out once.

torch multiplies by oneDNN with weights in the order that the processor wants, as models compiled with it do. The operators
carry no promise of staying, so what they give is compared when a layer is made, and `nn.functional.linear` stands in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Linear = Callable[[Tensor], Tensor]
_AGREE = 1e-4  # of the largest number: sums in another order differ by a hundredth of that


def linear(weight: Tensor, bias: Tensor) -> Linear:
    """x (..., n) → xWᵀ + b (..., m), with W (m, n)."""
    weight, bias = weight.detach().contiguous(), bias.detach()

    def plain(x: Tensor) -> Tensor:
        return functional.linear(x, weight, bias)

    return _packed(weight, bias, plain) or plain


def _packed(weight: Tensor, bias: Tensor, plain: Linear) -> Linear | None:
    """The same by oneDNN; None where there is none for this tensor, or it gives something else."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        ordered = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        multiply = torch.ops.mkldnn._linear_pointwise

        def packed(x: Tensor) -> Tensor:
            made: Tensor = multiply(x, ordered, bias, "none", [], "")
            return made

        x = torch.linspace(-1.0, 1.0, 3 * weight.shape[1]).sin().reshape(1, 3, -1)
        one, other = packed(x), plain(x)
        same = one.shape == other.shape and bool((one - other).abs().max() <= _AGREE * other.abs().max())
    except (AttributeError, RuntimeError, TypeError):
        return None
    return packed if same else None


class Layer:
    """A post-norm transformer layer with GELU, in evaluation mode, of the weights of torch's own."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        attention = layer.self_attn
        self._heads = attention.num_heads
        self._three = linear(attention.in_proj_weight, attention.in_proj_bias)
        self._out = linear(attention.out_proj.weight, attention.out_proj.bias)
        self._up = linear(layer.linear1.weight, layer.linear1.bias)
        self._down = linear(layer.linear2.weight, layer.linear2.bias)
        self._norms = layer.norm1, layer.norm2

    def __call__(self, h: Tensor) -> Tensor:
        """(b, t, d) → (b, t, d), without a mask."""
        b, t, d = h.shape
        q, k, v = self._three(h).view(b, t, 3, self._heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        h = self._norms[0](h + self._out(seen))
        made: Tensor = self._norms[1](h + self._down(functional.gelu(self._up(h))))
        return made
