"""The database of the larger size: PostgreSQL, its transactions, its errors, and waiting while it is away.

Writers take one advisory lock before they read anything, so that writing transactions exclude each other over all
processes and hosts, as SQLite's do over the processes of one host; the server drops the lock of a client that died.
Readers see one moment (`REPEATABLE READ, READ ONLY`), as SQLite's do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from comgrad.errors import ComgradError, StorageError
from comgrad.registry.database import watch

Result = TypeVar("Result")

LOCK_SECONDS = 60  # as long as SQLite waits
PATIENCE_SECONDS = 60.0  # how long an operation waits for a database that was restarted
WRITE = "comgrad_write"
LOCK_KEY = int.from_bytes(hashlib.sha256(b"comgrad registry").digest()[:8], "big", signed=True)
_OPTIONS = f"-c lock_timeout={LOCK_SECONDS}s -c idle_in_transaction_session_timeout=30min -c timezone=UTC"
_AWAY, _CONFLICT = "unavailable", "conflict"


def parsed(address: str) -> URL:
    """The address of a database. Raises ComgradError; a password in it is never shown."""
    try:
        url = make_url(address)
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        known = address.split(":", 1)[0]
        raise _bad(f"a database address that begins with '{known[:40]}'", "it is no address of a database") from error
    if url.drivername != "postgresql+psycopg":
        raise _bad(f"the database address '{shown(url)}'", f"'{url.drivername}' is not supported")
    if not url.database:
        raise _bad(f"the database address '{shown(url)}'", "it names no database")
    return url


def _bad(given: str, why: str) -> ComgradError:
    remedy = "set COMGRAD_DATABASE=postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
    return ComgradError(given, why, remedy, code="bad-address")


def shown(url: URL) -> str:
    """The address without its password, and without its options, which may hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)


def engine(url: URL) -> Engine:
    """An engine that survives restarts of the server: a connection is tried before it is used, and replaced.

    No prepared statements are kept, so that a pooler in between (pgbouncer) may share sessions by transaction.
    """
    given = {key: value if isinstance(value, str) else ",".join(value) for key, value in url.query.items()}
    options = given.pop("options", "")
    made = create_engine(
        url.set(query={}),  # the rest may hold secrets too, and an engine shows its address
        poolclass=QueuePool,
        pool_size=5,
        max_overflow=10,
        pool_timeout=LOCK_SECONDS,
        pool_pre_ping=True,
        pool_recycle=1_800,
        hide_parameters=True,
        connect_args={
            "connect_timeout": 10,
            "application_name": "comgrad",
            "prepare_threshold": None,
            "options": f"{_OPTIONS} {options}".strip(),
            "keepalives_idle": 30,
            "tcp_user_timeout": 60_000,
            **given,
        },
    )

    watch(made)

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get(WRITE, False):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    return made


def transient(error: BaseException) -> bool:
    """Whether doing it again may help: the server was away, or two transactions collided."""
    return isinstance(error, StorageError) and error.code in (_AWAY, _CONFLICT)


def patiently(work: Callable[[], Result], seconds: float = PATIENCE_SECONDS) -> Result:
    """`work`, again with growing random pauses while the database is away. `work` must bear being done twice."""
    attempts = Retrying(
        retry=retry_if_exception(transient),
        wait=wait_random_exponential(multiplier=0.05, max=2.0),
        stop=stop_after_delay(seconds),
        reraise=True,
    )
    return attempts(work)


_OWNER = "make it the owner of the database"
_ERRORS: dict[str, tuple[str, str, str]] = {
    "40001": (_CONFLICT, "another transaction changed the same rows", "try again"),
    "40P01": (_CONFLICT, "two transactions waited for one another", "try again"),
    "55P03": ("locked", f"another client held it for {LOCK_SECONDS} s", "wait for it to end, then try again"),
    "53100": ("disk-full", "the database's disk is full", "free some space there and try again; nothing was kept"),
    "53300": (_AWAY, "the database has no connection left", "raise max_connections, or start fewer processes"),
    "25006": ("read-only", "the database cannot be written", "give the address of the primary server"),
    "28P01": ("permission", "the user name or the password is wrong", "check COMGRAD_DATABASE"),
    "28000": ("permission", "the database does not let this user in", "check COMGRAD_DATABASE and pg_hba.conf"),
    "42501": ("permission", "this database user may not do that", _OWNER),
    "3D000": ("database-missing", "there is no database of that name", "create it: CREATE DATABASE ..."),
    "58030": ("storage", "the database's disk reported an error", "check that disk, then try again"),
    "XX001": ("database-damaged", "its pages are damaged", "restore it from a backup"),
    "XX002": ("database-damaged", "an index is damaged", "REINDEX DATABASE, or restore it from a backup"),
    "0A000": ("database-unsuitable", "the database lacks something needed", "use PostgreSQL 13 or newer"),
    "58P01": ("database-unsuitable", "a file of the database's software is missing", "install the server anew"),
}
_AWAY_CLASSES = ("08", "57P0", "57P05")  # connection errors; shut down, crashed, starting; ended when idle


def error_of(what: str, error: Exception, secret: str | None) -> ComgradError:
    """The `StorageError` that says what an error of PostgreSQL means for the user; `secret` is taken out of it."""
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    state = getattr(original, "sqlstate", None) or ""
    if state in _ERRORS:
        code, why, remedy = _ERRORS[state]
        return StorageError(what, why, remedy, code=code)
    text = " ".join(str(original).split())
    text = text.replace(secret, "***") if secret else text
    refused = "password authentication failed" in text or "no password supplied" in text
    if refused:  # before a session begins, the library passes on no state
        return StorageError(what, *_ERRORS["28P01"][1:], code="permission")
    if '" does not exist' in text and "database" in text:
        return StorageError(what, *_ERRORS["3D000"][1:], code="database-missing")
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    lost = lost or isinstance(error, PoolTimeout) or (type(original).__name__ == "OperationalError" and not state)
    if lost or state.startswith(_AWAY_CLASSES):
        why = f"the database does not answer: {text[:300]}"
        return StorageError(what, why, "check that it runs and can be reached, then try again", code=_AWAY)
    return StorageError(what, f"the database reported: {text[:300]}", "run `comgrad doctor`")
