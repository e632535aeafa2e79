"""Lexical search: the order of results against a ten-line reference."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.registry import search
from comgrad.registry.card import Card


def reference(query: list[str], documents: list[list[list[str]]]) -> list[float]:
    """Σ idf · Σ weight · best match, by the definition."""

    def field(term: str, words: list[str]) -> float:
        same = any(word == term for word in words)
        near = any(min(len(w), len(term)) >= 4 and (w.startswith(term) or term.startswith(w)) for w in words)
        return 1.0 if same else 0.6 if near else 0.0

    parts = [[sum(w * field(t, f) for w, f in zip((4, 2, 1, 0.5), d, strict=True)) for d in documents] for t in query]
    idf = [math.log(1 + len(documents) / max(1, sum(x > 0 for x in row))) for row in parts]
    return [sum(i * row[d] for i, row in zip(idf, parts, strict=True)) for d in range(len(documents))]


word = st.sampled_from(["bank", "banking", "bankings", "mood", "home", "hom", "a", "ab"])
words = st.lists(word, max_size=4)


@settings(deadline=None)
@given(
    query=st.lists(word, min_size=1, max_size=3, unique=True),
    documents=st.lists(st.lists(words, min_size=4, max_size=4), min_size=1, max_size=5),
)
def test_scores_agree_with_the_definition(query: list[str], documents: list[list[list[str]]]) -> None:
    texts = ["\n".join(" ".join(field) for field in document) for document in documents]
    found = search.scores(query, texts, len(texts))
    assert all(math.isclose(a, b, abs_tol=1e-12) for a, b in zip(found, reference(query, documents), strict=True))


@settings(deadline=None)
@given(term=word, other=word)
def test_a_word_that_matches_contains_the_stem(term: str, other: str) -> None:
    text = f"{other}\n\n\n"
    if search.scores([term], [text], 1)[0] > 0:
        assert search.stem(term) in text  # what the database filters by loses no result


def test_words_are_folded() -> None:
    assert search.words("Café, MOOD_of—ﬁlms 2") == ["cafe", "mood", "of", "films", "2"]
    assert search.terms("a A á b") == ["a", "b"]
    assert len(search.terms(" ".join(map(str, range(100))))) == search.MAX_TERMS


def test_a_document_has_one_line_per_field() -> None:
    card = Card.make(task_id="t", description="two\nlines", label_names=["yes"], family="f", notes="n")
    assert search.document("Name", card) == "name t\nyes f\ntwo lines\nn"
