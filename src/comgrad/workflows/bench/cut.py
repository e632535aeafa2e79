"""What `comgrad suggest` writes: a prediction cut to one rank, so that the table shows what the cut costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from comgrad.predict.start import combination, predicted_start
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.fold import Fold
from comgrad.workflows.bench.outcome import Outcome

RANK = 8


def cut(fold: Fold, aid: Aid, *, whole: Callable[[Fold, Aid], Outcome]) -> Outcome:
    """Another method's Σ c_k τ_k at rank 8; its abstentions stay abstentions."""
    found = whole(fold, aid)
    if found.reason or found.coefficients is None or not np.any(found.coefficients):
        return found
    vectors = [aid.model.corpus.vectors[k] for k in fold.allowed]
    start = predicted_start(combination(vectors, found.coefficients.tolist()), RANK)
    note = {**found.note, "energy_kept": start.energy_kept}
    return replace(found, coefficients=None, vector=start.vector, note=note)
