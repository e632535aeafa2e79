"""Every measure of a collection, all pairs at a time; `compare` is the same computation for a collection of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comgrad.engine.local import map_ordered
from comgrad.errors import ComgradError
from comgrad.geometry.angles import CONVENTIONS
from comgrad.geometry.gram import Progress
from comgrad.geometry.null import pooled_z
from comgrad.geometry.pairs import INNER, PairTable, pair_table
from comgrad.geometry.rank import ENERGY
from comgrad.geometry.stack import same_base, tensor_names
from comgrad.geometry.table import MEASURES, Measure
from comgrad.vectors.task_vector import TaskVector


@dataclass(frozen=True, eq=False)
class Matrix:
    """One measure over all pairs: values (K, K), per_tensor (T, K, K) in the order of tensor_names; fp64.

    NaN means undefined, never 'far' or 'near': a zero delta has no direction, and a pair without a common matrix no
    angle. Totals of subspace measures are over the tensors where the pair is defined.
    """

    values: Tensor
    per_tensor: Tensor
    tensor_names: tuple[str, ...]
    measure: str


def matrix(
    vectors: Sequence[TaskVector],
    measure: str,
    *,
    convention: str = "containment",
    energy: float = ENERGY,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Matrix:
    """One measure of every pair. Arguments and errors as `matrices`."""
    found = matrices(vectors, [measure], convention=convention, energy=energy, workers=workers, progress=progress)
    return found[measure]


def matrices(
    vectors: Sequence[TaskVector],
    measures: Sequence[str],
    *,
    convention: str = "containment",
    energy: float = ENERGY,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Matrix]:
    """Several measures of every pair, sharing decompositions and products. All arithmetic is in fp64.

    Args:
        measures: names of `MEASURES`.
        convention: for unequal ranks, `containment` (min(r) angles) or `full` (see `angles.grassmann_by_tensor`).
        energy: share of Σσ² that the directions of a dense full-rank delta must hold (see `rank.canonical_dense`).
        workers: threads, one per core when None; the answer has the same bits for any number.
        progress: called with (tensors done, tensors in all).

    Raises:
        ComgradError: unknown measure or convention, an empty collection, NaN or infinite numbers (`not-finite`).
        BaseMismatch, ShapeMismatch.
    """
    rows = [_row(name) for name in measures]
    if convention not in CONVENTIONS:
        raise ComgradError(f"the convention '{convention}'", "there is none of that name", "use containment or full")
    same_base(vectors)
    names = tensor_names(vectors)
    needs = frozenset().union(*(r.needs for r in rows))

    def one_tensor(name: str) -> tuple[list[Tensor], Tensor | None]:
        with torch.inference_mode():  # no autograd bookkeeping; what leaves is copied into ordinary tensors
            table = pair_table(vectors, name, needs, energy)
            return [_on_tensor(row, table, convention == "full") for row in rows], table.pair.get(INNER)

    sums = [_Pool(row, len(vectors), len(names)) for row in rows]
    for done, (parts, block) in enumerate(map_ordered(one_tensor, names, workers), start=1):
        for pool, part in zip(sums, parts, strict=True):
            pool.add(done - 1, part, block)
        if progress is not None:
            progress(done, len(names))
    return {pool.row.name: Matrix(pool.total(), pool.per_tensor, names, pool.row.name) for pool in sums}


def _row(name: str) -> Measure:
    if name not in MEASURES:
        raise ComgradError(
            f"the measure '{name}'",
            "there is none of that name",
            f"choose one of: {', '.join(MEASURES)}",
            code="unknown-measure",
        )
    return MEASURES[name]


def _on_tensor(row: Measure, table: PairTable, full: bool) -> Tensor:
    """The measure on one tensor."""
    if row.on_table is not None:
        return row.on_table(table, full)
    assert row.on_gram is not None
    return row.on_gram(table.pair[INNER])


class _Pool:
    """One measure while its tensors come in: the blocks, and what the total is made of."""

    def __init__(self, row: Measure, K: int, T: int) -> None:
        self.row = row
        self.per_tensor = torch.empty(T, K, K, dtype=torch.float64)
        self._sum = torch.zeros(K, K, dtype=torch.float64)
        self._defined = torch.zeros(K, K, dtype=torch.int64)

    def add(self, place: int, part: Tensor, inner: Tensor | None) -> None:
        self.per_tensor[place] = part
        if self.row.pool == "gram":
            assert inner is not None
            self._sum += inner
        else:
            known = ~part.isnan()
            self._sum += torch.where(known, part, 0.0)
            self._defined += known

    def total(self) -> Tensor:
        if self.row.on_gram is not None:
            return self.row.on_gram(self._sum)
        if self.row.pool == "z":
            return pooled_z(self.per_tensor)
        return torch.where(self._defined > 0, self._sum / self._defined, torch.nan)


# -- one pair ------------------------------------------------------------------------------------------------------
_PAIR = tuple(n for n in MEASURES if n != "centred_cosine")  # the mean of two lies between them: always −1
_SYMMETRIC = (
    "cosine",
    "inner",
    "l2",
    "grassmann_l1",
    "geodesic",
    "chordal",
    "projection_metric",
    "overlap",
    "overlap_z",
)
_SPECTRAL = ("explained", "core_explained", "l1", "l2", "rec", "entropy_1", "entropy_2")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every measure for a pair (A, B): `total`, and `tensors` by name, with the keys of `as_dict`; NaN is undefined."""

    total: dict[str, Any]
    tensors: dict[str, dict[str, Any]]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: undefined values are None, and `notes` says why.

        Keys: `cosine`, `inner`, `norms` [A, B], `l2`, `projection` ⟨A,B⟩/⟨B,B⟩, `projection_reverse` ⟨A,B⟩/⟨A,A⟩,
        `grassmann_l1`, `geodesic`, `chordal`, `projection_metric`, `overlap`, `overlap_z`, `spectral` {`forward` (B in
        the frame of A), `backward`}, `tensors` {name: the same}, `notes`.
        """
        plain: dict[str, Any] = _plain(self.total)
        return {**plain, "tensors": {n: _plain(t) for n, t in self.tensors.items()}, "notes": list(self.notes)}


def compare(a: TaskVector, b: TaskVector, *, convention: str = "containment", energy: float = ENERGY) -> Comparison:
    """Every measure between two task vectors, in total and per tensor. Errors as `matrices`."""
    found = matrices([a, b], _PAIR, convention=convention, energy=energy)
    names = found["inner"].tensor_names
    total = _record({n: m.values for n, m in found.items()})
    tensors = {name: _record({n: m.per_tensor[t] for n, m in found.items()}) for t, name in enumerate(names)}
    return Comparison(total, tensors, _notes(a, b, tensors))


def _record(values: dict[str, Tensor]) -> dict[str, Any]:
    def at(name: str, i: int, j: int) -> float:
        return float(values[name][i, j])

    return {
        **{name: at(name, 0, 1) for name in _SYMMETRIC},
        "norms": [math.sqrt(max(0.0, at("inner", i, i))) for i in (0, 1)],
        "projection": at("projection", 0, 1),
        "projection_reverse": at("projection", 1, 0),
        "spectral": {
            way: {name: at(f"spectral_{name}", *place) for name in _SPECTRAL}
            for way, place in (("forward", (0, 1)), ("backward", (1, 0)))
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _notes(a: TaskVector, b: TaskVector, tensors: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Why values are undefined, and what the totals leave out."""
    notes = [
        f"only {which} changes {_count(names)}: they count as zero in the other for inner products, and subspace "
        "measures leave them out"
        for which, names in (
            ("A", [*(a.tensors.keys() - b.tensors.keys())]),
            ("B", [*(b.tensors.keys() - a.tensors.keys())]),
        )
        if names
    ]
    shared = [n for n in tensors if n in a.tensors and n in b.tensors]
    still = [n for n in shared if 0.0 in tensors[n]["norms"]]
    flat = [n for n in shared if n not in still and math.isnan(tensors[n]["grassmann_l1"])]
    if still:
        notes.append(f"a vector is zero on {_count(still)}: angles, overlaps and spectra are undefined there")
    if flat:
        notes.append(f"{_count(flat)} are no matrices or have numerical rank 0: they have no column space")
    return tuple(notes)


def _count(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{n}'" for n in sorted(names)[:3])
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown}{', …' if len(names) > 3 else ''})"


__all__ = ["MEASURES", "Comparison", "Matrix", "Measure", "compare", "matrices", "matrix"]
