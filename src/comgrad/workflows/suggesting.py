"""Journey: suggest. A description, and examples where there are some, become a starting adapter or an abstention."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.describe.task import load_task
from comgrad.errors import ComgradError
from comgrad.predict.evidence import Prediction, Query
from comgrad.predict.ridge import left_out_confidence
from comgrad.predict.rules import RULES
from comgrad.predict.start import predicted_start, trainable_ranks
from comgrad.predict.trainable import trainable_set
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from comgrad.weights.storage import check_free
from comgrad.workflows.known import Known
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection
from comgrad.workflows.searching import checked_description

UNLIKE_QUANTILE = 0.05
FEWEST = 3


@dataclass(frozen=True)
class Source:
    """One known vector and its coefficient in the prediction, scale included."""

    id: str
    name: str
    coefficient: float


@dataclass(frozen=True)
class Suggestion:
    """A starting adapter, where it comes from, and how far to trust it.

    Args:
        confidence: of a rule that predicts gains, the estimated probability that this start beats zero; of `ridge`,
            the share of the prior's variance that the known descriptions explain here.
        expected_gain: predicted fall of the loss in nats with its 90 % interval, where the rule predicts gains.
        scale: ‖τ̂‖ over the usual norm of a known vector.
        energy_kept: the share of ‖τ̂‖² that the adapter's rank keeps.
        examples: how many labelled examples were used.
        share: part of the adapter's parameters that `trainable` is about.
        warnings: what of the registry was not used, and why.
    """

    description: str
    abstained: bool
    reason: str
    rule: str
    confidence: float
    expected_gain: tuple[float, float, float] | None
    scale: float
    sources: list[Source]
    vector: TaskVector
    energy_kept: float
    base: str
    examples: int = 0
    path: str = ""
    share: float = 1.0
    warnings: tuple[str, ...] = ()

    @property
    def trainable(self) -> dict[str, int]:
        """Tensor → rank worth training: all of the adapter, or what the share asked for leaves."""
        return trainable_ranks(self.vector) if self.share == 1.0 else self.trainable_at(self.share)

    def trainable_at(self, share: float) -> dict[str, int]:
        """Tensor → rank worth training when only a share of the parameters may be. See `predict.trainable`."""
        return trainable_set(self.vector, share)

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        keys = ("abstained", "reason", "rule", "confidence", "scale", "energy_kept", "base", "examples", "path")
        shown = {k: getattr(self, k) for k in keys}
        if self.expected_gain is not None:
            shown["expected_gain"] = dict(zip(("nats", "low", "high"), self.expected_gain, strict=True))
        shown["warnings"] = list(self.warnings)
        return shown | {"sources": [dict(s.__dict__) for s in self.sources], "trainable": self.trainable}


def suggest(
    text: str,
    out: Path,
    *,
    rank: int | None = None,
    task_dir: Path | None = None,
    base: str | None = None,
    rule: str | None = None,
    dare: bool = False,
    share: float = 1.0,
) -> Suggestion:
    """Predict a starting adapter and write it as a PEFT folder with its card.

    Args:
        text: the new task in words.
        out: folder to write.
        base: which base, where the registry holds several: its name, its fingerprint, or its folder.
        rank: of the adapter; default: the rank most known vectors have.
        task_dir: a task folder; its training examples choose the coefficients, zero included.
        rule: a name in `predict.rules.RULES`; default: `functional`, or `ridge` where too few tasks have gradients.
        dare: write the prediction even where the rule would abstain.
        share: say which parameters are worth training when only this part of them may be.

    Raises:
        ComgradError: a description that cannot be one; an empty registry; several bases; no text encoder.
    """
    check_free(out)
    checked_description(text)
    registry = Registry()
    asked, folder = _base(base)
    known = Known.of(collection(registry, base=asked), cache=registry.store.cache_dir)
    made = predict(known, text, rank=rank, task_dir=task_dir, rule=rule, dare=dare, base=folder)
    made = replace(made, share=share, path=str(out))
    _ = made.trainable  # a share that cannot be is refused before anything is written
    write_suggestion(made, out)
    return made


def write_suggestion(made: Suggestion, out: Path, *, extra_files: Mapping[str, bytes] | None = None) -> None:
    """Write a suggestion as a PEFT folder with its card. Raises StorageError."""
    write_peft(made.vector, out, extra_files={"task_card.json": _card(made), **(extra_files or {})})


def _base(base: str | None) -> tuple[str | None, Path | None]:
    """What a registry calls the base that was named, and its folder where it was named by that."""
    if base is None or not Path(base).expanduser().is_dir():
        return base, None
    found = resolve_base(base)
    return found.fingerprint.root, found.path


def predict(
    known: Known,
    text: str,
    *,
    rank: int | None = None,
    task_dir: Path | None = None,
    rule: str | None = None,
    dare: bool = False,
    base: Path | None = None,
    query: Query | None = None,
) -> Suggestion:
    """The suggestion, not yet written.

    Args:
        base: the base's folder, where it is not found by its name.
        query: the description as rules take it, where it is embedded already.
    """
    description = checked_description(text)
    if rule is not None and rule not in RULES:
        raise ComgradError(f"the rule '{rule}'", "there is no such rule", f"choose one of: {', '.join(RULES)}")
    rank = known.traits.rank if rank is None else rank
    task = load_task(task_dir) if task_dir is not None else None
    found = from_words(known, query or known.query(description), rule)
    if dare:
        found = replace(found, reason="")
    if not found.coefficients.any() and not found.abstained:
        found = replace(found, reason=f"the rule '{found.rule}' makes every coefficient zero here.")
    used = 0
    if task is not None:
        from comgrad.workflows.fewshot import chosen_examples, coefficients

        examples = chosen_examples(task)
        used = len(examples)
        c = coefficients(known, found.coefficients, task, examples, base=base)
        reason = "" if c.any() else "on the examples given, nothing tried beats starting from zero."
        found = Prediction(c, f"{found.rule} + {used} examples", confidence=found.confidence, reason=reason)
    made = _abstention if found.abstained else _made
    return replace(made(known, description, found, rank, used), warnings=known.warnings)


def from_words(known: Known, query: Query, rule: str | None = None) -> Prediction:
    """The rule's answer from words alone, with the reason to abstain where there is one."""
    if rule is None and known.functional is not None:
        found = known.functional.predict(query)
    else:
        found = RULES[rule or "ridge"](known.evidence, query)
    likeness = known.ridge.confidence(query.embedding)
    if found.confidence is None:
        found = replace(found, confidence=likeness)
    if rule not in (None, "functional", "functional-fixed"):
        return found  # who names a rule wants its answer
    return replace(found, reason=_why_not(known, found, likeness))


def _why_not(known: Known, found: Prediction, likeness: float) -> str:
    if len(known.evidence) < FEWEST:
        return f"fewer than {FEWEST} described vectors are known."
    floor = float(np.quantile(left_out_confidence(known.ridge), UNLIKE_QUANTILE))
    if likeness < floor:
        return (
            f"the description is unlike the known ones (likeness {likeness:.3f}; 95 % of known tasks have at least "
            f"{floor:.3f})."
        )
    if not found.coefficients.any():
        return "left out one by one, the known vectors are not predicted better than by zero."
    return found.reason


def _made(known: Known, description: str, found: Prediction, rank: int, used: int) -> Suggestion:
    whole = known.trainable_part(known.sum(found.coefficients))
    start = predicted_start(whole, rank, scale=known.traits.scale)
    c = known.of_originals(found.coefficients)
    sources = [
        Source(known.atlas.members[i].id, known.atlas.members[i].name, float(c[i]))
        for i in np.argsort(-np.abs(c), kind="stable")
        if c[i] != 0.0
    ]
    return Suggestion(
        description,
        False,
        "",
        found.rule,
        float(found.confidence or 0.0),
        _interval(found),
        known.norm(found.coefficients) / known.usual_norm(),
        sources,
        start.vector,
        start.energy_kept,
        known.traits.base.name,
        used,
    )


def _interval(found: Prediction) -> tuple[float, float, float] | None:
    """Expected gain and its 90 % interval; the strength is twice the expected gain over the standard deviation."""
    if found.expected_gain is None or not found.strength:
        return None
    wide = 1.645 * 2.0 * found.expected_gain / found.strength
    return found.expected_gain, found.expected_gain - wide, found.expected_gain + wide


def _abstention(known: Known, description: str, found: Prediction, rank: int, used: int) -> Suggestion:
    start = known.zero_start(rank)
    return Suggestion(
        description,
        True,
        found.reason,
        found.rule,
        float(found.confidence or 0.0),
        _interval(found),
        0.0,
        [],
        start.vector,
        start.energy_kept,
        known.traits.base.name,
        used,
    )


def _card(made: Suggestion) -> bytes:
    notes = "a starting adapter predicted from the description; not trained"
    if made.abstained:
        notes = "a plain zero start: no prediction was made"
    extra: dict[str, Any] = {"rule": made.rule, "abstained": made.abstained, "examples": made.examples}
    if made.vector.base.fingerprint is not None:
        extra["base_fingerprint"] = made.vector.base.fingerprint
    card = {
        "schema": 1,
        "description": made.description,
        "base_model": made.base,
        "notes": notes,
        "parents": [{"id": s.id, "role": "suggest", "coefficient": s.coefficient} for s in made.sources[:1000]],
        "metrics": {"confidence": made.confidence, "scale": made.scale, "energy_kept": made.energy_kept},
        "extra": extra,
    }
    return (json.dumps(card, ensure_ascii=False, indent=1) + "\n").encode()
