"""First-order gains between the members of a collection, from the gradients stored beside their vectors.

F_qk = −⟨∇L_q(θ₀), τ_k⟩: by how much one unit of τ_k lowers the loss of task q, to first order, in nats. Like the Gram
matrix it adds over tensors, is computed from low-rank factors without forming any matrix, and grows by rows (a new
gradient) and columns (a new vector).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from comgrad.geometry.gram import gram_rows
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.derived import read_arrays, write_arrays

CACHE_VERSION = 1
_KEYS = {"version", "rows", "digests", "columns", "tensor_names", "per_tensor", "covered"}


@runtime_checkable
class Described(Protocol):
    """What is needed of a member: its vector, and its gradient where it has one."""

    @property
    def id(self) -> str: ...
    @property
    def load(self) -> Callable[[], TaskVector]: ...
    @property
    def gradient(self) -> Callable[[], TaskVector] | None: ...
    @property
    def gradient_digest(self) -> str: ...


@dataclass(frozen=True)
class Gains:
    """F in the collection's order; a row of NaN where a member has no gradient, or one that cannot be its own: at another
    base, or in other shapes.

    Args:
        known: (K,) which members have a gradient.
        per_tensor: (T, K, K), rows are tasks, columns vectors.
        covered: (K, K) whether q's gradient holds every tensor that τ_k changes; where not, F_qk is the part that it does.
    """

    known: Bool[np.ndarray, "k"]
    tensor_names: tuple[str, ...]
    per_tensor: Float[np.ndarray, "t k k"]
    covered: Bool[np.ndarray, "k k"]

    @property
    def total(self) -> Float[np.ndarray, "k k"]:
        """F_qk (K, K) in nats."""
        out: Float[np.ndarray, "k k"] = self.per_tensor.sum(axis=0)
        out[~self.known] = np.nan  # also where no tensor is shared at all
        return out


@dataclass
class _Table:
    """Rows with gradients only, as it is cached: name → (Q, K)."""

    rows: list[tuple[str, str]]  # id and the gradient's digest
    columns: list[str]
    blocks: dict[str, Float[np.ndarray, "q k"]]
    covered: Bool[np.ndarray, "q k"]


def gains(members: Sequence[Described], *, cache: Path | None = None) -> Gains:
    """The gains of all members' vectors for all members' tasks; only what the cache lacks is computed.

    Raises:
        BaseMismatch: vectors of two bases.
    """
    owners = [i for i, m in enumerate(members) if m.gradient is not None]
    K, Q = len(members), len(owners)
    rows = [(members[i].id, members[i].gradient_digest) for i in owners]
    table = _Table(rows, [m.id for m in members], {}, np.zeros((Q, K), dtype=bool))
    file = _file(cache, members[owners[0]]) if cache and owners else None
    known = _read(file) if file else None
    old_rows, old_columns = _copy(known, table) if known else (set[int](), set[int]())
    fresh = [q for q in range(Q) if q not in old_rows]
    new = [k for k in range(K) if k not in old_columns]
    if fresh:
        _fill(table, members, owners, fresh, list(range(K)))
    if old_rows and new:
        _fill(table, members, owners, sorted(old_rows), new)
    if file and (fresh or new):
        _write(file, table)
    return _spread(table, owners)


def _fill(table: _Table, members: Sequence[Described], owners: list[int], rows: list[int], columns: list[int]) -> None:
    gradients = [load() for q in rows if (load := members[owners[q]].gradient) is not None]
    vectors = [members[k].load() for k in columns]
    fits = _fitting(gradients, vectors)
    unfit = [q for q, fit in zip(rows, fits, strict=True) if not fit]
    rows = [q for q, fit in zip(rows, fits, strict=True) if fit]
    gradients = [g for g, fit in zip(gradients, fits, strict=True) if fit]
    for name in {n for v in vectors for n in v.tensors} if unfit else ():
        table.blocks.setdefault(name, np.zeros(table.covered.shape))[np.ix_(unfit, columns)] = np.nan
    if not gradients:
        return
    found = gram_rows(gradients, vectors)
    at = np.ix_(rows, columns)
    shared = {n for g in gradients for n in g.tensors} & {n for v in vectors for n in v.tensors}
    for name, block in zip(found.tensors, found.per_tensor.numpy(), strict=True):
        if name in shared:
            table.blocks.setdefault(name, np.zeros(table.covered.shape))[at] = -block
    table.covered[at] = [[set(v.tensors) <= set(g.tensors) for v in vectors] for g in gradients]


def _fitting(gradients: Sequence[TaskVector], vectors: Sequence[TaskVector]) -> list[bool]:
    """Which gradients stand on the vectors' base and have its shapes: anybody may have contributed them.

    Where no vector's base was ever seen, the base is the one that most gradients were computed at.
    """
    base = vectors[0].base
    for v in vectors:
        base = base.joined(v.base)
    if base.fingerprint is None and (seen := Counter(g.base.fingerprint for g in gradients if g.base.fingerprint)):
        base = replace(base, fingerprint=seen.most_common(1)[0][0])
    shapes = {n: (d.shape, d.transposed) for v in vectors for n, d in v.tensors.items()}
    return [
        g.base.same_as(base)
        and all((d.shape, d.transposed) == shapes.get(n, (d.shape, d.transposed)) for n, d in g.tensors.items())
        for g in gradients
    ]


def _copy(known: _Table, table: _Table) -> tuple[set[int], set[int]]:
    """Carry over what is known; the rows and the columns that are then complete, but for new columns and rows."""
    row_at = {key: q for q, key in enumerate(known.rows)}
    column_at = {key: k for k, key in enumerate(known.columns)}
    rows = [q for q, key in enumerate(table.rows) if key in row_at]
    columns = [k for k, key in enumerate(table.columns) if key in column_at]
    here = np.ix_(rows, columns)
    there = np.ix_([row_at[table.rows[q]] for q in rows], [column_at[table.columns[k]] for k in columns])
    table.covered[here] = known.covered[there]
    for name, block in known.blocks.items():
        table.blocks[name] = np.zeros(table.covered.shape)
        table.blocks[name][here] = block[there]
    return set(rows), set(columns)


def _spread(table: _Table, owners: list[int]) -> Gains:
    K = len(table.columns)
    names = tuple(sorted(table.blocks))
    per_tensor = np.full((len(names), K, K), np.nan)
    for t, name in enumerate(names):
        per_tensor[t, owners] = table.blocks[name]
    covered, known = np.zeros((K, K), dtype=bool), np.zeros(K, dtype=bool)
    covered[owners] = table.covered
    known[owners] = ~np.isnan(per_tensor[:, owners]).any(axis=(0, 2))
    return Gains(known, names, per_tensor, covered)


# -- cached ------------------------------------------------------------------------------------------------------------
def _file(cache: Path, member: Described) -> Path:
    assert member.gradient is not None
    key = hashlib.sha256(member.gradient().base.name.encode()).hexdigest()[:16]
    return cache / f"gains-{key}.npz"


def _read(path: Path) -> _Table | None:
    data = read_arrays(path)
    if data is None or set(data) != _KEYS or data["version"] != CACHE_VERSION:
        return None
    rows = [(str(i), str(d)) for i, d in zip(data["rows"], data["digests"], strict=False)]
    columns, names = [str(i) for i in data["columns"]], [str(n) for n in data["tensor_names"]]
    shape = (len(rows), len(columns))
    if data["per_tensor"].shape != (len(names), *shape) or data["covered"].shape != shape:
        return None
    return _Table(rows, columns, dict(zip(names, data["per_tensor"], strict=True)), data["covered"])


def _write(path: Path, table: _Table) -> None:
    names = sorted(table.blocks)
    write_arrays(
        path,
        version=np.array(CACHE_VERSION),
        rows=np.array([r for r, _ in table.rows], dtype=str),
        digests=np.array([d for _, d in table.rows], dtype=str),
        columns=np.array(table.columns, dtype=str),
        tensor_names=np.array(names, dtype=str),
        per_tensor=np.stack([table.blocks[n] for n in names]) if names else np.zeros((0, *table.covered.shape)),
        covered=table.covered,
    )
