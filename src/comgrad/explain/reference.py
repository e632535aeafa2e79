"""What explaining knows of the described vectors, and of the vector in question, as numbers only.

A vector of the registry, left out, is a probe like any other: calibration asks the same questions of it, with the same
functions, as are asked of the unknown vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

FEWEST_TO_CENTRE = 10  # the mean of fewer vectors says nothing about a crowd
NEARLY_MEAN = 0.05  # of the median squared distance to the mean; below it a direction is rounding

Square = Float[np.ndarray, "k k"]
Row = Float[np.ndarray, "k"]


@dataclass(frozen=True)
class Label:
    """What the card of a described vector says."""

    id: str
    name: str
    description: str
    family: str = ""
    group: str = ""


@dataclass(frozen=True)
class Reference:
    """K described vectors over one base.

    Args:
        labels: their cards.
        gram: (L, K, K) Gram matrix of each layer.
        layers: the layers' names.
        kernel: (K, K) subspace kernel, see `subspaces`.
        embeddings: (K, d) unit rows, one per description; (K, 0) where no text encoder was asked.
        first: (K,) share of the largest singular value.
    """

    labels: tuple[Label, ...]
    gram: Float[np.ndarray, "l i j"]
    layers: tuple[str, ...]
    kernel: Float[np.ndarray, "n m"]
    embeddings: Float[np.ndarray, "q d"]
    first: Float[np.ndarray, "p"]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def total(self) -> Square:
        """G (K, K)."""
        out: Square = self.gram.sum(axis=0)
        return out

    @cached_property
    def norms(self) -> Row:
        """‖τ_k‖ (K,)."""
        out: Row = np.sqrt(np.maximum(np.diag(self.total), 0.0))
        return out

    @cached_property
    def families(self) -> tuple[str, ...]:
        return tuple(x.family for x in self.labels)

    def subset(self, indices: Sequence[int] | Int[np.ndarray, "j"]) -> Reference:
        """Some of the vectors, in the order given."""
        at = np.asarray(indices, dtype=int)
        return Reference(
            tuple(self.labels[i] for i in at),
            self.gram[:, at][:, :, at],
            self.layers,
            self.kernel[np.ix_(at, at)],
            self.embeddings[at],
            self.first[at],
        )

    def probe(self, index: int) -> Probe:
        """One of the vectors, asked about itself and all others; with `restricted` those it may look at."""
        return Probe(
            self.gram[:, index],
            self.gram[:, index, index],
            self.kernel[index],
            float(self.kernel[index, index]),
            first=float(self.first[index]),
        )

    def left_out(self, index: int, *, group: bool = False) -> tuple[Reference, Probe]:
        """The others, and the vector as they see it; with `group` none of its source group is among the others."""
        mine = self.labels[index].group
        rest = [j for j, x in enumerate(self.labels) if j != index and not (group and mine and x.group == mine)]
        return self.subset(rest), self.probe(index).restricted(rest)


@dataclass(frozen=True)
class Probe:
    """One vector τ as K described vectors see it.

    Args:
        inner: (L, K) ⟨τ, τ_k⟩ of each layer.
        energy: (L,) ‖τ‖² of each layer.
        kernel: (K,) subspace kernel; `own` with itself.
        outside: ‖τ‖² in tensors that no described vector changes; part of no layer.
        first: share of the largest singular value.
    """

    inner: Float[np.ndarray, "l k"]
    energy: Float[np.ndarray, "l"]
    kernel: Float[np.ndarray, "j"]
    own: float
    outside: float = 0.0
    first: float = 0.0

    @property
    def total(self) -> float:
        """‖τ‖²."""
        return float(self.energy.sum()) + self.outside

    @property
    def norm(self) -> float:
        """‖τ‖."""
        return float(np.sqrt(max(self.total, 0.0)))

    def restricted(self, indices: Sequence[int]) -> Probe:
        """Seen by some of the vectors only."""
        at = np.asarray(indices, dtype=int)
        return replace(self, inner=self.inner[:, at], kernel=self.kernel[at])


@dataclass(frozen=True)
class Similar:
    """Correlations after the mean of the described vectors is taken out.

    Args:
        among: (K, K) of the described vectors.
        row: (K,) of the probe with each.
        centred: whether the mean was taken out; with fewer than ten vectors it is not.
        alive: (K,) False for a vector that equals the mean, which is near to everything and says nothing.
    """

    among: Square
    row: Row
    centred: bool
    alive: Bool[np.ndarray, "k"]


def cosines(reference: Reference, probe: Probe) -> Row:
    """cos(τ, τ_k) (K,); 0 for zero vectors."""
    size = reference.norms * probe.norm
    out: Row = np.clip(probe.inner.sum(axis=0) / np.where(size > 0, size, np.inf), -1.0, 1.0)
    return out


def by_weights(reference: Reference, probe: Probe) -> Similar:
    """Centred cosines: of u − ū with u = τ/‖τ‖ and ū the mean over the described vectors."""
    size = np.where(reference.norms > 0, reference.norms, np.inf)
    return centred(reference.total / np.outer(size, size), cosines(reference, probe), 1.0 if probe.total > 0 else 0.0)


def by_subspace(reference: Reference, probe: Probe) -> Similar:
    """The same of the subspace kernel."""
    return centred(reference.kernel, probe.kernel, probe.own)


def centred(kernel: Square, row: Row, own: float) -> Similar:
    """Correlations of features minus their mean over the described vectors; the probe does not move the mean.

    k_c(i, j) = k(i, j) − k̄(i) − k̄(j) + k̄,   correlation = k_c(i, j)/√(k_c(i, i) k_c(j, j))

    Args:
        kernel: (K, K). row: (K,) the probe with each. own: the probe with itself.
    """
    K = len(kernel)
    if K < FEWEST_TO_CENTRE:
        size = np.sqrt(np.maximum(np.diag(kernel), 0.0))
        safe = np.where(size > 0, size, np.inf)
        mine = np.sqrt(own) if own > 0 else np.inf
        return Similar(
            np.clip(kernel / np.outer(safe, safe), -1.0, 1.0), np.clip(row / safe / mine, -1.0, 1.0), False, size > 0
        )
    mean, whole = kernel.mean(axis=0), float(kernel.mean())
    among = kernel - mean[:, None] - mean + whole
    away = np.diag(among)
    floor = NEARLY_MEAN * float(np.median(away))
    alive = away > floor
    size = np.sqrt(np.where(alive & (away > 0), away, np.inf))
    mine = own - 2.0 * float(row.mean()) + whole
    seen = row - float(row.mean()) - mean + whole
    scale = np.sqrt(mine) if mine > floor and mine > 0 else np.inf
    return Similar(
        np.clip(among / np.outer(size, size), -1.0, 1.0), np.clip(seen / size / scale, -1.0, 1.0), True, alive
    )
