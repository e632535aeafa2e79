"""Packed layers give what torch's own give, and torch's own stand in wherever they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from comgrad.describe import packed


@pytest.mark.parametrize(("m", "n"), [(384, 384), (1536, 384), (3, 7), (1, 1)])
@pytest.mark.parametrize("rows", [(1, 1), (1, 31), (64, 5)])
def test_a_packed_product_is_the_product(m: int, n: int, rows: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(m + n)
    weight, bias = torch.randn(m, n, generator=generator), torch.randn(m, generator=generator)
    x = torch.randn(*rows, n, generator=generator)
    expected = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(packed.linear(weight, bias)(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 4])
def test_a_layer_is_torchs_own(heads: int) -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(32, heads, 64, activation="gelu", batch_first=True).eval()
    h = torch.randn(2, 5, 32)
    with torch.inference_mode():
        torch.testing.assert_close(packed.Layer(theirs)(h), theirs(h), rtol=1e-5, atol=1e-5)


def test_what_is_not_there_or_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = torch.randn(5, 4), torch.randn(5)
    plain = nn.functional.linear

    def own(x: torch.Tensor) -> torch.Tensor:
        return plain(x, weight, bias)

    x = torch.randn(2, 4)
    with monkeypatch.context() as m:
        m.setattr(packed, "_AGREE", -1.0)  # nothing agrees
        assert packed._packed(weight, bias, own) is None
        assert torch.equal(packed.linear(weight, bias)(x), own(x))
    with monkeypatch.context() as m:
        m.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert torch.equal(packed.linear(weight, bias)(x), own(x))
    assert packed._packed(weight.double(), bias.double(), own) is None
    assert packed._packed(torch.empty(2, 3, device="meta"), torch.empty(2, device="meta"), own) is None
