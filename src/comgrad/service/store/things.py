"""Rows of listings. Every change takes the next number of one counter, so that readers ask only for what is new."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from comgrad.service.store import tables as t
from comgrad.service.store.database import Rows, now

VERSION = "listings"


@dataclass(frozen=True)
class ListingRow:
    """A row of the listings."""

    vector_id: str
    owner_id: str
    name: str
    name_key: str
    digest: str
    visibility: str
    state: str
    card: dict[str, Any]
    tags: tuple[str, ...]
    size_bytes: int
    uploaded_by: str
    embedding: bytes | None
    encoder: str | None
    related: dict[str, Any] | None
    screening: dict[str, Any] | None
    created_at: datetime
    removed_at: datetime | None
    removed_reason: str | None
    changed: int


def version(rows: Rows) -> int:
    """The number of the last change."""
    found = rows.execute(select(t.counters.c.value).where(t.counters.c.name == VERSION)).scalar()
    return int(found or 0)


def next_version(rows: Rows) -> int:
    """Take the next number."""
    c = t.counters
    if rows.execute(update(c).where(c.c.name == VERSION).values(value=c.c.value + 1)).rowcount == 0:
        rows.execute(insert(c).values(name=VERSION, value=1))
    return version(rows)


def changed_since(rows: Rows, number: int) -> list[ListingRow]:
    """The listings changed after that number, oldest listing first."""
    c = t.listings.c
    query = select(t.listings).where(c.changed > number).order_by(c.created_at, c.vector_id, c.owner_id)
    return [_listing(r) for r in rows.execute(query)]


def listing(rows: Rows, vector_id: str, owner_id: str) -> ListingRow | None:
    """One owner's listing of a vector."""
    c = t.listings.c
    row = rows.execute(select(t.listings).where(c.vector_id == vector_id, c.owner_id == owner_id)).first()
    return None if row is None else _listing(row)


def by_name(rows: Rows, owner_id: str, key: str) -> ListingRow | None:
    """One owner's listing of a name, removed ones too."""
    c = t.listings.c
    row = rows.execute(select(t.listings).where(c.owner_id == owner_id, c.name_key == key)).first()
    return None if row is None else _listing(row)


def of_vector(rows: Rows, vector_id: str, *, but: str | None = None) -> list[ListingRow]:
    """All owners' listings of a vector that are not removed."""
    c = t.listings.c
    query = select(t.listings).where(c.vector_id == vector_id, c.state != "removed").order_by(c.created_at)
    return [r for r in map(_listing, rows.execute(query)) if r.owner_id != but]


def unlisted(rows: Rows) -> set[str]:
    """Vectors that were listed once and are no more."""
    c = t.listings.c
    states: dict[str, set[str]] = {}
    for identity, state in rows.execute(select(c.vector_id, c.state)):
        states.setdefault(identity, set()).add(state)
    return {i for i, found in states.items() if found == {"removed"}}


def put_listing(rows: Rows, **columns: Any) -> None:
    """Insert a listing."""
    rows.execute(insert(t.listings).values(created_at=now(), changed=next_version(rows), **columns))


def change_listing(rows: Rows, vector_id: str, owner_id: str, **columns: Any) -> None:
    """Change a listing's columns."""
    c = t.listings.c
    query = update(t.listings).where(c.vector_id == vector_id, c.owner_id == owner_id)
    rows.execute(query.values(changed=next_version(rows), **columns))


def held_by(rows: Rows, account_id: str) -> tuple[int, int]:
    """How many vectors an account has uploaded that are still listed, and their bytes."""
    c = t.listings.c
    query = select(func.count(), func.coalesce(func.sum(c.size_bytes), 0))
    row = rows.execute(query.where(c.uploaded_by == account_id, c.state != "removed")).one()
    return int(row[0]), int(row[1])


def _listing(row: Row[Any]) -> ListingRow:
    values = dict(row._mapping)
    return ListingRow(**{**values, "tags": tuple(values["tags"])})
