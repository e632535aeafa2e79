"""The persistent queue: huey over SQLite or PostgreSQL, carrying nothing but job ids; the jobs themselves are rows.

huey takes a message out of its queue before it runs it, so a killed worker loses the message. The rows do not lose it:
a job that waits, or whose worker has been silent, is put into the queue again (`Jobs.recover`), and a job is claimed by a
conditional update, so that two messages of one job do no harm.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from huey import Huey
from huey.registry import Message
from huey.serializer import Serializer
from huey.storage import BaseStorage, PostgresStorage, SqliteStorage

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


def open_queue(folder: Path, database: str | None) -> Huey:
    """The queue: a SQLite file in the folder, or tables beside the service's own in PostgreSQL."""
    storage: type[BaseStorage]
    if database is None:
        storage = SqliteStorage
        where: dict[str, Any] = {"filename": str(folder / "queue.sqlite"), "timeout": 30, "fsync": False}
    else:
        storage = PostgresStorage
        where = {"dsn": database.replace("postgresql+psycopg://", "postgresql://", 1), "blocking": False}
    return Huey(NAME, results=False, serializer=JsonSerializer(), storage_class=storage, **where)
