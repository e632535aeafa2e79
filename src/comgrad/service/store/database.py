"""The service's database: a SQLite file beside the registry, or PostgreSQL; its transactions and its migrations."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from comgrad.errors import ComgradError, StorageError
from comgrad.registry import disk
from comgrad.registry.database import BUSY_SECONDS, database_error, sqlite_engine
from comgrad.service.errors import Conflict
from comgrad.service.store.tables import REVISIONS, VERSION_TABLE

Rows = Connection
Result = TypeVar("Result")
AWAY_SECONDS = 10.0  # how long a request waits for a database that was restarted, before it says so
_WRITE = "comgrad_write"
FILE = "service.sqlite"
_LOCK = 0x636F6D67  # PostgreSQL's advisory lock of this service: writers exclude each other, as in SQLite


class Database:
    """Transactions over the service's tables.

    Args:
        folder: where the SQLite file lies (`service.sqlite`), and the lock under which migrations run.
        url: an SQLAlchemy URL of PostgreSQL; None for SQLite.

    Raises:
        StorageError: it cannot be opened, or (`service-newer`) a newer comgrad made it.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self._folder = folder
        with disk.storage(f"the folder '{folder}'"):
            disk.make_parents(folder)
        self.what = "the service's database"
        self.sqlite = url is None
        self._writers = threading.Lock()
        self.file = folder / FILE
        self.engine: Engine = sqlite_engine(self.file, read_only=False) if url is None else _postgres(url)
        if self.sqlite and not self.file.exists():
            os.close(os.open(self.file, os.O_CREAT | os.O_WRONLY, 0o600))  # passwords' hashes: nobody else's business
        try:
            self.patiently(self._migrate)
        except BaseException:
            self.engine.dispose()
            raise

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    @contextlib.contextmanager
    def read(self) -> Iterator[Rows]:
        """A reading transaction. Raises StorageError."""
        with self._transaction(write=False) as rows:
            yield rows

    @contextlib.contextmanager
    def write(self) -> Iterator[Rows]:
        """A writing transaction that is alone in writing; committed at the end. Raises StorageError, Conflict."""
        with self._turn(), self._transaction(write=True) as rows:
            yield rows

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """SQLite's own waiting for another writer is sleeping and looking again, up to a tenth of a second each time; the
        threads of one process hand the turn on at once."""
        if not self.sqlite:
            yield
            return
        if not self._writers.acquire(timeout=BUSY_SECONDS):
            raise StorageError(self.what, "others are writing to it", "try again in a moment", code="locked")
        try:
            yield
        finally:
            self._writers.release()

    @contextlib.contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Rows]:
        try:
            with self._connected() as connection:
                connection = connection.execution_options(**{_WRITE: write})
                with connection.begin():
                    if write and not self.sqlite:
                        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                    yield connection
        except IntegrityError as error:
            why = "something else was stored under the same key meanwhile"
            raise Conflict("the change", why, "look at the current state and try again") from error
        except SQLAlchemyError as error:
            raise self._error(error) from error

    def _connected(self) -> Connection:
        """A connection, waited for while the server is away: nothing has been done yet that could be done twice."""

        def connect() -> Connection:
            try:
                return self.engine.connect()
            except SQLAlchemyError as error:
                raise self._error(error) from error

        return self.engine.connect() if self.sqlite else self.patiently(connect)

    def patiently(self, work: Callable[[], Result]) -> Result:
        """`work`, again where the server was restarted in the middle of it. `work` must bear being done twice."""
        if self.sqlite:
            return work()
        from comgrad.registry import postgres  # only the larger size needs its libraries

        return postgres.patiently(work, AWAY_SECONDS)

    def _error(self, error: SQLAlchemyError) -> ComgradError:
        if self.sqlite:
            return database_error(self.what, error)
        from comgrad.registry import postgres

        return postgres.error_of(self.what, error, self.engine.url.password)

    def alive(self) -> bool:
        """Whether a query is answered."""
        try:
            with self.read() as rows:
                return rows.execute(text("SELECT 1")).scalar() == 1
        except StorageError:
            return False

    def _migrate(self) -> None:
        if self._revision() == REVISIONS[-1]:
            return
        with FileLock(self._folder / "migrate.lock", timeout=120.0):
            found = self._revision()
            if found is not None and found not in REVISIONS:
                why = f"its schema {found[:40]!a} is newer than this comgrad (which knows up to {REVISIONS[-1]})"
                raise StorageError(self.what, why, "update comgrad; nothing was touched", code="service-newer")
            if found != REVISIONS[-1]:
                self._upgrade()

    def _revision(self) -> str | None:
        with self.read() as rows:
            if not inspect(rows).has_table(VERSION_TABLE):
                return None
            return rows.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()

    def _upgrade(self) -> None:
        from alembic import command  # only a new or old database needs it
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        with self.write() as rows:
            config.attributes["connection"] = rows
            command.upgrade(config, "head")


def _postgres(url: str) -> Engine:
    return create_engine(
        url,
        pool_size=8,
        max_overflow=16,
        pool_pre_ping=True,
        pool_recycle=1800,
        hide_parameters=True,
        connect_args={"connect_timeout": 10, "application_name": "comgrad"},
    )


def now() -> datetime:
    """The present instant."""
    return datetime.now(UTC)


def new_id(kind: str) -> str:
    """An id that only the server makes: a short word for the kind and 96 random bits."""
    return f"{kind}-{secrets.token_hex(12)}"
