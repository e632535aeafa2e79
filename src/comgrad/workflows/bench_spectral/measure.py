"""The quantities of the study for all pairs at once: the zoo's vectors, and random adapters with their spectra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from comgrad.explain.inclusion import Features, features
from comgrad.geometry.gram import Progress
from comgrad.geometry.rank import canonical
from comgrad.vectors.delta import Delta, LowRank, matrix_shape
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench.corpus import Corpus


@dataclass(frozen=True, eq=False)
class Board:
    """Everything measured.

    Args:
        ids: the K tasks with a vector, in the corpus's order.
        groups: source group of each; families: family of each.
        found: features of the K vectors and, after them, of `randoms` random adapters.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    families: tuple[str, ...]
    found: Features
    randoms: int

    def place(self, identity: str) -> int:
        return self.ids.index(identity)

    def modules(self, measure: str, a: str, b: str) -> Float[np.ndarray, "T"]:
        """A measure of b in the frame of a, per tensor."""
        return np.asarray(self.found.pairs[measure][:, self.place(a), self.place(b)].numpy())

    def mean(self, measure: str) -> Float[np.ndarray, "n n"]:
        """A measure averaged over layers and modules, all pairs; random adapters last."""
        return np.asarray(self.found.pairs[measure].nanmean(0).numpy())

    def unrelated(self, a: str, related: set[tuple[str, str]]) -> list[int]:
        """Tasks of another family and source, in no listed pair with a."""
        i = self.place(a)
        return [
            j
            for j, b in enumerate(self.ids)
            if self.families[j] != self.families[i]
            and self.groups[j] != self.groups[i]
            and (a, b) not in related
            and (b, a) not in related
        ]


def measure(corpus: Corpus, randoms: int, seed: int, progress: Progress | None = None) -> Board:
    """Measure the corpus's vectors and `randoms` random adapters. Errors as `geometry.measures.matrices`."""
    real = list(corpus.vectors)
    drawn = random_adapters(real, randoms, seed)
    return Board(
        tuple(i.id for i in corpus.known),
        tuple(i.source_group for i in corpus.known),
        tuple(i.family for i in corpus.known),
        features([*real, *drawn], progress=progress),
        randoms,
    )


def random_adapters(vectors: Sequence[TaskVector], count: int, seed: int) -> list[TaskVector]:
    """Adapters with the spectra of real ones, drawn at random, in uniformly drawn frames: nothing is shared but size."""
    chosen = np.random.default_rng([seed, 12]).integers(len(vectors), size=count)
    g = torch.Generator().manual_seed(seed)
    return [_redrawn(vectors[k], g) for k in chosen]


def _redrawn(v: TaskVector, g: torch.Generator) -> TaskVector:
    out: dict[str, Delta] = {}
    for name in sorted(v.tensors):
        d = v.tensors[name]
        if d.is_matrix:
            form = canonical(d)
            S = form.S[0, : int(form.rank[0])]
            m, n = matrix_shape(d)
            out[name] = LowRank(_frame(m, len(S), g) * S, _frame(n, len(S), g).T.contiguous(), 1.0, d.stored)
    return TaskVector(v.base, out)


def _frame(m: int, r: int, g: torch.Generator) -> Tensor:
    """(m, r) orthonormal, uniform: the sign of R's diagonal is folded in."""
    Q, R = torch.linalg.qr(torch.randn(m, r, generator=g, dtype=torch.float64))
    out: Tensor = Q * R.diagonal().sign()
    return out
