"""Do labels follow a similarity? Clusters, neighbours, identification and agreement of matrices, each with its null.

Everything here is on plain arrays. Similarities: larger is nearer; NaN is undefined and never wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from comgrad.errors import ComgradError

Square = Float[np.ndarray, "n n"]
Labels = Int[np.ndarray, "n"]
Draws = Int[np.ndarray, "d n"]
LEVEL = 0.95


@dataclass(frozen=True)
class Null:
    """A figure beside what it is for shuffled labels: mean, 95 % range, and p = (1 + #{null ≥ value})/(1 + draws)."""

    value: float
    mean: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, value: float, drawn: Float[np.ndarray, "d"]) -> Null:
        """The figure against its drawn values."""
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        above = int((drawn >= value - 1e-12).sum())
        return cls(value, float(drawn.mean()), float(low), float(high), (1 + above) / (1 + len(drawn)))


def codes(names: list[str] | tuple[str, ...]) -> Labels:
    """Numbers for names, in the order of the sorted names."""
    out: Labels = np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)
    return out


# -- shuffled labels ---------------------------------------------------------------------------------------------------
def shuffled(labels: Labels, groups: Labels, draws: int, rng: np.random.Generator) -> Draws:
    """Labels given to others, in runs: things of one group were made alike, so their labels must move together.

    The labels stand in the order of the groups; the groups are drawn in another order, and each thing takes the label
    at its place. Counts of labels stay; with groups of one it is a plain permutation.
    """
    out = np.empty((draws, len(labels)), dtype=np.int64)
    number = int(groups.max()) + 1
    for d in range(draws):
        source = np.argsort(rng.permutation(number)[groups], kind="stable")
        target = np.argsort(rng.permutation(number)[groups], kind="stable")
        out[d, target] = labels[source]
    return out


def over_groups(
    values: Float[np.ndarray, "n"], groups: Labels, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of the values that are not NaN; whole groups are drawn."""
    known = ~np.isnan(values)
    if not known.any():
        return float("nan"), float("nan")
    number = int(groups.max()) + 1
    total = np.bincount(groups[known], values[known], number)
    count = np.bincount(groups[known], minlength=number).astype(float)
    there = np.flatnonzero(count)
    chosen = there[rng.integers(len(there), size=(draws, len(there)))]
    means = total[chosen].sum(1) / count[chosen].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# -- clusters ----------------------------------------------------------------------------------------------------------
def filled(similarity: Square) -> Square:
    """Symmetric, with the least defined value where it is undefined."""
    S = np.array(similarity, dtype=np.float64)
    np.fill_diagonal(S, np.nan)
    if np.isnan(S).all():
        raise ComgradError(
            "a similarity that is undefined everywhere", "there is nothing to group by", "use another measure"
        )
    S = np.where(np.isnan(S), np.nanmin(S), S)
    out: Square = (S + S.T) / 2
    return out


def linkage_clusters(similarity: Square, k: int) -> Labels:
    """k clusters by average linkage of (largest − similarity)."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    S = filled(similarity)
    off = ~np.eye(len(S), dtype=bool)
    distance = S[off].max() - S
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average")
    out: Labels = fcluster(tree, k, "maxclust").astype(np.int64) - 1
    return out


def spectral_clusters(similarity: Square, k: int, *, neighbours: int = 10, seed: int = 0) -> Labels:
    """k clusters by k-means on the leading eigenvectors of the normalised graph of nearest neighbours.

    An edge weighs 1 where each is among the other's nearest, ½ where one is. A weak edge (10⁻³/n) joins all.
    """
    from sklearn.cluster import KMeans

    S = filled(similarity)
    np.fill_diagonal(S, -np.inf)
    n = len(S)
    near = np.zeros((n, n))
    nearest = np.argsort(-S, axis=1, kind="stable")[:, : min(neighbours, n - 1)]
    near[np.arange(n)[:, None], nearest] = 1.0
    W = (near + near.T) / 2 + 1e-3 / n
    size = 1 / np.sqrt(W.sum(1))
    _, vectors = np.linalg.eigh(W * size[:, None] * size)
    frame = vectors[:, -k:]
    frame = frame / np.maximum(np.linalg.norm(frame, axis=1, keepdims=True), 1e-300)
    out: Labels = KMeans(k, n_init=10, random_state=seed).fit_predict(frame).astype(np.int64)
    return out


def agreement(clusters: Labels, labels: Draws) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    """Adjusted Rand index and normalised mutual information (arithmetic mean of entropies), one for each row of labels.

    ARI = (Σ C(n_ab,2) − E) / (½(Σ C(n_a,2) + Σ C(n_b,2)) − E), E = Σ C(n_a,2) Σ C(n_b,2) / C(n,2).
    """
    D, n = labels.shape
    a, b = int(clusters.max()) + 1, int(labels.max()) + 1
    flat = (np.arange(D)[:, None] * a + clusters) * b + labels
    table = np.bincount(flat.ravel(), minlength=D * a * b).reshape(D, a, b).astype(float)
    rows, columns = table.sum(2), table.sum(1)

    def pairs(x: np.ndarray) -> np.ndarray:
        return np.asarray(x * (x - 1) / 2)

    joint, one, two = pairs(table).sum((1, 2)), pairs(rows).sum(1), pairs(columns).sum(1)
    expected = one * two / pairs(np.array(float(n)))
    room = (one + two) / 2 - expected
    ari = np.where(room == 0, 1.0, (joint - expected) / np.where(room == 0, 1.0, room))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = table / n
        mutual = np.nansum(p * np.log(p * n * n / (rows[:, :, None] * columns[:, None, :])), axis=(1, 2))
        mean = -(np.nansum(rows / n * np.log(rows / n), 1) + np.nansum(columns / n * np.log(columns / n), 1)) / 2
    nmi = np.where(mean <= 1e-15, 1.0, mutual / np.where(mean <= 1e-15, 1.0, mean))
    return ari, nmi


# -- neighbours --------------------------------------------------------------------------------------------------------
def nearest(similarity: Square, allowed: Bool[np.ndarray, "n n"], k: int) -> Int[np.ndarray, "n k"]:
    """The k nearest allowed, nearest first; −1 where there are fewer."""
    S = np.where(allowed & ~np.isnan(similarity), similarity, -np.inf)
    order = np.argsort(-S, axis=1, kind="stable")[:, :k]
    out: Int[np.ndarray, "n k"] = np.where(np.take_along_axis(S, order, 1) == -np.inf, -1, order)
    return out


def voted_right(neighbours: Int[np.ndarray, "n k"], labels: Draws) -> Float[np.ndarray, "d n"]:
    """1 where the neighbours' most frequent label (of equals the nearest one's) is the own, else 0."""
    seen = np.where(neighbours >= 0, labels[:, np.maximum(neighbours, 0)], -1)  # (d, n, k)
    votes = (seen[..., :, None] == seen[..., None, :]).sum(-1) * (seen >= 0)
    winner = np.take_along_axis(seen, votes.argmax(-1)[..., None], -1)[..., 0]
    out: Float[np.ndarray, "d n"] = (winner == labels).astype(float)
    return out


def answerable(labels: Labels, allowed: Bool[np.ndarray, "n n"]) -> Bool[np.ndarray, "n"]:
    """Whether an allowed other has the own label: else no neighbour could be right."""
    out: Bool[np.ndarray, "n"] = (allowed & (labels[:, None] == labels)).any(1)
    return out


def majority_right(labels: Labels, allowed: Bool[np.ndarray, "n n"]) -> Float[np.ndarray, "n"]:
    """1 where the most frequent label among the allowed others is the own, else 0: the baseline without similarities."""
    counts = allowed.astype(float) @ np.eye(int(labels.max()) + 1)[labels]
    out: Float[np.ndarray, "n"] = (counts.argmax(1) == labels).astype(float)
    return out


# -- identification ----------------------------------------------------------------------------------------------------
def ranks(similarity: Float[np.ndarray, "q k"], right: Int[np.ndarray, "q"]) -> Int[np.ndarray, "q"]:
    """Place of the right one among all, 1 is first; equals count against it, and an undefined one is last."""
    own = np.take_along_axis(similarity, right[:, None], 1)
    others = np.where(np.isnan(similarity), -np.inf, similarity) >= np.where(np.isnan(own), -np.inf, own)
    out: Int[np.ndarray, "q"] = others.sum(1)  # the right one itself counts as 1
    return out


def above(similarity: Float[np.ndarray, "q k"], right: Int[np.ndarray, "q"]) -> Float[np.ndarray, "q q"]:
    """C_ab: share of b's wrong ones that the right one of a is above (½ for equals), b's own right one left out.

    The mean of C is the AUC of right against wrong pairs; the mean over drawn rows and the same columns is a bootstrap
    draw of it. Undefined wrong pairs are left out, an undefined right one is above none.
    """
    own = np.take_along_axis(similarity, right[:, None], 1)[:, 0]
    wrong = similarity.copy()
    np.put_along_axis(wrong, right[:, None], np.nan, 1)
    known = ~np.isnan(wrong)
    with np.errstate(invalid="ignore"):
        higher = (own[:, None, None] > wrong[None]).astype(float) + 0.5 * (own[:, None, None] == wrong[None])
    out: Float[np.ndarray, "q q"] = (higher * known).sum(2) / np.maximum(known.sum(1), 1)
    return out


# -- agreement of matrices ---------------------------------------------------------------------------------------------
def mantel(
    matrices: Float[np.ndarray, "m n n"], permutations: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m m"]]:
    """Spearman correlation of every two matrices over pairs i < j, and Mantel's p (two-sided).

    Rows and columns of one are permuted together: pairs that share a thing are not independent, so the pairs'
    own p-value would mean nothing. p = (1 + #{|ρ_permuted| ≥ |ρ|})/(1 + permutations).
    """
    from scipy.stats import rankdata

    n = matrices.shape[1]
    i, j = np.triu_indices(n, 1)
    R = rankdata(matrices[:, i, j], axis=1)
    R -= R.mean(1, keepdims=True)
    R /= np.maximum(np.linalg.norm(R, axis=1, keepdims=True), 1e-300)
    square = np.zeros((len(R), n, n))
    square[:, i, j] = square[:, j, i] = R
    found = R @ R.T
    beyond = np.zeros(found.shape)
    for _ in range(permutations):
        p = rng.permutation(n)
        beyond += np.abs(square[:, p[i], p[j]] @ R.T) >= np.abs(found) - 1e-12
    return found, (1 + np.maximum(beyond, beyond.T)) / (1 + permutations)


def spearman_intervals(
    matrices: Float[np.ndarray, "m n n"], groups: Labels, draws: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m m"]]:
    """95 % bootstrap intervals of those correlations: groups of things are drawn, pairs of copies of one are left out."""
    from scipy.stats import rankdata

    members = [np.flatnonzero(groups == g) for g in range(int(groups.max()) + 1)]
    found = []
    for _ in range(draws):
        at = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        i, j = np.triu_indices(len(at), 1)
        keep = at[i] != at[j]
        R = rankdata(matrices[:, at[i[keep]], at[j[keep]]], axis=1)
        R -= R.mean(1, keepdims=True)
        R /= np.maximum(np.linalg.norm(R, axis=1, keepdims=True), 1e-300)
        found.append(R @ R.T)
    low, high = np.quantile(np.stack(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def principal_positions(matrix: Square, dims: int = 2) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "d"]]:
    """Scores of the rows of T̄ on their principal axes, signs fixed, and each axis' share of the variance."""
    X = matrix - matrix.mean(0)
    U, S, _ = np.linalg.svd(X, full_matrices=False)
    scores = U[:, :dims] * S[:dims]
    sign = np.sign(scores[np.abs(scores).argmax(0), np.arange(dims)])
    return scores * np.where(sign == 0, 1.0, sign), S[:dims] ** 2 / max(float((S**2).sum()), 1e-300)
