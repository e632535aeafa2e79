"""From weights back to words: which descriptions fit a vector, and which words its neighbours share.

*Fit of a description.* With κ the centred subspace correlation of the vector with each described vector, and e the
embeddings with their mean taken out, a description d fits by

    s(d) = Σ_k w_k κ_k,   w_k ∝ exp((cos(e(d), e_k) − 1)/WIDTH)

the correlation with the tasks that d sounds like. A known description's own vector can be left out of its sum.

*The embedding run backwards.* Kernel ridge from weights to embeddings, ê(τ) = ē + κ(C + λI)⁻¹(E − ē) with C the centred
correlations among the described vectors and λ by leave-one-out; descriptions are then ranked by cosine with ê.

*Shared words.* A word is over-represented among the nearest vectors' descriptions when the hypergeometric probability of
seeing it there so often is below 1 %.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import hypergeom

from comgrad.explain.reference import Reference, Similar

WIDTH = 0.05
LAMBDAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
RARE = 0.01
NEAREST_WORDS = 10  # at most so many neighbours lend their words
NEIGHBOURS = 3  # that vote on the family
_WORD = re.compile(r"[^\W\d_]{3,}")

Row = Float[np.ndarray, "k"]


def fit_of(
    reference: Reference,
    similar: Similar,
    claims: Float[np.ndarray, "c d"],
    *,
    without: Int[np.ndarray, "c"] | None = None,
) -> Float[np.ndarray, "c"]:
    """s(d) of each description; 0 means no better than an average task.

    Args:
        claims: embeddings of the descriptions, unit rows.
        without: for each description, the vector that is left out of its sum; −1 for none.
    """
    mean = reference.embeddings.mean(axis=0)
    likeness = _unit(claims - mean) @ _unit(reference.embeddings - mean).T
    weight = np.exp((likeness - 1.0) / WIDTH) * similar.alive
    if without is not None:
        rows = np.flatnonzero(without >= 0)
        weight[rows, without[rows]] = 0.0
    total = weight.sum(axis=1)
    out: Float[np.ndarray, "c"] = (weight @ similar.row) / np.where(total > 0, total, np.inf)
    return out


@dataclass(frozen=True)
class Backwards:
    """ê − ē, the coefficients κ(C + λI)⁻¹ it is made with, and λ."""

    direction: Float[np.ndarray, "d"]
    coefficients: Float[np.ndarray, "k"]
    lam: float


def backwards(reference: Reference, similar: Similar) -> Backwards:
    """The description's embedding, estimated from the weights."""
    K = len(reference)
    F = reference.embeddings - reference.embeddings.mean(axis=0)
    values, turn = np.linalg.eigh(similar.among)
    values = np.maximum(values, 0.0)
    errors = []
    for lam in LAMBDAS:
        Q = (turn / (values + lam)) @ turn.T
        errors.append(float((((Q @ F) / np.diag(Q)[:, None]) ** 2).sum()))  # left-out residuals of ridge
    lam = LAMBDAS[int(np.argmin(errors))]
    w = (turn / (values + lam)) @ (turn.T @ similar.row) if K else np.zeros(0)
    return Backwards(w @ F, w, lam)


def cosines_with(reference: Reference, found: Backwards, *, own_left_out: bool = False) -> Row:
    """Cosine of each known description with ê, both without their mean.

    Args:
        own_left_out: score each description with an ê to which its own vector does not contribute.
    """
    F = reference.embeddings - reference.embeddings.mean(axis=0)
    if not own_left_out:
        out: Row = _unit(F) @ _unit(found.direction[None])[0]
        return out
    estimates = found.direction - found.coefficients[:, None] * F
    own: Row = (_unit(F) * _unit(estimates)).sum(axis=1)
    return own


@dataclass(frozen=True)
class Vote:
    """The family of the nearest vectors, each voting with its correlation; `support` is the sum of its votes."""

    family: str
    support: float


def family_vote(reference: Reference, row: Row, neighbours: int = NEIGHBOURS) -> Vote:
    """The family that the nearest vectors with a family vote for; empty where none has one."""
    order = [int(j) for j in np.argsort(-row, kind="stable") if reference.families[j]][:neighbours]
    votes: dict[str, float] = {}
    for j in order:
        votes[reference.families[j]] = votes.get(reference.families[j], 0.0) + max(float(row[j]), 1e-9)
    if not votes:
        return Vote("", 0.0)
    family = max(votes, key=lambda f: votes[f])
    return Vote(family, votes[family])


@dataclass(frozen=True)
class SharedWord:
    """A word of the neighbours' descriptions: in `near` of the `among` nearest, in `share` of all; p of so many."""

    word: str
    near: int
    among: int
    share: float
    p: float


def shared_words(reference: Reference, row: Row, most: int = 8) -> list[SharedWord]:
    """Words over-represented among the nearest vectors, rarest chance first."""
    K = len(reference)
    n = min(NEAREST_WORDS, max(5, K // 10), K // 2)
    near = [int(j) for j in np.argsort(-row, kind="stable")[:n] if row[j] > 0]
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # slow to import, and only needed here

    bags = [words_of(x.description) for x in reference.labels]
    everywhere, here = Counter(w for b in bags for w in b), Counter(w for j in near for w in bags[j])
    found = []
    for word, count in here.items():
        p = float(hypergeom.sf(count - 1, K, everywhere[word], len(near)))
        if count >= 2 and p < RARE and word not in ENGLISH_STOP_WORDS:
            found.append(SharedWord(word, count, len(near), everywhere[word] / K, p))
    return sorted(found, key=lambda s: (s.p, -s.near, s.word))[:most]


def words_of(text: str) -> set[str]:
    """Words of at least three letters, in lower case."""
    return {w.lower() for w in _WORD.findall(text)}


def ranks(scores: Sequence[float] | Row) -> Int[np.ndarray, "k"]:
    """1 for the highest score; ties take the middle of the places they fill, rounded up."""
    s = np.asarray(scores, dtype=np.float64)
    above = (s[None, :] > s[:, None]).sum(axis=1)
    level = (s[None, :] == s[:, None]).sum(axis=1)
    out: Int[np.ndarray, "k"] = 1 + above + level // 2
    return out


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    size = np.linalg.norm(x, axis=1, keepdims=True)
    out: Float[np.ndarray, "n d"] = x / np.where(size > 1e-9, size, np.inf)
    return out
