"""A collection of described task vectors over one base, with its Gram matrix, grown one vector at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from comgrad.atlas.duplicates import Derived, Groups, blends, centred_by, groups
from comgrad.atlas.gains import Gains, gains
from comgrad.errors import ComgradError
from comgrad.geometry.gram import Gram, gram_by_tensor, gram_rows
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.derived import read_arrays, write_arrays

CACHE_VERSION = 1
FEWEST_TO_CENTRE = 10


@dataclass(frozen=True)
class Member:
    """One described vector: what is known of it without reading its weights, and how to read them.

    `gradient` reads its task's gradient ∇L_q(θ₀), where there is one; `gradient_digest` tells one from the next. `owner`
    is the account that shares it, where there are accounts.
    """

    id: str
    name: str
    description: str
    family: str
    load: Callable[[], TaskVector]
    gradient: Callable[[], TaskVector] | None = None
    gradient_digest: str = ""
    owner: str = ""


@dataclass(frozen=True)
class Collection:
    """Members in a fixed order, and ⟨τ_i, τ_j⟩ in total and per tensor (fp64).

    `cache` is the folder for derived data, if there is one.
    """

    members: tuple[Member, ...]
    tensor_names: tuple[str, ...]
    per_tensor: Float[np.ndarray, "t k k"]
    cache: Path | None = None

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
        return cls(tuple(members), names, blocks, cache)

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
        if at == list(range(len(self.members))):
            return self
        return Collection(
            tuple(self.members[i] for i in at), self.tensor_names, self.per_tensor[:, at][:, :, at], self.cache
        )

    def gains(self) -> Gains:
        """First-order gains F_qk = −⟨∇L_q, τ_k⟩ of all vectors for the tasks that have a gradient. See `atlas.gains`."""
        return gains(self.members, cache=self.cache)

    def vectors(self) -> list[TaskVector]:
        """All vectors, read now."""
        return [m.load() for m in self.members]

    def cosine(self) -> Float[np.ndarray, "k k"]:
        """Cosine of τ_i and τ_j; 0 for a zero vector."""
        return _cosine(self.gram, floor=0.0)

    def centred_cosine(self, weights: Float[np.ndarray, "k"] | None = None) -> Float[np.ndarray, "k k"]:
        """Cosine of u_i − ū and u_j − ū, with u the unit vectors τ/‖τ‖ and ū the mean of those that count.

        Centred, because the mean of the public vectors is near to all of them; of unit vectors, because one vector of
        a hundred times the norm would otherwise be the mean; near-duplicates count once and blends not at all, because
        five hundred copies would be. 0 where a vector equals the mean, so that nothing undefined can win a ranking.

        Args:
            weights: others, of sum 1, to take the mean by.
        """
        if weights is None:
            weights = self.groups.weights(but=[d.index for d in self.blends])
        return _cosine(centred_by(self.cosine(), weights), floor=1e-12)

    @cached_property
    def groups(self) -> Groups:
        """Near-duplicates under the first of them in the collection's order. See `atlas.duplicates`."""
        return groups(self.cosine())

    @cached_property
    def blends(self) -> list[Derived]:
        """Members made of more than eight earlier ones: the mean of many, a direction common to all."""
        return blends(self.gram, self.groups.leaders)

    def neighbours(self, index: int, *, most: int = 5) -> list[tuple[Member, float]]:
        """The members nearest to one of them, best first: by centred cosine, or by the cosine where there are too few
        vectors for their mean to mean anything (three centred vectors are 120° apart, whatever they are). Of
        near-duplicates the first stands for all; what is made of many others is nobody's neighbour."""
        made = {d.index for d in self.blends}
        counted = [j for j in self.groups.leaders if j not in made]
        crowd = len(counted) >= FEWEST_TO_CENTRE
        row = (self.centred_cosine() if crowd else self.cosine())[index]
        others = [j for j in counted if j != index]
        order = sorted(others, key=lambda j: -row[j])[:most]
        return [(self.members[j], float(row[j])) for j in order]


def _cosine(gram: Float[np.ndarray, "k k"], *, floor: float) -> Float[np.ndarray, "k k"]:
    """G_ij/√(G_ii G_jj) in [−1, 1], and 0 where a squared norm is at most `floor`."""
    own = np.diag(gram)
    size = np.sqrt(np.where(own > floor, own, np.inf))
    cosine: Float[np.ndarray, "k k"] = np.clip(gram / np.outer(size, size), -1.0, 1.0)
    return cosine


@dataclass(frozen=True)
class _Cached:
    ids: tuple[str, ...]
    tensor_names: tuple[str, ...]
    per_tensor: Float[np.ndarray, "t k k"]


def _complete(members: Sequence[Member], known: _Cached | None) -> tuple[tuple[str, ...], Float[np.ndarray, "t k k"]]:
    """Per-tensor Gram of all members in their order, reusing the known block."""
    if known is None:
        return _names_and_blocks(gram_by_tensor([m.load() for m in members]))
    place = {identity: i for i, identity in enumerate(known.ids)}
    old = [i for i, m in enumerate(members) if m.id in place]
    new = [i for i, m in enumerate(members) if m.id not in place]
    if not new:
        order = [place[m.id] for m in members]
        return known.tensor_names, known.per_tensor[:, order][:, :, order]
    vectors = [m.load() for m in members]
    names, rows = _names_and_blocks(gram_rows([vectors[i] for i in new], vectors))
    at = {name: t for t, name in enumerate(names)}
    extra = [name for name in known.tensor_names if name not in at]  # only old members have them
    names = (*names, *extra)
    blocks = np.zeros((len(names), len(members), len(members)))
    blocks[: len(rows), new, :] = rows
    blocks[: len(rows), :, new] = rows.transpose(0, 2, 1)
    source = [place[members[i].id] for i in old]
    for t, name in enumerate(known.tensor_names):
        target = at.get(name, len(rows) + extra.index(name) if name in extra else -1)
        blocks[target][np.ix_(old, old)] = known.per_tensor[t][np.ix_(source, source)]
    return names, blocks


def _names_and_blocks(result: Gram) -> tuple[tuple[str, ...], Float[np.ndarray, "t n k"]]:
    return result.tensors, result.per_tensor.numpy()


def _cache_file(cache: Path, members: Sequence[Member]) -> Path:
    base = members[0].load().base  # the name, which a base keeps whether it was seen or only named; ids do the rest
    key = hashlib.sha256(base.name.encode()).hexdigest()[:16]
    return cache / f"gram-{key}.npz"


def _read_cache(path: Path, members: Sequence[Member]) -> _Cached | None:
    """The cached Gram, restricted to today's members; None when there is none of use."""
    data = read_arrays(path)
    if (
        data is None
        or set(data) != {"version", "ids", "tensor_names", "per_tensor"}
        or data["version"] != CACHE_VERSION
    ):
        return None
    ids, names, blocks = [str(i) for i in data["ids"]], tuple(map(str, data["tensor_names"])), data["per_tensor"]
    current = {m.id for m in members}
    keep = [i for i, identity in enumerate(ids) if identity in current]
    if not keep or blocks.shape != (len(names), len(ids), len(ids)):
        return None
    return _Cached(tuple(ids[i] for i in keep), names, blocks[:, keep][:, :, keep])


def _write_cache(path: Path, value: _Cached) -> None:
    write_arrays(
        path,
        version=np.array(CACHE_VERSION),
        ids=np.array(value.ids),
        tensor_names=np.array(value.tensor_names),
        per_tensor=value.per_tensor,
    )
