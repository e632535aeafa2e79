"""The described vectors of a registry, with everything a prediction needs of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from comgrad.atlas.collection import Collection
from comgrad.describe.encoder import load_encoder
from comgrad.describe.memory import encode_cached
from comgrad.errors import ComgradError
from comgrad.predict.evidence import Evidence, Query
from comgrad.predict.functional import FEWEST, Functional
from comgrad.predict.ridge import RidgePredictor, fit
from comgrad.predict.start import Start, combination, zero_start
from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.layouts import is_input_embedding
from comgrad.workflows.standing import standing

DEFAULT_RANK = 8
MOST = 3.0  # times the median size that a task's gains may count with
LONGEST = 2.0  # times the median norm that a vector may count with
JITTER = 1e-3  # of the mean squared norm, so that copies and sums of known vectors are no trouble
ODD = 30.0  # times the median that no real gradient comes near; the largest of the starter zoo has 12


@dataclass(frozen=True)
class Traits:
    """What the vectors have in common.

    Args:
        base: the base they all stand on.
        rank: the one most of them have. scale: the α/r most of them were trained with; it sets how far one training step
            moves ΔW.
        trained: names of the tensors that adapters among them train.
        like: place of the first adapter, or of the first vector.
    """

    base: BaseRef
    rank: int
    scale: float
    trained: frozenset[str]
    like: int

    @classmethod
    def of(cls, vectors: Iterable[TaskVector]) -> Traits:
        """Of vectors that are looked at one after another."""
        base: BaseRef | None = None
        ranks: Counter[int] = Counter()
        scales: Counter[float] = Counter()
        trained: set[str] = set()
        like = None
        for k, v in enumerate(vectors):
            base = base or v.base
            ranks.update([v.rank] if v.rank else [])
            scales.update(d.scale for d in v.tensors.values() if isinstance(d, LowRank) and d.scale > 0)
            if v.kind == "lowrank":
                trained.update(v.tensors)
                like = k if like is None else like
        assert base is not None
        rank = ranks.most_common(1)[0][0] if ranks else DEFAULT_RANK
        scale = max((n, s) for s, n in scales.items())[1] if scales else 1.0
        return cls(base, int(rank), float(scale), frozenset(trained), like or 0)


@dataclass(frozen=True)
class Known:
    """The described vectors of a collection: their evidence, and the weights when they are asked for. None is held here.

    Vectors and gradients come from anybody, so near-duplicates count as one and claims that the weights contradict not at
    all (`workflows.standing`), and everything here is on one footing: vector k counts as s_k τ_k,
    s_k = min(1, 2·median norm/‖τ_k‖), a row of gains with at most three times the median row's size, and G carries 0.1 % of
    its mean diagonal more on its diagonal. Coefficients are those of s_k τ_k; `of_originals` gives those of τ_k.

    Args:
        footing: s (K,).
        warnings: what of the registry does not count in full, and why.
    """

    atlas: Collection
    evidence: Evidence
    footing: Float[np.ndarray, "k"]
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, atlas: Collection, *, cache: Path | None = None, rows: Mapping[str, Float[np.ndarray, "d"]] | None = None
    ) -> Known:
        """The described members of a collection.

        Args:
            cache: a folder that remembers embeddings. rows: text → embedding of every description, where they are known.

        Raises:
            ComgradError: no vector has a description.
        """
        described = [i for i, m in enumerate(atlas.members) if m.description.strip()]
        if not described:
            raise ComgradError(
                "a registry without descriptions",
                "a prediction goes from words to vectors",
                "add vectors with --describe",
                code="no-descriptions",
            )
        chosen = atlas.subset(described)
        counted = standing(chosen)
        chosen = chosen.subset(counted.kept)
        texts = [m.description for m in chosen.members]
        embedded = encode_cached(load_encoder(), texts, cache) if rows is None else np.stack([rows[t] for t in texts])
        s = footing(chosen.gram)
        found = chosen.gains()
        gains, odd = bounded(found.total * s)
        gram = chosen.gram * np.outer(s, s)
        gram = gram + JITTER * np.diag(gram).mean() * np.eye(len(s))
        names = [m.name for m in chosen.members]
        warnings = list(counted.notes)
        warnings += [
            f"the gradient of '{m.name}' is of another base or of other shapes and is not used"
            for m, usable in zip(chosen.members, found.known, strict=True)
            if m.gradient is not None and not usable
        ]
        warnings += [
            f"the gradient of '{names[i]}' promises {times:.0f} times the usual gains and is not used"
            for i, times in odd.items()
        ]
        warnings += [
            f"'{names[i]}' is {LONGEST / s[i]:.0f} times as long as the usual vector; it counts with {LONGEST:.0f} times"
            for i in np.flatnonzero(s < LONGEST / ODD)
        ]
        return cls(chosen, Evidence(gram, gains, embedded.astype(np.float64), tuple(texts)), s, tuple(warnings))

    @staticmethod
    def query(text: str) -> Query:
        """A description as rules take it."""
        return Query(text, load_encoder().encode([text])[0].astype(np.float64))

    @cached_property
    def ridge(self) -> RidgePredictor:
        """The rule on the vectors themselves; its confidence says how unlike the known descriptions a new one is."""
        return fit(self.evidence.embeddings, self.evidence.gram)

    @cached_property
    def functional(self) -> Functional | None:
        """The rule on gains; None where fewer than eight tasks have a gradient."""
        enough = int(self.evidence.with_gradient.sum()) >= FEWEST
        return Functional.of(self.evidence) if enough else None

    def vector(self, k: int) -> TaskVector:
        """s_k τ_k."""
        v, s = self.atlas.members[k].load(), float(self.footing[k])
        return v if s == 1.0 else v * s

    @property
    def vectors(self) -> list[TaskVector]:
        """s_k τ_k of all."""
        return [self.vector(k) for k in range(len(self.footing))]

    def sum(self, coefficients: Float[np.ndarray, "k"]) -> TaskVector:
        """Σ c_k s_k τ_k; only what counts is read. Raises as `predict.start.combination`."""
        used = np.flatnonzero(coefficients).tolist()
        return combination([self.vector(k) for k in used], coefficients[used].tolist())

    def of_originals(self, coefficients: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
        """Coefficients of the vectors as they are in the registry."""
        out: Float[np.ndarray, "k"] = coefficients * self.footing
        return out

    @cached_property
    def traits(self) -> Traits:
        """What the vectors have in common."""
        return Traits.of(m.load() for m in self.atlas.members)

    def usual_norm(self) -> float:
        """The median of the vectors' norms."""
        return float(np.median(np.sqrt(np.maximum(np.diag(self.evidence.gram), 0.0))))

    def norm(self, coefficients: Float[np.ndarray, "k"]) -> float:
        """‖Σ c_k s_k τ_k‖ from the Gram matrix."""
        c = self.of_originals(coefficients)
        return float(max(c @ self.atlas.gram @ c, 0.0) ** 0.5)

    def zero_start(self, rank: int) -> Start:
        """A plain zero start of the shape and scale the known vectors have."""
        like = self.vector(self.traits.like).tensors
        kept = {n: d for n, d in like.items() if not is_input_embedding(n)}
        return zero_start(self.traits.base, kept, rank, scale=self.traits.scale)

    def trainable_part(self, vector: TaskVector) -> TaskVector:
        """The tensors that known adapters train, when adapters are known: a full checkpoint among the sources does
        not make the next adapter train everything."""
        kept = {n: d for n, d in vector.tensors.items() if n in self.traits.trained}
        return TaskVector(vector.base, kept) if kept else vector


def footing(gram: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k"]:
    """s_k = min(1, 2·median norm/‖τ_k‖): no vector is longer than twice the usual one, or it alone would set the scale."""
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    usual = float(np.median(norms))
    s: Float[np.ndarray, "k"] = np.minimum(1.0, LONGEST * usual / np.maximum(norms, 1e-300)) if usual else norms * 0 + 1
    return s


def bounded(gains: Float[np.ndarray, "k k"]) -> tuple[Float[np.ndarray, "k k"], dict[int, float]]:
    """The gains with no row larger than three times the median row, and the implausible rows taken out: index → times.

    A row's size is the root mean square of its gains. Gradients are contributed by anybody; one of a thousand times the
    usual size would bend every prediction. Above 30 times the median a row is as good as none (NaN); below, it keeps its
    direction and loses its size (decision 0008).
    """
    known = np.flatnonzero(np.isfinite(gains).all(axis=1))
    size = np.sqrt((gains[known] ** 2).mean(axis=1)) if len(known) else np.zeros(0)
    usual = float(np.median(size)) if len(known) else 0.0
    kept = gains.copy()
    if usual == 0.0:
        return kept, {}
    odd = {int(i): float(s / usual) for i, s in zip(known, size, strict=True) if s > ODD * usual}
    kept[list(odd)] = np.nan
    usual = float(np.median(size[size <= ODD * usual]))
    kept[known] *= np.minimum(1.0, MOST * usual / np.maximum(size, 1e-300))[:, None]
    return kept, odd
