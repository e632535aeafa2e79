"""Journey: search by meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from comgrad.describe.encoder import load_encoder
from comgrad.describe.memory import encode_cached
from comgrad.errors import ComgradError
from comgrad.workflows.registry import Entry, Registry

MAX_QUERY = 20_000


@dataclass(frozen=True)
class Found:
    """One entry and how near its description is to the query (cosine), or how many of its words it holds."""

    entry: Entry
    score: float

    def as_dict(self) -> dict[str, Any]:
        return {**self.entry.as_dict(), "score": self.score}


def search(text: str, *, limit: int = 10, words_only: bool = False) -> list[Found]:
    """Entries nearest in meaning to the text, best first; by words alone when asked. Raises ComgradError."""
    query = checked_description(text)
    registry = Registry()
    if words_only:
        return [
            Found(Entry(h.record, registry.store), float(h.score)) for h in registry.store.search(query, limit=limit)
        ]
    entries = [e for e in registry.list() if e.description.strip()]
    if not entries:
        return []
    encoder = load_encoder()
    rows = encode_cached(encoder, [e.description for e in entries], registry.store.cache_dir)
    scores = rows @ encoder.encode([query])[0]
    order = np.argsort(-scores, kind="stable")[:limit]
    return [Found(entries[int(i)], float(scores[int(i)])) for i in order]


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
