"""The pre-computed gradients of vectors' tasks: their rows in the catalogue.

A vector has at most one; it lives as long as the vector's row is active. Two vectors may share one blob (the same task
trained twice), so a gradient's digest is no key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from comgrad.errors import ComgradError
from comgrad.registry.models import gradients
from comgrad.types import BaseRef


@dataclass(frozen=True)
class GradientFacts:
    """How a gradient was made.

    Args:
        examples: how many labelled examples it is the mean over.
        loss, accuracy: of the base θ₀ on them, in nats and in [0, 1].
        rank: rank of its matrices. energy_kept: share of ‖∇L‖² that the cut to this rank kept.
        prompts: SHA-256 of the task's label prompts, which the head was made of.
        base: the base model it was computed at.
        source: SHA-256 of prompts and examples, by which a later run knows that there is nothing new to compute.
    """

    examples: int
    loss: float
    accuracy: float
    rank: int
    energy_kept: float
    prompts: str
    base: BaseRef
    source: str = ""

    def __post_init__(self) -> None:
        counts, words = (self.examples, self.rank), (self.prompts, self.source, self.base.name)
        numbers = (self.loss, self.accuracy, self.energy_kept)
        typed = (
            all(type(n) is int for n in counts)
            and all(type(x) in (int, float) for x in numbers)
            and all(isinstance(w, str) for w in words)
            and isinstance(self.base.fingerprint, str | None)
        )
        if not typed:
            raise TypeError("a number or a text is of the wrong kind")
        if self.examples < 1 or self.rank < 1 or not all(math.isfinite(x) and x >= 0 for x in numbers):
            raise ComgradError(
                f"gradient facts {self}", "counts are positive and figures finite", "compute it again", code="bad-facts"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GradientFacts:
        """Back from `as_dict`; keys of a later version are passed over. Raises ComgradError (`bad-facts`)."""
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{k: v for k, v in data.items() if k in known and k != "base"}, base=BaseRef(**data["base"]))
        except (TypeError, KeyError, OverflowError) as error:
            raise ComgradError(
                "the facts of a gradient",
                f"they are incomplete or of the wrong kind ({error})",
                "compute it again",
                code="bad-facts",
            ) from error


@dataclass(frozen=True)
class GradientEntry:
    """One gradient to attach: its canonical bytes, or the file that holds them (read, never moved), and its facts."""

    blob: Path | bytes
    facts: GradientFacts


@dataclass(frozen=True)
class GradientRecord:
    """One row: whose gradient it is, its blob, how it was made."""

    vector_id: str
    digest: str
    size_bytes: int
    facts: GradientFacts
    created_at: datetime
    damage: str | None = None


@dataclass(frozen=True)
class Attached:
    """What became of a gradient: `attached` for the first time, `exists` (the same bytes), or `replaced` another."""

    status: Literal["attached", "exists", "replaced"]
    record: GradientRecord


def find(connection: Connection, identity: str) -> GradientRecord | None:
    """The row of a vector's gradient."""
    row = connection.execute(select(gradients).where(gradients.c.vector_id == identity)).mappings().first()
    return None if row is None else _record(row)


def find_all(connection: Connection, of: Sequence[str] | None = None) -> dict[str, GradientRecord]:
    """Vector id → row, for every vector that has a gradient, or for those of a few."""
    query = select(gradients)
    if of is not None:
        query = query.where(gradients.c.vector_id.in_(of))
    return {row["vector_id"]: _record(row) for row in connection.execute(query).mappings()}


def holds(connection: Connection, digest: str, identity: str | None = None) -> bool:
    """Whether some row, or that vector's, needs the blob."""
    query = select(gradients.c.vector_id).where(gradients.c.digest == digest)
    if identity is not None:
        query = query.where(gradients.c.vector_id == identity)
    return connection.execute(query.limit(1)).first() is not None


def put(connection: Connection, identity: str, digest: str, size: int, facts: GradientFacts) -> str | None:
    """Insert or replace the row; the digest that the vector's gradient had before, if any."""
    before = drop(connection, identity)
    row = {
        "vector_id": identity,
        "digest": digest,
        "size_bytes": size,
        "facts": facts.as_dict(),
        "created_at": datetime.now(UTC),
    }
    connection.execute(insert(gradients).values(row))
    return before


def drop(connection: Connection, identity: str) -> str | None:
    """Delete the row; its digest, if there was one."""
    found = find(connection, identity)
    if found is None:
        return None
    connection.execute(delete(gradients).where(gradients.c.vector_id == identity))
    return found.digest


def mark(connection: Connection, identity: str, damage: str | None) -> None:
    """Record what is wrong with the blob, or that nothing is."""
    connection.execute(update(gradients).where(gradients.c.vector_id == identity).values(damage=damage))


def _record(row: RowMapping) -> GradientRecord:
    return GradientRecord(
        vector_id=row["vector_id"],
        digest=row["digest"],
        size_bytes=row["size_bytes"],
        facts=GradientFacts.from_dict(row["facts"]),
        created_at=row["created_at"],
        damage=row["damage"],
    )
