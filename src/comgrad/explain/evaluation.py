"""How well weights tell what a task is, on vectors whose tasks are known; pure, from a `Reference`.

Each vector is left out (alone, or with all of its source group) and asked by the functions that answer for an unknown one.
Beside each figure stands its baseline: the largest family, and the same procedure on descriptions and
families that were shuffled over the vectors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from comgrad.explain.calibration import Calibration, calibrate
from comgrad.explain.explanation import ClaimState
from comgrad.explain.reference import Reference
from comgrad.explain.verdict import claim_status

SHUFFLES = 5
CLAIM_STATES: tuple[ClaimState, ...] = ("consistent", "unexplained", "contradictory")


@dataclass(frozen=True)
class Retrieval:
    """Figures of one way of leaving out.

    Args:
        right: (n,) the family named by the nearest by subspace, among vectors with a family; `right_weights` by centred
            cosine.
        majority: the largest family's share of them: always naming it is right so often.
        rank: (n,) of the own description among all by fit; `backwards_rank` by the embedding run backwards.
        shuffled_right, shuffled_rank, shuffled_backwards: the same with cards shuffled over the vectors, all draws.
        claim_auroc: a true against a swapped description by fit; `claim_auroc_far`: swaps with another family only.
        claim_rates: how often a claim is called consistent, unexplained and contradictory: `true` claims, and `far` ones,
            swapped with another family's. The thresholds come from the same vectors.
        odds_auroc: a family named right against one named wrong, by the strength of the vote: whether the stated odds mean
            anything.
        residual: (n,) residual shares.
    """

    vectors: int
    right: Bool[np.ndarray, "n"]
    right_weights: Bool[np.ndarray, "n"]
    majority: float
    rank: Int[np.ndarray, "m"]
    backwards_rank: Int[np.ndarray, "m"]
    shuffled_right: Bool[np.ndarray, "s"]
    shuffled_rank: Int[np.ndarray, "t"]
    shuffled_backwards: Int[np.ndarray, "t"]
    claim_auroc: float
    claim_auroc_far: float
    claim_rates: dict[str, dict[str, float]]
    odds_auroc: float
    residual: Float[np.ndarray, "m"]

    @property
    def accuracy(self) -> float:
        """Share of families named right by subspace."""
        return float(self.right.mean())

    @property
    def times_majority(self) -> float:
        """Accuracy over the majority baseline's."""
        return self.accuracy / self.majority


def mean_reciprocal_rank(rank: Int[np.ndarray, "n"]) -> float:
    """Mean of 1/rank."""
    return float((1.0 / rank).mean())


def evaluate(reference: Reference, *, group: bool = False, shuffles: int = SHUFFLES, seed: int = 0) -> Retrieval:
    """All figures for one way of leaving out.

    Args:
        reference: at least ten vectors; with embeddings.
        group: leave out the whole source group.
        shuffles: how many times the cards are shuffled for the null.
    """
    found = _calibrated(reference, group)
    rng = np.random.default_rng(seed)
    null = [_calibrated(shuffled(reference, rng), group) for _ in range(shuffles)]
    known = found.has_family
    families = np.array(reference.families)
    far = found.swapped_fit.copy()
    far[families[found.places][:, None] == families[None, :]] = np.nan
    return Retrieval(
        len(found),
        found.right[known],
        found.right_weights[known],
        max(Counter(families[found.places[known]]).values(), default=0) / max(int(known.sum()), 1),
        found.description_rank,
        found.backwards_rank,
        np.concatenate([c.right[c.has_family] for c in null]) if null else np.zeros(0, dtype=bool),
        np.concatenate([c.description_rank for c in null]) if null else np.zeros(0, dtype=np.int64),
        np.concatenate([c.backwards_rank for c in null]) if null else np.zeros(0, dtype=np.int64),
        auroc(found.true_fit, found.swapped_fit),
        auroc(found.true_fit, far),
        {
            "true": _rates(found, found.true_fit[:, None]),
            "far": _rates(found, far),
        },
        auroc(found.support[known & found.right], found.support[known & ~found.right]),
        found.residual,
    )


def _rates(found: Calibration, fits: Float[np.ndarray, "n c"]) -> dict[str, float]:
    """Shares of the claims (row: vector) that are called each status."""
    states = [
        claim_status(found, float(fit), float(near))
        for row, near in zip(fits, found.nearest, strict=True)
        for fit in row[np.isfinite(row)]
    ]
    return {state: states.count(state) / max(len(states), 1) for state in CLAIM_STATES}


def _calibrated(reference: Reference, group: bool) -> Calibration:
    found = calibrate(reference, group=group, most=len(reference))
    assert found is not None, "fewer than ten vectors"
    return found


def shuffled(reference: Reference, rng: np.random.Generator) -> Reference:
    """Descriptions and families dealt out anew; ids, names and source groups stay with their vectors."""
    order = rng.permutation(len(reference))
    labels = tuple(
        replace(x, description=reference.labels[j].description, family=reference.labels[j].family)
        for x, j in zip(reference.labels, order, strict=True)
    )
    return replace(reference, labels=labels, embeddings=reference.embeddings[order])


def auroc(positive: Float[np.ndarray, "n"], negative: np.ndarray) -> float:
    """Probability that a positive exceeds a negative, ties counting half; NaN entries are left out."""
    a, b = np.sort(positive[np.isfinite(positive)]), negative[np.isfinite(negative)].ravel()
    if not len(a) or not len(b):
        return float("nan")
    above = len(a) - np.searchsorted(a, b, side="right")
    level = np.searchsorted(a, b, side="right") - np.searchsorted(a, b, side="left")
    return float((above + level / 2.0).mean() / len(a))
