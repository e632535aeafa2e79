"""Controls that take the meaning out of a description."""

from __future__ import annotations

from dataclasses import replace

from bench_boards import items
from comgrad.workflows.bench.corpus import Corpus
from comgrad.workflows.bench.words import VARIANTS, random_letters, shuffled, texts, without_label_words


def test_label_words_go_and_the_others_stay() -> None:
    item = replace(
        items()[0],
        description="Is the review Positive or negative? Positives praise; nothing is non-positive.",
        label_names=("positive", "negative"),
    )
    assert without_label_words(item) == "Is the review or ? praise; nothing is non-."


def test_shuffling_gives_each_text_to_one_task_of_another_family() -> None:
    pool = items()
    given = shuffled(pool, seed=0)
    assert sorted(given) == sorted(i.description for i in pool)
    owner = {i.description: i for i in pool}
    for item, text in zip(pool, given, strict=True):
        assert owner[text].family != item.family
        assert owner[text].source_group != item.source_group
    assert shuffled(pool, seed=0) == given
    assert shuffled(pool, seed=1) != given


def test_where_there_is_but_one_family_another_source_is_taken() -> None:
    pool = [replace(i, family="one") for i in items()]
    owner = {i.description: i for i in pool}
    assert all(owner[t].source_group != i.source_group for i, t in zip(pool, shuffled(pool, 0), strict=True))


def test_random_text_has_the_lengths_and_nothing_else() -> None:
    item = items()[0]
    text = random_letters(item, 0)
    assert [len(w) for w in text.split()] == [len(w) for w in item.description.split()]
    assert text != item.description
    assert text == random_letters(item, 0) != random_letters(item, 1)


def test_every_variant_has_a_text_for_every_task() -> None:
    corpus = Corpus(items())
    for variant in VARIANTS:
        assert set(texts(corpus, variant, 0)) == {i.id for i in corpus.tested}
    assert set(texts(corpus, "empty", 0).values()) == {""}
    assert texts(corpus, "given", 0)["task-03"] == corpus.items[3].description
