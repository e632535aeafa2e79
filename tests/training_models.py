"""Tiny random bases with tokenizers, and a task that can be learned, for the tests of training: made here, no download."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import BaseModel

COLD = ("ice", "snow", "frost", "winter", "arctic")
WARM = ("sun", "fire", "summer", "lava", "desert")
FILLER = ("the", "a", "very", "some", "of", "and", "with", "all")
PROMPTS = ("it is cold", "it is warm")
WORDS = ("[PAD]", "[UNK]", "<s>", "</s>", *COLD, *WARM, *FILLER, "it", "is", "cold", "warm")


def tokenizer(bos: bool = False) -> Any:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", bos_token="<s>", eos_token="</s>"
    )


def bert_base(folder: Path, seed: int = 0) -> Path:
    """An encoder with dropout, so that resuming must restore the random state too."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=80,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def llama_base(folder: Path, tied: bool = False) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied, initializer_range=0.2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def gpt2_base(folder: Path) -> Path:
    """A decoder whose Conv1D weights are stored transposed."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_positions=32, n_embd=24, n_layer=2, n_head=4, initializer_range=0.2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def examples(n: int, split: str, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        words = draw.choices((COLD, WARM)[i % 2], k=2) + draw.choices(FILLER, k=draw.randint(1, 5))
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": i % 2, "split": split})
    return rows


def task_folder(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(parents=True)
    card = {
        "name": "Cold or warm",
        "description": "Say whether a text is about cold or warm things.",
        "label_names": ["cold", "warm"],
        "label_prompts": list(PROMPTS),
    }
    (folder / "task_card.json").write_text(json.dumps(card))
    rows = examples(60, "train", 1) + examples(24, "test", 2) if rows is None else rows
    (folder / "examples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def adapter(base: Path, folder: Path, *, targets: tuple[str, ...] = ("query", "value"), rank: int = 3) -> Path:
    """An adapter whose numbers are all random, over an encoder made by `bert_base`."""
    generator = torch.Generator().manual_seed(5)
    with BaseModel(base.name, base).open() as checkpoint:
        shapes = {n: checkpoint.entries[n].shape for n in checkpoint.names if n.endswith(".weight")}
    tensors = {
        n: LowRank(
            torch.randn(s[0], rank, generator=generator) * 0.3, torch.randn(rank, s[1], generator=generator) * 0.3, 2.0
        )
        for n, s in shapes.items()
        if any(n.endswith(f".{t}.weight") for t in targets)
    }
    write_peft(TaskVector(BaseRef(base.name), tensors), folder)
    return folder
