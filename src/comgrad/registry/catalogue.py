"""The catalogue: rows about vectors, their names and their tombstones, and how to read them. It never touches a blob."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import Connection, Engine, false, func, or_, select

from comgrad.errors import NotFound
from comgrad.registry import gradients, search, snapshot
from comgrad.registry.database import repeated, transaction
from comgrad.registry.gradients import GradientRecord
from comgrad.registry.models import Held, Hit, Record, vectors
from comgrad.registry.models import gradients as gradient_table
from comgrad.registry.names import name_key
from comgrad.registry.rows import (
    bytewise,
    check_empty,
    check_free,
    close_names,
    record,
    removed,
    row_where,
    rows_by_id,
    shown,
)
from comgrad.registry.snapshot import Snapshot
from comgrad.registry.writer import Writer

Result = TypeVar("Result")

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
        return self.read(lambda connection: row_where(connection, vectors.c.digest == digest))

    def by_id(self, identity: str) -> Record | None:
        """The row of exactly that id, active or removed."""
        return self.read(lambda connection: row_where(connection, vectors.c.id == identity))

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
        exact = row_where(connection, vectors.c.id == key.strip().lower()) or row_where(
            connection, vectors.c.name_key == folded
        )
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
            raise NotFound(shown(key), why, "give more of the name or the id", code="ambiguous")
        raise self._unknown(connection, key, folded)

    def _unknown(self, connection: Connection, key: str, folded: str) -> NotFound:
        query = select(vectors.c.name_key, vectors.c.name).where(vectors.c.state == "active")
        known = {row.name_key: row.name for row in connection.execute(query)}
        close = " or ".join(f"'{known[near]}'" for near in close_names(folded, sorted(known)))
        close_text = f"did you mean {close}?" if close else "see `comgrad list`"
        return NotFound(shown(key), "the registry has no vector of that id or name", close_text)

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
            found = rows_by_id(connection, [identity for identity, _ in best])
            return [Hit(found[identity], score) for identity, score in best]

        return self.read(hits)

    def gradient(self, identity: str) -> GradientRecord | None:
        """The row of a vector's gradient."""
        return self.read(lambda connection: gradients.find(connection, identity))

    def gradients(self, of: Sequence[str] | None = None) -> dict[str, GradientRecord]:
        """Vector id → row of its gradient, in one query; of all vectors, or of a few."""
        return self.read(lambda connection: gradients.find_all(connection, of))

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
        self.read(lambda connection: check_empty(connection, self._what))

    def check_free(self, name: str, digest: str) -> None:
        """Raise NameTaken when the name belongs, or once belonged, to other bytes."""
        self.read(lambda connection: check_free(connection, name, digest))
