"""What the answers look like for vectors whose answers are known: each described vector, left out, asked the same.

Where cards name the source of their texts, `group` leaves all of a source out together: the figures are then for a vector
of a source that the registry has never seen, as an unknown vector's usually is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from comgrad.explain.decomposition import decompose
from comgrad.explain.null import sampled, share_at_least, share_at_most
from comgrad.explain.reference import Reference, Similar, by_subspace, by_weights
from comgrad.explain.words import backwards, cosines_with, family_vote, fit_of, ranks

FEWEST = 10  # described vectors for any calibration
ALIKE = 20  # left-out vectors whose family has about as much support


@dataclass(frozen=True)
class Calibration:
    """n described vectors, left out one by one.

    Args:
        places: (n,) which ones.
        residual: of the sparse decomposition on the others.
        nearest: correlation with the nearest other vector, by subspace; `nearest_weights` by centred cosine.
        support: of the family that the nearest vote for, see `words.Vote`.
        right: whether the vote of the nearest gives the vector's own family; `has_family` where it has one.
        true_fit: s of its own description.
        swapped_fit: (n, K) s of all descriptions, each without its own vector; NaN at its own and at copies of it.
        towards_mean: cosine with the mean of the others.
        description_rank: rank of its own description among all K by s; `backwards_rank` by the embedding run backwards.
    """

    places: Int[np.ndarray, "n"]
    residual: Float[np.ndarray, "n"]
    nearest: Float[np.ndarray, "n"]
    nearest_weights: Float[np.ndarray, "n"]
    support: Float[np.ndarray, "n"]
    right: Bool[np.ndarray, "n"]
    right_weights: Bool[np.ndarray, "n"]
    has_family: Bool[np.ndarray, "n"]
    true_fit: Float[np.ndarray, "n"]
    swapped_fit: Float[np.ndarray, "n k"]
    description_rank: Int[np.ndarray, "n"]
    backwards_rank: Int[np.ndarray, "n"]
    towards_mean: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.places)

    def family_odds(self, support: float) -> tuple[int, int]:
        """Of the left-out vectors whose family had about as much support, how many had it named right: right, of."""
        at = np.flatnonzero(self.has_family)
        chosen = at[np.argsort(np.abs(self.support[at] - support), kind="stable")[:ALIKE]]
        return int(self.right[chosen].sum()), len(chosen)

    def below_true(self, fit: float) -> float:
        """Share of true descriptions that fit no better than this one."""
        return share_at_most(self.true_fit, fit)

    def above_swapped(self, fit: float) -> float:
        """Share of swapped descriptions that fit at least as well."""
        return share_at_least(self.swapped_fit[np.isfinite(self.swapped_fit)], fit)


def calibrate(reference: Reference, *, group: bool = False, most: int | None = None) -> Calibration | None:
    """Ask every described vector (or a sample, evenly over them) what the unknown one is asked; None below ten."""
    K = len(reference)
    if K < FEWEST:
        return None
    places = sampled(K) if most is None else sampled(K, most)
    rows = [_left_out(reference, i, group) for i in places]
    return Calibration(np.array(places), **{name: np.array([getattr(r, name) for r in rows]) for name in _Left._fields})


class _Left(NamedTuple):
    """One vector's part of a `Calibration`; the same names."""

    residual: float
    nearest: float
    nearest_weights: float
    support: float
    right: bool
    right_weights: bool
    has_family: bool
    true_fit: float
    swapped_fit: Float[np.ndarray, "k"]
    description_rank: int
    backwards_rank: int
    towards_mean: float


def _left_out(reference: Reference, i: int, group: bool) -> _Left:
    others, probe = reference.left_out(i, group=group)
    label, K = reference.labels[i], len(reference)
    if not len(others):  # all are of one source: nothing is known of it
        nothing = np.full(K, np.nan)
        return _Left(1.0, 0.0, 0.0, 0.0, False, False, bool(label.family), 0.0, nothing, K, K, 0.0)
    near, light = by_subspace(others, probe), by_weights(others, probe)
    vote, light_vote = family_vote(others, near.row), family_vote(others, light.row)
    seat = {x.id: j for j, x in enumerate(others.labels)}
    own = np.array([seat.get(x.id, -1) for x in reference.labels])
    fits = fit_of(others, near, reference.embeddings, without=own)
    same = np.array([j == i or x.description == label.description for j, x in enumerate(reference.labels)])
    inner = probe.inner.sum(axis=0)
    return _Left(
        residual=decompose(others.total, inner, probe.total).residual,
        nearest=float(near.row.max()),
        nearest_weights=float(light.row.max()),
        support=vote.support,
        right=vote.family == label.family != "",
        right_weights=light_vote.family == label.family != "",
        has_family=bool(label.family),
        true_fit=float(fits[i]),
        swapped_fit=np.where(same, np.nan, fits),
        description_rank=int(ranks(fits)[i]),
        backwards_rank=int(ranks(_backwards_scores(others, near, reference, own))[i]),
        towards_mean=towards_mean(others.total, inner, probe.total),
    )


def _backwards_scores(
    others: Reference, near: Similar, reference: Reference, own: Int[np.ndarray, "k"]
) -> Float[np.ndarray, "k"]:
    """Cosine of every description with ê, own contributions left out, the left-out ones among them."""
    found = backwards(others, near)
    known = cosines_with(others, found, own_left_out=True)
    F = reference.embeddings - others.embeddings.mean(axis=0)
    size = np.linalg.norm(F, axis=1) * max(float(np.linalg.norm(found.direction)), 1e-300)
    scores: Float[np.ndarray, "k"] = (F @ found.direction) / np.where(size > 0, size, np.inf)
    scores[own >= 0] = known[own[own >= 0]]
    return scores


def towards_mean(gram: Float[np.ndarray, "k k"], inner: Float[np.ndarray, "k"], energy: float) -> float:
    """Cosine of τ with the mean of the described unit vectors; 0 where it has none."""
    size = np.sqrt(np.maximum(np.diag(gram), 0.0))
    u = np.where(size > 0, 1.0 / np.where(size > 0, size, 1.0), 0.0) / max(len(size), 1)
    length = float(np.sqrt(max(u @ gram @ u, 0.0) * max(energy, 0.0)))
    return float(np.clip(inner @ u / length, -1.0, 1.0)) if length > 0 else 0.0
