"""Our own prediction with labelled examples, put to work on the benchmark's examples."""

from __future__ import annotations

import numpy as np

from comgrad.evaluate.tangent import Tangent
from comgrad.predict import fewshot
from comgrad.predict.evidence import Matrix, Vector
from comgrad.predict.functional import FEWEST, Functional
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.fold import Fold
from comgrad.workflows.bench.outcome import Outcome


def ours(fold: Fold, aid: Aid, *, rounds: int | None = None) -> Outcome:
    """The posterior mode with the description's prediction as the prior, on the examples the method declared.

    Args:
        rounds: linearisations at most; default: the rule's own choice.
    """
    shots = aid.shots()
    prior, uncertainty = described(fold)
    most = fewshot.rounds_for(len(shots.examples)) if rounds is None else rounds
    P = fewshot.precision(fold.evidence.gram, uncertainty, len(shots.examples))
    c = fewshot.fit(lambda at: linearised(shots.tangent_at(at)), shots.loss, prior, P, rounds=most)
    reason = "" if np.any(c) else "nothing tried beats the base model on the examples."
    return Outcome(c, reason=reason, note={"evaluations": shots.evaluations})


def described(fold: Fold) -> tuple[Vector, Matrix | None]:
    """What the description alone predicts, and how uncertain that is; nothing where too few tasks have gradients."""
    if fold.evidence.with_gradient.sum() < FEWEST:
        return np.zeros(len(fold.allowed)), None
    rule = Functional.of(fold.evidence)
    return rule.predict(fold.query).coefficients, rule.uncertainty


def linearised(t: Tangent) -> fewshot.Linearised:
    """The tangent in the words of `predict.fewshot`."""
    return fewshot.Linearised(t.z0.astype(np.float64), t.phi.astype(np.float64), t.labels)
