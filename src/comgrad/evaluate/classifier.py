"""The frozen-head classifier: logits = scale · cos(encoder(text), prompt_j), prompts encoded once by the base model.

All of a task's knowledge is therefore in the encoder's task vector; the head has no parameters of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comgrad.describe.task import Example, Task
from comgrad.errors import ComgradError, ShapeMismatch
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import BaseModel

LOGIT_SCALE = 20.0
MAX_LENGTH = 64


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats and accuracy in [0, 1] over `n` examples."""

    loss: float
    accuracy: float
    n: int


class PromptClassifier(nn.Module):
    """Encoder → mean pooling over tokens → unit vector → scaled cosine with each label's prompt.

    Args:
        encoder: a transformer whose output has `last_hidden_state` (batch, tokens, d).
        prompts: (labels, d) unit rows; frozen.
    """

    prompts: Tensor

    def __init__(self, encoder: nn.Module, prompts: Tensor, *, logit_scale: float = LOGIT_SCALE) -> None:
        super().__init__()
        self.encoder = encoder
        self.logit_scale = logit_scale
        self.register_buffer("prompts", prompts, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.logit_scale * embed(self.encoder, input_ids, attention_mask) @ self.prompts.T
        out = {"logits": logits}
        if labels is not None:
            out["loss"] = nn.functional.cross_entropy(logits, labels)
        return out


def embed(encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(batch, d) unit rows: the mean of the last hidden states over real tokens."""
    hidden = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    mask = attention_mask[:, :, None].to(hidden.dtype)
    mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
    return nn.functional.normalize(mean, dim=-1)


@dataclass(frozen=True)
class Bench:
    """A base model opened for work: its tokenizer, and fresh copies of its encoder."""

    base: BaseModel
    tokenizer: Any
    device: torch.device

    @classmethod
    def open(cls, base: BaseModel) -> Bench:
        from transformers import AutoTokenizer

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(base, AutoTokenizer.from_pretrained(base.path, local_files_only=True), device)

    def encoder(self) -> nn.Module:
        """A fresh copy of the base encoder, in evaluation mode."""
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        model: nn.Module = AutoModel.from_pretrained(self.base.path, local_files_only=True, dtype=torch.float32)
        return model.to(self.device).eval()

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Padded token ids and mask, (batch, tokens)."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        return {k: batch[k].to(self.device) for k in ("input_ids", "attention_mask")}

    def batches(self, examples: Sequence[Example], batch_size: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Tokens and labels (b,) of the examples in their order."""
        for start in range(0, len(examples), batch_size):
            rows = examples[start : start + batch_size]
            yield self.tokens([e.text for e in rows]), torch.tensor([e.label for e in rows], device=self.device)

    @torch.no_grad()
    def prompts(self, task: Task) -> Tensor:
        """(labels, d): each label's prompt encoded by the BASE model, whatever is trained later.

        Raises:
            ComgradError: (`task-of-images`) a task of images.
        """
        check_texts(task)
        return embed(self.encoder(), **self.tokens(task.label_prompts))

    def classifier(self, task: Task, encoder: nn.Module) -> PromptClassifier:
        """The task's classifier around an encoder (the base's own, or one with an adapter)."""
        return PromptClassifier(encoder, self.prompts(task)).to(self.device)


def check_texts(task: Task) -> None:
    """Refuse a task of images where texts are read. Raises ComgradError (`task-of-images`)."""
    if task.of_images or task.templates:
        raise ComgradError(
            f"the task '{task.name}' of images",
            "this base reads texts",
            "use a base of open_clip, a folder with open_clip_config.json",
            code="task-of-images",
        )


def evaluate(bench: Bench, model: PromptClassifier, examples: Sequence[Example], *, batch_size: int = 64) -> Score:
    """`scored` of texts, batched by length."""
    return scored(model, bench.batches(sorted(examples, key=lambda e: len(e.text)), batch_size))


@torch.no_grad()
def scored(model: nn.Module, batches: Iterable[tuple[Mapping[str, Tensor], Tensor]]) -> Score:
    """Loss and accuracy of a classifier, each example weighted alike whatever the batch it falls in.

    Args:
        model: inputs → `logits` (b, labels). batches: inputs with their labels (b,).
    """
    was_training = model.training
    model.eval()
    loss = correct = 0.0
    n = 0
    for inputs, labels in batches:
        logits = model(**inputs)["logits"]
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        correct += float((logits.argmax(dim=1) == labels).sum())
        n += len(labels)
    model.train(was_training)
    return Score(loss / n, correct / n, n)


def with_adapter(bench: Bench, adapter: Path, *, trainable: bool = False) -> nn.Module:
    """The base encoder with a PEFT adapter directory on it, loaded by stock PEFT."""
    from peft import PeftModel

    model: nn.Module = PeftModel.from_pretrained(bench.encoder(), str(adapter), is_trainable=trainable)
    return model


@contextmanager
def shifted(encoder: nn.Module, tau: TaskVector, scale: float = 1.0) -> Iterator[None]:
    """The encoder at θ₀ + scale·τ inside the block, and exactly at θ₀ again after it.

    Raises:
        ShapeMismatch: the encoder lacks one of the vector's tensors, or has it in another shape.
    """
    parameters = dict(encoder.named_parameters())
    changes = {name: delta.in_base_layout() for name, delta in tau.tensors.items()}
    for name, change in changes.items():
        if name not in parameters or parameters[name].shape != change.shape:
            raise ShapeMismatch(
                f"tensor '{name}' of shape {tuple(change.shape)}",
                "the model has no such tensor of that shape",
                "use the model the vector stands on",
            )
    before = {name: parameters[name].detach().clone() for name in changes}
    with torch.no_grad():
        for name, change in changes.items():
            parameters[name].add_(scale * change.to(parameters[name]))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)
