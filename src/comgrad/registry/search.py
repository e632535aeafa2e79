"""Lexical search: words of the query against words of name, labels and description, rare words first."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

from comgrad.registry.card import Card

MAX_TERMS = 32
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text: NFKC, case folded, accents dropped, cut at anything that is not a letter or digit."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall("".join(char for char in folded if not unicodedata.combining(char)))


def terms(query: str) -> list[str]:
    """The distinct words of a query, at most 32."""
    return list(dict.fromkeys(words(query)))[:MAX_TERMS]


def stem(term: str) -> str:
    """What every word that matches the term contains: the term, or the first four letters of a longer one."""
    return term[:4]


def document(name: str, card: Card) -> str:
    """What the catalogue stores to search in: one line per field, the most telling field first."""
    fields = (f"{name} {card.task_id}", f"{' '.join(card.label_names)} {card.family}", card.description, card.notes)
    return "\n".join(" ".join(words(field)) for field in fields)


_FIELD_WEIGHTS = (4.0, 2.0, 1.0, 0.5)
_ROOM = (16, 256, 96, 96)  # distinct words of a field that count in full: more than 125 honest cards have


def scores(query: Sequence[str], documents: Sequence[str], total: int) -> list[float]:
    """One score per document: Σ over query words of idf · Σ over fields of weight · match · room.

    `match` is 1 for the word itself, 0.6 for a word that begins with it or that it begins with (from four letters),
    `idf` is log(1 + total / documents with a match); `total` counts the documents that were filtered out too. `room` is
    1, or less in proportion for a field with more distinct words than a task needs: a card that holds every word there is
    would be found by every query.
    """
    split = [[_Field(line) for line in text.split("\n")] for text in documents]
    result = [0.0] * len(documents)
    for term in query:
        found = [_score(term, fields) for fields in split]
        count = sum(1 for score in found if score)
        if count:
            idf = math.log(1.0 + total / count)
            result = [old + idf * new for old, new in zip(result, found, strict=True)]
    return result


class _Field:
    """The distinct words of a field, by their stems: a card with thousands of words must not make searching slow."""

    def __init__(self, line: str) -> None:
        found = set(line.split())
        self.count = len(found)
        self._by_stem: dict[str, set[str]] = {}
        for word in found:
            self._by_stem.setdefault(stem(word), set()).add(word)

    def match(self, term: str) -> float:
        near = self._by_stem.get(stem(term), ())
        if term in near:
            return 1.0
        if len(term) < 4:
            return 0.0
        return 0.6 if any(word.startswith(term) or term.startswith(word) for word in near) else 0.0


def _score(term: str, fields: list[_Field]) -> float:
    return sum(
        weight * min(1.0, room / max(field.count, 1)) * field.match(term)
        for weight, room, field in zip(_FIELD_WEIGHTS, _ROOM, fields, strict=False)
    )
