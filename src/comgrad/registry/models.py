"""The catalogue's tables, in types that SQLite and PostgreSQL share, and the value types that rows become."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

from comgrad.errors import ComgradError
from comgrad.registry.card import Card
from comgrad.types import BaseRef

# Append only: the migrations' revisions, oldest first. The last one is what this code reads and writes.
REVISIONS = ("0001", "0002")

Status = Literal["added", "exists", "refused"]
State = Literal["active", "removed"]


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: timezone-aware outside, UTC without a zone inside, the same on every database."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC."""
        del dialect
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From UTC."""
        del dialect
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()

vectors = Table(
    "vectors",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("name_key", Text, nullable=False, unique=True),  # also of removed rows: a name never changes owner
    Column("description", Text, nullable=False),
    Column("search_text", Text, nullable=False),
    Column("base_name", Text, nullable=False, index=True),
    Column("base_fingerprint", String(200)),
    Column("kind", String(40), nullable=False),
    Column("rank", Integer),
    Column("norm", Double),
    Column("size_bytes", BigInteger, nullable=False),
    Column("card", JSON, nullable=False),
    Column("state", String(10), nullable=False, index=True),
    Column("damage", String(10)),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Column("removed_at", UtcDateTime),
    Column("removed_reason", Text),
)

gradients = Table(
    "gradients",
    metadata,
    Column("vector_id", String(40), ForeignKey("vectors.id"), primary_key=True),
    Column("digest", String(64), nullable=False, index=True),  # two vectors of one task may share it
    Column("size_bytes", BigInteger, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("damage", String(10)),
    Column("created_at", UtcDateTime, nullable=False),
)


@dataclass(frozen=True)
class Facts:
    """What was measured on a vector, as opposed to what its card claims.

    Args:
        base: the base model it stands on.
        kind: `lowrank` or `dense`.
        rank: the largest rank of its tensors; `None` for dense vectors.
        norm: its Frobenius norm over all tensors; finite, not negative.
    """

    base: BaseRef
    kind: str
    rank: int | None
    norm: float | None

    def __post_init__(self) -> None:
        if self.norm is not None and not 0.0 <= self.norm < float("inf"):
            raise ComgradError(f"the norm {self.norm}", "a norm is a finite number, not negative", "check the vector")


@dataclass(frozen=True)
class Entry:
    """One vector to add.

    Args:
        blob: its canonical bytes, or the file that holds them (read, never moved).
        card: what is claimed about it.
        facts: what was measured on it.
        name: its name in the registry; the card's name when not given.
        digest: the SHA-256 that the blob is declared to have; another one is refused.
    """

    blob: Path | bytes
    card: Card
    facts: Facts
    name: str = ""
    digest: str | None = None


@dataclass(frozen=True)
class Record:
    """One row of the catalogue."""

    id: str
    name: str
    description: str
    facts: Facts
    size_bytes: int
    digest: str
    card: Card
    created_at: datetime
    state: State = "active"
    damage: str | None = None  # "missing", "corrupt", "linked": what is wrong with the blob, if anything
    removed_at: datetime | None = None
    removed_reason: str | None = None


@dataclass(frozen=True)
class AddResult:
    """What became of one entry.

    `added`: stored, or brought back with `restore`. `exists`: the same bytes were there already, under `record`'s id
    and name. `refused`: `error` says why; nothing was stored (only `add_many` returns this; `add` raises).
    """

    status: Status
    record: Record | None
    repaired: bool = False  # the row was there, its blob was damaged, and is whole again
    error: ComgradError | None = None


@dataclass(frozen=True)
class Hit:
    """One search result; scores compare within one search only."""

    record: Record
    score: float


@dataclass(frozen=True)
class Reconciled:
    """What opening found and did: ids whose blob is missing, blobs without a row and temporary files deleted.

    `gradients` are the ids whose vector's gradient is damaged; the vectors themselves may be whole.
    """

    damaged: tuple[str, ...] = ()
    healed: tuple[str, ...] = ()
    orphans_deleted: int = 0
    temporary_deleted: int = 0
    gradients: tuple[str, ...] = ()


@dataclass(frozen=True)
class AuditReport:
    """Every needed blob re-hashed: how many, and the ids and digests that are not as they should be."""

    checked: int
    damaged: tuple[str, ...] = ()  # ids whose blob does not hash to its digest, or is a link
    missing: tuple[str, ...] = ()  # ids without a blob
    orphans: tuple[str, ...] = field(default=())  # digests of blobs that no active row names
    gradients: tuple[str, ...] = ()  # ids whose gradient's blob is missing or not what it should be

    @property
    def ok(self) -> bool:
        """Whether every vector and gradient is whole. Orphans are waste, not damage."""
        return not self.damaged and not self.missing and not self.gradients


@dataclass(frozen=True)
class Held:
    """One active row's claim on a blob."""

    digest: str
    id: str
    kind: Literal["vector", "gradient"]
    damage: str | None


def vector_id(digest: str) -> str:
    """The id of a blob: `tv-` and the first 16 hex digits of its SHA-256."""
    return f"tv-{digest[:16]}"
