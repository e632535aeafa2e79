"""Journey: compare. Every measure for a pair; one measure for all pairs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.errors import ComgradError
from comgrad.geometry.measures import MEASURES
from comgrad.geometry.measures import compare as compare_pair
from comgrad.geometry.measures import matrix as measure_matrix
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.writer import atomic_write_bytes
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import one_base, open_vectors

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def compare(a: str, b: str, *, base: str | None = None) -> dict[str, Any]:
    """Every measure between two vectors, in total and per tensor; keys as documented for `comgrad compare --json`."""
    first, second = open_vectors([a, b], base=base)
    return {"a": a, "b": b, **compare_vectors(first, second)}


def compare_vectors(first: TaskVector, second: TaskVector) -> dict[str, Any]:
    """Every measure between two vectors, in total and per tensor. Raises BaseMismatch."""
    first.base.joined(second.base)
    return compare_pair(first, second).as_dict()


def matrix(
    measure: str, out: Path, *, base: str | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """One measure for all pairs, written as .npz (`matrix`, `ids`, `tensors`, `per_tensor`) or .csv.

    Raises:
        ComgradError: unknown measure or file type; an empty registry; several bases.
    """
    if measure not in MEASURES:
        raise ComgradError(
            f"the measure '{measure}'",
            "there is none of that name",
            f"choose one of: {', '.join(MEASURES)}",
            code="unknown-measure",
        )
    if out.suffix not in {".npz", ".csv"}:
        raise ComgradError(
            f"'{out}'", "a matrix is written as .npz or .csv", "end the file's name in one of them", code="file-type"
        )
    registry = Registry()
    entries = one_base(registry.list(base=base), base)
    result = measure_matrix([e.vector() for e in entries], measure, progress=progress)
    ids = [e.id for e in entries]
    data = _npz(ids, result) if out.suffix == ".npz" else _csv(ids, [e.name for e in entries], result.values)
    atomic_write_bytes(out, data)
    return {
        "ids": ids,
        "names": [e.name for e in entries],
        "measure": measure,
        "path": str(out),
        "tensors": list(result.tensor_names),
    }


def _npz(ids: list[str], result: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        matrix=np.asarray(result.values),
        ids=np.array(ids),
        tensors=np.array(result.tensor_names),
        per_tensor=np.asarray(result.per_tensor),
        measure=np.array(result.measure),
    )
    return buffer.getvalue()


def _csv(ids: list[str], names: list[str], values: Any) -> bytes:
    """A header of names, then id, name and a row of numbers for each; text that a spreadsheet would run is quoted off."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["id", "name", *map(_inert, names)])
    for identity, name, row in zip(ids, names, np.asarray(values), strict=True):
        writer.writerow([identity, _inert(name), *(repr(float(x)) for x in row)])
    return buffer.getvalue().encode()


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
