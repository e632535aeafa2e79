"""Rows of attempts at secrets: how many there were under a key, and when the last one was."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, insert, select, update

from comgrad.service.store import tables as t
from comgrad.service.store.database import Rows, now


def known(rows: Rows, keys: Sequence[str], quiet: timedelta) -> dict[str, tuple[int, datetime]]:
    """Key → the attempts and the time of the last one, of the keys that were not quiet for so long."""
    f = t.failures.c
    query = select(f.key, f.count, f.since).where(f.key.in_(keys), f.since >= now() - quiet)
    return {row[0]: (int(row[1]), row[2]) for row in rows.execute(query)}


def count(rows: Rows, keys: Sequence[str], quiet: timedelta) -> None:
    """Count an attempt under each key; what was quiet for so long is forgotten."""
    f = t.failures
    rows.execute(delete(f).where(f.c.since < now() - quiet))
    for key in keys:
        if rows.execute(update(f).where(f.c.key == key).values(count=f.c.count + 1, since=now())).rowcount == 0:
            rows.execute(insert(f).values(key=key, count=1, since=now()))


def uncount(rows: Rows, keys: Sequence[str]) -> None:
    """Take an attempt back: it was right."""
    f = t.failures
    rows.execute(update(f).where(f.c.key.in_(keys), f.c.count > 0).values(count=f.c.count - 1))


def forget(rows: Rows, key: str) -> None:
    """Forget a key's attempts."""
    rows.execute(delete(t.failures).where(t.failures.c.key == key))
