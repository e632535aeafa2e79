"""The base encoder held open: moved to θ₀ + Σ c_k τ_k for a while, and scored on texts that were tokenised once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from comgrad.describe.task import Example
from comgrad.evaluate.classifier import LOGIT_SCALE, Bench, embed, shifted
from comgrad.predict.start import combination
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench.corpus import Corpus, Item

BATCH = 50


@dataclass(frozen=True)
class Texts:
    """Tokenised examples of one task in batches of like length; `rows` are their places in the list given."""

    prompts: Tensor
    batches: tuple[tuple[Int[np.ndarray, "b"], dict[str, Tensor], Tensor], ...]
    n: int


@dataclass
class Model:
    """A corpus with its base encoder in fp32."""

    corpus: Corpus

    @cached_property
    def bench(self) -> Bench:
        return Bench.open(self.corpus.base)

    @cached_property
    def encoder(self) -> nn.Module:
        encoder = self.bench.encoder()
        for p in encoder.parameters():
            p.requires_grad_(False)
        return encoder

    @torch.no_grad()
    def prompts(self, item: Item) -> Tensor:
        """(labels, d): to be called at θ₀."""
        return embed(self.encoder, **self.bench.tokens(item.label_prompts))

    def texts(self, item: Item, examples: Sequence[Example]) -> Texts:
        """The examples ready to be scored: to be called at θ₀, whose encoder reads the label prompts."""
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].text))
        parts = [order[s : s + BATCH] for s in range(0, len(order), BATCH)]
        batches = []
        for rows in parts:
            labels = torch.tensor([examples[i].label for i in rows], device=self.bench.device)
            batches.append((np.array(rows), self.bench.tokens([examples[i].text for i in rows]), labels))
        return Texts(self.prompts(item), tuple(batches), len(examples))

    @torch.no_grad()
    def losses(self, texts: Texts) -> tuple[Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Cross-entropy in nats and correctness of every example, where the encoder is now."""
        loss, right = np.zeros(texts.n), np.zeros(texts.n, dtype=bool)
        for rows, tokens, labels in texts.batches:
            logits = LOGIT_SCALE * embed(self.encoder, **tokens) @ texts.prompts.T
            loss[rows] = nn.functional.cross_entropy(logits.double(), labels, reduction="none").cpu().numpy()
            right[rows] = (logits.argmax(dim=1) == labels).cpu().numpy()
        return loss, right

    @contextmanager
    def at(self, coefficients: Float[np.ndarray, "k"]) -> Iterator[None]:
        """The encoder at θ₀ + Σ c_k τ_k inside the block."""
        if not np.any(coefficients):
            yield
            return
        with self.along(combination(self.corpus.vectors, coefficients.tolist())):
            yield

    @contextmanager
    def along(self, vector: TaskVector) -> Iterator[None]:
        """The encoder at θ₀ + τ inside the block."""
        with shifted(self.encoder, vector):
            yield
