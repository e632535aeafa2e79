"""Which elements of which vector a sparse method keeps: by magnitude, or at random.

A mask is a pure function of the vector's place, the tensor's name, the position and the value, so that tensors can be
walked in any order, in blocks, by any number of threads. Elements are numbered in the (output, input) orientation, row
by row, whatever the base stores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from comgrad.vectors.merging.common import all_names
from comgrad.vectors.merging.ranks import KthLargest, kth_largest
from comgrad.vectors.merging.settings import Settings
from comgrad.vectors.task_vector import TaskVector

_WORDS = 8  # 32-bit words for each step of the counter


Window = Callable[[int, int], Tensor]  # (start, stop) of a run of elements → which of them stay
Keep = Callable[[int, str, Tensor], Window]  # place of the vector, tensor's name, the flat tensor → its windows
Counts = Callable[[int], tuple[int, int]]


def counts(settings: Settings) -> Counts:
    """n ↦ (how many largest elements go, how many of the following stay), for n elements.

    k = max(1, round(density·n)) stay and g = min(⌊gamma·n⌋, n − k) go, so that a small tensor is never emptied. With
    match `mergekit` k is ⌊density·n⌋ but at least 1; with `peft` ⌊density·n⌋, which can be 0.
    """

    def of(n: int) -> tuple[int, int]:
        if settings.density >= 1.0:
            k = n
        elif settings.match == "peft":
            k = int(settings.density * n)
        elif settings.match == "mergekit":
            k = max(1, int(settings.density * n))
        else:
            k = max(1, round(settings.density * n))
        k = min(k, n)  # no element at all: nothing to keep
        return min(math.floor(settings.gamma * n), n - k), k

    return of


def by_magnitude(vectors: Sequence[TaskVector], settings: Settings) -> Keep:
    """Keep a band of magnitudes: all elements but the g largest and those smaller than the next k.

    An element exactly as large as the last one kept is kept too, so the mask does not depend on the order of elements.
    """
    rule = counts(settings)
    found = _global_bands(vectors, rule, settings.gamma > 0) if settings.scope == "global" else None

    def keep(vector: int, _: str, x: Tensor) -> Window:
        low, high = found[vector] if found is not None else _band(x, rule)

        def window(start: int, stop: int) -> Tensor:
            size = x[start:stop].double().abs()
            return (size >= low) & (size <= high)

        return window

    return keep


def _band(x: Tensor, rule: Counts) -> tuple[float, float]:
    """(smallest, largest) magnitude kept of one flat tensor."""
    gone, kept = rule(x.numel())
    if kept == 0:
        return math.inf, -math.inf
    return kth_largest(x, gone + kept), kth_largest(x, gone + 1) if gone else math.inf


def _global_bands(vectors: Sequence[TaskVector], rule: Counts, capped: bool) -> list[tuple[float, float]]:
    """(smallest, largest) magnitude kept of each whole vector: two walks over the tensors (four with fp64).

    Without a cap no largest elements go, and only the smallest is searched for.
    """
    low = [KthLargest(lambda n: sum(rule(n))) for _ in vectors]
    high = [KthLargest(lambda n: rule(n)[0] + 1) for _ in vectors] if capped else []
    searching = [{low[i], *high[i : i + 1]} for i in range(len(vectors))]
    while any(searching):
        for name in all_names(vectors):  # the tensor is the outer loop: a vector may compute its tensors on demand
            for v, searches in zip(vectors, searching, strict=True):
                if searches and name in v.tensors:
                    flat = v.tensors[name].dense().reshape(-1)
                    for search in searches:
                        search.feed(flat)
        searching = [{s for s in searches if not s.close()} for searches in searching]
    largest = [search.value for search in high] if capped else [math.inf] * len(vectors)
    return [(search.value, top) for search, top in zip(low, largest, strict=True)]


def at_random(density: float, seed: int) -> Keep:
    """Keep each element with probability `density`, independently: word u₃₂ < density·2³² of a counter-based stream.

    The stream is Philox-4×64 keyed by SHA-256 of (seed, place of the vector, name of the tensor); element j reads the
    j-th 32-bit word. It depends on nothing else: not on other tensors, blocks, threads or the machine.
    """
    limit = round(density * 2**32)

    def keep(vector: int, name: str, _: Tensor) -> Window:
        key = hashlib.sha256(f"comgrad-mask/1/{seed}/{vector}/{name}".encode()).digest()[:16]

        def window(start: int, stop: int) -> Tensor:
            first = start // _WORDS
            stream = np.random.Philox(counter=first, key=int.from_bytes(key, "little"))
            raw = np.asarray(stream.random_raw(4 * (-(-stop // _WORDS) - first)), dtype="<u8").view("<u4")
            offset = start - first * _WORDS
            return torch.from_numpy(raw[offset : offset + stop - start].astype(np.int64)) < limit

        return window

    return keep
