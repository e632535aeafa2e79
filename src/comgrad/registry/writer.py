"""What may be written into the catalogue: the operations of one writing transaction."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, update

from comgrad.errors import NotFound, StorageError
from comgrad.registry import gradients, snapshot
from comgrad.registry.card import Card
from comgrad.registry.gradients import GradientFacts, GradientRecord
from comgrad.registry.models import AddResult, Facts, Held, Record, vector_id, vectors
from comgrad.registry.names import checked_name, name_key
from comgrad.registry.rows import check_empty, check_free, described, measured, removed, row_where
from comgrad.registry.snapshot import Snapshot


class Writer:
    """The operations of one writing transaction."""

    def __init__(self, connection: Connection, what: str) -> None:
        self._connection = connection
        self._what = what

    def add(
        self,
        name: str,
        card: Card,
        facts: Facts,
        digest: str,
        size: int,
        *,
        restore: bool = False,
        at: datetime | None = None,
        again: bool = False,
    ) -> AddResult:
        """Insert the row of a blob, or find it.

        Args:
            at: when the add began; now when not given.
            again: an attempt failed before this one. A row of that very moment is then this add's own, committed by
                the attempt although its answer was lost with the connection; it counts as added.

        Raises:
            NameTaken: the name belongs, or once belonged, to other bytes.
            ComgradError: (`removed`) these bytes were removed and `restore` is not set; (`name-refused`).
            StorageError: (`id-collision`) another blob has the same first 16 hex digits.
        """
        known = row_where(self._connection, vectors.c.digest == digest)
        if known is not None and known.state == "active":
            if known.damage is not None:
                self._change(known.id, {"damage": None})
                return AddResult("exists", self._row(known.id), repaired=True)
            return AddResult("added" if again and known.created_at == at else "exists", known)
        if known is not None:
            return self._restore(known, card, facts, restore)
        name = checked_name(name)
        check_free(self._connection, name, digest)
        identity = vector_id(digest)
        clash = row_where(self._connection, vectors.c.id == identity)
        if clash is not None:
            raise StorageError(
                f"a file with SHA-256 {digest}",
                f"its id {identity} already stands for {clash.digest} ('{clash.name}')",
                "change the file by any byte (its metadata, say) and add it again",
                code="id-collision",
            )
        row = {
            "id": identity,
            "digest": digest,
            "name": name,
            "name_key": name_key(name),
            "size_bytes": size,
            "state": "active",
            "created_at": at or datetime.now(UTC),
            **described(name, card),
            **measured(facts),
        }
        self._connection.execute(insert(vectors).values(row))
        return AddResult("added", self._row(identity))

    def _restore(self, known: Record, card: Card, facts: Facts, restore: bool) -> AddResult:
        """Bring removed bytes back: same id and name, the new card."""
        if not restore:
            raise removed(known, "add it with --restore (restore=True) to bring it back under its old id and name")
        change = {"state": "active", "damage": None, "removed_at": None, "removed_reason": None}
        self._change(known.id, {**change, **described(known.name, card), **measured(facts)})
        return AddResult("added", self._row(known.id))

    def remove(self, identity: str, reason: str, *, at: datetime | None = None) -> Record:
        """Turn the row into a tombstone: the name and the id stay taken. `at` is as in `add`. Raises NotFound."""
        known = self._row(identity)
        if known.state == "removed":
            if at is not None and known.removed_at == at:
                return known
            raise removed(known)
        change = {"state": "removed", "removed_at": at or datetime.now(UTC), "removed_reason": reason}
        self._change(identity, change)
        return self._row(identity)

    def fill(self, rows: Snapshot) -> bool:
        """Insert every row of a snapshot as it was; True. Raises ComgradError (`registry-not-empty`)."""
        check_empty(self._connection, self._what)
        snapshot.insert_all(self._connection, rows)
        return True

    def is_needed(self, digest: str) -> bool:
        """Whether an active vector or its gradient needs the blob."""
        return self._is_active(digest) or gradients.holds(self._connection, digest)

    def holds(self, held: Held) -> bool:
        """Whether that row still needs the blob."""
        if held.kind == "gradient":
            return gradients.holds(self._connection, held.digest, held.id)
        return self._is_active(held.digest)

    def _is_active(self, digest: str) -> bool:
        row = row_where(self._connection, vectors.c.digest == digest)
        return row is not None and row.state == "active"

    def mark(self, held: Held, damage: str | None) -> None:
        """Record what is wrong with the row's blob, or that nothing is."""
        if held.kind == "gradient":
            gradients.mark(self._connection, held.id, damage)
        else:
            self._change(held.id, {"damage": damage})

    def attach(self, identity: str, digest: str, size: int, facts: GradientFacts) -> tuple[GradientRecord, str | None]:
        """Give a vector a gradient in the place of the one it had; the row, and that one's digest.

        Raises:
            NotFound: (`removed`) the vector was removed meanwhile.
        """
        owner = self._row(identity)
        if owner.state == "removed":
            raise removed(owner)
        before = gradients.put(self._connection, identity, digest, size, facts)
        found = gradients.find(self._connection, identity)
        assert found is not None
        return found, before

    def detach(self, identity: str) -> str | None:
        """Take a vector's gradient away; its digest, if there was one."""
        return gradients.drop(self._connection, identity)

    def _change(self, identity: str, values: dict[str, Any]) -> None:
        self._connection.execute(update(vectors).where(vectors.c.id == identity).values(values))

    def _row(self, identity: str) -> Record:
        found = row_where(self._connection, vectors.c.id == identity)
        if found is None:
            raise NotFound(f"'{identity}'", "the registry has no vector of that id", "see `comgrad list`")
        return found
