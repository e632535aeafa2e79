"""The catalogue: rows about vectors, their names and their tombstones. It never touches a blob."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, false, func, insert, or_, select, update

from comgrad.errors import ComgradError, NameTaken, NotFound, StorageError
from comgrad.registry import gradients, search, snapshot
from comgrad.registry.card import Card
from comgrad.registry.database import repeated, transaction
from comgrad.registry.gradients import GradientFacts, GradientRecord
from comgrad.registry.models import AddResult, Facts, Held, Hit, Record, vector_id, vectors
from comgrad.registry.models import gradients as gradient_table
from comgrad.registry.names import checked_name, name_key
from comgrad.registry.snapshot import Snapshot
from comgrad.types import BaseRef

Result = TypeVar("Result")

_MIN_PREFIX = 2
_AT_ONCE = 500  # values in one statement


class Catalogue:
    """The rows, over any database that SQLAlchemy speaks.

    Args:
        engine: the database, with the current schema.
        what: the registry, for messages.
    """

    def __init__(self, engine: Engine, what: str) -> None:
        self._engine = engine
        self._what = what

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writer]:
        """A transaction that is alone in writing, over all processes; committed at the end of the block.

        Raises:
            StorageError: the database is locked, full, read-only or damaged.
        """
        with self._transaction(write=True) as connection:
            yield Writer(connection, self._what)

    def write(self, work: Callable[[Writer], Result]) -> Result:
        """`work` in a writing transaction; done again while a database server is away, so it must bear being repeated.

        Raises:
            StorageError: as `writing`; (`unavailable`) the server stayed away.
        """

        def once() -> Result:
            with self.writing() as rows:
                return work(rows)

        return repeated(self._engine, once)

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """`work` in a reading transaction, which sees one moment; done again while a database server is away."""

        def once() -> Result:
            with self._transaction(write=False) as connection:
                return work(connection)

        return repeated(self._engine, once)

    def _transaction(self, *, write: bool) -> contextlib.AbstractContextManager[Connection]:
        return transaction(self._engine, write=write, what=self._what)

    def close(self) -> None:
        """Close the database's connections."""
        self._engine.dispose()

    # -- reading -------------------------------------------------------------------------------------------------
    def by_digest(self, digest: str) -> Record | None:
        """The row of a blob, active or removed."""
        return self.read(lambda connection: _row(connection, vectors.c.digest == digest))

    def get(self, key: str, *, include_removed: bool = False, exact: bool = False) -> Record:
        """The row of an id, a name, or (unless `exact`) the beginning of either when only one row has it.

        Raises:
            NotFound: no row (close names are suggested); (`removed`) it was removed; (`ambiguous`) several rows.
        """
        if any(0xD800 <= ord(c) <= 0xDFFF for c in key):  # bytes of a command line that are no text
            raise NotFound(ascii(key), "it is no text, so nothing has that id or name", "see `comgrad list`")
        key = key.replace("\0", " ")  # PostgreSQL's text cannot hold it, and no name has it
        found = self.read(lambda connection: self._find(connection, key, exact))
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
            .order_by(bytewise(connection, vectors.c.name_key))
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
        query = select(vectors)
        if not include_removed:
            query = query.where(vectors.c.state == "active")
        if kind is not None:
            query = query.where(vectors.c.kind == kind)
        if base is not None:
            query = query.where(vectors.c.base_name == base)

        def rows(connection: Connection) -> Sequence[Record]:
            ordered = query.order_by(vectors.c.created_at, bytewise(connection, vectors.c.id))
            return [record(row) for row in connection.execute(ordered).mappings()]

        return self.read(rows)

    def search(self, text: str, *, limit: int = 20) -> Sequence[Hit]:
        """Active rows by words of name, labels, family, description and notes, best first. See `search.scores`."""
        terms = search.terms(text)
        if not terms or limit < 1:
            return []
        active = vectors.c.state == "active"
        any_term = or_(*(vectors.c.search_text.contains(search.stem(term), autoescape=True) for term in terms))

        def hits(connection: Connection) -> Sequence[Hit]:
            total = connection.execute(select(func.count()).select_from(vectors).where(active)).scalar_one()
            query = select(vectors.c.id, vectors.c.name_key, vectors.c.search_text).where(active, any_term)
            rows = connection.execute(query).all()
            scores = search.scores(terms, [row.search_text for row in rows], total)
            ranked = sorted(zip(scores, rows, strict=True), key=lambda pair: (-pair[0], pair[1].name_key))
            best = [(row.id, score) for score, row in ranked[:limit] if score > 0.0]
            found = _by_id(connection, [identity for identity, _ in best])
            return [Hit(found[identity], score) for identity, score in best]

        return self.read(hits)

    def gradient(self, identity: str) -> GradientRecord | None:
        """The row of a vector's gradient."""
        return self.read(lambda connection: gradients.find(connection, identity))

    def gradients(self) -> dict[str, GradientRecord]:
        """Vector id → row of its gradient, in one query."""
        return self.read(gradients.find_all)

    def held(self) -> Sequence[Held]:
        """Every blob that an active vector or its gradient needs."""
        table = gradient_table.c
        of_vectors = select(vectors.c.digest, vectors.c.id, vectors.c.damage).where(vectors.c.state == "active")
        of_gradients = select(table.digest, table.vector_id, table.damage)

        def both(connection: Connection) -> Sequence[Held]:
            held = [Held(*row[:2], "vector", row[2]) for row in connection.execute(of_vectors)]
            return held + [Held(*row[:2], "gradient", row[2]) for row in connection.execute(of_gradients)]

        return self.read(both)

    def snapshot(self) -> Snapshot:
        """Every row of this moment, tombstones too."""
        return self.read(snapshot.take)

    def check_empty(self) -> None:
        """Raise ComgradError (`registry-not-empty`) when there is any row."""
        self.read(lambda connection: _check_empty(connection, self._what))

    def active(self, identities: Sequence[str]) -> set[str]:
        """Those of the ids that are active."""
        found = self.read(lambda connection: _by_id(connection, identities))
        return {identity for identity, row in found.items() if row.state == "active"}

    def check_free(self, name: str, digest: str) -> None:
        """Raise NameTaken when the name belongs, or once belonged, to other bytes."""
        self.read(lambda connection: _check_free(connection, name, digest))


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
        known = _row(self._connection, vectors.c.digest == digest)
        if known is not None and known.state == "active":
            if known.damage is not None:
                self._change(known.id, {"damage": None})
                return AddResult("exists", self._row(known.id), repaired=True)
            return AddResult("added" if again and known.created_at == at else "exists", known)
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
            "created_at": at or datetime.now(UTC),
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
        _check_empty(self._connection, self._what)
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


def bytewise(connection: Connection, column: Any) -> ColumnElement[Any]:
    """The text column to order by its bytes, on every database: PostgreSQL would follow its locale."""
    return column.collate("C") if connection.dialect.name == "postgresql" else column  # type: ignore[no-any-return]


def _by_id(connection: Connection, identities: Sequence[str]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for start in range(0, len(identities), _AT_ONCE):
        some = identities[start : start + _AT_ONCE]
        rows = connection.execute(select(vectors).where(vectors.c.id.in_(some))).mappings()
        found |= {row["id"]: record(row) for row in rows}
    return found


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


def _check_empty(connection: Connection, what: str) -> None:
    if not snapshot.is_empty(connection):
        why = "it has vectors or tombstones, and a backup is never restored over anything"
        raise ComgradError(what, why, "give an empty one (COMGRAD_HOME)", code="registry-not-empty")


def removed(found: Record, remedy: str = "see `comgrad list` for what is there") -> ComgradError:
    """The refusal to use a vector that was removed."""
    when = f" on {found.removed_at:%Y-%m-%d}" if found.removed_at else ""
    reason = f" ({found.removed_reason})" if found.removed_reason else ""
    return NotFound(f"'{found.name}' ({found.id})", f"it was removed{when}{reason}", remedy, code="removed")


def _shown(text: str) -> str:
    """The user's text for a message: quoted, escaped where it is not printable, cut where it is long."""
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"'{text}'" if text.isprintable() and "'" not in text else repr(text)
