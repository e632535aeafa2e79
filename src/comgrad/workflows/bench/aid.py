"""What a method gets beyond the fold, and only when it says that it needs it: labelled examples, or the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from comgrad.describe.task import Example
from comgrad.errors import NotFound
from comgrad.evaluate.tangent import Tangent, tangent
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench.corpus import Item
from comgrad.workflows.bench.fold import Fold
from comgrad.workflows.bench.model import Model, Texts
from comgrad.workflows.bench.prepare import LEADING, Sizes, chosen, restricted

Vector = Float[np.ndarray, "k"]


@dataclass
class Shots:
    """The query's first n training examples, with the true and the linearised classifier on them.

    `evaluations` counts how often the true loss was evaluated.
    """

    model: Model
    item: Item
    fold: Fold
    examples: tuple[Example, ...]
    evaluations: int = 0

    @cached_property
    def tangent(self) -> Tangent:
        """At θ₀, along the fold's vectors."""
        return restricted(self.fold.board.prepared[self.item.id].tangent, self.fold.allowed, len(self.examples))

    @cached_property
    def _texts(self) -> Texts:
        return self.model.texts(self.item, self.examples)

    def everywhere(self, c: Vector) -> Vector:
        """Coefficients of all known vectors, (K,)."""
        full = np.zeros(len(self.model.corpus.known))
        full[self.fold.allowed] = c
        return full

    def loss(self, c: Vector) -> float:
        """The true mean loss at θ₀ + Σ c_k τ_k, nats."""
        texts = self._texts
        self.evaluations += 1
        with self.model.at(self.everywhere(c)):
            return float(self.model.losses(texts)[0].mean())

    def tangent_at(self, c: Vector) -> Tangent:
        """At θ₀ + Σ c_k τ_k, along the fold's vectors; the prompts are the base's."""
        if not np.any(c):
            return self.tangent
        prompts = self._texts.prompts
        vectors = [self.model.corpus.vectors[k] for k in self.fold.allowed]
        with self.model.at(self.everywhere(c)):
            return tangent(
                self.model.bench,
                self.item.task,
                self.examples,
                vectors,
                leading=LEADING,
                fast=True,
                encoder=self.model.encoder,
                prompts=prompts,
            )


@dataclass(frozen=True)
class Answer:
    """What only a ceiling may see.

    Args:
        inner: ⟨τ_q, τ_k⟩ with the fold's vectors; None when the query has no vector of its own.
        own: the query's own vector.
        second_runs: kind → adapter of another run of the query.
    """

    inner: Vector | None
    own: TaskVector | None
    second_runs: Mapping[str, Path]


@dataclass(frozen=True)
class Aid:
    """Everything that may be asked for; what a method did not declare raises."""

    model: Model
    item: Item
    fold: Fold
    sizes: Sizes
    needs: str
    work: Path
    _made: dict[int, Shots] = field(default_factory=dict)

    def shots(self) -> Shots:
        """The n labelled examples that the method declared ("16 examples")."""
        if not self.needs.endswith(" examples"):
            raise NotFound("labelled examples", f"the method declared that it needs {self.needs}", "declare examples")
        return self._first(int(self.needs.split()[0]))

    def all_shots(self) -> Shots:
        """All prepared training examples, for ceilings."""
        self._only_oracle()
        return self._first(self.sizes.train)

    @property
    def family(self) -> str:
        """The query's family."""
        if self.needs != "family":
            raise NotFound("the query's family", f"the method declared that it needs {self.needs}", "declare it")
        return self.item.family

    @property
    def answer(self) -> Answer:
        """The query's own vector and what follows from it."""
        self._only_oracle()
        corpus = self.model.corpus
        place = corpus.place(self.item)
        runs = {k: r[self.item.id] for k, r in corpus.second_runs.items() if self.item.id in r}
        if place is None:
            return Answer(None, None, runs)
        return Answer(self.fold.board.gram[place, self.fold.allowed], corpus.vectors[place], runs)

    def _first(self, n: int) -> Shots:
        examples = chosen(self.item, "train", self.sizes)[:n]
        return Shots(self.model, self.item, self.fold, examples)

    def _only_oracle(self) -> None:
        if self.needs != "oracle":
            raise NotFound("the query's answer", f"the method declared that it needs {self.needs}", "declare oracle")
