"""The described vectors of a collection as numbers, for explaining; what is slow is remembered on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from comgrad.atlas.collection import Collection
from comgrad.describe.encoder import load_encoder
from comgrad.describe.memory import encode_cached
from comgrad.errors import NotFound
from comgrad.explain.layers import layer_names, ordered, summed
from comgrad.explain.reference import Label, Reference
from comgrad.explain.subspaces import subspaces
from comgrad.geometry.gram import gram_by_tensor
from comgrad.types import BaseRef
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.derived import read_arrays, write_arrays

if TYPE_CHECKING:
    from comgrad.describe.encoder import TextEncoder

CACHE_VERSION = 1


def encoder_here() -> TextEncoder | None:
    """The text encoder, where it is on this machine."""
    try:
        return load_encoder()
    except NotFound:
        return None


def reference_in(
    known: Collection, groups: Sequence[str], vectors: Sequence[TaskVector], cache: Path | None
) -> tuple[Reference, tuple[str, ...]]:
    """The described vectors as numbers."""
    encoder = encoder_here()
    texts = [m.description for m in known.members]
    rows = np.zeros((len(texts), 0)) if encoder is None else encode_cached(encoder, texts, cache).astype(np.float64)
    warnings = () if encoder is not None else ("the text encoder is not on this machine: no description was read",)
    layers = layer_names(known.tensor_names)
    order = ordered(layers)
    kernel, first = _kernel(known, vectors, cache)
    labels = tuple(Label(m.id, m.name, m.description, m.family, g) for m, g in zip(known.members, groups, strict=True))
    return Reference(labels, summed(known.per_tensor, layers, order), order, kernel, rows, first), warnings


def _kernel(
    known: Collection, vectors: Sequence[TaskVector], cache: Path | None
) -> tuple[Float[np.ndarray, "k k"], Float[np.ndarray, "k"]]:
    """Subspace kernel of the described vectors; only the rows that the cache lacks are computed."""
    ids = [m.id for m in known.members]
    file = None if cache is None else cache / f"subspaces-{_base_key(vectors[0].base)}.npz"
    old = _read(file) if file is not None else None
    place = {} if old is None else {str(x): i for i, x in enumerate(old["ids"])}
    new = [i for i, x in enumerate(ids) if x not in place]
    have = [i for i, x in enumerate(ids) if x in place]
    kernel, first = np.zeros((len(ids), len(ids))), np.zeros(len(ids))
    if have and old is not None:
        there = [place[ids[i]] for i in have]
        kernel[np.ix_(have, have)] = old["kernel"][np.ix_(there, there)]
        first[have] = old["first"][there]
    if new:
        found = subspaces([vectors[i] for i in new], vectors)
        kernel[new] = found.kernel
        kernel[:, new] = found.kernel.T
        first[new] = found.first
        if file is not None:
            write_arrays(file, version=np.array(CACHE_VERSION), ids=np.array(ids), kernel=kernel, first=first)
    return kernel, first


def _base_key(base: BaseRef) -> str:
    return hashlib.sha256(base.name.encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, np.ndarray] | None:
    data = read_arrays(file)
    if data is None or set(data) != {"version", "ids", "kernel", "first"} or data["version"] != CACHE_VERSION:
        return None
    K = len(data["ids"])
    return data if data["kernel"].shape == (K, K) and data["first"].shape == (K,) else None


def reference_of(
    vectors: Sequence[TaskVector], labels: Sequence[Label], embeddings: Float[np.ndarray, "k d"]
) -> Reference:
    """Vectors that are in no registry, as numbers: what `explain.evaluation` works on.

    Args:
        vectors: all over one base. labels: one each. embeddings: (K, d) of their descriptions, unit rows.
    """
    found = gram_by_tensor(vectors)
    layers = layer_names(found.tensors)
    order = ordered(layers)
    spaces = subspaces(vectors, vectors)
    gram = summed(found.per_tensor.numpy(), layers, order)
    return Reference(tuple(labels), gram, order, spaces.kernel, embeddings.astype(np.float64), spaces.first)
