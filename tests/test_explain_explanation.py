"""An explanation as plain values and back: nothing is lost, and nothing of another form is believed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comgrad.explain.explanation import Base, Claim, Evidence, Explanation, LayerShare, Neighbour, Source, Spread

WHOLE = Explanation(
    subject="it",
    verdict="unexplained",
    reasons=("one", "two"),
    description="It sorts.",
    base=Base("declared", "acme/base", None, "as it says"),
    known=12,
    kind="lowrank",
    rank=None,
    norm=1.5,
    residual_random=Spread(0.5, 0.1, 0.2, 0.3),
    family_odds=(3, 4),
    sources=(Source("tv-1", "a", 0.5, 0.25),),
    neighbours=(Neighbour("tv-1", "a", "f", "d", 0.5, None, 0.1, 0.2),),
    claim=Claim("sort", "consistent", 0.5, None, 0.25, (("a", 1), ("b", 2)), 12),
    layers=(LayerShare("0", 0.5, 0.5, None, 0.1, "a"),),
    evidence=(Evidence("n", "f", "u", "m", "note"),),
)

figures = st.floats(allow_nan=False, allow_infinity=False)


@given(figures, st.integers(0, 2**31), st.text(max_size=20))
def test_as_json_and_back_is_the_same(value: float, known: int, text: str) -> None:
    made = replace(WHOLE, norm=value, known=known, description=text, residual=value)
    assert Explanation.from_dict(json.loads(json.dumps(made.as_dict()))) == made


def test_a_figure_without_a_value_stays_one() -> None:
    again = Explanation.from_dict(replace(WHOLE, norm=math.inf).as_dict())
    assert math.isnan(again.norm)
    assert again.as_dict() == replace(WHOLE, norm=math.inf).as_dict()


def test_what_a_newer_version_adds_is_left_out() -> None:
    assert Explanation.from_dict({**WHOLE.as_dict(), "new": 1}) == WHOLE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("verdict", "safe"),
        ("verdict", None),
        ("known", "12"),
        ("known", True),
        ("norm", "much"),
        ("reasons", "one"),
        ("reasons", [1]),
        ("base", None),
        ("base", {"status": "declared"}),
        ("family_odds", [1, 2, 3]),
        ("sources", [{"id": 1}]),
        ("claim", {**WHOLE.as_dict()["claim"], "status": "fine"}),
        ("rank", 1.5),
    ],
)
def test_another_form_is_refused(key: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Explanation.from_dict({**WHOLE.as_dict(), key: value})
    with pytest.raises((ValueError, TypeError)):
        Explanation.from_dict([])
