"""A collection of described task vectors over one base, with its Gram matrix, grown one vector at a time."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from comgrad.errors import ComgradError, StorageError
from comgrad.geometry.gram import gram, gram_rows
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.writer import atomic_write_bytes

CACHE_VERSION = 1


@dataclass(frozen=True)
class Member:
    """One described vector: what is known of it without reading its weights, and how to read them."""

    id: str
    name: str
    description: str
    family: str
    load: Callable[[], TaskVector]


@dataclass(frozen=True)
class Collection:
    """Members in a fixed order, and ⟨τ_i, τ_j⟩ in total and per tensor (fp64)."""

    members: tuple[Member, ...]
    tensor_names: tuple[str, ...]
    per_tensor: Float[np.ndarray, "t k k"]

    @classmethod
    def build(cls, members: Sequence[Member], *, cache: Path | None = None) -> Collection:
        """The collection of these members; only what the cache lacks is computed.

        Args:
            members: all over one base.
            cache: a folder for derived data; losing it costs time and nothing else.
        """
        if not members:
            raise ComgradError(
                "an empty registry",
                "there is nothing to compare",
                "add adapters with: comgrad add PATH",
                code="empty-registry",
            )
        file = _cache_file(cache, members) if cache else None
        known = _read_cache(file, members) if file else None
        names, blocks = _complete(members, known)
        if file and (known is None or len(known.ids) < len(members)):
            _write_cache(file, _Cached(tuple(m.id for m in members), names, blocks))
        return cls(tuple(members), names, blocks)

    @cached_property
    def gram(self) -> Float[np.ndarray, "k k"]:
        """G_ij = ⟨τ_i, τ_j⟩ (K, K)."""
        total: Float[np.ndarray, "k k"] = self.per_tensor.sum(axis=0)
        return total

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(m.id for m in self.members)

    def subset(self, indices: Sequence[int]) -> Collection:
        """The collection of some of its members, in the order given."""
        at = list(indices)
        return Collection(tuple(self.members[i] for i in at), self.tensor_names, self.per_tensor[:, at][:, :, at])

    def vectors(self) -> list[TaskVector]:
        """All vectors, read now."""
        return [m.load() for m in self.members]

    def centred_cosine(self) -> Float[np.ndarray, "k k"]:
        """Cosine of τ_i − μ and τ_j − μ; 0 where a vector equals the mean: nothing undefined can win a ranking."""
        K = len(self.members)
        C = np.eye(K) - 1.0 / K
        centred = C @ self.gram @ C
        own = np.diag(centred)
        # a vector this close to the mean has no direction left but rounding
        size = np.sqrt(np.where(own > 1e-12 * max(float(np.diag(self.gram).max()), 1e-300), own, np.inf))
        cosine: Float[np.ndarray, "k k"] = centred / np.outer(size, size)
        return np.clip(cosine, -1.0, 1.0)

    def cosine(self) -> Float[np.ndarray, "k k"]:
        """Cosine of τ_i and τ_j; 0 for a zero vector."""
        own = np.diag(self.gram)
        size = np.sqrt(np.where(own > 0, own, np.inf))
        return np.clip(self.gram / np.outer(size, size), -1.0, 1.0)

    def neighbours(self, index: int, *, most: int = 5) -> list[tuple[Member, float]]:
        """The members nearest to one of them by centred cosine, best first."""
        row = self.centred_cosine()[index].copy()
        row[index] = -np.inf
        order = [int(j) for j in np.argsort(-row, kind="stable")[:most] if j != index]
        return [(self.members[j], float(row[j])) for j in order]


@dataclass(frozen=True)
class _Cached:
    ids: tuple[str, ...]
    tensor_names: tuple[str, ...]
    per_tensor: Float[np.ndarray, "t k k"]


def _complete(members: Sequence[Member], known: _Cached | None) -> tuple[tuple[str, ...], Float[np.ndarray, "t k k"]]:
    """Per-tensor Gram of all members in their order, reusing the known block."""
    if known is None:
        return _names_and_blocks(gram([m.load() for m in members], per_tensor=True))
    place = {identity: i for i, identity in enumerate(known.ids)}
    old = [i for i, m in enumerate(members) if m.id in place]
    new = [i for i, m in enumerate(members) if m.id not in place]
    if not new:
        order = [place[m.id] for m in members]
        return known.tensor_names, known.per_tensor[:, order][:, :, order]
    vectors = [m.load() for m in members]
    names, rows = _names_and_blocks(gram_rows([vectors[i] for i in new], vectors, per_tensor=True))
    at = {name: t for t, name in enumerate(names)}
    extra = [name for name in known.tensor_names if name not in at]  # only old members have them
    names = (*names, *extra)
    blocks = np.zeros((len(names), len(members), len(members)))
    blocks[: len(rows), new, :] = rows
    blocks[: len(rows), :, new] = rows.transpose(0, 2, 1) if len(new) > 1 else rows[:, 0, :][:, :, None]
    source = [place[members[i].id] for i in old]
    for t, name in enumerate(known.tensor_names):
        target = at.get(name, len(rows) + extra.index(name) if name in extra else -1)
        blocks[target][np.ix_(old, old)] = known.per_tensor[t][np.ix_(source, source)]
    return names, blocks


def _names_and_blocks(result: object) -> tuple[tuple[str, ...], Float[np.ndarray, "t n k"]]:
    names, blocks = result  # type: ignore[misc]
    return tuple(names), np.asarray(blocks, dtype=np.float64)


def _cache_file(cache: Path, members: Sequence[Member]) -> Path:
    base = members[0].load().base
    key = hashlib.sha256(f"{base.fingerprint or base.name}".encode()).hexdigest()[:16]
    return cache / f"gram-{key}.npz"


def _read_cache(path: Path, members: Sequence[Member]) -> _Cached | None:
    """The cached Gram, restricted to today's members; None when there is none of use."""
    try:
        with np.load(path, allow_pickle=False) as data:
            if int(data["version"]) != CACHE_VERSION:
                return None
            ids = tuple(str(i) for i in data["ids"])
            names = tuple(str(n) for n in data["tensor_names"])
            blocks = data["per_tensor"]
    except (OSError, ValueError, KeyError, EOFError):
        return None  # derived data: computed again
    current = {m.id for m in members}
    keep = [i for i, identity in enumerate(ids) if identity in current]
    if not keep or blocks.shape != (len(names), len(ids), len(ids)):
        return None
    return _Cached(tuple(ids[i] for i in keep), names, blocks[:, keep][:, :, keep])


def _write_cache(path: Path, value: _Cached) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        version=np.array(CACHE_VERSION),
        ids=np.array(value.ids),
        tensor_names=np.array(value.tensor_names),
        per_tensor=value.per_tensor,
    )
    with contextlib.suppress(StorageError):  # a read-only registry still answers, only slower
        atomic_write_bytes(path, buffer.getvalue())
