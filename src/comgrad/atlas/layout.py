"""The map of tasks: positions from a similarity matrix, and clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from comgrad.errors import ComgradError


@dataclass(frozen=True)
class Layout:
    """Positions (K, 2), Kruskal's stress-1 in [0, 1], a cluster number per point, their mean silhouette."""

    positions: Float[np.ndarray, "k 2"]
    stress: float
    clusters: Int[np.ndarray, "k"]
    silhouette: float


def lay_out(similarity: Float[np.ndarray, "k k"], *, seed: int = 0) -> Layout:
    """Ordinal multidimensional scaling of 1 − similarity, started from the classical solution.

    Ordinal, because cosines of task vectors crowd near 0: their order carries the structure, their size does not fill
    a plane. Signs and order of axes are fixed, so that the same matrix always gives the same picture.

    Raises:
        ComgradError: fewer than three vectors.
    """
    K = len(similarity)
    if K < 3:
        raise ComgradError(f"{K} vectors", "a map needs at least three", "add more adapters", code="too-few")
    distance = 1.0 - np.asarray(similarity, dtype=np.float64)
    distance = np.maximum((distance + distance.T) / 2, 1e-9)  # an exact 0 counts as unknown in ordinal scaling
    np.fill_diagonal(distance, 0.0)
    if distance.max() <= 1e-9:  # all the same: one point
        return Layout(np.zeros((K, 2)), 0.0, np.zeros(K, dtype=np.int64), 0.0)
    positions, stress = _ordinal(distance, seed)
    clusters, silhouette = _clusters(distance)
    return Layout(positions, stress, clusters, silhouette)


def _ordinal(distance: Float[np.ndarray, "k k"], seed: int) -> tuple[Float[np.ndarray, "k 2"], float]:
    from sklearn.manifold import MDS

    scaler = MDS(
        n_components=2,
        metric="precomputed",
        metric_mds=False,
        n_init=1,
        init="classical_mds",
        max_iter=500,
        normalized_stress=True,
        random_state=seed,
    )
    found = scaler.fit_transform(distance)
    found = found - found.mean(axis=0)
    _, _, axes = np.linalg.svd(found, full_matrices=False)
    turned = found @ axes.T
    sign = np.sign(turned[np.abs(turned).argmax(axis=0), range(turned.shape[1])])
    return turned * np.where(sign == 0, 1.0, sign), float(scaler.stress_)


def _clusters(distance: Float[np.ndarray, "k k"]) -> tuple[Int[np.ndarray, "k"], float]:
    """Average-linkage clusters; their number is the one with the best mean silhouette."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    K = len(distance)
    if K < 4:
        return np.zeros(K, dtype=np.int64), 0.0
    best: tuple[float, Int[np.ndarray, "k"]] | None = None
    for n in range(2, min(K - 1, max(3, K // 2)) + 1):
        labels = AgglomerativeClustering(n_clusters=n, metric="precomputed", linkage="average").fit_predict(distance)
        score = float(silhouette_score(distance, labels, metric="precomputed"))
        if best is None or score > best[0] + 1e-12:
            best = (score, np.asarray(labels, dtype=np.int64))
    assert best is not None
    return _numbered(best[1]), best[0]


def _numbered(labels: Int[np.ndarray, "k"]) -> Int[np.ndarray, "k"]:
    """Cluster numbers by size, largest first, ties by first member."""
    found, first, count = np.unique(labels, return_index=True, return_counts=True)
    order = sorted(range(len(found)), key=lambda i: (-count[i], first[i]))
    rank = {int(found[i]): r for r, i in enumerate(order)}
    return np.array([rank[int(x)] for x in labels], dtype=np.int64)
