"""What is known of K described task vectors, as numbers only: enough to predict coefficients, without any weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from comgrad.errors import ShapeMismatch

Matrix = Float[np.ndarray, "k k"]
Vector = Float[np.ndarray, "k"]


@dataclass(frozen=True)
class Evidence:
    """K known vectors.

    Args:
        gram: (K, K) ⟨τ_i, τ_j⟩.
        gains: (K, K) F_qk = −⟨∇L_q(θ₀), τ_k⟩ in nats: by how much one unit of τ_k lowers the loss of task q, to first
            order. A row of NaN where task q has no gradient.
        embeddings: (K, d) unit rows, e(d_k).
        texts: the descriptions.
    """

    gram: Float[np.ndarray, "i j"]
    gains: Float[np.ndarray, "q p"]
    embeddings: Float[np.ndarray, "n d"]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        K = len(self.texts)
        if self.gram.shape != (K, K) or self.gains.shape != (K, K) or len(self.embeddings) != K:
            raise ShapeMismatch(
                f"{K} texts, Gram {self.gram.shape}, gains {self.gains.shape}, {len(self.embeddings)} embeddings",
                "all must speak of the same vectors",
                "give them in one order",
            )

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def with_gradient(self) -> Bool[np.ndarray, "k"]:
        """Which tasks have a gradient."""
        known: Bool[np.ndarray, "k"] = np.isfinite(self.gains).all(axis=1)
        return known

    def subset(self, indices: Sequence[int] | Int[np.ndarray, "j"]) -> Evidence:
        """The evidence of some of the vectors, in the order given."""
        at = np.asarray(indices, dtype=int)
        square = np.ix_(at, at)
        return Evidence(self.gram[square], self.gains[square], self.embeddings[at], tuple(self.texts[i] for i in at))


@dataclass(frozen=True)
class Query:
    """The new task: its description and that description's embedding (d,), of norm 1."""

    text: str
    embedding: Float[np.ndarray, "d"]


@dataclass(frozen=True)
class Prediction:
    """τ̂ = Σ c_k τ_k, or an abstention.

    Args:
        coefficients: c (K,), scale included. Kept when abstaining, so that one can see what was held back.
        rule: the rule's name.
        expected_gain: predicted fall of the loss in nats, where the rule predicts one.
        strength: first-order gain over its standard deviation, where the rule knows one.
        confidence: estimated probability that the start is better than zero, where the rule knows one.
        reason: why the rule abstains; empty when it does not.
    """

    coefficients: Vector
    rule: str
    expected_gain: float | None = None
    strength: float | None = None
    confidence: float | None = None
    reason: str = ""

    @property
    def abstained(self) -> bool:
        return bool(self.reason)
