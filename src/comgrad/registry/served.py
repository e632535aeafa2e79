"""A registry on PostgreSQL and an S3-compatible object store: several processes and hosts, one registry.

Database and bucket know one another by an id that both hold: a bucket that belongs to another database would be taken
for one full of orphans, and be emptied.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, insert, inspect, select, text, update

from comgrad.errors import NotFound, StorageError
from comgrad.registry import database, disk, objects, postgres
from comgrad.registry.copies import LIMIT_BYTES, LocalCopies
from comgrad.registry.models import vectors
from comgrad.registry.places import MARKER, check_marker, current, marker
from comgrad.registry.s3 import PART_BYTES, S3Blobs
from comgrad.registry.served_tables import REVISIONS
from comgrad.registry.served_tables import registry as identity_table

OPENING_SECONDS = 15.0  # a wrong address should be told soon; operations are more patient


class ServedPlace:
    """A registry behind a pair of addresses.

    Args:
        database_url: `postgresql+psycopg://user:password@host/database`; what is missing, libpq's environment gives.
        blobs_url: `s3://bucket/prefix`; endpoint, region and keys come from the environment, as boto3 reads it.
        home: a folder of this machine for what is derived or copied; it may be deleted.
        copies: bytes of local copies to keep at most.
        part: bytes per upload request.
    """

    def __init__(
        self, database_url: str, blobs_url: str, home: Path, *, copies: int = LIMIT_BYTES, part: int = PART_BYTES
    ) -> None:
        url = postgres.parsed(database_url)
        self._connect: Callable[[], Engine] = lambda: postgres.engine(url)  # not as a value: it would be shown
        address = objects.Address.parsed(blobs_url)
        shown = f"{postgres.shown(url)} with {address}"
        self.what = f"the registry '{shown}'"
        self.path = home.expanduser().absolute() / "served" / hashlib.sha256(shown.encode()).hexdigest()[:16]
        self.cache_dir = self.path / "cache"
        self.blobs = S3Blobs(address, LocalCopies(self.path / "blobs", copies), part=part)

    def __repr__(self) -> str:
        return f"ServedPlace({self.what!r})"

    def unwritable(self) -> bool:
        """Whether the address is that of a standby server."""
        engine = self._connect()
        try:

            def work() -> bool:
                with database.transaction(engine, write=False, what=self.what) as connection:
                    return bool(connection.execute(select(func.pg_is_in_recovery())).scalar())

            return postgres.patiently(work, OPENING_SECONDS)
        finally:
            engine.dispose()

    def close(self) -> None:
        """Close the object store's connections."""
        self.blobs.close()

    # -- opening -------------------------------------------------------------------------------------------------
    def open(self, *, read_only: bool) -> Engine:
        """The database, after database and bucket were found to belong together. Raises as `Place.open`."""
        with disk.storage(self.what):
            disk.make_parents(self.path)
            disk.make_folder(self.cache_dir)
        self.blobs.prepare()
        engine = self._connect()
        try:
            postgres.patiently(lambda: self._opened(engine, read_only), OPENING_SECONDS)
        except BaseException:
            engine.dispose()
            raise
        return engine

    def _opened(self, engine: Engine, read_only: bool) -> None:
        found = database.revision(engine, self.what)
        served = self._served_revision(engine)
        database.check_revision(found, self.what)
        self._check_served(served)
        ready = found == database.HEAD and served == REVISIONS[-1]
        if read_only:
            if found is None:
                raise NotFound(self.what, "there is no registry in that database", "check COMGRAD_DATABASE")
            current(engine, self.what)
            if served != REVISIONS[-1]:
                why = "its schema is older than this comgrad and it cannot be upgraded without writing"
                raise StorageError(self.what, why, "open it once where it can be written", code="registry-older")
        elif not ready:
            self._set_up(engine)
        self._check_pair(engine, read_only)

    def _served_revision(self, engine: Engine) -> str | None:
        with database.transaction(engine, write=False, what=self.what) as connection:
            if not inspect(connection).has_table("alembic_version_served"):
                return None
            return connection.execute(text("SELECT version_num FROM alembic_version_served")).scalar()

    def _check_served(self, found: str | None) -> None:
        if found is not None and found not in REVISIONS:
            why = f"its schema {found[:40]!a} is newer than this comgrad (which knows up to {REVISIONS[-1]})"
            raise StorageError(self.what, why, "update comgrad; the registry was not touched", code="registry-newer")

    def _set_up(self, engine: Engine) -> None:
        """Make or upgrade the schema in one writing transaction; other processes wait for its lock and find it done."""
        with database.transaction(engine, write=True, what=self.what) as connection:
            database.migrate(connection)
            database.migrate(connection, "migrations_served")
            if connection.execute(select(identity_table.c.id)).first() is None:
                made = {"id": uuid.uuid4().hex, "created_at": datetime.now(UTC)}
                connection.execute(insert(identity_table).values(made))

    def _check_pair(self, engine: Engine, read_only: bool) -> None:
        """The id in the bucket is the database's; an empty bucket gets it when the database is empty too."""
        with database.transaction(engine, write=False, what=self.what) as connection:
            mine = connection.execute(select(identity_table.c.id)).scalar_one()
        theirs = self._theirs()
        if theirs == mine:
            return
        if theirs is None and read_only:
            raise self._mismatch("the bucket holds no registry", "check COMGRAD_BLOBS")
        with database.transaction(engine, write=True, what=self.what) as connection:
            theirs = self._theirs()
            if theirs == mine:
                return
            rows = connection.execute(select(func.count()).select_from(vectors)).scalar_one()
            blobs = next(self.blobs.digests(), None) is not None
            if theirs is not None:
                raise self._mismatch("the bucket belongs to another database", "check COMGRAD_DATABASE, COMGRAD_BLOBS")
            if rows:
                raise self._mismatch("the database has vectors and the bucket holds no registry", "check COMGRAD_BLOBS")
            if blobs:
                why = "the database is new and the bucket holds blobs that nothing names"
                raise self._mismatch(why, "restore the database, or choose another prefix")
            self.blobs.write_object(MARKER, marker(id=mine))

    def _theirs(self) -> str | None:
        values = check_marker(self.blobs.read_object(MARKER), self.what)
        return str(values.get("id", "")) if values else None

    def _mismatch(self, why: str, remedy: str) -> StorageError:
        return StorageError(self.what, why, f"{remedy}; nothing was touched", code="registry-mismatch")

    # -- reconciling ---------------------------------------------------------------------------------------------
    def due(self, engine: Engine, grace: float) -> bool:
        """Whether no process has done it for `grace` seconds: what is collected is older than that anyway."""

        def work() -> Any:
            with database.transaction(engine, write=False, what=self.what) as connection:
                return connection.execute(select(identity_table.c.reconciled_at)).scalar()

        last = database.repeated(engine, work)
        return last is None or datetime.now(UTC) - last >= timedelta(seconds=grace)

    def reconciled(self, engine: Engine) -> None:
        """Note the time."""

        def work() -> None:
            with database.transaction(engine, write=True, what=self.what) as connection:
                connection.execute(update(identity_table).values(reconciled_at=datetime.now(UTC)))

        database.repeated(engine, work)
