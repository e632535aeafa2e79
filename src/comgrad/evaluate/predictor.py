"""A frozen-head predictor at θ₀ + Σ αᵢ·τᵢ for many (α, τ): one encoder, its weights shifted in place and put back.

    f(x; θ) = s · ⟨h(x; θ)/‖h(x; θ)‖, w_c⟩

with the representation model h, and a head of unit rows w_c that no vector changes (prompts encoded by the base). Texts,
images or anything else: a problem holds batches that `read` turns into representations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from comgrad.describe.task import Example, Task
from comgrad.errors import ComgradError
from comgrad.evaluate.classifier import LOGIT_SCALE, Bench, shifted
from comgrad.evaluate.digests import digest_of, tensor_digest, vector_digest
from comgrad.types import BaseRef
from comgrad.vectors.merge import weighted_sum
from comgrad.vectors.task_vector import TaskVector

BATCH = 64
Batch = Mapping[str, Tensor]
Term = tuple[float, TaskVector]
Cache = MutableMapping[str, Any]
Read = Callable[[nn.Module, Batch], Tensor]
Shift = Callable[[nn.Module, TaskVector], AbstractContextManager[nn.Module]]


# -- what is read ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Problem:
    """A task ready to be read.

    Args:
        head: (C, d) unit rows; frozen.
        parts: split → batches with their labels (b,), in the same order at every pass.
        digests: split → a digest of its contents, for cached results.
    """

    name: str
    head: Tensor
    parts: Mapping[str, Iterable[tuple[Batch, Tensor]]]
    digests: Mapping[str, str]

    def part(self, split: str) -> Iterable[tuple[Batch, Tensor]]:
        """The batches of a split. Raises ComgradError when there is none of that name."""
        if split not in self.parts:
            raise ComgradError(
                f"task '{self.name}' has no split '{split}'",
                "there is nothing to measure on",
                f"its splits are {sorted(self.parts)}",
                code="empty-split",
            )
        return self.parts[split]


def text_problem(
    bench: Bench,
    task: Task,
    *,
    splits: Sequence[str] = ("validation", "test"),
    limit: int | None = None,
    head: Tensor | None = None,
    batch_size: int = BATCH,
) -> Problem:
    """The splits of a text task, tokenised once and batched by length; the head is the base's own prompts.

    Args:
        limit: read only so many examples of each split, the first in the order of a digest of their texts.
        head: (labels, d), where the prompts were encoded before.

    Raises:
        ComgradError: an empty split.
    """
    chosen = {s: sorted(first_by_content(task.split(s), limit), key=lambda e: len(e.text)) for s in splits}
    parts = {s: tuple(bench.batches(rows, batch_size)) for s, rows in chosen.items()}
    return Problem(
        task.name, bench.prompts(task) if head is None else head, parts, digests_of(task, chosen, batch_size)
    )


def digests_of(task: Task, chosen: Mapping[str, Sequence[Example]], batch_size: int) -> dict[str, str]:
    """Split → digest of what decides its figures besides the head: labels, batches, examples in their order."""
    told = [list(task.label_prompts), *([list(task.templates)] if task.templates else []), batch_size]
    return {s: digest_of([*told, [[e.text, e.label] for e in rows]]) for s, rows in chosen.items()}


def first_by_content(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """The first `limit` in the order of a digest of their texts; all, as they stand, where that is not less."""
    if limit is None or limit >= len(examples):
        return list(examples)
    return sorted(examples, key=lambda e: hashlib.sha256(e.text.encode()).digest())[:limit]


def pooled(encoder: nn.Module, batch: Batch) -> Tensor:
    """(b, d): the mean of the last hidden states over real tokens, not normalised."""
    hidden: Tensor = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None].to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)


# -- where it is read --------------------------------------------------------------------------------------------------
@contextmanager
def in_place(encoder: nn.Module, tau: TaskVector) -> Iterator[nn.Module]:
    """The encoder itself at θ₀ + τ inside the block, and bit for bit at θ₀ again after it."""
    with shifted(encoder, tau):
        yield encoder


def through(wrapper: nn.Module) -> Shift:
    """A shift that moves the encoder in place and reads it through a module around it, such as its linearised model.

    Args:
        wrapper: holds the predictor's own encoder, made while that stood at θ₀, and has its call.
    """

    @contextmanager
    def shift(encoder: nn.Module, tau: TaskVector) -> Iterator[nn.Module]:
        with shifted(encoder, tau):
            yield wrapper

    return shift


def from_factory(make: Callable[[nn.Module, TaskVector], nn.Module]) -> Shift:
    """A shift that builds another module for each vector: how a vector is evaluated by the linearised model.

    Args:
        make: (encoder at θ₀, τ) → a module with the encoder's call, such as h(x; θ₀) + J(x; θ₀)·τ.
    """

    @contextmanager
    def shift(encoder: nn.Module, tau: TaskVector) -> Iterator[nn.Module]:
        yield make(encoder, tau)

    return shift


@dataclass(frozen=True)
class Outcome:
    """How a predictor did on one split: mean cross-entropy in nats, and which of its n examples it got right."""

    loss: float
    correct: np.ndarray

    @property
    def n(self) -> int:
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def as_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "n": self.n, "correct": np.packbits(self.correct).tobytes().hex()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Outcome:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["correct"]), dtype=np.uint8), count=row["n"])
        return cls(float(row["loss"]), bits.astype(bool))


@dataclass(frozen=True)
class Predictor:
    """A base model's encoder that can be read at θ₀ plus any combination of task vectors.

    Args:
        base: what the vectors must stand on.
        encoder: at θ₀, in evaluation mode.
        read: (module, batch) → representations (b, d), not normalised.
        shift: the module at θ₀ + τ, as a context (`in_place`; `through` or `from_factory` for other models; `linear` for linear ones).
        kind: names the combination of `read` and `shift` in cached results.
    """

    base: BaseRef
    encoder: nn.Module
    read: Read = pooled
    shift: Shift = in_place
    kind: str = "direct"
    logit_scale: float = LOGIT_SCALE

    @classmethod
    def open(cls, bench: Bench, *, shift: Shift = in_place, kind: str = "direct") -> Predictor:
        """The predictor of a text encoder."""
        return cls(bench.base.ref, bench.encoder(), shift=shift, kind=kind)

    @contextmanager
    def at(self, terms: Sequence[Term]) -> Iterator[nn.Module]:
        """The module at θ₀ + Σ αᵢτᵢ. Terms with α = 0 are left out, so that they leave no rounding behind.

        Raises:
            BaseMismatch, ShapeMismatch: a vector of another model.
        """
        self.check(terms)
        used = [(alpha, tau) for alpha, tau in terms if alpha != 0.0]
        was_training = self.encoder.training
        self.encoder.eval()
        try:
            if not used:
                yield self.encoder
            else:
                whole = weighted_sum([tau for _, tau in used], [alpha for alpha, _ in used])
                with self.shift(self.encoder, whole) as model:
                    yield model
        finally:
            self.encoder.train(was_training)

    def check(self, terms: Sequence[Term]) -> None:
        """Refuse vectors of another model. Raises BaseMismatch."""
        for k, (_, tau) in enumerate(terms):
            self.base.joined(tau.base, what=f"the predictor and vector {k}")

    def represented(self, model: nn.Module, batch: Batch) -> Tensor:
        """(b, d) representations of a batch by a module that `at` gave."""
        return self.read(model, batch)

    def passes(self, model: nn.Module, problem: Problem, split: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Representations (b, d), logits (b, C) and labels (b,), batch by batch.

        Raises:
            ComgradError: (`not-finite`) a logit that is no number.
        """
        for batch, labels in problem.part(split):
            with torch.no_grad():
                h = self.represented(model, batch)
                z = self.logit_scale * nn.functional.normalize(h, dim=-1) @ problem.head.to(h).T
                finite = bool(torch.isfinite(z).all())
            if not finite:
                raise ComgradError(
                    f"task '{problem.name}' read at these weights",
                    "some logits are no numbers",
                    "use smaller coefficients, or check the vectors",
                    code="not-finite",
                )
            yield h, z, labels

    def outcome(self, problem: Problem, split: str, terms: Sequence[Term], cache: Cache | None = None) -> Outcome:
        """Loss and correct answers on a split at θ₀ + Σ αᵢτᵢ, from the cache where it is there."""
        return self.outcomes([problem], split, terms, cache)[0]

    def outcomes(
        self, problems: Sequence[Problem], split: str, terms: Sequence[Term], cache: Cache | None = None
    ) -> list[Outcome]:
        """`outcome` of several problems with one shift of the weights."""
        keys = [self.key("outcome", [p], split, terms) if cache is not None else "" for p in problems]
        found = {i: Outcome.from_dict(cache[k]) for i, k in enumerate(keys) if cache is not None and k in cache}
        if len(found) < len(problems):
            with self.at(terms) as model:
                for i, problem in enumerate(problems):
                    if i not in found:
                        found[i] = self._measured(model, problem, split)
                        if cache is not None:
                            cache[keys[i]] = found[i].as_dict()
        return [found[i] for i in range(len(problems))]

    def _measured(self, model: nn.Module, problem: Problem, split: str) -> Outcome:
        loss = 0.0
        right: list[np.ndarray] = []
        for _, z, labels in self.passes(model, problem, split):
            loss += float(nn.functional.cross_entropy(z.double(), labels, reduction="sum"))
            right.append((z.argmax(dim=1) == labels).cpu().numpy())
        correct = np.concatenate(right) if right else np.zeros(0, dtype=bool)
        if not len(correct):
            raise ComgradError(
                f"split '{split}' of task '{problem.name}'", "it has no examples", "give some", code="empty-split"
            )
        return Outcome(loss / len(correct), correct)

    def key(self, what: str, problems: Sequence[Problem], split: str, terms: Sequence[Term], *extra: float) -> str:
        """A digest of everything that decides a result: base, kind, contents of the splits, heads, vectors, α."""
        return digest_of(
            [
                what,
                self.base.fingerprint or self.base.name,
                self.kind,
                self.logit_scale,
                [[p.digests[split], tensor_digest(p.head)] for p in problems],
                [[float(alpha), vector_digest(tau)] for alpha, tau in terms if alpha != 0.0],
                list(extra),
            ]
        )
