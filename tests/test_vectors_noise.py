"""The rounding floor of dense vectors, against simulated rounding."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comgrad.vectors.noise import NoiseFloor, measure, total, ulp

HALF = [torch.bfloat16, torch.float16, torch.float32]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_ulp_is_numpys_spacing(x: float) -> None:
    largest = float(np.finfo(np.float32).max)  # numpy has no next number to measure the distance to
    expected = abs(float(np.spacing(np.float32(x)))) if abs(x) < largest else 2.0**104
    assert float(ulp(torch.tensor(x))) == expected


@given(st.floats(width=16, allow_nan=False, allow_infinity=False))
def test_ulp_of_half_precision_is_numpys_spacing(x: float) -> None:
    expected = float(np.spacing(np.float16(abs(x)))) if abs(x) < 65504 else 32.0
    assert float(ulp(torch.tensor(x, dtype=torch.float16))) == expected


def test_ulp_of_bf16_is_the_next_number() -> None:
    x = torch.tensor([1.0, 1.5, -3.0, 1e-3, 0.0], dtype=torch.bfloat16)
    above = (x.abs().view(torch.int16) + 1).view(torch.bfloat16)
    assert torch.equal(ulp(x), above.double() - x.abs().double())


@pytest.mark.parametrize("dtype", HALF)
def test_the_floor_is_the_error_of_rounding_both_ends(dtype: torch.dtype) -> None:
    """True weights in fp64, rounded to the dtype: the error of the stored difference has the predicted size."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(400_000, generator=generator, dtype=torch.float64) * 0.02
    delta = torch.randn(400_000, generator=generator, dtype=torch.float64) * 0.02 * torch.finfo(dtype).eps * 4
    b, f = w.to(dtype), (w + delta).to(dtype)
    error = (f.double() - b.double()) - delta
    found = measure(b, f)
    assert found.floor == pytest.approx(float(error.square().mean().sqrt()), rel=0.05)
    assert found.rms == pytest.approx(float((f.double() - b.double()).square().mean().sqrt()), rel=1e-9)
    assert found.warning is None


def test_a_light_bf16_fine_tune_is_reported_as_noise() -> None:
    """A delta of 1e-3 of the weights' standard deviation: about 69 % of stored differences are exactly zero."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(300_000, generator=generator, dtype=torch.float64)
    f = (w + 1e-3 * torch.randn(300_000, generator=generator, dtype=torch.float64)).bfloat16()
    found = measure(w.bfloat16(), f)
    assert found.zero_fraction == pytest.approx(0.69, abs=0.02)
    assert found.ratio < 3
    assert found.warning is not None and re.search("6[89]% of its elements are exactly zero", found.warning)
    heavy = measure(w.bfloat16(), (w + 0.05 * torch.randn(300_000, generator=generator).double()).bfloat16())
    assert heavy.ratio > 3 and heavy.warning is None


def test_floors_add_over_tensors_and_blocks() -> None:
    b, f = torch.randn(1000).half(), torch.randn(1000).half()
    whole = measure(b, f)
    parts = total(measure(b[i : i + 100], f[i : i + 100]) for i in range(0, 1000, 100))
    blocks = measure(b, f, block=77)
    for got in (parts, blocks):
        assert (got.numel, got.zeros) == (whole.numel, whole.zeros)
        assert got.energy == pytest.approx(whole.energy) and got.floor_energy == pytest.approx(whole.floor_energy)


def test_empty_and_equal_have_no_warning() -> None:
    assert NoiseFloor().ratio == math.inf and NoiseFloor().zero_fraction == 0 and NoiseFloor().rms == 0
    same = measure(torch.ones(3), torch.ones(3))
    assert same.zero_fraction == 1 and same.warning is None and same.ratio == 0
    assert NoiseFloor().as_dict()["ratio"] == 1e308
