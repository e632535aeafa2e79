"""Figures in plain words; every sentence follows from the figure it stands beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comgrad.service.pages import formats

CHANCES = (
    (0.95, "Very likely to help"),
    (0.80, "Likely to help"),
    (0.60, "More likely to help than not"),
    (0.40, "A toss-up"),
    (0.0, "Unlikely to help"),
)
LIKENESS = (
    (0.60, "Close to tasks known here"),
    (0.30, "Partly like tasks known here"),
    (0.0, "Unlike most tasks known here"),
)
BASE_STATUS = {
    "verified": "checked against the base's own weights",
    "declared": "declared by the uploader, shapes agree",
    "contradictory": "the shapes contradict the declared base",
}
KINDS = {"lowrank": "LoRA", "dense": "full"}
WEIGHTS = {"fine": "as usual", "note": "worth a look", "warning": "unusual"}


@dataclass(frozen=True)
class Confidence:
    """How far to trust a suggestion: a headline, the figure, and what the figure is."""

    headline: str
    figure: str
    meaning: str
    share: float


def confidence(made: Mapping[str, Any]) -> Confidence:
    """A suggestion's confidence in words; rules that predict gains give a chance, others a likeness."""
    value = float(made["confidence"])
    gain = made.get("expected_gain")
    if gain is None:
        meaning = "the share of what varies between tasks that the known descriptions explain for this one"
        return Confidence(_of(LIKENESS, value), formats.percent(value), meaning, _unit(value))
    meaning = "the estimated chance that training from here starts at a lower loss than training from zero"
    return Confidence(_of(CHANCES, value), formats.percent(value), meaning, _unit(value))


def _of(table: tuple[tuple[float, str], ...], value: float) -> str:
    return next((words for floor, words in table if value >= floor), table[-1][1])


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def cosine(value: float | None) -> str:
    """What a cosine between two task vectors means, by what is known of pairs of trainings (see `workflows.standing`)."""
    from comgrad.atlas.duplicates import DUPLICATE  # here, because it loads torch
    from comgrad.workflows.standing import CLAIM

    if value is None:
        return "undefined: one of them is zero"
    if value >= DUPLICATE:
        return "nearly the same vector"
    if value >= 2 * CLAIM:
        return "as alike as two trainings on one task"
    if value >= CLAIM:
        return "more alike than nearly all pairs of tasks"
    if value > -CLAIM:
        return "as far apart as most pairs of tasks"
    return "pulling apart: one undoes a part of the other"


MEASURES: tuple[tuple[str, str, str], ...] = (
    ("cosine", "Cosine", "Direction of the whole weight change: 1 the same, 0 unrelated, −1 opposite."),
    ("inner", "Inner product", "The sum of all products of weights; the cosine before dividing by the lengths."),
    ("l2", "Distance", "Length of the difference of the two."),
    ("projection", "First on second", "How many times the second is contained in the first."),
    ("projection_reverse", "Second on first", "How many times the first is contained in the second."),
    ("overlap", "Overlap of column spaces", "1 when both change the same directions, however strongly."),
    ("overlap_z", "Overlap against chance", "Standard deviations above random spaces of the same ranks."),
    ("grassmann_l1", "Grassmann distance", "Sum of the principal angles, in radians; 0 for one space."),
    ("geodesic", "Geodesic distance", "Root of the sum of squared principal angles."),
    ("chordal", "Chordal distance", "The same from the sines of the angles."),
)
