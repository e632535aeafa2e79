"""Copies and mixtures among task vectors, told from their Gram matrix alone, and what follows for a crowd's centre.

Everything goes by age: members come oldest first, the oldest of a group of near-duplicates speaks for it, and a vector is
derived only from older ones. So nobody changes by a later upload what older vectors count for.

Only inner products of ΔW are used: other factors of the same matrices (BG, G⁻¹A) and other lengths change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int

from comgrad.vectors.delta import Delta, LowRank
from comgrad.vectors.task_vector import TaskVector

# The highest cosine of 24 pairs of vectors trained apart on one task (other data order, or other A seed; the lowest is 0.27)
APART = 0.596
# Two vectors are near-duplicates where their angle is less than half the least angle between two trainings
DUPLICATE = ((1.0 + APART) / 2.0) ** 0.5
# Relative distance that storing the factors in half precision, or in other factors, can cause
SAME = 0.005
SMALL = 0.01  # a parent that adds less than this part of the vector's length is not named
ROUNDING = 1e-9
MOST_PARENTS = 8  # a merge has a few; the mean of all and their common direction have all


@dataclass(frozen=True)
class Groups:
    """Near-duplicates under the oldest of them.

    Args:
        leader: (K,) for each member the oldest one of its group; itself where it is no copy.
    """

    leader: Int[np.ndarray, "k"]

    @cached_property
    def leaders(self) -> list[int]:
        """One member per group, oldest first."""
        return [int(i) for i in np.flatnonzero(self.leader == np.arange(len(self.leader)))]

    def copies(self, index: int) -> list[int]:
        """The later members of the group that `index` leads."""
        return [int(i) for i in np.flatnonzero(self.leader == index) if i != index]

    def weights(self, but: Sequence[int] = ()) -> Float[np.ndarray, "k"]:
        """(K,) of sum 1: every group counts once, through its oldest member, however many copies it has.

        The weighted mean of unit vectors does not move at all for a copy, and by at most 2/(L + 1) for the first vector
        of a new group beside L.

        Args:
            but: leaders that do not count.
        """
        counted = [i for i in self.leaders if i not in set(but)]
        w: Float[np.ndarray, "k"] = np.zeros(len(self.leader))
        w[counted] = 1.0 / max(len(counted), 1)
        return w


def groups(cosine: Float[np.ndarray, "k k"], *, threshold: float = DUPLICATE) -> Groups:
    """Groups of near-duplicates: a member joins the nearest older leader at cosine ≥ threshold, or leads a group itself.

    Not single linkage, in which a chain of uploads would make one group of two vectors that have nothing in common.
    """
    leader = np.arange(len(cosine))
    leaders: list[int] = []
    for i in range(len(cosine)):
        near = cosine[i, leaders]
        best = int(np.argmax(near)) if len(leaders) else -1
        if best >= 0 and near[best] >= threshold:  # a NaN is never at least anything
            leader[i] = leaders[best]
        else:
            leaders.append(i)
    return Groups(leader)


def centred_by(cosine: Float[np.ndarray, "k k"], weights: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k k"]:
    """⟨u_i − ū, u_j − ū⟩ of unit vectors with inner products `cosine`, ū = Σ w_k u_k."""
    C = np.eye(len(cosine)) - weights  # every row is e_i − w
    inner: Float[np.ndarray, "k k"] = C @ cosine @ C.T
    return inner


# -- pairs -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Copy:
    """A member and the older one that it is a near-duplicate of.

    Args:
        kind: `same` matrices, `scaled` matrices of another length, or `near`.
        cosine: of the two vectors.
        length: its norm over the older one's.
    """

    index: int
    of: int
    kind: str
    cosine: float
    length: float


def copies(gram: Float[np.ndarray, "k k"], found: Groups) -> list[Copy]:
    """Every member that is no leader, beside its leader, oldest first."""
    return [relation(gram, i, int(j)) for i, j in enumerate(found.leader) if i != j]


def relation(gram: Float[np.ndarray, "k k"], i: int, j: int) -> Copy:
    """How member i stands to member j. Both norms are positive."""
    size_i, size_j = float(gram[i, i]) ** 0.5, float(gram[j, j]) ** 0.5
    cosine = float(np.clip(gram[i, j] / (size_i * size_j), -1.0, 1.0))
    length = size_i / size_j
    # ‖τ_i − (‖τ_i‖/‖τ_j‖)τ_j‖ / ‖τ_i‖
    apart = max(0.0, 2.0 - 2.0 * cosine) ** 0.5
    if apart > SAME:
        return Copy(i, j, "near", cosine, length)
    return Copy(i, j, "same" if abs(length - 1.0) <= SAME else "scaled", cosine, length)


def other_factors(a: TaskVector, b: TaskVector) -> bool:
    """Whether two vectors hold the same matrices in other factors: (BG, G⁻¹A) in the place of (B, A)."""
    return any(n in b.tensors and not _same_factors(a.tensors[n], b.tensors[n]) for n in a.tensors)


def _same_factors(a: Delta, b: Delta) -> bool:
    if not (isinstance(a, LowRank) and isinstance(b, LowRank)):
        return True  # of a dense delta there is one form only
    if a.B.shape != b.B.shape or a.A.shape != b.A.shape:
        return False
    return all(_parallel(x, y) for x, y in ((a.A, b.A), (a.B, b.B)))


def _parallel(x: torch.Tensor, y: torch.Tensor) -> bool:
    x, y = x.double().flatten(), y.double().flatten()
    return float(x @ y) >= (1.0 - SAME**2) * float(x.norm() * y.norm())


# -- mixtures ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Derived:
    """A vector that others make up.

    Args:
        parents: member and coefficient, the largest contribution first.
        residual: share of ‖τ‖² that the parents leave, in [0, 1].
        mixture: whether no coefficient is negative, as in a merge.
    """

    index: int
    parents: tuple[tuple[int, float], ...]
    residual: float
    mixture: bool


def residuals(gram: Float[np.ndarray, "k k"], members: Sequence[int]) -> Float[np.ndarray, "n"]:
    """The share of each member's ‖τ‖² outside the span of the members before it, in [0, 1]; 0 for a zero vector.

    Gram–Schmidt on the Gram matrix: with orthonormal e_m of the span so far, r_k = G_kk − Σ_m ⟨e_m, τ_k⟩².
    """
    at = list(members)
    size = np.sqrt(np.maximum(np.diag(gram)[at], 0.0))
    unit = gram[np.ix_(at, at)] / np.maximum(np.outer(size, size), 1e-300)
    try:
        pivots = np.diag(np.linalg.cholesky(unit)) ** 2
    except np.linalg.LinAlgError:
        pivots = np.zeros(len(at))
    if len(at) and pivots.min() > ROUNDING:
        return np.asarray(np.minimum(pivots, 1.0), dtype=np.float64)
    rows = np.zeros((len(at), len(at)))
    out = np.zeros(len(at))
    spanned = 0
    for k in range(len(at)):
        known = rows[:spanned, k]
        left = float(unit[k, k] - known @ known)
        if left <= ROUNDING:
            continue  # nothing new in it but rounding; a zero vector has nothing at all
        out[k] = min(left, 1.0)
        rows[spanned] = (unit[k] - known @ rows[:spanned]) / left**0.5
        spanned += 1
    return out


def derived(
    gram: Float[np.ndarray, "k k"], members: Sequence[int], *, residual: float = 1.0 - DUPLICATE**2
) -> list[Derived]:
    """The members that the older ones make up but for a share `residual` of their ‖τ‖², with their parents.

    Non-negative combinations are tried first. Where only a signed one fits, and solving it for one of its parents gives a
    non-negative one, that parent is the mixture: it was added before the last of its own parents.

    Args:
        members: oldest first, no two of them near-duplicates.
    """
    at = list(members)
    left = residuals(gram, at)
    found = []
    for place in np.flatnonzero(left <= residual):
        k, older = at[place], at[:place]
        if older and gram[k, k] > 0.0:
            made = _explained(gram, k, older, residual)
            if made is not None:
                found.append(made)
    return found


def blends(gram: Float[np.ndarray, "k k"], members: Sequence[int]) -> list[Derived]:
    """The members that are made of more than eight older ones: they stand for no task. Arguments as `derived`."""
    if len(members) <= MOST_PARENTS + 1:
        return []
    place = {k: i for i, k in enumerate(members)}
    return [
        d
        for d in derived(gram, members)
        if len(d.parents) > MOST_PARENTS and all(place[p] < place[d.index] for p, _ in d.parents)
    ]


def _explained(gram: Float[np.ndarray, "k k"], k: int, older: list[int], most: float) -> Derived | None:
    mixture = _named(gram, k, older, _non_negative(gram, k, older))
    if mixture.residual <= most:
        return mixture
    G = gram[np.ix_(older, older)]
    signed = _named(gram, k, older, np.linalg.lstsq(G, gram[older, k], rcond=1e-10)[0])
    if signed.residual > most:
        return None
    positive = [p for p, c in signed.parents if c > 0]
    if len(positive) == 1 and len(signed.parents) > 1:  # τ_p = (τ_k − Σ c_q τ_q)/c_p
        others = [k, *(p for p, _ in signed.parents if p != positive[0])]
        turned = _named(gram, positive[0], others, _non_negative(gram, positive[0], others))
        if turned.residual <= most:
            return turned
    return signed


def _non_negative(gram: Float[np.ndarray, "k k"], k: int, others: list[int]) -> Float[np.ndarray, "n"]:
    """argmin over c ≥ 0 of ‖τ_k − Σ c_j τ_j‖, from a square root of the Gram matrix."""
    from scipy.optimize import nnls

    values, axes = np.linalg.eigh(gram[np.ix_(others, others)])
    keep = values > 1e-12 * max(float(values[-1]), 1e-300)
    root = np.sqrt(values[keep])
    c, _ = nnls(root[:, None] * axes[:, keep].T, (axes[:, keep].T @ gram[others, k]) / root)
    return np.asarray(c, dtype=np.float64)


def _named(gram: Float[np.ndarray, "k k"], k: int, others: list[int], c: Float[np.ndarray, "n"]) -> Derived:
    """The combination without what adds next to nothing to it."""
    part = np.abs(c) * np.sqrt(np.maximum(np.diag(gram)[others], 0.0))
    kept = [int(i) for i in np.argsort(-part, kind="stable") if part[i] >= SMALL * gram[k, k] ** 0.5]
    at = [others[i] for i in kept]
    x = c[kept]
    rest = gram[k, k] - 2.0 * float(x @ gram[at, k]) + float(x @ gram[np.ix_(at, at)] @ x)
    share = min(1.0, max(0.0, float(rest) / float(gram[k, k])))
    return Derived(k, tuple(zip(at, x.tolist(), strict=True)), share, bool((x >= 0).all()))
