"""The evidence in words: each line a figure, what it is measured against, and what that means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from comgrad.explain.calibration import Calibration
from comgrad.explain.explanation import Base, Claim, Evidence, Spread, Weight
from comgrad.explain.reference import Reference
from comgrad.explain.verdict import CHANCE, FITS, LONG, UNFIT, Figures

if TYPE_CHECKING:
    from comgrad.explain.answer import Asked

NEARLY_THE_SAME = 0.999


@dataclass(frozen=True)
class Measured:
    """Figures of one vector, see `answer.explain`."""

    beyond_random: float
    random: Float[np.ndarray, "n"]
    residual: float
    nearest: float
    nearest_name: str
    nearest_z: float
    norm: float
    mean: float
    closest_cosine: float
    closest_name: str
    closest_usual: float | None
    least: float
    least_name: str
    least_usual: float
    twins: tuple[str, ...]
    centred: bool


def spread_of(value: float, null: Float[np.ndarray, "n"]) -> Spread:
    """The value beside the null's quantiles."""
    low, middle, high = np.quantile(null, [0.05, 0.5, 0.95])
    return Spread(value, float(low), float(middle), float(high))


def evidence_lines(
    reference: Reference,
    asked: Asked,
    m: Measured,
    calibration: Calibration | None,
    claim: Claim | None,
    figures: Figures,
    family: str,
    odds: tuple[int, int] | None,
) -> tuple[Evidence, ...]:
    """All lines that apply, in the order in which they matter."""
    lines = [base_line(asked.base), _explained(m, calibration), _nearest(m, calibration, figures)]
    if family:
        lines.append(_family(family, odds))
    lines.append(_claim(claim, asked))
    lines += [_length(m, reference, figures), _concentration(asked.probe.first, reference)]
    lines += _copies(m)
    if figures.opposite:
        figure, null = f"cosine {m.least:.3f} with '{m.least_name}'", f"two known vectors: at least {m.least_usual:.3f}"
        lines.append(Evidence("direction", figure, null, "it points away: it would undo that task", "warning"))
    if figures.known >= 10:
        lines.append(_mean(figures))
    if asked.probe.outside > 0:
        share = asked.probe.outside / asked.probe.total
        lines.append(
            Evidence(
                "elsewhere",
                f"{percent(share)} of ‖τ‖² in tensors that no known vector changes",
                "0 % for a vector of the known kind",
                "nothing can be said of that part",
                "note" if share > 0.01 else "fine",
            )
        )
    return tuple(lines)


def base_line(base: Base) -> Evidence:
    """Base status in one line."""
    weight: dict[str, Weight] = {"verified": "fine", "declared": "note", "contradictory": "warning"}
    return Evidence("base", base.status, f"base '{base.name}'", base.detail, weight[base.status])


def _explained(m: Measured, calibration: Calibration | None) -> Evidence:
    null = f"random vectors of its shape and norms: at most {percent(1 - m.random.min())}"
    if calibration is not None:
        low, middle, high = np.quantile(1 - calibration.residual, [0.05, 0.5, 0.95])
        null += f"; known vectors by the others: {percent(middle)} ({percent(low)} to {percent(high)})"
    if m.beyond_random > CHANCE:
        meaning, weight = "no more than of random vectors: nothing known is in it, or it is noise", "note"
    elif calibration is not None and 1 - m.residual < np.quantile(1 - calibration.residual, 0.05):
        meaning, weight = "more than of a random vector, less than of nearly all known ones", "note"
    else:
        meaning, weight = "more than of random vectors: it shares directions with known tasks", "fine"
    return Evidence("explained by known vectors", f"{percent(1 - m.residual)} of ‖τ‖²", null, meaning, weight)  # type: ignore[arg-type]


def _nearest(m: Measured, calibration: Calibration | None, f: Figures) -> Evidence:
    what = "centred correlation of column spaces" if m.centred else "correlation of column spaces"
    z = f", z = {m.nearest_z:.1f} against random subspaces" if np.isfinite(m.nearest_z) else ""
    figure = f"{what} {m.nearest:.3f} with '{m.nearest_name}'{z}"
    if calibration is None:
        return Evidence("nearest known vector", figure, "random subspaces: z near 0", _of_z(m.nearest_z), "note")
    low, middle, high = np.quantile(calibration.nearest, [0.05, 0.5, 0.95])
    null = f"known vectors with their own nearest: {middle:.3f} ({low:.3f} to {high:.3f})"
    assert f.nearest_low is not None
    if f.nearest_low <= CHANCE:
        return Evidence("nearest known vector", figure, null, "less near than almost all known vectors are", "note")
    meaning = f"nearer than {percent(f.nearest_low)} of known vectors are to theirs"
    return Evidence("nearest known vector", figure, null, meaning)


def _of_z(z: float) -> str:
    if not np.isfinite(z):
        return "no column space to compare"
    if z < 3:
        return "no more than random subspaces share"
    return "more than random subspaces share; too few known vectors to say whether that is much"


def _family(family: str, odds: tuple[int, int] | None) -> Evidence:
    if odds is None:
        return Evidence("family", family, "too few known vectors to say how often this is right", "a guess", "note")
    right, of = odds
    often = (
        "usually right" if right > 0.8 * of else "often right" if right > 0.5 * of else "more often wrong than right"
    )
    null = f"of the {of} known vectors with a vote about as strong, {right} had their family named right"
    return Evidence("family", family, null, f"such a guess is {often}", "fine" if 2 * right > of else "note")


def _claim(claim: Claim | None, asked: Asked) -> Evidence:
    if claim is None:
        why = "no text encoder to read it with" if asked.claim else "no description came with it"
        return Evidence("claimed task", "not checked", why, "nothing to check against the weights", "note")
    figure = f"fit {claim.fit:+.4f}"
    if claim.swapped is None or claim.true is None:
        return Evidence(
            "claimed task", figure, "too few known vectors for a null", "neither confirmed nor contradicted", "note"
        )
    null = (
        f"{percent(claim.swapped)} of wrong descriptions fit as well; {percent(claim.true)} of true ones fit no better"
    )
    if claim.status == "consistent":
        return Evidence("claimed task", figure, null, f"at most {percent(FITS)} of wrong ones fit so well: it agrees")
    if claim.status == "contradictory":
        meaning = f"at most {percent(UNFIT)} of true ones fit so badly: the weights look like another task"
        return Evidence("claimed task", figure, null, meaning, "warning")
    return Evidence("claimed task", figure, null, "neither confirmed nor contradicted", "note")


def _length(m: Measured, reference: Reference, f: Figures) -> Evidence:
    norms = reference.norms
    null = f"known vectors: {np.median(norms):.3g} ({norms.min():.3g} to {norms.max():.3g})"
    if f.length > LONG:
        return Evidence("length", f"‖τ‖ = {m.norm:.3g}", null, f"{f.length:.3g} times the longest known one", "warning")
    if f.length > 1.0:
        return Evidence("length", f"‖τ‖ = {m.norm:.3g}", null, "longer than every known one", "note")
    if m.norm < 0.2 * norms.min():
        return Evidence("length", f"‖τ‖ = {m.norm:.3g}", null, "far shorter than every known one", "note")
    return Evidence("length", f"‖τ‖ = {m.norm:.3g}", null, "of the usual size")


def _concentration(first: float, reference: Reference) -> Evidence:
    low, high = float(reference.first.min()), float(reference.first.max())
    figure = f"{percent(first)} of its energy in the first direction of each matrix"
    null = f"known vectors: {percent(low)} to {percent(high)}"
    if first > 0.999:
        return Evidence(
            "concentration", figure, null, "one direction per matrix (rank 1): what it can do is narrow", "note"
        )
    if first > high:
        return Evidence("concentration", figure, null, "more concentrated than every known one", "note")
    if first < low:
        return Evidence("concentration", figure, null, "spread more widely than every known one, as noise is", "note")
    return Evidence("concentration", figure, null, "of the usual kind")


def named(vectors: Sequence[str]) -> str:
    """Vectors by their names, in a sentence."""
    return " and ".join(f"'{v}'" for v in vectors)


def _copies(m: Measured) -> list[Evidence]:
    if m.twins:
        return [
            Evidence(
                "copy",
                f"the same vector as {named(m.twins)} of the registry",
                "equal up to its length",
                "left out of everything else here, so that the answer is no look-up",
                "note",
            )
        ]
    if m.closest_cosine > NEARLY_THE_SAME:
        figure = f"cosine {m.closest_cosine:.4f} with '{m.closest_name}'"
        usual = m.closest_usual
        null = "no two known vectors to compare with" if usual is None else f"two known vectors: at most {usual:.4f}"
        return [Evidence("copy", figure, null, "derived from it, or a copy with changes", "note")]
    return []


def _mean(f: Figures) -> Evidence:
    figure = f"{percent(f.mean_share)} of ‖τ‖² along the mean of the known vectors"
    null = f"known vectors: at most {percent(f.mean_usual)}"
    if f.mean_share > max(0.5, f.mean_usual):
        return Evidence("mean", figure, null, "nearly the mean: near to everything, and no task", "warning")
    return Evidence("mean", figure, null, "of the usual kind" if f.mean_share <= f.mean_usual else "more than usual")


def percent(share: float) -> str:
    """A share as a percentage with two significant digits."""
    value = 100.0 * min(max(share, 0.0), 1.0)
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"
