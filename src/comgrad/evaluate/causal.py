"""Causal language models as classifiers: the text, a newline, and a label's prompt as the answer.

    ℓ(a | x) = (1/|a|) Σ_t log p(a_t | x, a_<t)

The loss of an example is −ℓ of its own label's answer; the predicted label is the one with the highest ℓ. The mean over
the answer's tokens (length normalisation) keeps short prompts from winning by being short. Only answer tokens count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comgrad.describe.task import Example, Task
from comgrad.errors import ComgradError
from comgrad.evaluate.classifier import Score
from comgrad.weights.bases import BaseModel
from comgrad.weights.strict_json import read_json

MAX_TEXT = 256  # tokens of a text; longer ones keep their beginning
SEPARATOR = "\n"
_CAUSAL = ("ForCausalLM", "LMHeadModel")


def is_causal(path: Path) -> bool:
    """Whether the base's config names a decoder with a language-model head.

    `architectures` decides; where it is missing, the model type does, if transformers knows it as causal and not as
    masked.

    Raises:
        ComgradError: no config.json, or an encoder-decoder.
    """
    file = path / "config.json"
    if not file.is_file():
        raise ComgradError(
            f"the base '{path}'",
            "it has no config.json, so the model cannot be built",
            "pass a folder with config, tokenizer and weights",
            code="base-no-config",
        )
    config = read_json(file)
    if config.get("is_encoder_decoder"):
        raise ComgradError(
            f"the base '{path.name}'",
            "it is an encoder-decoder, for which there is no frozen head here",
            "use an encoder or a causal language model",
            code="encoder-decoder",
        )
    names = config.get("architectures")
    if isinstance(names, list) and names:
        return any(str(name).endswith(_CAUSAL) for name in names)
    from transformers.models.auto import modeling_auto as auto

    kind = config.get("model_type")
    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in causal and kind not in masked


class AnswerModel(nn.Module):
    """A causal language model with the loss above."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, input_ids: Tensor, attention_mask: Tensor, answer_mask: Tensor) -> dict[str, Tensor]:
        """(batch, tokens) ids, mask of real tokens and mask of answer tokens → `nll` (batch,) and its mean `loss`."""
        logits = self.lm(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
        wanted = answer_mask[:, 1:].to(torch.float32)
        nll = nn.functional.cross_entropy(logits.float().transpose(1, 2), input_ids[:, 1:], reduction="none")
        per_example = (nll * wanted).sum(dim=1) / wanted.sum(dim=1)
        return {"loss": per_example.mean(), "nll": per_example}


@dataclass(frozen=True)
class CausalBench:
    """A causal base opened for one task: its tokenizer, and each label's answer in tokens."""

    base: BaseModel
    tokenizer: Any
    device: torch.device
    answers: tuple[tuple[int, ...], ...]
    longest_text: int

    @classmethod
    def open(cls, base: BaseModel, task: Task) -> CausalBench:
        """Raises ComgradError where two labels have the same answer, or an answer leaves no room for a text."""
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
        answers = tuple(
            tuple(tokenizer(SEPARATOR + p, add_special_tokens=False)["input_ids"]) for p in task.label_prompts
        )
        _check_answers(task, answers)
        config = AutoConfig.from_pretrained(base.path, local_files_only=True)
        positions = getattr(config, "max_position_embeddings", None) or MAX_TEXT * 8
        room = min(MAX_TEXT, int(positions) - max(map(len, answers)))
        if room < 1:
            raise ComgradError(
                f"label prompts of up to {max(map(len, answers))} tokens",
                f"the base reads {positions} tokens at most, so no text fits before them",
                "shorten the label prompts",
                code="prompt-too-long",
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(base, tokenizer, device, answers, room)

    def model(self) -> nn.Module:
        """A fresh copy of the base, in evaluation mode. Raises ComgradError when the checkpoint lacks weights."""
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        lm, info = AutoModelForCausalLM.from_pretrained(
            self.base.path, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        missing = sorted(info["missing_keys"])
        if missing:
            raise ComgradError(
                f"the base '{self.base.name}' lacks '{missing[0]}'"
                + (f" and {len(missing) - 1} more" * bool(missing[1:])),
                "a weight that is not there would be random",
                "pass the whole causal language model, with its head",
                code="base-incomplete",
            )
        out: nn.Module = lm.to(self.device).eval()
        return out

    def row(self, text: str, label: int) -> dict[str, list[int]]:
        """Token ids of a text and of the answer of a label."""
        ids = list(self.tokenizer(text, truncation=True, max_length=self.longest_text)["input_ids"])
        if ids and ids[-1] == self.tokenizer.eos_token_id and len(ids) > 1:
            ids.pop()  # some tokenizers end every text; the answer goes on
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        if not ids:
            ids = [start if start is not None else 0]
        return {"text": ids, "answer": list(self.answers[label])}

    def rows(self, examples: Sequence[Example]) -> list[dict[str, list[int]]]:
        """Examples as the training loop takes them."""
        return [self.row(e.text, e.label) for e in examples]

    def collate(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Rows padded on the right to one length."""
        width = max(len(r["text"]) + len(r["answer"]) for r in batch)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids = torch.full((len(batch), width), pad, dtype=torch.long)
        real, answer = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, r in enumerate(batch):
            begin, end = len(r["text"]), len(r["text"]) + len(r["answer"])
            ids[i, :end] = torch.tensor([*r["text"], *r["answer"]])
            real[i, :end] = 1
            answer[i, begin:end] = 1
        return {"input_ids": ids, "attention_mask": real, "answer_mask": answer}


@torch.no_grad()
def evaluate_causal(
    bench: CausalBench, model: AnswerModel, examples: Sequence[Example], *, batch_size: int = 64
) -> Score:
    """Loss in nats per answer token and accuracy over examples; costs one pass per example and label."""
    was_training = model.training
    model.eval()
    pairs = [(i, j, bench.row(e.text, j)) for i, e in enumerate(examples) for j in range(len(bench.answers))]
    pairs.sort(key=lambda p: len(p[2]["text"]) + len(p[2]["answer"]))
    nll = torch.zeros(len(examples), len(bench.answers), dtype=torch.float64)
    for start in range(0, len(pairs), batch_size):
        part = pairs[start : start + batch_size]
        batch = {k: v.to(bench.device) for k, v in bench.collate([r for _, _, r in part]).items()}
        values = model(**batch)["nll"].double().cpu()
        for (i, j, _), value in zip(part, values, strict=True):
            nll[i, j] = value
    model.train(was_training)
    labels = torch.tensor([e.label for e in examples])
    loss = float(nll[torch.arange(len(examples)), labels].mean())
    return Score(loss, float((nll.argmin(dim=1) == labels).double().mean()), len(examples))


def _check_answers(task: Task, answers: Sequence[tuple[int, ...]]) -> None:
    seen: dict[tuple[int, ...], str] = {}
    for name, answer in zip(task.label_names, answers, strict=True):
        if not answer or answer in seen:
            why = (
                f"its prompt has the same tokens as that of '{seen[answer]}'" if answer else "its prompt has no tokens"
            )
            raise ComgradError(f"the label '{name}'", why, "give every label a prompt of its own", code="label-prompts")
        seen[answer] = name
