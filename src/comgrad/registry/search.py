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
    split = [[f" {line} " for line in text.split("\n")] for text in documents]
    result = [0.0] * len(documents)
    for word in query:
        term = _Term(word)
        found = [_score(term, fields) for fields in split]
        count = sum(1 for score in found if score)
        if count:
            idf = math.log(1.0 + total / count)
            result = [old + idf * new for old, new in zip(result, found, strict=True)]
    return result


class _Term:
    """A word of a query as what is looked for in a field, with spaces around each word: thousands of fields are never
    taken apart."""

    def __init__(self, word: str) -> None:
        self._whole = f" {word} "
        longer = len(word) >= 4
        self._begun = [f" {word}", *(f" {word[:n]} " for n in range(4, len(word)))] if longer else []

    def match(self, line: str) -> float:
        if self._whole in line:
            return 1.0
        return 0.6 if any(part in line for part in self._begun) else 0.0


def _score(term: _Term, fields: list[str]) -> float:
    out = 0.0
    for weight, room, line in zip(_FIELD_WEIGHTS, _ROOM, fields, strict=False):
        match = term.match(line)
        if match:
            out += weight * min(1.0, room / max(len(set(line.split())), 1)) * match
    return out
