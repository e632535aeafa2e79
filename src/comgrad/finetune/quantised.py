"""QLoRA (arXiv 2305.14314): a LoRA adapter on a base whose linear layers are stored in 4 bits (NF4)."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import nn

from comgrad.errors import ComgradError, NotFound
from comgrad.finetune.adapter import on_adapter
from comgrad.finetune.trainable import Start, Trainable
from comgrad.weights.names import NameIndex
from comgrad.weights.reader import open_checkpoint

QUANTISATION = "nf4, double quantisation, bf16 arithmetic"


def check_available() -> None:
    """Refuse a machine that cannot hold 4-bit weights. Raises ComgradError (`no-4bit`) that says what is missing."""
    missing = []
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes is not installed")
    if not torch.cuda.is_available():
        missing.append("no CUDA GPU is visible")
    if missing:
        raise ComgradError(
            "the recipe 'qlora' on this machine",
            f"4-bit weights need bitsandbytes and a CUDA GPU: {' and '.join(missing)}",
            "run: pip install bitsandbytes, on a machine with a CUDA GPU; or use the recipe lora",
            code="no-4bit",
        )


def load_quantised(path: Path, kind: str) -> nn.Module:
    """The base with its linear layers in 4 bits, on the first GPU.

    Args:
        path: the base's folder.
        kind: `causal` or `encoder`, as the harness says.

    Raises:
        ComgradError: (`no-4bit`) as `check_available`.
    """
    check_available()
    from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    loader = AutoModelForCausalLM if kind == "causal" else AutoModel
    model: nn.Module = loader.from_pretrained(
        path, local_files_only=True, quantization_config=config, device_map={"": 0}, dtype=torch.bfloat16
    )
    return model.eval()


def on_quantised(model: nn.Module, start: Start) -> Trainable:
    """Prepare the model for training (norms and head in fp32, gradient checkpointing) and put the adapter on it.

    Raises:
        ComgradError: (`frozen-in-4bit`) the start has a part to merge, which 4-bit weights cannot take. ShapeMismatch,
            NotFound: as `on_adapter`.
    """
    if start.frozen is not None:
        raise ComgradError(
            "a start with a part that is merged into the base",
            "weights of 4 bits cannot take a small change",
            "leave --merge-init and --share out, or use the recipe lora",
            code="frozen-in-4bit",
        )
    from peft import prepare_model_for_kbit_training

    total = sum(p.numel() for p in model.parameters())
    shapes = None
    if start.base_path is not None:
        with open_checkpoint(start.base_path, check_finite=False) as checkpoint:
            stored = {n: tuple(e.shape) for n, e in checkpoint.entries.items()}
        shapes = _under_model_names(model, stored)
        total = sum(_size(s) for s in shapes.values())
    with warnings.catch_warnings():  # peft asks for checkpointing by a name that transformers has since changed
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        prepared: nn.Module = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    made = on_adapter(prepared, start, shapes=shapes)
    return Trainable(made.model, made.parameters, total, made.collect, made.changes)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _under_model_names(model: nn.Module, stored: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's parameters as the checkpoint stores them: 4-bit parameters are packed."""
    there, out = NameIndex(stored), {}
    for name, p in model.named_parameters():
        try:
            out[name] = stored[there.resolve(name)]
        except NotFound:
            out[name] = tuple(p.shape)
    return out
