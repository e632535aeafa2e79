"""The described vectors of a registry, with everything a prediction needs of them."""

from __future__ import annotations

from collections import Counter
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
from comgrad.predict.start import Start, zero_start
from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector

DEFAULT_RANK = 8
MOST = 3.0  # times the median size that a task's gains may count with
ODD = 30.0  # times the median that no real gradient comes near; the largest of the starter zoo has 12


@dataclass(frozen=True)
class Known:
    """The described vectors of a collection: their evidence, and the weights when they are asked for.

    Args:
        warnings: what of the registry is not used, and why.
    """

    atlas: Collection
    evidence: Evidence
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, atlas: Collection, *, cache: Path | None = None) -> Known:
        """The described members of a collection.

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
        texts = [m.description for m in chosen.members]
        rows = encode_cached(load_encoder(), texts, cache).astype(np.float64)
        gains, odd = bounded(chosen.gains().total)
        warnings = tuple(
            f"the gradient of '{chosen.members[i].name}' promises {times:.0f} times the usual gains; it counts with {MOST:.0f} times"
            for i, times in odd.items()
        )
        return cls(chosen, Evidence(chosen.gram, gains, rows, tuple(texts)), warnings)

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

    @cached_property
    def vectors(self) -> list[TaskVector]:
        """The task vectors, read once."""
        return self.atlas.vectors()

    @property
    def base(self) -> BaseRef:
        """The base they all stand on."""
        return self.vectors[0].base

    def usual_rank(self) -> int:
        """The rank most of the vectors have."""
        ranks = Counter(v.rank for v in self.vectors if v.rank)
        return int(ranks.most_common(1)[0][0]) if ranks else DEFAULT_RANK

    def usual_scale(self) -> float:
        """The α/r most of the vectors were trained with; it sets how far one training step moves ΔW."""
        scales = Counter(d.scale for v in self.vectors for d in v.tensors.values() if isinstance(d, LowRank))
        positive = [(n, s) for s, n in scales.items() if s > 0]
        return float(max(positive)[1]) if positive else 1.0

    def usual_norm(self) -> float:
        """The median of the vectors' norms."""
        return float(np.median(np.sqrt(np.maximum(np.diag(self.evidence.gram), 0.0))))

    def norm(self, coefficients: Float[np.ndarray, "k"]) -> float:
        """‖Σ c_k τ_k‖ from the Gram matrix."""
        return float(max(coefficients @ self.evidence.gram @ coefficients, 0.0) ** 0.5)

    def zero_start(self, rank: int) -> Start:
        """A plain zero start of the shape and scale the known vectors have."""
        return zero_start(self.base, self.vectors[0].tensors, rank, scale=self.usual_scale())

    def trainable_part(self, vector: TaskVector) -> TaskVector:
        """The tensors that known adapters train, when adapters are known: a full checkpoint among the sources does
        not make the next adapter train everything."""
        names = {n for v in self.vectors if v.kind == "lowrank" for n in v.tensors}
        kept = {n: d for n, d in vector.tensors.items() if n in names}
        return TaskVector(vector.base, kept) if kept else vector


def bounded(gains: Float[np.ndarray, "k k"]) -> tuple[Float[np.ndarray, "k k"], dict[int, float]]:
    """The gains with no row larger than three times the median row, and the rows that are implausible: index → times.

    A row's size is the root mean square of its gains. Gradients are contributed by anybody; one of a thousand times the
    usual size would bend every prediction. It keeps its direction and loses its size (decision 0008).
    """
    known = np.flatnonzero(np.isfinite(gains).all(axis=1))
    size = np.sqrt((gains[known] ** 2).mean(axis=1)) if len(known) else np.zeros(0)
    usual = float(np.median(size)) if len(known) else 0.0
    kept = gains.copy()
    if usual == 0.0:
        return kept, {}
    kept[known] *= np.minimum(1.0, MOST / np.maximum(size / usual, 1e-300))[:, None]
    return kept, {int(i): float(s / usual) for i, s in zip(known, size, strict=True) if s > ODD * usual}
