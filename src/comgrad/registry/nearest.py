"""The vectors of descriptions, and the nearest of them: one answer on every database.

Derived data: they can be made again from the descriptions at any time, so a backup does not hold them. PostgreSQL's
pgvector (in 32-bit arithmetic) only chooses candidates; scores and order come from `ranked`, in 64 bits, everywhere.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Column, Engine, Integer, LargeBinary, MetaData, String, Table, Text, delete, insert, select

from comgrad.errors import ComgradError
from comgrad.registry.database import sqlite_engine, transaction

MAX_NUMBERS = 16_000  # as many as pgvector keeps
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Near:
    """One description near to the one asked for: its vector's id, and the cosine in [-1, 1]."""

    id: str
    score: float


class DescriptionIndex(Protocol):
    """Where the vectors of descriptions are kept, by the model that made them."""

    def put(self, model: str, rows: Mapping[str, Vector]) -> None:
        """Insert or replace the vectors of these ids."""

    def ids(self, model: str) -> set[str]:
        """The ids that have one."""

    def candidates(
        self, model: str, unit: Vector, k: int, allowed: Collection[str] | None
    ) -> tuple[list[str], NDArray[np.float32]]:
        """Ids and vectors (one per row) among which the k nearest are."""

    def forget(self, identities: Iterable[str]) -> None:
        """Delete the vectors of these ids, whatever model made them."""

    def close(self) -> None:
        """Close what is open."""


def checked(vector: Any, what: str) -> Vector:
    """The numbers as 32-bit floats. Raises ComgradError when they have no direction."""
    try:
        found = np.ascontiguousarray(vector, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise _no_vector(what, "it is not a row of numbers") from error
    if found.ndim != 1 or not 0 < found.size <= MAX_NUMBERS:
        raise _no_vector(what, f"it has the shape {found.shape}, not that of a row of 1 to {MAX_NUMBERS} numbers")
    if not np.isfinite(found).all() or not found.any():
        raise _no_vector(what, "it has no direction: a number is not finite, or all are zero")
    return found


def _no_vector(what: str, why: str) -> ComgradError:
    return ComgradError(what, why, "encode the text again", code="bad-vector")


def same_length(model: str, found: int, stored: int) -> None:
    """Raises ComgradError (`bad-vector`) when two vectors of one model differ in length."""
    if found != stored:
        why = f"the vectors that are kept of the model '{model[:80]}' have {stored}"
        raise ComgradError(f"a description's vector of {found} numbers", why, "use one model", code="bad-vector")


def ranked(vector: Vector, ids: Sequence[str], rows: NDArray[np.float32], k: int) -> list[Near]:
    """The k nearest by cosine, in 64-bit arithmetic; equals (to 12 digits) in the order of their ids."""
    if not ids:
        return []
    v, m = vector.astype(np.float64), rows.astype(np.float64)
    scores = (m * v).sum(axis=1) / (np.sqrt((m * m).sum(axis=1)) * np.sqrt((v * v).sum()))
    scores = scores.clip(-1.0, 1.0)
    order = sorted(zip((-scores).round(12).tolist(), ids, scores.tolist(), strict=True))
    return [Near(identity, float(score)) for _, identity, score in order[:k]]


_metadata = MetaData()
_rows = Table(
    "description_vectors",
    _metadata,
    Column("vector_id", String(40), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("numbers", LargeBinary, nullable=False),  # 32-bit floats, little-endian
)
_changes = Table("changes", _metadata, Column("count", Integer, nullable=False))


class FileIndex:
    """A SQLite file in a cache folder; searched in memory, which is exact and fast up to about 100 000 rows."""

    def __init__(self, folder: Path, what: str) -> None:
        self._file = folder / "descriptions-1.sqlite"
        self._what = f"the derived data of {what}"
        self._engine: Engine | None = None
        self._held: dict[str, tuple[int, dict[str, int], NDArray[np.float32]]] = {}
        self._lock = threading.Lock()

    def _open(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = self._made() if os.access(self._file.parent, os.W_OK) else self._as_it_is()
            return self._engine

    def _as_it_is(self) -> Engine:
        return sqlite_engine(self._file, read_only=True)

    def _made(self) -> Engine:
        engine = sqlite_engine(self._file, read_only=False)
        with transaction(engine, write=True, what=self._what) as connection:
            _metadata.create_all(connection)
            if connection.execute(select(_changes)).first() is None:
                connection.execute(insert(_changes).values(count=0))
        return engine

    def put(self, model: str, rows: Mapping[str, Vector]) -> None:
        """Insert or replace. Raises StorageError, ComgradError (another length)."""
        with transaction(self._open(), write=True, what=self._what) as connection:
            stored = connection.execute(select(_rows.c.numbers).where(_rows.c.model == model).limit(1)).scalar()
            for identity, vector in rows.items():
                if stored is not None:
                    same_length(model, vector.size, len(stored) // 4)
                mine = (_rows.c.vector_id == identity) & (_rows.c.model == model)
                connection.execute(delete(_rows).where(mine))
                stored = vector.astype("<f4").tobytes()
                connection.execute(insert(_rows).values(vector_id=identity, model=model, numbers=stored))
            connection.execute(_changes.update().values(count=_changes.c.count + 1))

    def ids(self, model: str) -> set[str]:
        """The ids that have a vector of the model."""
        if self._engine is None and not self._file.exists():
            return set()
        with transaction(self._open(), write=False, what=self._what) as connection:
            return set(connection.execute(select(_rows.c.vector_id).where(_rows.c.model == model)).scalars())

    def candidates(
        self, model: str, unit: Vector, k: int, allowed: Collection[str] | None
    ) -> tuple[list[str], NDArray[np.float32]]:
        """All of them that are allowed."""
        del k
        places, rows = self._matrix(model)
        if places:
            same_length(model, unit.size, rows.shape[1])
        chosen = sorted(places) if allowed is None else sorted(set(allowed) & places.keys())
        if len(chosen) == len(places):
            return chosen, rows  # the rows stand in the order of the ids
        return chosen, rows[[places[identity] for identity in chosen]]

    def _matrix(self, model: str) -> tuple[dict[str, int], NDArray[np.float32]]:
        if self._engine is None and not self._file.exists():
            return {}, np.zeros((0, 0), dtype=np.float32)
        with transaction(self._open(), write=False, what=self._what) as connection:
            count = connection.execute(select(_changes.c.count)).scalar_one()
            held = self._held.get(model)
            if held is None or held[0] != count:
                query = select(_rows.c.vector_id, _rows.c.numbers).where(_rows.c.model == model)
                found = connection.execute(query.order_by(_rows.c.vector_id)).all()
                rows = np.array([np.frombuffer(row.numbers, dtype="<f4") for row in found], dtype=np.float32)
                held = (count, {row.vector_id: i for i, row in enumerate(found)}, rows)
                self._held[model] = held
        return held[1], held[2]

    def forget(self, identities: Iterable[str]) -> None:
        """Delete the vectors of these ids."""
        if self._engine is None and not self._file.exists():
            return
        with transaction(self._open(), write=True, what=self._what) as connection:
            for identity in identities:
                connection.execute(delete(_rows).where(_rows.c.vector_id == identity))
            connection.execute(_changes.update().values(count=_changes.c.count + 1))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None
