"""A rule on a neighbourhood, as the service answers among thousands: only vectors described alike take part."""

from __future__ import annotations

import numpy as np

from comgrad.predict.functional import FEWEST
from comgrad.predict.rules import RULES
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.fold import Fold
from comgrad.workflows.bench.outcome import Outcome


def near(fold: Fold, aid: Aid, *, most: int, rule: str) -> Outcome:
    """A rule on the `most` vectors nearest in words to the one nearest to the query; where `functional` has too few tasks
    with gradients, `ridge`."""
    del aid
    rows = fold.evidence.embeddings
    anchor = int(np.argmax(rows @ fold.query.embedding))
    chosen = np.sort(np.argsort(-(rows @ rows[anchor]), kind="stable")[:most])
    known = fold.evidence.subset(chosen.tolist())
    enough = rule != "functional" or int(known.with_gradient.sum()) >= FEWEST
    found = RULES[rule if enough else "ridge"](known, fold.query)
    c = np.zeros(len(fold.allowed))
    c[chosen] = found.coefficients
    return Outcome(c, reason=found.reason, strength=found.strength, expected_gain=found.expected_gain)
