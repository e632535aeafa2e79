"""Rows of the audit log: append only, each with a hash over itself and the one before."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select

from comgrad.service.store import tables as t
from comgrad.service.store.database import Rows, now


def append(
    rows: Rows, account_id: str | None, handle: str, action: str, target: str, detail: dict[str, Any], client: str
) -> None:
    """Append an entry; the hash makes a change of an older one visible."""
    c = t.audit.c
    last = rows.execute(select(c.number, c.hash).order_by(c.number.desc()).limit(1)).first()
    entry = {
        "number": 1 if last is None else int(last[0]) + 1,
        "at": now(),
        "account_id": account_id,
        "handle": handle,
        "action": action,
        "target": target,
        "detail": detail,
        "client": client,
    }
    rows.execute(insert(t.audit).values(**entry, hash=_hash("" if last is None else last[1], entry)))


def entries(rows: Rows, limit: int, before: int | None = None) -> list[dict[str, Any]]:
    """The newest entries, before a number where one is given."""
    c = t.audit.c
    query = select(t.audit).order_by(c.number.desc()).limit(limit)
    if before is not None:
        query = query.where(c.number < before)
    return [{**row, "at": row["at"].isoformat()} for row in map(dict, rows.execute(query).mappings())]


def broken(rows: Rows) -> int | None:
    """The number of the first entry that is not what was written; None when the chain is whole."""
    before, expected = "", 1
    for row in rows.execute(select(t.audit).order_by(t.audit.c.number)).mappings():
        entry = dict(row)
        found = entry.pop("hash")
        if entry["number"] != expected or found != _hash(before, entry):
            return int(entry["number"])
        before, expected = found, expected + 1
    return None


def _hash(before: str, entry: dict[str, Any]) -> str:
    at = entry["at"]
    assert isinstance(at, datetime)
    plain = {**entry, "at": at.isoformat()}
    return hashlib.sha256(f"{before}\n{json.dumps(plain, sort_keys=True)}".encode()).hexdigest()
