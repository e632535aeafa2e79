"""From T(i, j, l) to one similarity for each pair: over all tensors, a layer's or a role's, raw or against the null.

| pooling | the similarity of i and j |
|---|---|
| `mean` | T̄(i, j) = 1/L Σ_l T(i, j, l), over the tensors where it is defined |
| `null` | 1/L Σ_l (T(i, j, l) − μ_l)/s_l with the null's mean and standard deviation on that tensor |
| `whole` | the measure's formula on the whole vector (inner products add over tensors) |
| `random` | as `mean`, of the vectors with random singular vectors: the negative control |

Directed measures are the mean of both directions. Distances change sign: larger is nearer everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from comgrad.geometry.gram import centred, cosine_from_gram
from comgrad.geometry.table import MEASURES
from comgrad.workflows.bench_similarity.plan import NEARNESS, ZOO, Study
from comgrad.workflows.bench_similarity.tables import Table, Tensor

POOLINGS = ("mean", "null", "whole")
CENTRED = "centred_cosine"


def is_whole(measure: str) -> bool:
    """Whether the measure has a formula on the whole vector."""
    return MEASURES[measure].pool == "gram"


def centred_cosine(inner: Table, energy: Float[np.ndarray, "n"]) -> Table:
    """Cosine of u_i − ū and u_j − ū, ū the mean of the zoo's unit vectors, from the Gram matrix alone.

    Args:
        inner: (N, K) products with the zoo, whose vectors are the first K rows. energy: (N,) squared norms.
    """
    N, K = inner.shape
    G = np.zeros((N, N))
    G[:, :K], G[:K, :] = inner, inner.T
    G[np.arange(N), np.arange(N)] = energy  # products among further vectors stay 0: nothing below looks at them
    cosine = cosine_from_gram(torch.from_numpy(G))
    known = ~cosine.diagonal().isnan()
    among = known & (torch.arange(N) < K)
    out = cosine_from_gram(centred(cosine.nan_to_num(0.0), among), floor=1e-12)
    found: Table = torch.where(known[:, None] & known, out, torch.nan)[:, :K].numpy()
    return found


@dataclass
class Pools:
    """The tables of a study, and of its null, pooled as asked."""

    study: Study
    real: Sequence[Tensor]
    random: Sequence[Tensor]
    _blocks: dict[tuple[str, bool], Float[np.ndarray, "t n k"]] = field(default_factory=dict)

    def blocks(self, measure: str, *, random: bool = False) -> Float[np.ndarray, "t n k"]:
        """Every tensor's table, larger is nearer; a zoo vector with itself is undefined."""
        key = (measure, random)
        if key not in self._blocks:
            sign = 1.0 if MEASURES[measure].higher_is_nearer else -1.0
            parts = [_of_tensor(t, measure) for t in (self.random if random else self.real)]
            self._blocks[key] = _without_self(sign * np.stack(parts))
        return self._blocks[key]

    def null(self, measure: str) -> tuple[Float[np.ndarray, "t n 1"], Float[np.ndarray, "t n 1"]]:
        """Mean and standard deviation under the null, of each tensor and, for rows of one kind, the same."""
        X = self.blocks(measure, random=True)
        mean, spread = np.full((*X.shape[:2], 1), np.nan), np.full((*X.shape[:2], 1), np.nan)
        for kind in (ZOO, *self.study.kinds):
            rows = self.study.rows(kind)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a tensor that no vector of the kind has
                mean[:, rows] = np.nanmean(X[:, rows], axis=(1, 2))[:, None, None]
                spread[:, rows] = np.nanstd(X[:, rows], axis=(1, 2))[:, None, None]
        return mean, np.where(spread > 0, spread, np.nan)

    def similarity(self, measure: str, pooling: str = "mean", scope: str = "all") -> Table:
        """(N, K), larger is nearer, NaN where it is undefined and for a zoo vector with itself."""
        at = list(self.study.scopes[scope])
        if pooling == "whole":
            return self._whole(measure, at)
        X = self.blocks(measure, random=pooling == "random")[at]
        if pooling == "null":
            mean, spread = self.null(measure)
            X = (X - mean[at]) / spread[at]
        known = ~np.isnan(X)
        count = known.sum(0)
        out: Table = np.where(count > 0, np.where(known, X, 0.0).sum(0) / np.maximum(count, 1), np.nan)
        return out

    def among_zoo(self, measure: str, pooling: str = "mean", scope: str = "all") -> Table:
        """(K, K) of the zoo, exactly symmetric."""
        S = self.similarity(measure, pooling, scope)[: len(self.study.zoo)]
        out: Table = (S + S.T) / 2
        return out

    def _whole(self, measure: str, at: list[int]) -> Table:
        inner = np.sum([self.real[t].ahead["inner"] for t in at], axis=0)
        energy = np.sum([self.real[t].energy for t in at], axis=0)
        if measure == CENTRED:
            whole: Table = _without_self(centred_cosine(inner, energy)[None])[0]
            return whole
        K = inner.shape[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            one, two = energy[:, None], energy[None, :K]
            found = {
                "inner": lambda: inner,
                "cosine": lambda: inner / np.sqrt(one * two),
                "l2": lambda: -np.sqrt(np.maximum(one + two - 2 * inner, 0.0)),
                "projection": lambda: (inner / one + inner / two) / 2,
            }[measure]()
        out: Table = _without_self(np.where(np.isfinite(found), found, np.nan)[None])[0]
        return out

    @property
    def combinations(self) -> list[tuple[str, str]]:
        """Every measure with every pooling it has."""
        return [(m, p) for m in NEARNESS for p in POOLINGS if p != "whole" or is_whole(m)]


def _of_tensor(tensor: Tensor, measure: str) -> Table:
    return centred_cosine(tensor.ahead["inner"], tensor.energy) if measure == CENTRED else tensor.symmetric(measure)


def _without_self(X: Float[np.ndarray, "t n k"]) -> Float[np.ndarray, "t n k"]:
    K = X.shape[2]
    X[:, np.arange(K), np.arange(K)] = np.nan
    return X
