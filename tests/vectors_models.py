"""Tiny random models and adapters for the tests of `vectors`: made here, no download."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import save_file
from torch import nn


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertModel(config)


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=24, n_layer=2, n_head=4)
    )


def llama(tied: bool = False) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 6, 1)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.grouped(self.second(self.first(x)))


class Attention(nn.Module):
    """The layout of open_clip: in_proj_weight is one fused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.attn(x, x, x, need_weights=False)[0])


def save_base(model: nn.Module, folder: Path) -> Path:
    """A base checkpoint folder."""
    if isinstance(model, transformers.PreTrainedModel):
        model.save_pretrained(folder)
    else:
        folder.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def adapted(model: nn.Module, *, seed: int = 1, **config: Any) -> peft.PeftModel:
    """The model with a LoRA adapter whose every trainable number is random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**config)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, p in out.named_parameters():
        if p.requires_grad:
            with torch.no_grad():
                noise = torch.randn(p.shape, generator=generator) * 0.1
                p.copy_(p + noise.to(p.dtype) if "magnitude" in name or "lora_" not in name else noise.to(p.dtype))
    return out


def save_adapter(model: peft.PeftModel, folder: Path, **kwargs: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **kwargs)
    return folder


def merged_weights(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    """What PEFT says the fine-tuned weights are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model).merge_and_unload().state_dict()
