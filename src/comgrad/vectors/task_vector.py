"""The task vector τ = θ_t − θ₀: an immutable mapping from tensor name to delta, over one base model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from comgrad.engine.local import map_ordered
from comgrad.errors import ComgradError, Undefined
from comgrad.types import BaseRef
from comgrad.vectors import cutting
from comgrad.vectors import delta as _delta
from comgrad.vectors.delta import Delta, Dense, LowRank

if TYPE_CHECKING:
    from comgrad.vectors.checkpoints import Applied


_AT_ONCE = 1 << 22  # elements; of larger tensors one at a time, with all threads, is as quick and needs less memory


class Deferred(Mapping[str, Delta]):
    """Deltas computed when asked for and not kept: how a vector larger than memory is walked tensor by tensor."""

    def __init__(self, names: tuple[str, ...], get: Callable[[str], Delta]) -> None:
        self._names = dict.fromkeys(names)
        self._get = get

    def __getitem__(self, name: str) -> Delta:
        if name not in self._names:
            raise KeyError(name)
        return self._get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, eq=False, repr=False)
class TaskVector:
    """τ = θ_t − θ₀ over one base.

    Args:
        base: the base model.
        tensors: name → delta. Names are those of the base's checkpoint, in sorted order. A tensor that is absent has
            delta zero.
        warnings: what a user should know about how this vector was read; kept through saving, not through arithmetic.
    """

    base: BaseRef
    tensors: Mapping[str, Delta]
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ComgradError("a task vector with no tensors", "there is nothing to compare or add", "check the file")
        if not isinstance(self.tensors, Deferred):
            object.__setattr__(self, "tensors", MappingProxyType(dict(sorted(self.tensors.items()))))

    def __repr__(self) -> str:
        return f"TaskVector({len(self.tensors)} tensors over {self.base.label})"

    # -- reading and writing -------------------------------------------------------------------------------------
    @classmethod
    def from_peft(cls, path: str | Path, *, base: str | Path | None = None) -> TaskVector:
        """Read a PEFT LoRA adapter directory exactly, or refuse it by name. See `vectors.peft.read_peft`."""
        from comgrad.vectors.peft import read_peft

        return read_peft(Path(path), base=base)

    @classmethod
    def from_checkpoints(cls, base: str | Path, finetuned: str | Path) -> TaskVector:
        """The dense task vector of two full checkpoints, read lazily. See `vectors.checkpoints.difference`."""
        from comgrad.vectors.checkpoints import difference

        return difference(base, finetuned)

    @classmethod
    def load(cls, path: str | Path) -> TaskVector:
        """Read a vector in comgrad's own format. See `vectors.container`."""
        from comgrad.vectors.container import load

        return load(Path(path))

    def save(self, path: str | Path) -> str:
        """Write the vector in comgrad's own format, atomically; returns the file's SHA-256."""
        from comgrad.vectors.container import save

        return save(self, Path(path))

    def save_peft(self, path: str | Path) -> None:
        """Write a directory that stock PEFT loads. See `vectors.peft.write_peft`."""
        from comgrad.vectors.peft import write_peft

        write_peft(self, Path(path))

    def apply_to(self, base: str | Path, out: str | Path, scale: float = 1.0) -> Applied:
        """Write base + scale·τ as a full checkpoint. See `vectors.checkpoints.apply`."""
        from comgrad.vectors.checkpoints import apply

        return apply(self, base, out, scale=scale)

    # -- the vector space ----------------------------------------------------------------------------------------
    def __add__(self, other: TaskVector) -> TaskVector:
        """τ₁ + τ₂; absent tensors count as zero. Raises BaseMismatch, ShapeMismatch."""
        if not isinstance(other, TaskVector):
            return NotImplemented
        base = self.base.joined(other.base)

        def term(name: str) -> Delta:
            if name not in other.tensors:
                return _unpinned(self.tensors[name])
            if name not in self.tensors:
                return _unpinned(other.tensors[name])
            a, b = self.tensors[name], other.tensors[name]
            _delta.same_place(a, b, name)
            return _delta.add(a, b)

        names = tuple(sorted({*self.tensors, *other.tensors}))
        return TaskVector(base, like(names, term, self.tensors, other.tensors))

    def __radd__(self, other: object) -> TaskVector:
        """0 + τ, so that `sum` works."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, c: float) -> TaskVector:
        """c·τ."""
        if not math.isfinite(c):
            raise ComgradError(f"the factor {c}", "a vector can only be scaled by a finite number", "pass a number")
        return self._map(lambda d: d.scaled(float(c)))

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + (-other)

    def __truediv__(self, c: float) -> TaskVector:
        return self * (1.0 / c)

    def _map(self, f: Callable[[Delta], Delta]) -> TaskVector:
        return TaskVector(self.base, like(tuple(self.tensors), lambda n: f(self.tensors[n]), self.tensors))

    # -- the inner product ---------------------------------------------------------------------------------------
    def inner(self, other: TaskVector) -> float:
        """⟨τ₁, τ₂⟩ = Σ over shared tensors of the Frobenius inner product, in fp64."""
        return math.fsum(self.inner_by_tensor(other).values())

    def inner_by_tensor(self, other: TaskVector) -> dict[str, float]:
        """⟨τ₁, τ₂⟩ for each shared tensor. Raises BaseMismatch, ShapeMismatch."""
        self.base.joined(other.base)
        out = {}
        for name in self.tensors:
            if name in other.tensors:
                a, b = self.tensors[name], other.tensors[name]
                _delta.same_place(a, b, name)
                out[name] = _delta.inner(a, b)
        return out

    def norm(self) -> float:
        """‖τ‖ = √⟨τ, τ⟩."""
        return math.sqrt(max(0.0, self.inner(self)))

    def cosine(self, other: TaskVector) -> float:
        """⟨τ₁, τ₂⟩ / (‖τ₁‖·‖τ₂‖), clipped to [−1, 1]. Raises Undefined for a zero vector."""
        norms = self.norm() * other.norm()
        if norms == 0:
            raise Undefined("the cosine with a zero vector", "a zero vector has no direction", "leave it out")
        return max(-1.0, min(1.0, self.inner(other) / norms))

    def project_onto(self, other: TaskVector) -> TaskVector:
        """(⟨τ₁, τ₂⟩/⟨τ₂, τ₂⟩)·τ₂. Raises Undefined when τ₂ is zero."""
        energy = other.inner(other)
        if energy == 0:
            raise Undefined("the projection onto a zero vector", "a zero vector spans nothing", "leave it out")
        return other * (self.inner(other) / energy)

    # -- form ----------------------------------------------------------------------------------------------------
    def compress(self, rank: int) -> tuple[TaskVector, float]:
        """Best approximation with every matrix at most of rank `rank`; balanced factors.

        Returns:
            the vector, and the share Σσ²(kept)/Σσ² of its energy that was kept, in [0, 1].
        """
        if rank < 1:
            raise ComgradError(f"rank {rank}", "a low-rank delta needs at least one column", "ask for rank 1 or more")

        def cut(name: str) -> tuple[Delta, float, float]:
            return cutting.compress(self.tensors[name], rank)

        small = not isinstance(self.tensors, Deferred) and all(d.numel <= _AT_ONCE for d in self.tensors.values())
        done = map_ordered(cut, self.tensors) if small else map(cut, self.tensors)
        kept = whole = 0.0
        out: dict[str, Delta] = {}
        for name, (made, k, w) in zip(self.tensors, done, strict=True):
            out[name], kept, whole = made, kept + k, whole + w
        return TaskVector(self.base, out), (kept / whole if whole > 0 else 1.0)

    @property
    def kind(self) -> str:
        """`lowrank` when every delta is low-rank, else `dense`."""
        return "lowrank" if all(isinstance(d, LowRank) for d in self.tensors.values()) else "dense"

    @property
    def rank(self) -> int | None:
        """Largest stored rank over low-rank deltas; None when there is none."""
        ranks = [d.rank for d in self.tensors.values() if isinstance(d, LowRank)]
        return max(ranks) if ranks else None

    def loaded(self) -> TaskVector:
        """The same vector with every delta in memory."""
        return TaskVector(self.base, dict(self.tensors.items()), self.warnings)


def _unpinned(d: Delta) -> Delta:
    return d.scaled(1.0) if isinstance(d, Dense) and d.pinned is not None else d


def like(names: tuple[str, ...], get: Callable[[str], Delta], *parents: Mapping[str, Delta]) -> Mapping[str, Delta]:
    """Deferred when any parent is, so that arithmetic on vectors larger than memory stays out of memory."""
    if any(isinstance(p, Deferred) for p in parents):
        return Deferred(names, get)
    return {n: get(n) for n in names}
