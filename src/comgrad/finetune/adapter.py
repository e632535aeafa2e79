"""A LoRA adapter on a model while it trains: put on by stock PEFT, read back by the strict reader."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from comgrad.errors import ComgradError
from comgrad.finetune.trainable import Start, Trainable, check_fits, renamed
from comgrad.vectors.delta import LowRank
from comgrad.vectors.peft import read_peft
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.names import NameIndex


def on_adapter(model: nn.Module, start: Start, *, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Trainable:
    """Add the frozen part to the model's weights and put the trained part on it as a PEFT adapter.

    Args:
        shapes: of the model's weights, where its parameters do not have them (4-bit weights are packed).

    Raises:
        ShapeMismatch, NotFound: a tensor that the model has not, or has in another shape.
    """
    if start.trained is None:
        raise ComgradError(
            "a start without an adapter", "there is nothing to train", "start from zero or from one", code="bad-start"
        )
    parameters = dict(model.named_parameters())
    total = sum(p.numel() for p in parameters.values())
    names = NameIndex(parameters)
    trained = renamed(start.trained, names)
    frozen = renamed(start.frozen, names) if start.frozen is not None else None
    for vector in (trained, frozen):
        if vector is not None:
            check_fits(vector, shapes or {n: tuple(p.shape) for n, p in parameters.items()})
    if frozen is not None:
        with torch.no_grad():
            for name, d in frozen.tensors.items():
                parameters[name].add_(d.in_base_layout().to(parameters[name]))
    peft_model = _with_peft(model, trained)
    count = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)

    def collect() -> TaskVector:
        now = renamed(_read_back(peft_model, start), names)
        return now if frozen is None else TaskVector(start.base, dict(frozen.tensors)) + now

    return Trainable(peft_model, count, total, collect, lambda: _changes(peft_model))


def _with_peft(model: nn.Module, trained: TaskVector) -> nn.Module:
    from peft import PeftModel

    with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
        write_peft(trained, Path(folder) / "start")
        with warnings.catch_warnings():  # PEFT asks transformers by a name that transformers is giving up
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            out: nn.Module = PeftModel.from_pretrained(model, str(Path(folder) / "start"), is_trainable=True)
    count = sum(p.numel() for p in out.parameters() if p.requires_grad)
    expected = sum(d.rank * sum(d.shape) for d in trained.tensors.values() if isinstance(d, LowRank))
    if count != expected:
        raise ComgradError(
            f"an adapter of {expected} parameters",
            f"PEFT put {count} on the model: some module names mean other modules there",
            "start from an adapter that names whole modules",
            code="adapter-misplaced",
        )
    return out


def _read_back(peft_model: nn.Module, start: Start) -> TaskVector:
    """The adapter as PEFT saves it, under the checkpoint's tensor names."""
    with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
        peft_model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
        return read_peft(Path(folder), base=start.base_path)


def _changes(peft_model: nn.Module) -> dict[str, Tensor]:
    """Module → s·B·A with its graph."""
    from peft.tuners.lora import LoraLayer

    return {
        name: module.get_delta_weight(adapter)
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
        for adapter in module.active_adapters
        if adapter in module.lora_A
    }


__all__ = ["Start", "Trainable", "on_adapter"]
