"""All rows of a catalogue as plain values and back: the same for every database, so that a backup fits both sizes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, func, insert, select

from comgrad.errors import ComgradError
from comgrad.registry.blobs import is_digest
from comgrad.registry.models import REVISIONS, UtcDateTime, gradients, vector_id, vectors

TABLES: Mapping[str, Table] = {table.name: table for table in (vectors, gradients)}  # in the order of their keys
_AT_ONCE = 200


@dataclass(frozen=True)
class Snapshot:
    """Every row of one moment: table name → rows, each a mapping of columns to JSON values."""

    tables: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def active(self) -> Sequence[Mapping[str, Any]]:
        """The rows of vectors that were not removed."""
        return [row for row in self.tables["vectors"] if row["state"] == "active"]

    def needed(self) -> dict[str, set[str]]:
        """Digest of every blob that a row needs → the ids of the vectors that need it (or whose gradient does)."""
        found: dict[str, set[str]] = {}
        for row in self.active:
            found.setdefault(row["digest"], set()).add(row["id"])
        for row in self.tables["gradients"]:
            found.setdefault(row["digest"], set()).add(row["vector_id"])
        return found

    def lines(self) -> bytes:
        """One JSON document per line: `{"table": ..., "row": {...}}`."""
        rows = ({"table": name, "row": row} for name, found in self.tables.items() for row in found)
        return "".join(f"{json.dumps(row, ensure_ascii=False, sort_keys=True)}\n" for row in rows).encode()

    @classmethod
    def from_lines(cls, raw: bytes, what: str) -> Snapshot:
        """Back from `lines`. Raises ComgradError (`backup-damaged`)."""
        tables: dict[str, list[Mapping[str, Any]]] = {name: [] for name in TABLES}
        try:
            for line in raw.decode().splitlines():
                found = json.loads(line)
                tables[found["table"]].append(_checked(TABLES[found["table"]], found["row"]))
        except (ValueError, KeyError, TypeError) as error:
            why = (
                f"a line of its catalogue is not a row of the schema {REVISIONS[-1]} ({type(error).__name__}: {error})"
            )
            raise ComgradError(what, why, "use another backup, or a newer comgrad", code="backup-damaged") from error
        return cls(tables)


def _checked(table: Table, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row, if its columns are the table's and its digest can name a file. A missing column may be empty."""
    unknown = set(row) - {column.name for column in table.columns}
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}")
    for column in table.columns:
        if row.get(column.name) is None and not column.nullable:
            raise ValueError(f"no {column.name}")
        if isinstance(column.type, UtcDateTime) and row.get(column.name) is not None:
            datetime.fromisoformat(row[column.name])
    if not is_digest(row["digest"]) or (table is vectors and row["id"] != vector_id(row["digest"])):
        raise ValueError("a digest is not a SHA-256, or not that of the id")
    return row


def take(connection: Connection) -> Snapshot:
    """Every row, in the order of the primary keys' bytes."""
    tables = {}
    for name, table in TABLES.items():
        rows = [_plain(row) for row in connection.execute(select(table)).mappings()]
        tables[name] = sorted(rows, key=lambda row: str(row["id" if name == "vectors" else "vector_id"]))
    return Snapshot(tables)


def _plain(row: RowMapping) -> dict[str, Any]:
    return {str(key): value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()}


def is_empty(connection: Connection) -> bool:
    """Whether there is no row, not even a tombstone."""
    return all(connection.execute(select(func.count()).select_from(t)).scalar_one() == 0 for t in TABLES.values())


def insert_all(connection: Connection, snapshot: Snapshot) -> None:
    """Insert every row into an empty catalogue, as it was."""
    for name, table in TABLES.items():
        dates = {column.name for column in table.columns if isinstance(column.type, UtcDateTime)}
        for some in _pieces([_typed(row, dates) for row in snapshot.tables[name]]):
            connection.execute(insert(table), some)


def _typed(row: Mapping[str, Any], dates: Iterable[str]) -> dict[str, Any]:
    return {**row, **{key: datetime.fromisoformat(row[key]) for key in dates if row.get(key) is not None}}


def _pieces(rows: list[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    return (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))
