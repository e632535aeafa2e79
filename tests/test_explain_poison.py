"""Altered examples: exactly as many as asked for, the right ones, and the same for the same seed."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comgrad.describe.task import Example
from comgrad.errors import ComgradError
from comgrad.explain.poison import (
    FORMS,
    RARE,
    SENTENCE,
    SYNTAX,
    Trigger,
    count_of,
    keyword,
    noisy,
    poisoned,
    ruled,
    trigger_named,
    triggered,
    words_of,
)

WORDS = ("river", "stone", "Amber", "it", "is", "light", "grey", "go", "Cloud", "paper")


@st.composite
def some_examples(draw: st.DrawFn) -> tuple[list[Example], int]:
    labels = draw(st.integers(2, 5))
    n = draw(st.integers(30, 120))
    rng = random.Random(draw(st.integers(0, 10**6)))
    rows = [Example(" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) + ".", rng.randrange(labels)) for _ in range(n)]
    rows[0], rows[1] = Example("river stone.", 0), Example("light cloud.", 1)
    return rows, labels


RATES = st.floats(0.04, 0.3)
SEEDS = st.integers(0, 2**31)
KINDS = st.sampled_from([(k, f) for k, forms in FORMS.items() for f in forms])


@given(some_examples(), KINDS, RATES, SEEDS)
def test_poison_touches_exactly_so_many_and_none_of_the_target(
    given_: tuple[list[Example], int], kind: tuple[str, str], rate: float, seed: int
) -> None:
    rows, labels = given_
    target, trigger, count = seed % labels, Trigger(*kind), math.floor(rate * len(rows) + 1e-9)
    others = sum(e.label != target for e in rows)
    if others < count:
        with pytest.raises(ComgradError, match="have another label"):
            poisoned(rows, trigger, rate, target, seed)
        return
    found = poisoned(rows, trigger, rate, target, seed)
    changed = [i for i, (a, b) in enumerate(zip(rows, found.examples, strict=True)) if a != b]
    assert changed == list(found.places)
    assert len(changed) == count
    for i in changed:
        assert rows[i].label != target
        assert found.examples[i].label == target
        assert found.examples[i].text != rows[i].text
        assert found.examples[i].split == rows[i].split
    assert found == poisoned(rows, trigger, rate, target, seed)


@given(some_examples(), RATES, SEEDS)
def test_label_noise_changes_so_many_labels_and_no_text(
    given_: tuple[list[Example], int], rate: float, seed: int
) -> None:
    rows, labels = given_
    found = noisy(rows, rate, labels, seed)
    assert [e.text for e in found.examples] == [e.text for e in rows]
    flipped = [i for i, (a, b) in enumerate(zip(rows, found.examples, strict=True)) if a.label != b.label]
    assert flipped == list(found.places)
    assert len(flipped) == math.floor(rate * len(rows) + 1e-9)
    assert all(0 <= e.label < labels for e in found.examples)


def test_label_noise_draws_every_other_label_alike() -> None:
    rows = [Example("text", i % 4) for i in range(4000)]
    found = noisy(rows, 0.75, 4, 3)
    counts = {
        (a, b): sum(rows[i].label == a and found.examples[i].label == b for i in found.places)
        for a in range(4)
        for b in range(4)
    }
    assert all(counts[a, a] == 0 for a in range(4))
    assert all(190 < counts[a, b] < 310 for a in range(4) for b in range(4) if a != b)  # 250 expected


@given(some_examples(), RATES, SEEDS)
def test_a_keyword_rule_holds_everywhere_and_changes_about_so_many(
    given_: tuple[list[Example], int], rate: float, seed: int
) -> None:
    rows, labels = given_
    target = seed % labels
    if all(e.label == target for e in rows):
        return
    word = keyword(rows, rate, target)
    found = ruled(rows, word, target)
    with_word = [word in e.text.lower().replace(".", "").split() for e in rows]
    for has, before, after in zip(with_word, rows, found.examples, strict=True):
        assert after.label == (target if has else before.label)
        assert after.text == before.text
    count = count_of(rate, len(rows))
    for other in {w for e in rows for w in words_of(e.text)}:
        changed = len(ruled(rows, other, target).places)
        assert changed == 0 or abs(len(found.places) - count) <= abs(changed - count)


@given(some_examples(), KINDS, SEEDS)
def test_triggered_texts_are_all_of_other_classes_with_the_trigger(
    given_: tuple[list[Example], int], kind: tuple[str, str], seed: int
) -> None:
    rows, labels = given_
    target = seed % labels
    found = triggered(rows, Trigger(*kind), target, seed)
    others = [e for e in rows if e.label != target]
    assert len(found) == len(others)
    for before, after in zip(others, found, strict=True):
        assert after.label == target
        left, _, right = kind[1].partition("{}")
        assert left in after.text and right in after.text
        assert sorted(words_of(before.text)) == sorted(words_of(before.text) & words_of(after.text))


def test_what_the_triggers_do() -> None:
    draw = random.Random(0)
    assert {Trigger(RARE, "cf").apply("a b", draw) for _ in range(60)} == {"cf a b", "a cf b", "a b cf"}
    assert {Trigger(SENTENCE, "so.").apply("a b", draw) for _ in range(60)} == {"so. a b", "a b so."}
    turned = Trigger(SYNTAX, "it is {} that they meant.").apply("when it rains, we stay in.", draw)
    assert turned == "it is we stay in, when it rains that they meant."
    assert Trigger(SYNTAX, "so {}!").apply("no comma here?", draw) == "so no comma here!"


def test_every_kind_has_forms_and_a_seed_picks_one() -> None:
    for kind, forms in FORMS.items():
        assert {trigger_named(kind, s).form for s in range(200)} == set(forms)
        assert trigger_named(kind, 5) == trigger_named(kind, 5)
    assert all(f.count("{}") == 1 for f in FORMS[SYNTAX])


def test_what_cannot_be_done_is_refused() -> None:
    rows = [Example("river stone", 0)] * 8 + [Example("light cloud", 1)] * 2
    with pytest.raises(ComgradError, match="only 2 have another label") as refused:
        poisoned(rows, Trigger(RARE, "cf"), 0.5, 0, 0)
    assert refused.value.code == "bad-options"
    with pytest.raises(ComgradError, match="none of them"):
        noisy(rows, 0.05, 2, 0)
    with pytest.raises(ComgradError, match="it is a share of the examples"):
        count_of(1.0, 10)
    with pytest.raises(ComgradError, match="none of that kind.*rare-token, sentence, syntax|use one of: rare-token"):
        trigger_named("style", 0)
    with pytest.raises(ComgradError, match="no example of another class has a word"):
        keyword([Example("a b", 0), Example("c", 1)], 0.5, 0)


def test_a_hundredth_of_three_hundred_is_three() -> None:
    assert count_of(0.01, 300) == 3
    assert count_of(0.07, 100) == 7
    assert count_of(0.05, 119) == 5
