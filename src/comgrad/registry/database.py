"""The catalogue's database: SQLite in WAL mode, transactions on it and on PostgreSQL, errors, and the migrations."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, NullPool, Pool, QueuePool, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from comgrad.errors import ComgradError, StorageError
from comgrad.registry.models import REVISIONS

Result = TypeVar("Result")

BUSY_SECONDS = 60.0
HEAD = REVISIONS[-1]
_WRITE = "comgrad_write"


def sqlite_engine(path: Path, *, read_only: bool) -> Engine:
    """An engine over the SQLite file.

    Writers begin with `BEGIN IMMEDIATE`, so a transaction that reads and then writes never meets a change in
    between; `synchronous=FULL` makes a commit durable when it returns.
    """
    if read_only:
        return _with_begin(create_engine("sqlite://", creator=lambda: _connect_read_only(path), poolclass=NullPool))
    engine = create_engine("sqlite://", creator=lambda: _connect(path), poolclass=QueuePool, pool_size=16)
    return _with_begin(engine)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """On a medium that cannot be written SQLite cannot make its shared-memory file.

    When there is no log either, nothing is being written, and the file may be read as it is (`immutable`).
    """
    log = path.with_name(path.name + "-wal")
    writable = os.access(path.parent, os.W_OK)
    still = not writable and not (log.exists() and log.stat().st_size)
    uri = f"{path.absolute().as_uri()}?mode=ro" + ("&immutable=1" if still else "")
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _with_begin(engine: Engine) -> Engine:
    watch(engine)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get(_WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_inherited: list[Pool] = []  # kept: letting go of a connection would close the parent's files


def watch(engine: Engine) -> None:
    """See to it that a forked child makes connections of its own."""
    _engines.add(engine)


def _in_child() -> None:
    for engine in list(_engines):
        _inherited.append(engine.pool)
        engine.dispose(close=False)


if sys.platform != "win32":  # which does not fork
    os.register_at_fork(after_in_child=_in_child)


@contextlib.contextmanager
def transaction(engine: Engine, *, write: bool, what: str) -> Iterator[Connection]:
    """One transaction; committed at the end, rolled back on an error. Database errors become `StorageError`."""
    try:
        with engine.connect() as connection:
            connection = connection.execution_options(**{_WRITE: write})
            with connection.begin():
                yield connection
    except SQLAlchemyError as error:
        if engine.dialect.name == "postgresql":
            from comgrad.registry import postgres  # only the larger size needs its libraries

            raise postgres.error_of(what, error, engine.url.password) from error
        raise database_error(what, error) from error
    except sqlite3.Error as error:  # raised while connecting
        raise database_error(what, error) from error


def repeated(engine: Engine, work: Callable[[], Result]) -> Result:
    """`work`, done again while a database server is away; an embedded database is never away."""
    if engine.dialect.name != "postgresql":
        return work()
    from comgrad.registry import postgres

    return postgres.patiently(work)


def database_error(what: str, error: Exception) -> ComgradError:
    """The `StorageError` that says what a database error means for the user."""
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text_ = str(original)
    for words, code, why, remedy in (
        ("full", "disk-full", "the disk is full", "free some space and try again; nothing half-written was kept"),
        ("readonly", "read-only", "the database cannot be written", "choose a folder that can be (COMGRAD_HOME)"),
        ("locked", "locked", f"another process held it for {BUSY_SECONDS:.0f} s", "wait for it to end, then try again"),
        ("unable to open", "permission", "the database file cannot be opened", "check its owner, mode and folder"),
        ("not a database", "database-damaged", "it is not a SQLite database", "restore it from a backup"),
        ("malformed", "database-damaged", "its pages are damaged", "restore it from a backup"),
        ("disk I/O", "storage", "the disk reported an error", "check the disk and its free space, then try again"),
    ):
        if words in text_:
            return StorageError(what, why, remedy, code=code)
    return StorageError(what, f"the database reported: {text_}", "run `comgrad doctor`")


def revision(engine: Engine, what: str) -> str | None:
    """The schema's revision in the database; `None` when it is new."""
    with transaction(engine, write=False, what=what) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def check_revision(found: str | None, what: str) -> bool:
    """Whether the schema is current; `False` when it must be upgraded.

    Raises:
        StorageError: (`registry-newer`) a newer comgrad made it.
    """
    if found is not None and found not in REVISIONS:
        raise StorageError(
            what,
            f"its schema {found[:40]!a} is newer than this comgrad (which knows up to {HEAD})",
            "update comgrad; the registry was not touched",
            code="registry-newer",
        )
    return found == HEAD


def upgrade(engine: Engine, what: str) -> None:
    """Run the missing migrations, all in one transaction. The caller holds the registry's set-up lock."""
    with transaction(engine, write=True, what=what) as connection:
        migrate(connection)


def migrate(connection: Connection, scripts: str = "migrations", to: str = "head") -> None:
    """Run the missing migrations of a folder beside this file, up to a revision, within the caller's transaction."""
    from alembic import command  # only a new or old registry needs it
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
