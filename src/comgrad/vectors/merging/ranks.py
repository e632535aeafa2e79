"""The exact k-th largest magnitude of a vector that is never in memory at once.

|x| as an fp64 bit pattern grows with |x|, so the k-th largest is found digit by digit from the top: one walk over the
data counts how many elements have each value of the digit, which fixes the digit; elements that agree with the digits
found so far are counted in the next walk. The first two digits (35 bits) hold all of an fp32 number, so two walks
suffice unless some tensor is fp64, which takes four. Memory: a few megabytes for each rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_DIGITS = (18, 17, 15, 14)  # bits, from the top; 64 together
_FP32_BITS = 35  # sign, 11 of exponent, 23 of mantissa: the rest of an fp32 number in fp64 is zero
_BLOCK = 1 << 20


class KthLargest:
    """The k-th largest |x| of everything fed.

    Args:
        rank: the number of elements → k, from 1. Called after the first walk, when the number is known.
    """

    def __init__(self, rank: Callable[[int], int]) -> None:
        self._rank = rank
        self._left = 0
        self._prefix = 0
        self._known = 0
        self._digit = 0
        self._fine = False
        self._value = math.nan
        self._counts = self._empty()

    def feed(self, x: Tensor) -> None:
        """Count a flat tensor; every walk feeds the same tensors, in any order."""
        self._fine = self._fine or x.dtype == torch.float64
        for i in range(0, x.numel(), _BLOCK):
            key = x[i : i + _BLOCK].double().abs().view(torch.int64)
            if self._known:
                key = key[(key >> (64 - self._known)) == self._prefix]
            bits = _DIGITS[self._digit]
            digit = (key >> (64 - self._known - bits)) & ((1 << bits) - 1)
            if digit.numel() < 1 << bits:
                self._counts.index_add_(0, digit, torch.ones_like(digit))
            else:
                self._counts += torch.bincount(digit, minlength=1 << bits)

    def close(self) -> bool:
        """End a walk. Returns whether the value is known now."""
        if self._digit == 0:
            total = int(self._counts.sum())
            self._left = self._rank(total)
            if not 1 <= self._left <= total:  # of no elements, say
                self._value = math.inf
                return True
        above = self._counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(above, self._left))
        self._left -= int(above[place - 1]) if place else 0
        bits = _DIGITS[self._digit]
        self._prefix = (self._prefix << bits) | ((1 << bits) - 1 - place)
        self._known += bits
        self._digit += 1
        if self._known == 64 or (self._known == _FP32_BITS and not self._fine):
            pattern = torch.tensor([self._prefix << (64 - self._known)], dtype=torch.int64)
            self._value = float(pattern.view(torch.float64)[0])
            return True
        self._counts = self._empty()
        return False

    @property
    def value(self) -> float:
        """The magnitude, exactly as it occurs in the data; infinity where there is no k-th one."""
        return self._value

    def _empty(self) -> Tensor:
        return torch.zeros(1 << _DIGITS[self._digit], dtype=torch.int64)


def kth_largest(x: Tensor, k: int) -> float:
    """The k-th largest |x| of one flat tensor, from 1."""
    return float(x.abs().kthvalue(x.numel() - k + 1).values)
