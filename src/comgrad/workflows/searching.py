"""Journey: search by meaning. Near-duplicates are one result, and what the weights contradict comes last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from comgrad.describe.encoder import load_encoder
from comgrad.describe.memory import encode_cached
from comgrad.errors import ComgradError, StorageError
from comgrad.workflows.registry import Entry, Registry, by_base

if TYPE_CHECKING:
    from comgrad.atlas.collection import Collection

MAX_QUERY = 20_000
MOST = 1_000_000  # results, before near-duplicates are put together


@dataclass(frozen=True)
class Found:
    """One entry and how near its description is to the query (cosine), or how many of its words it holds.

    Args:
        copies: how many near-duplicates of it were added later.
        doubt: why its description is not believed; empty where it is.
    """

    entry: Entry
    score: float
    copies: int = 0
    doubt: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {**self.entry.as_dict(), "score": self.score, "copies": self.copies, "doubt": self.doubt}


def search(text: str, *, limit: int = 10, words_only: bool = False, registry: Registry | None = None) -> list[Found]:
    """Entries nearest in meaning to the text, best first; by words alone when asked. Raises ComgradError."""
    query = checked_description(text)
    registry = registry or Registry()
    entries = list(registry.list())
    if not words_only:
        entries = [e for e in entries if e.description.strip()]
    found = by_words(query, registry) if words_only else by_meaning(query, entries)
    return settled(found, counted(entries))[:limit] if found else []


def by_words(query: str, registry: Registry) -> list[Found]:
    """All entries that share words with the query, best first, whatever they count for."""
    hits = registry.store.search(query, limit=MOST)
    return [Found(Entry(h.record, registry.store), float(h.score)) for h in hits]


def by_meaning(query: str, entries: Sequence[Entry]) -> list[Found]:
    """Described entries by how near they are to the query in meaning, whatever they count for; of equals the first."""
    if not entries:
        return []
    rows = encode_cached(load_encoder(), [e.description for e in entries], entries[0].store.cache_dir)
    return nearest(query, entries, rows)


def nearest(
    query: str, entries: Sequence[Entry], rows: Float[np.ndarray, "n d"], *, most: int | None = None
) -> list[Found]:
    """Entries whose descriptions' embeddings are the rows, the nearest to the query first; of equals the first."""
    scores = rows @ load_encoder().encode([query])[0]
    return [Found(entries[int(i)], float(scores[int(i)])) for i in np.argsort(-scores, kind="stable")[:most]]


@dataclass(frozen=True)
class Counted:
    """What entries count for, by their ids: how many later copies one has, why it is doubted, and which are copies."""

    copies: dict[str, int]
    doubt: dict[str, str]
    hidden: set[str]


def counted(entries: Sequence[Entry]) -> Counted:
    """The standing of entries, oldest first, among those over the same base; see `workflows.standing`.

    Damaged vectors stand for themselves, and so do all over a base whose vectors cannot be read.
    """
    from comgrad.atlas.collection import Collection
    from comgrad.workflows.resolve import member

    out = Counted({}, {}, set())
    for group in by_base([e for e in entries if e.record.damage is None]):
        if len(group) < 2:
            continue
        try:
            atlas = Collection.build([member(e) for e in group], cache=group[0].store.cache_dir)
        except StorageError:
            continue  # a file is lost: searching must still work
        count_in(out, atlas)
    return out


def count_in(out: Counted, atlas: Collection) -> None:
    """Add the standing of a collection's members, oldest first, to what is counted."""
    from comgrad.workflows.standing import standing

    found = standing(atlas)
    for i, leader in enumerate(found.groups.leader.tolist()):
        if i != leader:
            out.hidden.add(atlas.ids[i])
            out.copies[atlas.ids[leader]] = out.copies.get(atlas.ids[leader], 0) + 1
        elif found.doubt[i]:
            out.doubt[atlas.ids[i]] = found.doubt[i]


def settled(found: Sequence[Found], among: Counted) -> list[Found]:
    """Results, best first, with near-duplicates under the oldest of them, in its words only, and doubtful ones last."""
    kept = [
        replace(f, copies=among.copies.get(f.entry.id, 0), doubt=among.doubt.get(f.entry.id, ""))
        for f in found
        if f.entry.id not in among.hidden
    ]
    return sorted(kept, key=lambda f: bool(f.doubt))


def checked_description(text: str) -> str:
    """The description of a task, if it can be one. Raises ComgradError."""
    if not text.strip():
        raise ComgradError(
            "an empty description",
            "there are no words to go by",
            "say in a sentence what the task is",
            code="empty-description",
        )
    if len(text) > MAX_QUERY:
        raise ComgradError(
            f"a description of {len(text)} characters",
            f"at most {MAX_QUERY} are read, and the encoder hears only the first few hundred words",
            "shorten it to a few sentences",
            code="long-description",
        )
    if any(ord(c) < 32 and c not in "\n\r\t" for c in text) or any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        raise ComgradError(
            "a description with control characters",
            "it is no text",
            "describe the task in words",
            code="binary-description",
        )
    return text.strip()
