"""Tensor values streamed in blocks: finiteness, booleans, and whether anything but zero is there."""

from __future__ import annotations

from collections.abc import Iterable
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

    Raises:
        FileRefused: `not-finite`, `bool-value`, `all-zero`, `denormals`.
    """
    floats = nonzero = normal = False
    for entry in entries:
        if entry.dtype == "BOOL" and finite:
            _check_bools(source, entry)
        if entry.dtype not in _BITS:
            continue
        floats = True
        if not finite and (normal or not refuse_zero):
            continue
        kind, exponent, magnitude = _BITS[entry.dtype]
        for at, block in _blocks(source, entry, kind):
            exponents = block & block.dtype.type(exponent)
            if finite and int(exponents.max()) == exponent:
                index = at + int((exponents == exponent).argmax())
                raise refused("not-finite", source.path, f"{shown(entry.name)}, element {index:,}")
            if not normal:
                normal = bool(exponents.any())
                nonzero = nonzero or normal or bool((block & block.dtype.type(magnitude)).any())
    if refuse_zero and floats and not normal:
        raise refused("denormals" if nonzero else "all-zero", source.path)


def _blocks(source: Source, entry: TensorEntry, kind: str) -> Iterable[tuple[int, NDArray[Any]]]:
    """(index of the first element, elements) in turn."""
    size = profile.ITEM_SIZE[entry.dtype]
    for begin in range(entry.begin, entry.end, profile.BLOCK):
        raw = source.read(begin, min(profile.BLOCK, entry.end - begin))
        yield (begin - entry.begin) // size, np.frombuffer(raw, dtype=kind)


def _check_bools(source: Source, entry: TensorEntry) -> None:
    for at, block in _blocks(source, entry, "u1"):
        if int(block.max()) > 1:
            raise refused("bool-value", source.path, f"{shown(entry.name)}, element {at + int((block > 1).argmax()):,}")
