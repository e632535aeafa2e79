"""One row of the catalogue: as a value, as columns, found by what, free or taken, and what is said of it in errors."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, select

from comgrad.errors import ComgradError, NameTaken, NotFound
from comgrad.registry import search, snapshot
from comgrad.registry.card import Card
from comgrad.registry.models import Facts, Record, vectors
from comgrad.registry.names import name_key
from comgrad.types import BaseRef

_AT_ONCE = 500  # values in one statement


def close_names(key: str, known: Sequence[str]) -> Sequence[str]:
    """At most three names like the key: as a whole, or else in some of their words."""
    whole = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    if whole:
        return whole
    asked = [word for word in key.split("-") if len(word) > 2]
    shared = {
        name: sum(1 for word in asked if difflib.get_close_matches(word, name.split("-"), 1, 0.8)) for name in known
    }
    return [name for name in sorted(known, key=lambda name: -shared[name])[:3] if shared[name]]


def row_where(connection: Connection, condition: Any) -> Record | None:
    row = connection.execute(select(vectors).where(condition)).mappings().first()
    return None if row is None else record(row)


def bytewise(connection: Connection, column: Any) -> ColumnElement[Any]:
    """The text column to order by its bytes, on every database: PostgreSQL would follow its locale."""
    return column.collate("C") if connection.dialect.name == "postgresql" else column  # type: ignore[no-any-return]


def rows_by_id(connection: Connection, identities: Sequence[str]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for start in range(0, len(identities), _AT_ONCE):
        some = identities[start : start + _AT_ONCE]
        rows = connection.execute(select(vectors).where(vectors.c.id.in_(some))).mappings()
        found |= {row["id"]: record(row) for row in rows}
    return found


def record(row: RowMapping) -> Record:
    """The value of a row."""
    facts = Facts(BaseRef(row["base_name"], row["base_fingerprint"]), row["kind"], row["rank"], row["norm"])
    return Record(
        id=row["id"],
        name=row["name"],
        description=row["description"],
        facts=facts,
        size_bytes=row["size_bytes"],
        digest=row["digest"],
        card=Card.from_dict(row["card"], what=f"the stored card of {row['id']}"),
        created_at=row["created_at"],
        state=row["state"],
        damage=row["damage"],
        removed_at=row["removed_at"],
        removed_reason=row["removed_reason"],
    )


def described(name: str, card: Card) -> dict[str, Any]:
    card = card.replaced(name=name)
    return {
        "card": card.to_dict(),
        "description": card.description,
        "search_text": search.document(name, card),
    }


def measured(facts: Facts) -> dict[str, Any]:
    return {
        "base_name": facts.base.name,
        "base_fingerprint": facts.base.fingerprint,
        "kind": facts.kind,
        "rank": facts.rank,
        "norm": facts.norm,
    }


def check_free(connection: Connection, name: str, digest: str) -> None:
    owner = row_where(connection, vectors.c.name_key == name_key(name))
    if owner is None or owner.digest == digest:
        return
    if owner.state == "removed":
        why = f"it belonged to {owner.id}, which was removed; a name never passes to another vector"
    elif owner.name == name:
        why = f"it belongs to {owner.id}, which has other bytes"
    else:
        why = f"it reads like '{owner.name}', the name of {owner.id}"
    raise NameTaken(f"the name {shown(name)}", why, "choose another name (--name)")


def check_empty(connection: Connection, what: str) -> None:
    if not snapshot.is_empty(connection):
        why = "it has vectors or tombstones, and a backup is never restored over anything"
        raise ComgradError(what, why, "give an empty one (COMGRAD_HOME)", code="registry-not-empty")


def removed(found: Record, remedy: str = "see `comgrad list` for what is there") -> ComgradError:
    """The refusal to use a vector that was removed."""
    when = f" on {found.removed_at:%Y-%m-%d}" if found.removed_at else ""
    reason = f" ({found.removed_reason})" if found.removed_reason else ""
    return NotFound(f"'{found.name}' ({found.id})", f"it was removed{when}{reason}", remedy, code="removed")


def shown(text: str) -> str:
    """The user's text for a message: quoted, escaped where it is not printable, cut where it is long."""
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"'{text}'" if text.isprintable() and "'" not in text else repr(text)
