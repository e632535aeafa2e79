"""Parts of a task that share no text, whatever its case, its white space or its Unicode form."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comgrad.describe.task import Example, Task, load_task
from comgrad.errors import ComgradError
from comgrad.evaluate.splits import LeakFound, content, leak_guard, three_way

WORDS = ("Cat", "dog", "ﬁsh", "naïve", "Straße", "tree")


def task(rows: list[tuple[str, int, str]], name: str = "t") -> Task:
    return Task(name, "d", ("a", "b"), ("a", "b"), tuple(Example(*r) for r in rows))


def plain(n: int = 60) -> Task:
    rows = [(f"text number {i}", i % 2, "train") for i in range(n)]
    return task(rows + [(f"other text {i}", i % 2, "test") for i in range(10)])


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
variants = st.sampled_from([str.upper, str.lower, lambda s: f"  {s}\n", lambda s: s.replace(" ", "\t ")])


@given(texts, variants, variants)
def test_case_and_white_space_make_no_other_text(text: str, first, second) -> None:
    assert content(first(text)) == content(second(text))


def test_unicode_forms_are_one_text_and_other_words_another() -> None:
    assert content("ﬁsh cafe\u0301") == content("FISH CAFÉ")
    assert content("a cat") != content("a cat.")
    assert content("broken \ud800 text")  # a lone surrogate, as JSON can hold, is no crash


@given(st.lists(st.tuples(texts, variants, st.integers(0, 1), st.sampled_from(["train", "test"])), max_size=60))
def test_the_parts_share_no_content(rows) -> None:
    rows = [(f(t), y, s) for t, f, y, s in rows]
    rows += [
        ("alpha", 0, "train"),
        ("beta", 1, "train"),
        ("gamma", 0, "train"),
        ("delta", 1, "train"),
        ("end", 0, "test"),
    ]
    try:
        parts = three_way(task(rows), share=0.3)
    except ComgradError as error:
        assert error.code in ("empty-split", "one-label")
        return
    sets = [{content(e.text) for e in p} for p in (parts.train, parts.validation, parts.test)]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    train = [r for r in rows if r[2] == "train"]
    assert len(parts.train) + len(parts.validation) + parts.dropped["train in test"] == len(train)
    assert leak_guard([parts.as_task()]).clean


def test_a_tenth_is_held_out_capped_and_frozen() -> None:
    given = plain()
    parts = three_way(given)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (54, 6, 10)
    assert len(three_way(given, most=4).validation) == 4
    assert len(three_way(plain(35)).validation) == 4  # rounded
    turned = replace(given, examples=tuple(reversed(given.examples)))
    assert {e.text for e in three_way(turned).validation} == {e.text for e in parts.validation}
    assert {e.text for e in three_way(given, 1).validation} != {e.text for e in parts.validation}
    # the frozen choice of seed 0: a change of it would make published figures incomparable
    assert sorted(int(e.text.split()[-1]) for e in parts.validation) == FROZEN


FROZEN = [4, 12, 15, 23, 31, 59]


def test_what_training_sees_has_no_test_text() -> None:
    parts = three_way(plain())
    seen = parts.for_training()
    assert {e.text for e in seen.split("test")} == {e.text for e in parts.validation}
    assert not {e.text for e in seen.examples} & {e.text for e in parts.test}
    assert Counter(e.split for e in parts.as_task().examples) == {"train": 54, "validation": 6, "test": 10}


def test_planted_duplicates_are_found_and_dropped() -> None:
    rows = [("A  Cat", 0, "train"), ("dog", 1, "train"), ("Dog ", 1, "train"), ("tree", 0, "train"), ("DOG", 1, "test")]
    rows += [("a cat\n", 0, "validation"), ("TREE", 1, "validation"), ("stone", 1, "validation")]
    bad = task(rows, "pets")
    with pytest.raises(
        LeakFound,
        match=r"'pets' with 2 train examples whose text is in its test split, such as 'dog' \(and 1 more leaks\)",
    ):
        leak_guard([bad])
    report = leak_guard([bad], within="drop")
    assert [(x.split, x.other_split, x.examples) for x in report.within] == [
        ("train", "test", 2),
        ("train", "validation", 2),
    ]
    assert report.dropped == {"pets": 4}
    assert leak_guard(report.tasks).clean
    assert {e.text for e in report.tasks[0].examples} == {"DOG", "a cat\n", "TREE", "stone"}


def test_a_test_text_of_one_task_in_the_training_part_of_another_is_reported() -> None:
    one = task([("x", 0, "train"), ("Shared  text", 0, "test")], "one")
    two = task(
        [("shared TEXT", 1, "train"), ("shared text", 0, "validation"), ("y", 0, "train"), ("z", 0, "test")], "two"
    )
    with pytest.raises(LeakFound, match="1 train examples whose text is in its validation split"):
        leak_guard([one, two])
    two = task([("shared TEXT", 1, "train"), ("y", 0, "train"), ("z", 0, "test")], "two")
    report = leak_guard([one, two])
    assert not report.within and not report.clean and not report.dropped
    assert [x.as_dict() for x in report.across] == [
        {"task": "two", "split": "train", "other": "one", "other_split": "test", "examples": 1, "sample": "shared TEXT"}
    ]
    assert len(report.tasks[1].examples) == 3
    dropped = leak_guard([one, two], across="drop")
    assert dropped.dropped == {"two": 1} and leak_guard(dropped.tasks).clean


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ComgradError, match="no examples in split 'test'"):
        three_way(task([("x", 0, "train")]))
    with pytest.raises(ComgradError, match="do not suffice for a training and a validation part"):
        three_way(task([("x", 0, "train"), ("y", 1, "train"), ("Y", 1, "test")]))
    with pytest.raises(ComgradError, match="one label among 18 training examples"):
        three_way(task([(f"x{i}", 0, "train") for i in range(20)] + [("y", 1, "test")]))
    with pytest.raises(ComgradError, match="validation share of 1.0"):
        three_way(plain(), share=1.0)


def test_the_shipped_tasks(tasks: list[Path]) -> None:
    divided = [three_way(load_task(folder)) for folder in tasks]
    assert all(len(d.validation) == round(0.1 * (1200 - d.dropped["train in test"])) for d in divided)
    assert not leak_guard([d.as_task() for d in divided]).within
