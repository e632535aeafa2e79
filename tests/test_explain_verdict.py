"""The verdict: each rule by itself, the base's status, and never the word safe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from comgrad.explain.basecheck import base_check, misshapen
from comgrad.explain.calibration import Calibration, calibrate
from comgrad.explain.verdict import Figures, claim_status, judge, points_away, refusal
from comgrad.types import BaseRef
from explain_models import reference

FINE = Figures(38, 0.01, 0.5, 1.0, 0.01, 0.02, "consistent")


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        ({}, "consistent", "its weights fit its description"),
        ({"claim": None}, "consistent", "no description came with it to check"),
        ({"claim": "unexplained"}, "unexplained", "neither fits clearly nor contradicts"),
        ({"claim": "contradictory"}, "suspicious", "the weights look like another task"),
        ({"length": 5.1}, "suspicious", "5.1 times as long"),
        ({"opposite": "x"}, "suspicious", "points away from 'x'"),
        ({"mean_share": 0.6}, "suspicious", "nearly the mean"),
        ({"beyond_random": 0.06}, "unexplained", "no more of it than of random vectors"),
        ({"nearest_low": 0.04}, "unexplained", "less like its nearest known vector"),
        ({"outside": 0.6}, "unexplained", "tensors that no known vector changes"),
        ({"known": 9, "nearest_low": None, "mean_share": 0.9}, "unexplained", "only 9 described vectors are known"),
        ({"known": 1, "nearest_low": None}, "unexplained", "only one described vector is known"),
    ],
)
def test_each_rule(change: dict[str, object], verdict: str, reason: str) -> None:
    found, reasons = judge(replace(FINE, **change))  # type: ignore[arg-type]
    assert found == verdict
    assert any(reason in r for r in reasons)
    assert not any("safe" in r for r in reasons)


def test_suspicion_comes_before_doubt_and_all_reasons_are_given() -> None:
    found, reasons = judge(replace(FINE, claim="contradictory", length=50.0, beyond_random=0.9))
    assert found == "suspicious" and len(reasons) == 2


def test_pointing_away_is_beyond_what_known_vectors_do() -> None:
    assert points_away(-0.3, -0.02)
    assert not points_away(-0.09, -0.001)
    assert not points_away(-0.3, -0.2)
    assert not points_away(0.5, 0.6)


def test_claims_by_their_place_among_true_and_wrong_ones() -> None:
    found = calibrate(reference())
    assert isinstance(found, Calibration)
    usual = float(np.median(found.nearest))
    assert claim_status(found, float(found.true_fit.max()), usual) == "consistent"
    assert claim_status(found, -1.0, usual) == "contradictory"
    assert (
        claim_status(found, -1.0, float(found.nearest.min()) - 1.0) == "unexplained"
    )  # unlike everything: no contradiction
    assert claim_status(None, 1.0, 1.0) == "unexplained"


def test_base_status() -> None:
    a, b, other = BaseRef("org/m", "a" * 64), BaseRef("org/m"), BaseRef("org/m", "b" * 64)
    assert base_check(a, a, kind="lowrank").status == "verified"
    assert "author's word" in base_check(a, a, kind="lowrank").detail
    assert "author's word" not in base_check(a, a, kind="dense").detail
    assert base_check(b, a, kind="lowrank").status == "declared"
    assert base_check(a, b, kind="lowrank").status == "declared"
    assert base_check(other, a, kind="lowrank").status == "contradictory"
    assert base_check(BaseRef("org/n"), a, kind="lowrank").status == "contradictory"
    recorded = base_check(a, a, kind="lowrank", recorded="c" * 64)
    assert recorded.status == "contradictory" and "its card records" in recorded.detail
    assert base_check(b, a, kind="lowrank", recorded="a" * 64).status == "declared"
    assert "another" not in refusal(misshapen(a, "tensor 'q' is (2, 3)"))[0]
    assert "tensor 'q' is (2, 3)" in misshapen(a, "tensor 'q' is (2, 3)").detail
