"""Coefficients from labelled examples: the base model opened, its linearisation fed to `predict.fewshot`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from comgrad.describe.task import Example, Task
from comgrad.errors import ComgradError
from comgrad.evaluate.classifier import PromptClassifier, evaluate, shifted
from comgrad.evaluate.tangent import Progress, tangent
from comgrad.predict import fewshot
from comgrad.predict.start import combination
from comgrad.weights.bases import resolve_base
from comgrad.workflows.gradients import GradientMaker, two_labels
from comgrad.workflows.known import Known

FEWEST = 8
MOST = 160
LEADING = 7  # classes differentiated for each text, where there are many


def chosen_examples(task: Task) -> list[Example]:
    """At most 160 of the task's training examples, drawn with a fixed seed: a file may be sorted by label.

    Raises:
        ComgradError: fewer than eight, or all of one label.
    """
    train = task.split("train")
    examples = random.Random(0).sample(train, min(MOST, len(train)))
    if len(examples) < FEWEST:
        raise ComgradError(
            f"{len(examples)} training examples",
            f"coefficients chosen on fewer than {FEWEST} are noise",
            "give more, or leave --examples out",
            code="too-few-examples",
        )
    return two_labels(examples)


def coefficients(
    known: Known,
    prior: Float[np.ndarray, "k"],
    task: Task,
    examples: Sequence[Example],
    *,
    base: Path | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "k"]:
    """Coefficients c (K,) fitted to the examples around the description's prediction; 0 where nothing beats the base.

    Args:
        prior: c₀ that the description predicts, or 0.
        base: the base's folder, where it is not found by its name.
        progress: called with (examples done, all) while the first linearisation is made.
    """
    vectors = known.vectors
    bench, encoder = GradientMaker().bench(vectors[0], None if base is None else resolve_base(base))
    model = PromptClassifier(encoder, bench.prompts(task)).to(bench.device)

    opened: dict[str, Any] = {"leading": LEADING, "fast": True, "encoder": encoder, "prompts": model.prompts}

    def linearise(c: Float[np.ndarray, "k"]) -> fewshot.Linearised:
        if not c.any():
            found = tangent(bench, task, examples, vectors, progress=progress, **opened)
        else:
            with shifted(encoder, combination(vectors, c.tolist())):
                found = tangent(bench, task, examples, vectors, **opened)
        return fewshot.Linearised(found.z0.astype(np.float64), found.phi.astype(np.float64), found.labels)

    def loss(c: Float[np.ndarray, "k"]) -> float:
        if not c.any():
            return evaluate(bench, model, examples).loss
        with shifted(encoder, combination(vectors, c.tolist())):
            return evaluate(bench, model, examples).loss

    uncertainty = known.functional.uncertainty if known.functional else None
    P = fewshot.precision(known.evidence.gram, uncertainty, len(examples))
    return fewshot.fit(linearise, loss, prior, P, rounds=fewshot.rounds_for(len(examples)))
