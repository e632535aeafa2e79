"""What a method gives back: coefficients, or a vector, or a score, or an abstention with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from comgrad.predict.evidence import Prediction
from comgrad.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Outcome:
    """One of the first three, or a reason.

    Args:
        coefficients: over the fold's vectors.
        vector: where the result is no sum of them.
        score: test loss and accuracy, where the method scores itself.
        reason: why the method abstains; the loss is then the base's.
        missing: why the method says nothing at all about this query (no second run, say): no row is made.
        note: what else is worth keeping, as JSON.
    """

    coefficients: Float[np.ndarray, "k"] | None = None
    vector: TaskVector | None = None
    score: tuple[float, float] | None = None
    reason: str = ""
    missing: str = ""
    strength: float | None = None
    expected_gain: float | None = None
    note: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Prediction) -> Outcome:
        """A prediction as an outcome."""
        return cls(found.coefficients, reason=found.reason, strength=found.strength, expected_gain=found.expected_gain)
