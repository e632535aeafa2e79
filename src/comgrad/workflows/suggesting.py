"""Journey: suggest. A description becomes a starting adapter, or an honest abstention."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.atlas.collection import Collection
from comgrad.describe.encoder import load_encoder
from comgrad.describe.memory import encode_cached
from comgrad.describe.task import load_task
from comgrad.errors import ComgradError
from comgrad.predict.ridge import RidgePredictor, fit, left_out_confidence
from comgrad.predict.start import Start, combination, predicted_start, trainable_ranks, zero_start
from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.storage import check_free
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection
from comgrad.workflows.searching import checked_description

UNLIKE_QUANTILE = 0.05
FEWEST = 3
DEFAULT_RANK = 8


@dataclass(frozen=True)
class Source:
    """One known vector and its coefficient in the prediction, scale included."""

    id: str
    name: str
    coefficient: float


@dataclass(frozen=True)
class Suggestion:
    """A starting adapter, where it comes from, and how far to trust it."""

    description: str
    abstained: bool
    reason: str
    rule: str
    confidence: float
    scale: float
    sources: list[Source]
    vector: TaskVector
    energy_kept: float
    base: str
    path: str = ""

    @property
    def trainable(self) -> dict[str, int]:
        return trainable_ranks(self.vector)

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        keys = ("abstained", "reason", "rule", "confidence", "scale", "energy_kept", "base", "path")
        shown = {k: getattr(self, k) for k in keys}
        return shown | {"sources": [dict(s.__dict__) for s in self.sources], "trainable": self.trainable}


@dataclass(frozen=True)
class Known:
    """The described vectors of a collection, with what a prediction needs of them."""

    atlas: Collection
    embeddings: np.ndarray[Any, np.dtype[np.float64]]
    predictor: RidgePredictor

    @classmethod
    def of(cls, atlas: Collection, *, cache: Path | None = None) -> Known:
        """Fit the predictor on the collection's described vectors.

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
        rows = encode_cached(load_encoder(), [m.description for m in chosen.members], cache).astype(np.float64)
        return cls(chosen, rows, fit(rows, chosen.gram))

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

    def zero_start(self, rank: int) -> Start:
        """A plain zero start of the shape and scale the known vectors have."""
        return zero_start(self.base, self.vectors[0].tensors, rank, scale=self.usual_scale())

    def trainable_part(self, vector: TaskVector) -> TaskVector:
        """The tensors that known adapters train, when adapters are known: a full checkpoint among the sources does
        not make the next adapter train everything."""
        names = {n for v in self.vectors if v.kind == "lowrank" for n in v.tensors}
        kept = {n: d for n, d in vector.tensors.items() if n in names}
        return TaskVector(vector.base, kept) if kept else vector

    def usual_norm(self) -> float:
        """The median of the vectors' norms."""
        return float(np.median(np.sqrt(np.maximum(np.diag(self.atlas.gram), 0.0))))


def suggest(
    text: str, out: Path, *, rank: int | None = None, task_dir: Path | None = None, base: str | None = None
) -> Suggestion:
    """Predict a starting adapter and write it as a PEFT folder with its card.

    Args:
        text: the new task in words.
        out: folder to write.
        rank: of the adapter; default: the rank most known vectors have.
        task_dir: a task folder; its training examples choose the scale, zero included.

    Raises:
        ComgradError: a description that cannot be one; an empty registry; several bases; no text encoder.
    """
    check_free(out)
    checked_description(text)
    registry = Registry()
    known = Known.of(collection(registry, base=base), cache=registry.store.cache_dir)
    made = predict(known, text, rank=rank, task_dir=task_dir)
    write_peft(made.vector, out, extra_files={"task_card.json": _card(made)})
    return replace(made, path=str(out))


def predict(known: Known, text: str, *, rank: int | None = None, task_dir: Path | None = None) -> Suggestion:
    """The suggestion, not yet written."""
    description = checked_description(text)
    e = load_encoder().encode([description])[0].astype(np.float64)
    rank = known.usual_rank() if rank is None else rank
    coefficients = known.predictor.coefficients(e)
    confidence = known.predictor.confidence(e)
    if task_dir is not None:
        load_task(task_dir)  # a folder that cannot be read is refused whatever the words say
    reason = _why_abstain(known, confidence, guarded=task_dir is not None)
    if reason:
        return _abstention(known, description, reason, confidence, rank)
    whole = known.trainable_part(combination(known.vectors, coefficients.tolist()))
    start = predicted_start(whole, rank, scale=known.usual_scale())
    factor = 1.0
    if task_dir is not None:
        from comgrad.workflows.scaling import best_factor

        factor = best_factor(start.vector, task_dir, usual_norm=known.usual_norm())
        if factor == 0.0:
            return _abstention(
                known,
                description,
                "on the examples given, no scale of the prediction beats starting from zero.",
                confidence,
                rank,
            )
        start = predicted_start(whole * factor, rank, scale=known.usual_scale())
    coefficients = coefficients * factor
    order = np.argsort(-np.abs(coefficients), kind="stable")
    sources = [
        Source(known.atlas.members[i].id, known.atlas.members[i].name, float(coefficients[i]))
        for i in order
        if coefficients[i] != 0.0
    ]
    scale = known.predictor.chosen.scale * factor
    return Suggestion(
        description,
        False,
        "",
        known.predictor.rule,
        confidence,
        scale,
        sources,
        start.vector,
        start.energy_kept,
        known.base.name,
    )


def _why_abstain(known: Known, confidence: float, *, guarded: bool) -> str:
    """Empty, or why there is no prediction. Labelled examples guard against unlike words: zero is one of their choices."""
    if len(known.atlas.members) < FEWEST:
        return f"fewer than {FEWEST} described vectors are known."
    if known.predictor.rule == "zero":
        return "left out one by one, the known vectors are not predicted better than by zero."
    floor = float(np.quantile(left_out_confidence(known.predictor), UNLIKE_QUANTILE))
    if confidence < floor and not guarded:
        return f"the description is unlike the known ones (confidence {confidence:.3f}; 95 % of known tasks have at least {floor:.3f})."
    return ""


def _abstention(known: Known, description: str, reason: str, confidence: float, rank: int) -> Suggestion:
    start = known.zero_start(rank)
    return Suggestion(
        description, True, reason, "zero", confidence, 0.0, [], start.vector, start.energy_kept, known.base.name
    )


def _card(made: Suggestion) -> bytes:
    card = {
        "schema": 1,
        "description": made.description,
        "base_model": made.base,
        "notes": "a starting adapter predicted from the description; not trained",
        "parents": [{"id": s.id, "role": "suggest", "coefficient": s.coefficient} for s in made.sources[:1000]],
        "metrics": {"confidence": made.confidence, "scale": made.scale, "energy_kept": made.energy_kept},
        "extra": {"rule": made.rule, "abstained": made.abstained},
    }
    return (json.dumps(card, ensure_ascii=False, indent=1) + "\n").encode()
