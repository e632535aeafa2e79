"""Growth, rises and gaps: counts against recounts, the chance against all choices there are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comgrad.atlas.trends import gaps, growth, lonely, rises
from comgrad.errors import ComgradError

START = datetime(2026, 1, 5, 12, tzinfo=UTC)  # a Monday
label = st.sampled_from("abc")


@given(st.lists(st.tuples(st.integers(0, 900), label), min_size=1, max_size=40))
def test_totals_are_what_a_recount_gives(added: list[tuple[int, str]]) -> None:
    times = [START + timedelta(days=d) for d, _ in added]
    found = growth(times, [name for _, name in added])
    assert 1 <= len(found.starts) <= 33
    assert all(a < b for a, b in zip(found.starts, found.starts[1:], strict=False))
    ends = [*found.starts[1:], (max(times) + timedelta(days=1)).date()]
    for name, row in zip(found.labels, found.total, strict=True):
        for end, n in zip(ends, row, strict=True):
            assert n == sum(x == name and t.date() < end for t, (_, x) in zip(times, added, strict=True))
    assert found.added.sum() == len(added) and (found.added >= 0).all()
    assert found.total[:, -1].tolist() == sorted(found.total[:, -1].tolist(), reverse=True)


@pytest.mark.parametrize(("days", "unit"), [(0, "day"), (31, "day"), (32, "week"), (217, "week"), (218, "month")])
def test_periods_fit_the_span(days: int, unit: str) -> None:
    assert growth([START, START + timedelta(days=days)], ["a", "b"]).unit == unit


def test_nothing_to_count_is_refused() -> None:
    with pytest.raises(ComgradError, match="an empty registry; there is nothing to count"):
        growth([], [])


@given(st.lists(label, min_size=2, max_size=8), st.data())
def test_the_chance_is_the_share_of_all_choices(labels: list[str], data: Any) -> None:
    new = data.draw(st.integers(1, len(labels)))
    recent = [i in set(data.draw(st.permutations(range(len(labels))))[:new]) for i in range(len(labels))]
    new = sum(recent)
    raw = {}
    for name in set(labels):
        after = sum(r for x, r in zip(labels, recent, strict=True) if x == name)
        choices = [sum(labels[i] == name for i in c) >= after for c in combinations(range(len(labels)), new)]
        raw[name] = sum(choices) / len(choices)
    found = rises(labels, recent)
    worst = 0.0
    for rank, row in enumerate(found):
        worst = max(worst, min(1.0, raw[row.label] * (len(found) - rank)))
        assert row.chance == pytest.approx(worst)
        assert (row.before, row.after) == (
            sum(x == row.label and not r for x, r in zip(labels, recent, strict=True)),
            sum(x == row.label and r for x, r in zip(labels, recent, strict=True)),
        )
    assert {r.label for r in found} == set(labels)


def test_a_planted_rise_is_emerging_and_a_steady_group_is_not() -> None:
    labels = ["old"] * 30 + ["steady"] * 10 + ["new"] * 10
    recent = [i % 5 == 0 for i in range(40)] + [True] * 8 + [False] * 2
    assert [r.label for r in rises(labels, recent) if r.emerging] == ["new"]


def test_random_labels_seldom_rise() -> None:
    draw = np.random.default_rng(0)
    called = 0
    for _ in range(300):
        labels = draw.choice(list("abcd"), 40).tolist()
        called += any(r.emerging for r in rises(labels, (draw.random(40) < 0.3).tolist()))
    assert called / 300 <= 0.05


def test_what_is_far_from_everything_comes_first_and_is_lacking() -> None:
    draw = np.random.default_rng(1)
    known = draw.standard_normal((30, 4)) * 0.2 + [1, 0, 0, 0]
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    wanted = np.array([known[3], [0.0, 0.0, 0.0, -1.0]])
    first, second = gaps(wanted, known, ["here", "nowhere"])
    assert (first.text, first.lacking, first.usual) == ("nowhere", True, 0.0)
    assert (second.text, second.nearest, second.lacking, second.usual) == ("here", 3, False, 1.0)
    assert second.cosine == pytest.approx(1.0)


def test_the_known_themselves_are_seldom_lacking() -> None:
    draw = np.random.default_rng(2)
    rows = draw.standard_normal((300, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = gaps(rows[200:], rows[:200], [str(i) for i in range(100)])
    assert sum(g.lacking for g in found) <= 15
    assert [g.cosine for g in found] == sorted(g.cosine for g in found)


def test_the_lonely_one_is_found() -> None:
    similarity = np.full((20, 20), 0.5)
    similarity[7] = similarity[:, 7] = 0.1
    np.fill_diagonal(similarity, 1.0)
    found = lonely(similarity)
    assert len(found) == 2 and found[0][0] == 7 and found[0][2] == pytest.approx(0.1)
    assert lonely(np.ones((1, 1))) == []
