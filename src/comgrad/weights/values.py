"""Tensor values streamed in blocks: finiteness, booleans, and whether anything but zero is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comgrad.weights import profile
from comgrad.weights.header import TensorEntry
from comgrad.weights.profile import refused, shown
from comgrad.weights.source import Source

_BITS: dict[str, tuple[str, int, int]] = {  # unsigned view, mask of the exponent, mask of all but the sign
    "F64": ("<u8", 0x7FF0_0000_0000_0000, 0x7FFF_FFFF_FFFF_FFFF),
    "F32": ("<u4", 0x7F80_0000, 0x7FFF_FFFF),
    "F16": ("<u2", 0x7C00, 0x7FFF),
    "BF16": ("<u2", 0x7F80, 0x7FFF),
}


def check_values(source: Source, entries: Iterable[TensorEntry], *, finite: bool, refuse_zero: bool) -> None:
    """Refuse NaN and infinity anywhere, and a file whose floats are all zero or denormal.

    Memory stays below a few blocks of `profile.BLOCK` bytes whatever the file's size.

    Args:
        entries: in the order of their bytes, without holes. Neighbours of one dtype are looked at as one.

    Raises:
        FileRefused: `not-finite`, `bool-value`, `all-zero`, `denormals`.
    """
    floats = nonzero = normal = False
    for dtype, same in groupby(entries, key=lambda e: e.dtype):
        run = list(same)
        if dtype == "BOOL" and finite:
            _check_bools(source, run)
        if dtype not in _BITS:
            continue
        floats = True
        if not finite and (normal or not refuse_zero):
            continue
        kind, exponent, magnitude = _BITS[dtype]
        for at, block in _blocks(source, run, kind):
            exponents = block & block.dtype.type(exponent)
            if finite and int(exponents.max()) == exponent:
                where = _place(run, at + block.itemsize * int((exponents == exponent).argmax()))
                raise refused("not-finite", source.path, where)
            if not normal:
                normal = bool(exponents.any())
                nonzero = nonzero or normal or bool((block & block.dtype.type(magnitude)).any())
    if refuse_zero and floats and not normal:
        raise refused("denormals" if nonzero else "all-zero", source.path)


def _blocks(source: Source, run: list[TensorEntry], kind: str) -> Iterator[tuple[int, NDArray[Any]]]:
    """(position of the first byte, elements) in turn."""
    end = run[-1].end
    for begin in range(run[0].begin, end, profile.BLOCK):
        yield begin, np.frombuffer(source.read(begin, min(profile.BLOCK, end - begin)), dtype=kind)


def _place(run: list[TensorEntry], at: int) -> str:
    """Which element of which tensor the byte at a position belongs to."""
    entry = next(e for e in run if at < e.end)
    return f"{shown(entry.name)}, element {(at - entry.begin) // profile.ITEM_SIZE[entry.dtype]:,}"


def _check_bools(source: Source, run: list[TensorEntry]) -> None:
    for at, block in _blocks(source, run, "u1"):
        if int(block.max()) > 1:
            raise refused("bool-value", source.path, _place(run, at + int((block > 1).argmax())))
