"""The persistent queue: huey over SQLite or PostgreSQL, carrying nothing but job ids; the jobs themselves are rows.

huey takes a message out of its queue before it runs it, so a killed worker loses the message. The rows do not lose it:
a job that waits, or whose worker has been silent, is put into the queue again (`Jobs.recover`), and a job is claimed by a
conditional update, so that two messages of one job do no harm.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huey import Huey
from huey.registry import Message
from huey.serializer import Serializer
from huey.storage import BaseStorage, PostgresStorage, SqliteStorage

log = logging.getLogger("comgrad.service.jobs")
NAME = "comgrad"

for _name in ("huey", "huey.consumer"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class JsonSerializer(Serializer):  # type: ignore[misc]  # huey has no types
    """Messages as JSON: what lies in the database is never unpickled."""

    def _serialize(self, data: Any) -> bytes:
        if not isinstance(data, Message):
            raise TypeError("only messages are stored")
        fields = {k: v for k, v in data._asdict().items() if v is not None}
        return json.dumps(fields).encode()

    def _deserialize(self, data: bytes) -> Any:
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise TypeError("not a message")
        return Message(**{**fields, "args": tuple(fields.get("args", ()))})


class Patient(PostgresStorage):  # type: ignore[misc]
    """PostgreSQL's tables as huey polls them, several times a second: one line when the server goes, one when it is back,
    and an empty queue meanwhile."""

    _lock = threading.Lock()
    _since: float | None = None

    def dequeue(self) -> Any:
        """The next message."""
        return self._told(super().dequeue, None)

    def read_schedule(self, ts: Any) -> Any:
        """The messages whose time has come."""
        return self._told(lambda: PostgresStorage.read_schedule(self, ts), [])

    def _told(self, work: Callable[[], Any], otherwise: Any) -> Any:
        from psycopg import InterfaceError, OperationalError

        try:
            try:
                found = work()
            except (OperationalError, InterfaceError):  # each thread has its own connection, which may be a dead one
                found = work()
        except (OperationalError, InterfaceError) as error:
            with self._lock:
                first, self._since = self._since is None, self._since or time.monotonic()
            if first:
                why = (str(error).splitlines() or [type(error).__name__])[0][:200]
                log.warning("the queue's database is away; jobs wait", extra={"why": why})
            return otherwise
        if self._since is not None:
            with self._lock:
                since, self._since = self._since, None
            if since is not None:
                told = {"seconds": round(time.monotonic() - since, 1)}
                log.warning("the queue's database is back", extra=told)
        return found


def open_queue(folder: Path, database: str | None) -> Huey:
    """The queue: a SQLite file in the folder, or tables beside the service's own in PostgreSQL."""
    storage: type[BaseStorage]
    if database is None:
        storage = SqliteStorage
        where: dict[str, Any] = {"filename": str(folder / "queue.sqlite"), "timeout": 30, "fsync": False}
    else:
        storage = Patient
        where = {"dsn": database.replace("postgresql+psycopg://", "postgresql://", 1), "blocking": False}
    return Huey(NAME, results=False, serializer=JsonSerializer(), storage_class=storage, **where)
