"""A listed vector as a reader sees it: the registry's facts, under the sharer's own name, words and visibility."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from comgrad.errors import NotFound
from comgrad.registry import search
from comgrad.registry.card import Card
from comgrad.registry.models import Record
from comgrad.registry.store import Store
from comgrad.service.store import things
from comgrad.service.store.database import Database
from comgrad.service.store.things import ListingRow
from comgrad.workflows.registry import Entry

TAIL = 10  # characters of its upload's id that end a vector's name in the registry
LOCAL = "local"  # owner of what the registry held before the service knew it


@dataclass(frozen=True)
class Listing:
    """One owner's listing of a vector."""

    row: ListingRow
    owner: str
    entry: Entry = field(repr=False)
    document: str = field(repr=False, default="")
    content: str = ""  # the same while nothing changes that anything is computed from

    @classmethod
    def of(cls, row: ListingRow, owner: str, record: Record, store: Store) -> Listing:
        """The listing of a row over the registry's record of the vector."""
        card = Card.from_dict(row.card, what=f"the stored card of {row.vector_id}")
        full = row.name if owner == LOCAL else f"{owner}/{row.name}"
        seen = replace(record, name=full, description=card.description, card=card, created_at=row.created_at)
        told = json.dumps([row.vector_id, full, row.card, row.visibility, record.damage], sort_keys=True)
        content = hashlib.sha256(told.encode()).hexdigest()[:16]
        return cls(row, owner, Entry(seen, store), search.document(f"{full} {' '.join(row.tags)}", card), content)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words of its description."""
        return tuple(search.words(self.description))

    @cached_property
    def facets(self) -> dict[str, tuple[str, ...]]:
        """What it is counted under in the catalogue: facet → its values."""
        one = {"family": self.family, "base": self.base, "owner": self.owner, "visibility": self.visibility}
        kept: dict[str, tuple[str, ...]] = {f: (v,) if v else () for f, v in one.items()}
        return kept | {"kind": (self.entry.kind,), "tag": self.tags}

    @property
    def id(self) -> str:
        """The vector's id."""
        return self.row.vector_id

    @property
    def owner_id(self) -> str:
        """Who lists it."""
        return self.row.owner_id

    @property
    def name(self) -> str:
        """Its name among its owner's."""
        return self.row.name

    @property
    def full_name(self) -> str:
        """`owner/name`."""
        return self.entry.name

    @property
    def card(self) -> Card:
        """What its owner says of it."""
        return self.entry.card

    @property
    def description(self) -> str:
        """Its task in words."""
        return self.entry.description

    @property
    def family(self) -> str:
        """Its family."""
        return self.card.family

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags."""
        return self.row.tags

    @property
    def visibility(self) -> str:
        """`public` or `private`."""
        return self.row.visibility

    @property
    def base(self) -> str:
        """The name of the base model."""
        return self.entry.base

    @property
    def digest(self) -> str:
        """SHA-256 of its container."""
        return self.row.digest

    def as_dict(self, *, full: bool = False) -> dict[str, Any]:
        """For JSON; `full` adds the card, and what was found at its admission."""
        facts, record = self.entry.record.facts, self.entry.record
        short: dict[str, Any] = {
            "id": self.id,
            "owner": self.owner,
            "name": self.name,
            "full_name": self.full_name,
            "description": self.description,
            "family": self.family,
            "tags": list(self.tags),
            "base": facts.base.name,
            "base_status": facts.base.status,
            "kind": facts.kind,
            "rank": facts.rank,
            "norm": facts.norm,
            "digest": self.digest,
            "size_bytes": record.size_bytes,
            "visibility": self.visibility,
            "created_at": self.row.created_at.isoformat(),
        }
        if not full:
            return short
        return short | {
            "base_fingerprint": facts.base.fingerprint,
            "damage": record.damage,
            "card": self.card.to_dict(),
            "related": self.row.related,
            "screening": self.row.screening,
        }


def drop_unlisted(database: Database, store: Store, identity: str, why: str) -> bool:
    """Remove a vector that nobody lists from the registry; whether it was. Nobody lists it meanwhile: writers exclude
    each other, and whoever lists looks first whether it is there. Raises StorageError."""
    with database.write() as rows:
        if things.of_vector(rows, identity):
            return False
        known = store.catalogue.by_id(identity)
        if known is None or known.state == "removed":
            return False
        try:
            store.remove(identity, why)
        except NotFound:
            return False
    return True
