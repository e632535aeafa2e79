"""The catalogue: rows about vectors, their names and their tombstones. It never touches a blob."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, false, func, insert, or_, select, update

from comgrad.errors import ComgradError, NameTaken, NotFound, StorageError
from comgrad.registry import gradients, search
from comgrad.registry.card import Card
from comgrad.registry.database import transaction
from comgrad.registry.gradients import GradientFacts, GradientRecord
from comgrad.registry.models import AddResult, Facts, Held, Hit, Record, vector_id, vectors
from comgrad.registry.models import gradients as gradient_table
from comgrad.registry.names import checked_name, name_key
from comgrad.types import BaseRef

_MIN_PREFIX = 2


class Catalogue:
    """The rows, over any database that SQLAlchemy speaks.

    Args:
        engine: the database, with the current schema.
        what: the registry, for messages.
    """

    def __init__(self, engine: Engine, what: str) -> None:
        self._engine = engine
        self._what = what
        self._pid = os.getpid()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writer]:
        """A transaction that is alone in writing, over all processes; committed at the end of the block.

        Raises:
            StorageError: the database is locked, full, read-only or damaged.
        """
        with self._transaction(write=True) as connection:
            yield Writer(connection)

    def _transaction(self, *, write: bool) -> contextlib.AbstractContextManager[Connection]:
        if self._pid != os.getpid():  # after a fork the parent's connections must not be used
            self._inherited = self._engine.pool  # kept: letting go of a connection would close the parent's files
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        return transaction(self._engine, write=write, what=self._what)

    def close(self) -> None:
        """Close the database's connections."""
        self._engine.dispose()

    # -- reading -------------------------------------------------------------------------------------------------
    def by_digest(self, digest: str) -> Record | None:
        """The row of a blob, active or removed."""
        with self._transaction(write=False) as connection:
            return _row(connection, vectors.c.digest == digest)

    def get(self, key: str, *, include_removed: bool = False, exact: bool = False) -> Record:
        """The row of an id, a name, or (unless `exact`) the beginning of either when only one row has it.

        Raises:
            NotFound: no row (close names are suggested); (`removed`) it was removed; (`ambiguous`) several rows.
        """
        if any(0xD800 <= ord(c) <= 0xDFFF for c in key):  # bytes of a command line that are no text
            raise NotFound(ascii(key), "it is no text, so nothing has that id or name", "see `comgrad list`")
        with self._transaction(write=False) as connection:
            found = self._find(connection, key, exact)
        if found.state == "removed" and not include_removed:
            raise removed(found)
        return found

    def _find(self, connection: Connection, key: str, whole: bool) -> Record:
        folded = name_key(key)
        exact = _row(connection, vectors.c.id == key.strip().lower()) or _row(connection, vectors.c.name_key == folded)
        if exact:
            return exact
        if whole:
            raise self._unknown(connection, key, folded)
        digits = key.strip().lower()
        starts = [vectors.c.id.startswith(digits, autoescape=True)] if digits.startswith("tv-") else []
        if len(digits) >= _MIN_PREFIX:
            starts += [vectors.c.digest.startswith(digits, autoescape=True)]
        if len(folded) >= _MIN_PREFIX:
            starts += [vectors.c.name_key.startswith(folded, autoescape=True)]
        query = (
            select(vectors)
            .where(or_(false(), *starts), vectors.c.state == "active")
            .order_by(vectors.c.name_key)
            .limit(6)
        )
        rows = [record(row) for row in connection.execute(query).mappings()] if starts else []
        if len(rows) == 1:
            return rows[0]
        if rows:
            options = ", ".join(f"'{row.name}' ({row.id})" for row in rows[:5])
            why = f"it is the beginning of several: {options}{' and more' if len(rows) > 5 else ''}"
            raise NotFound(_shown(key), why, "give more of the name or the id", code="ambiguous")
        raise self._unknown(connection, key, folded)

    def _unknown(self, connection: Connection, key: str, folded: str) -> NotFound:
        query = select(vectors.c.name_key, vectors.c.name).where(vectors.c.state == "active")
        known = {row.name_key: row.name for row in connection.execute(query)}
        close = " or ".join(f"'{known[near]}'" for near in _close(folded, sorted(known)))
        close_text = f"did you mean {close}?" if close else "see `comgrad list`"
        return NotFound(_shown(key), "the registry has no vector of that id or name", close_text)

    def list(
        self,
        *,
        kind: str | None = None,
        base: str | None = None,
        include_removed: bool = False,
    ) -> Sequence[Record]:
        """The rows, oldest first; `kind` and `base` (the base's name) select."""
        query = select(vectors).order_by(vectors.c.created_at, vectors.c.id)
        if not include_removed:
            query = query.where(vectors.c.state == "active")
        if kind is not None:
            query = query.where(vectors.c.kind == kind)
        if base is not None:
            query = query.where(vectors.c.base_name == base)
        with self._transaction(write=False) as connection:
            return [record(row) for row in connection.execute(query).mappings()]

    def search(self, text: str, *, limit: int = 20) -> Sequence[Hit]:
        """Active rows by words of name, labels, family, description and notes, best first. See `search.scores`."""
        terms = search.terms(text)
        if not terms or limit < 1:
            return []
        active = vectors.c.state == "active"
        any_term = or_(*(vectors.c.search_text.contains(search.stem(term), autoescape=True) for term in terms))
        with self._transaction(write=False) as connection:
            total = connection.execute(select(func.count()).select_from(vectors).where(active)).scalar_one()
            rows = connection.execute(select(vectors).where(active, any_term)).mappings().all()
        scores = search.scores(terms, [row["search_text"] for row in rows], total)
        ranked = sorted(zip(scores, rows, strict=True), key=lambda pair: (-pair[0], pair[1]["name_key"]))
        return [Hit(record(row), score) for score, row in ranked[:limit] if score > 0.0]

    def gradient(self, identity: str) -> GradientRecord | None:
        """The row of a vector's gradient."""
        with self._transaction(write=False) as connection:
            return gradients.find(connection, identity)

    def gradients(self) -> dict[str, GradientRecord]:
        """Vector id → row of its gradient, in one query."""
        with self._transaction(write=False) as connection:
            return gradients.find_all(connection)

    def held(self) -> Sequence[Held]:
        """Every blob that an active vector or its gradient needs."""
        table = gradient_table.c
        of_vectors = select(vectors.c.digest, vectors.c.id, vectors.c.damage).where(vectors.c.state == "active")
        of_gradients = select(table.digest, table.vector_id, table.damage)
        with self._transaction(write=False) as connection:
            held = [Held(*row[:2], "vector", row[2]) for row in connection.execute(of_vectors)]
            return held + [Held(*row[:2], "gradient", row[2]) for row in connection.execute(of_gradients)]

    def check_free(self, name: str, digest: str) -> None:
        """Raise NameTaken when the name belongs, or once belonged, to other bytes."""
        with self._transaction(write=False) as connection:
            _check_free(connection, name, digest)


class Writer:
    """The operations of one writing transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, name: str, card: Card, facts: Facts, digest: str, size: int, *, restore: bool = False) -> AddResult:
        """Insert the row of a blob, or find it.

        Raises:
            NameTaken: the name belongs, or once belonged, to other bytes.
            ComgradError: (`removed`) these bytes were removed and `restore` is not set; (`name-refused`).
            StorageError: (`id-collision`) another blob has the same first 16 hex digits.
        """
        known = _row(self._connection, vectors.c.digest == digest)
        if known is not None and known.state == "active":
            if known.damage is not None:
                self._change(known.id, {"damage": None})
                return AddResult("exists", self._row(known.id), repaired=True)
            return AddResult("exists", known)
        if known is not None:
            return self._restore(known, card, facts, restore)
        name = checked_name(name)
        _check_free(self._connection, name, digest)
        identity = vector_id(digest)
        clash = _row(self._connection, vectors.c.id == identity)
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
            "created_at": datetime.now(UTC),
            **_described(name, card),
            **_measured(facts),
        }
        self._connection.execute(insert(vectors).values(row))
        return AddResult("added", self._row(identity))

    def _restore(self, known: Record, card: Card, facts: Facts, restore: bool) -> AddResult:
        """Bring removed bytes back: same id and name, the new card."""
        if not restore:
            raise removed(known, "add it with --restore (restore=True) to bring it back under its old id and name")
        change = {"state": "active", "damage": None, "removed_at": None, "removed_reason": None}
        self._change(known.id, {**change, **_described(known.name, card), **_measured(facts)})
        return AddResult("added", self._row(known.id))

    def remove(self, identity: str, reason: str) -> Record:
        """Turn the row into a tombstone: the name and the id stay taken. Raises NotFound (`removed`)."""
        known = self._row(identity)
        if known.state == "removed":
            raise removed(known)
        self._change(identity, {"state": "removed", "removed_at": datetime.now(UTC), "removed_reason": reason})
        return self._row(identity)

    def is_needed(self, digest: str) -> bool:
        """Whether an active vector or its gradient needs the blob."""
        return self._is_active(digest) or gradients.holds(self._connection, digest)

    def holds(self, held: Held) -> bool:
        """Whether that row still needs the blob."""
        if held.kind == "gradient":
            return gradients.holds(self._connection, held.digest, held.id)
        return self._is_active(held.digest)

    def _is_active(self, digest: str) -> bool:
        row = _row(self._connection, vectors.c.digest == digest)
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
        found = _row(self._connection, vectors.c.id == identity)
        if found is None:
            raise NotFound(f"'{identity}'", "the registry has no vector of that id", "see `comgrad list`")
        return found


def _close(key: str, known: Sequence[str]) -> Sequence[str]:
    """At most three names like the key: as a whole, or else in some of their words."""
    whole = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    if whole:
        return whole
    asked = [word for word in key.split("-") if len(word) > 2]
    shared = {
        name: sum(1 for word in asked if difflib.get_close_matches(word, name.split("-"), 1, 0.8)) for name in known
    }
    return [name for name in sorted(known, key=lambda name: -shared[name])[:3] if shared[name]]


def _row(connection: Connection, condition: Any) -> Record | None:
    row = connection.execute(select(vectors).where(condition)).mappings().first()
    return None if row is None else record(row)


def record(row: RowMapping) -> Record:
    """The value of a row."""
    facts = Facts(BaseRef(row["base_name"], row["base_fingerprint"]), row["kind"], row["rank"], row["norm"])
    return Record(
        id=row["id"],
        name=row["name"],
        description=row["description"],
        facts=facts,
        size_bytes=row["size_bytes"],
        digest=row["digest"],
        card=Card.from_dict(row["card"], what=f"the stored card of {row['id']}"),
        created_at=row["created_at"],
        state=row["state"],
        damage=row["damage"],
        removed_at=row["removed_at"],
        removed_reason=row["removed_reason"],
    )


def _described(name: str, card: Card) -> dict[str, Any]:
    card = card.replaced(name=name)
    return {
        "card": card.to_dict(),
        "description": card.description,
        "search_text": search.document(name, card),
    }


def _measured(facts: Facts) -> dict[str, Any]:
    return {
        "base_name": facts.base.name,
        "base_fingerprint": facts.base.fingerprint,
        "kind": facts.kind,
        "rank": facts.rank,
        "norm": facts.norm,
    }


def _check_free(connection: Connection, name: str, digest: str) -> None:
    owner = _row(connection, vectors.c.name_key == name_key(name))
    if owner is None or owner.digest == digest:
        return
    if owner.state == "removed":
        why = f"it belonged to {owner.id}, which was removed; a name never passes to another vector"
    elif owner.name == name:
        why = f"it belongs to {owner.id}, which has other bytes"
    else:
        why = f"it reads like '{owner.name}', the name of {owner.id}"
    raise NameTaken(f"the name {_shown(name)}", why, "choose another name (--name)")


def removed(found: Record, remedy: str = "see `comgrad list` for what is there") -> ComgradError:
    """The refusal to use a vector that was removed."""
    when = f" on {found.removed_at:%Y-%m-%d}" if found.removed_at else ""
    reason = f" ({found.removed_reason})" if found.removed_reason else ""
    return NotFound(f"'{found.name}' ({found.id})", f"it was removed{when}{reason}", remedy, code="removed")


def _shown(text: str) -> str:
    """The user's text for a message: quoted, escaped where it is not printable, cut where it is long."""
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"'{text}'" if text.isprintable() and "'" not in text else repr(text)
