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


def scores(query: Sequence[str], documents: Sequence[str], total: int) -> list[float]:
    """One score per document: Σ over query words of idf · Σ over fields of weight · match.

    `match` is 1 for the word itself, 0.6 for a word that begins with it or that it begins with (from four letters),
    `idf` is log(1 + total / documents with a match); `total` counts the documents that were filtered out too.
    """
    split = [[line.split() for line in text.split("\n")] for text in documents]
    result = [0.0] * len(documents)
    for term in query:
        found = [_field_score(term, fields) for fields in split]
        count = sum(1 for score in found if score)
        if count:
            idf = math.log(1.0 + total / count)
            result = [old + idf * new for old, new in zip(result, found, strict=True)]
    return result


def _field_score(term: str, fields: list[list[str]]) -> float:
    return sum(
        weight * max((_match(term, word) for word in found), default=0.0)
        for weight, found in zip(_FIELD_WEIGHTS, fields, strict=False)
    )


def _match(term: str, word: str) -> float:
    if term == word:
        return 1.0
    shorter, longer = sorted((term, word), key=len)
    return 0.6 if len(shorter) >= 4 and longer.startswith(shorter) else 0.0
