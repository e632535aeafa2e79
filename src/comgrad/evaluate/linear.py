"""A predictor that is linear in its weights: one pass for each vector serves every combination of the vectors.

    h(x; θ₀ + Σ αᵢ·τᵢ) = h₀(x) + Σ αᵢ·s(x, τᵢ),   s(x, τ) = h(x; θ₀ + τ) − h₀(x),   h₀(x) = h(x; θ₀)

holds exactly for a linearised model, s(x, τ) = J(x; θ₀)·τ, so that a grid over α costs what one of its points costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from comgrad.evaluate.classifier import LOGIT_SCALE
from comgrad.evaluate.digests import digest_of, tensor_digest, vector_digest
from comgrad.evaluate.predictor import Batch, Predictor, Read, Term, pooled, through
from comgrad.types import BaseRef
from comgrad.vectors.merge import weighted_sum
from comgrad.vectors.task_vector import TaskVector


class Superposed(nn.Module):
    """The model at θ₀ + Σ αᵢτᵢ. Called, it is the model itself there; its predictor reads it without calling it."""

    def __init__(self, predictor: LinearPredictor, terms: Sequence[Term]) -> None:
        super().__init__()
        self._predictor = predictor
        self.terms = tuple(terms)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        whole = weighted_sum([tau for _, tau in self.terms], [alpha for alpha, _ in self.terms])
        with self._predictor.shift(self._predictor.encoder, whole) as model:
            return model(*args, **kwargs)


@dataclass(frozen=True)
class LinearPredictor(Predictor):
    """A `Predictor` of a model that is linear in its weights; made by `of`.

    Args:
        slopes: what was read, by vector and batch: (b, d) each, on the host.
    """

    slopes: dict[tuple[str, str], Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        base: BaseRef,
        model: nn.Module,
        encoder: nn.Module,
        *,
        read: Read = pooled,
        logit_scale: float = LOGIT_SCALE,
    ) -> LinearPredictor:
        """Of a linear model around an encoder that stands at θ₀ (`finetune.linearised.Linearised`)."""
        return cls(base, encoder, read, through(model), "linearised", logit_scale)

    @contextmanager
    def at(self, terms: Sequence[Term]) -> Iterator[nn.Module]:
        """As `Predictor.at`."""
        self.check(terms)
        used = [(alpha, tau) for alpha, tau in terms if alpha != 0.0]
        if used:
            yield Superposed(self, used)
        else:
            with super().at([]) as model:
                yield model

    def represented(self, model: nn.Module, batch: Batch) -> Tensor:
        """h (b, d); of a `Superposed` from one pass for each of its vectors, made once."""
        if not isinstance(model, Superposed):
            return super().represented(model, batch)
        key = digest_of([[n, tensor_digest(x)] for n, x in sorted(batch.items())])
        origin = self._read("", key, batch, None)
        return origin + sum(alpha * (self._read(vector_digest(t), key, batch, t) - origin) for alpha, t in model.terms)

    def _read(self, which: str, key: str, batch: Batch, tau: TaskVector | None) -> Tensor:
        """h at θ₀ + τ, or at θ₀."""
        if (which, key) not in self.slopes:
            with super().at([] if tau is None else [(1.0, tau)]) as model:
                self.slopes[which, key] = super().represented(model, batch).cpu()
        return self.slopes[which, key].to(next(iter(batch.values())).device)
