"""From figures to a verdict in words; never that a vector is safe.

The first that applies:

- *refused*: the base is contradictory, or the vector is zero, so that nothing can be compared.
- *suspicious*: the claim contradicts the weights; it points away from a known vector; it is over five times as long as the
  longest known vector; or it is nearly the mean of the known vectors.
- *unexplained*: fewer than ten known vectors; the known vectors explain no more of it than of random ones; it is less like
  its nearest known vector than 95 % of known vectors are; most of it lies in tensors that no known vector changes; or the
  claim neither fits nor contradicts.
- *consistent*: none of these.

Each known vector, left out, sets the percentiles. Nothing but the length depends on the vector's norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from comgrad.explain.calibration import FEWEST, Calibration
from comgrad.explain.explanation import Base, ClaimState, Verdict

LONG = 5.0  # times the longest known vector
CHANCE = 0.05
FITS = 0.10  # share of wrong descriptions that may fit as well as one that is called consistent
UNFIT = 0.10  # share of true descriptions that may fit no better than one that is called contradictory
QUARTER = 0.25
MEAN_SHARE = 0.5  # of ‖τ‖² along the mean of the known vectors


@dataclass(frozen=True)
class Figures:
    """What the verdict rests on.

    Args:
        beyond_random: share of random vectors with no larger residual.
        nearest_low: share of known vectors that are no more like their nearest; None without calibration.
        length: ‖τ‖ over the longest known norm.
        mean_share: squared cosine with the mean of the known vectors.
        mean_usual: the largest such among known vectors.
        opposite: the known vector that it points away from; empty without one, see `points_away`.
        outside: share of ‖τ‖² in tensors that no known vector changes.
    """

    known: int
    beyond_random: float
    nearest_low: float | None
    length: float
    mean_share: float
    mean_usual: float
    claim: ClaimState | None
    opposite: str = ""
    outside: float = 0.0


def points_away(cosine: float, least_usual: float) -> bool:
    """Whether a cosine is negative beyond what known vectors have with each other, by a factor of two and by 0.1: column
    spaces do not see the sign, and minus a vector undoes what the vector does."""
    return cosine < min(2.0 * least_usual, -0.1)


def claim_status(calibration: Calibration | None, fit: float, nearest: float) -> ClaimState:
    """Consistent: few wrong descriptions fit so well. Contradictory: few true ones fit so badly, for a vector that is not
    itself unlike everything known. Otherwise unexplained, and always so without calibration."""
    if calibration is None:
        return "unexplained"
    if calibration.above_swapped(fit) <= FITS:
        return "consistent"
    usual = sorted(calibration.nearest)[int(QUARTER * len(calibration))]
    if calibration.below_true(fit) <= UNFIT and nearest >= usual:
        return "contradictory"
    return "unexplained"


def judge(f: Figures) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on a vector that could be compared, and its reasons."""
    reasons = _suspicions(f)
    if reasons:
        return "suspicious", tuple(reasons)
    reasons = _open_questions(f)
    if reasons:
        return "unexplained", tuple(reasons)
    if f.claim == "consistent":
        return "consistent", ("its weights fit its description, as far as the known vectors can tell.",)
    return "consistent", ("it looks like a known kind of task; no description came with it to check.",)


def _suspicions(f: Figures) -> list[str]:
    out = []
    if f.claim == "contradictory":
        out.append(
            "its description fits its weights worse than true descriptions do, while the weights look like another task."
        )
    if f.opposite:
        out.append(f"it points away from '{f.opposite}': it would undo that task.")
    if f.length > LONG:
        out.append(f"it is {f.length:.3g} times as long as the longest known vector.")
    if f.known >= FEWEST and f.mean_share > max(MEAN_SHARE, f.mean_usual):
        out.append("it is nearly the mean of the known vectors, which is near to all of them and stands for no task.")
    return out


def _open_questions(f: Figures) -> list[str]:
    out = []
    if f.known < FEWEST:
        vectors = "one described vector is" if f.known == 1 else f"{f.known} described vectors are"
        out.append(f"only {vectors} known over this base; {FEWEST} are needed to say what is usual.")
    if f.beyond_random > CHANCE:
        out.append("the known vectors explain no more of it than of random vectors.")
    elif f.nearest_low is not None and f.nearest_low <= CHANCE:
        out.append("it is less like its nearest known vector than almost all known vectors are.")
    if f.outside > 0.5:
        out.append("most of it lies in tensors that no known vector changes.")
    if f.claim == "unexplained" and f.known >= FEWEST:
        out.append("its description neither fits clearly nor contradicts the weights.")
    return out


def refusal(base: Base) -> tuple[str, ...]:
    """Why a vector of another base is not explained."""
    return (f"{base.detail}; a task vector only has a meaning relative to its own base.",)
