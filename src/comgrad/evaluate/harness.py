"""A base and a task, ready to be trained and scored: one face for encoders with a frozen head, causal models and image towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from comgrad.describe.task import Example, Task
from comgrad.errors import ComgradError
from comgrad.evaluate.causal import AnswerModel, CausalBench, evaluate_causal, is_causal
from comgrad.evaluate.classifier import LOGIT_SCALE, MAX_LENGTH, Bench, PromptClassifier, Score, check_texts, evaluate
from comgrad.evaluate.images import ImageBench, ImageHarness, is_open_clip
from comgrad.weights.bases import BaseModel


@runtime_checkable
class Harness(Protocol):
    """What training needs of a kind of model."""

    @property
    def kind(self) -> str: ...

    @property
    def facts(self) -> dict[str, Any]:
        """What the card says about how texts are read."""
        ...

    def fresh(self) -> nn.Module:
        """The base at θ₀."""
        ...

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with the task's head: a collated batch → `loss`."""
        ...

    def rows(self, examples: Sequence[Example]) -> list[dict[str, Any]]: ...

    def collate(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]: ...

    def score(self, model: nn.Module, examples: Sequence[Example]) -> Score:
        """Loss and accuracy of a wrapped model."""
        ...


@dataclass(frozen=True)
class EncoderHarness:
    """The frozen-head classifier of `evaluate.classifier`."""

    bench: Bench
    task: Task
    kind: str = "encoder"

    @property
    def facts(self) -> dict[str, Any]:
        return {"max_length": MAX_LENGTH, "logit_scale": LOGIT_SCALE}

    @cached_property
    def prompts(self) -> Tensor:
        return self.bench.prompts(self.task)

    def fresh(self) -> nn.Module:
        return self.bench.encoder()

    def wrap(self, model: nn.Module) -> nn.Module:
        return PromptClassifier(model, self.prompts).to(self.bench.device)

    def rows(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        return [{"text": e.text, "label": e.label} for e in examples]

    def collate(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        tokens = {k: v.cpu() for k, v in self.bench.tokens([r["text"] for r in batch]).items()}
        return {**tokens, "labels": torch.tensor([r["label"] for r in batch])}

    def score(self, model: nn.Module, examples: Sequence[Example]) -> Score:
        assert isinstance(model, PromptClassifier)
        return evaluate(self.bench, model, examples)


@dataclass(frozen=True)
class CausalHarness:
    """The answer likelihoods of `evaluate.causal`."""

    bench: CausalBench
    kind: str = "causal"

    @property
    def facts(self) -> dict[str, Any]:
        return {"max_length": self.bench.longest_text}

    def fresh(self) -> nn.Module:
        return self.bench.model()

    def wrap(self, model: nn.Module) -> nn.Module:
        return AnswerModel(model)

    def rows(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        return [dict(r) for r in self.bench.rows(examples)]

    def collate(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return self.bench.collate(batch)

    def score(self, model: nn.Module, examples: Sequence[Example]) -> Score:
        assert isinstance(model, AnswerModel)
        return evaluate_causal(self.bench, model, examples)


# one of these is in every tokenizer's folder; without any, the library makes an empty one and says nothing
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def open_harness(base: BaseModel, task: Task) -> Harness:
    """The harness that the base's config asks for.

    Raises:
        ComgradError: a base without config or tokenizer, or of a kind that has no frozen head.
    """
    if is_open_clip(base.path):
        if not task.of_images:
            raise ComgradError(
                f"the task '{task.name}' of texts",
                f"the base '{base.name}' is open_clip's, whose image tower is trained",
                "give a task whose examples have an 'image', or a base that reads texts",
                code="task-of-texts",
            )
        return ImageHarness(ImageBench.open(base), task)
    check_texts(task)
    if not any((base.path / name).is_file() for name in _TOKENIZER_FILES):
        raise ComgradError(
            f"the base '{base.path}'",
            "it has no tokenizer, so texts cannot be read",
            "pass a folder with config, tokenizer and weights",
            code="base-no-tokenizer",
        )
    try:
        if is_causal(base.path):
            return CausalHarness(CausalBench.open(base, task))
        return EncoderHarness(Bench.open(base), task)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()
        raise ComgradError(
            f"the base '{base.name}'",
            f"its config or tokenizer cannot be read ({reason[0][:200] if reason else type(error).__name__})",
            "pass a folder with config, tokenizer and weights",
            code="base-unreadable",
        ) from error
