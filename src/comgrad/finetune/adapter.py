"""A LoRA adapter on a model while it trains: put on by stock PEFT, read back by the strict reader."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from comgrad.errors import ComgradError, ShapeMismatch
from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.peft import read_peft
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.names import NameIndex


@dataclass(frozen=True)
class Start:
    """Where a run starts: θ₀ + frozen + trained.

    Args:
        base: the base, and `base_path` its folder.
        trained: the adapter that is trained.
        frozen: a part of the result that is added to the model's weights and stays as it is.
    """

    base: BaseRef
    base_path: Path
    trained: TaskVector
    frozen: TaskVector | None = None


@dataclass(frozen=True)
class Trainable:
    """A model ready for the loop.

    Args:
        model: what to put the task's head on.
        parameters: number of trainable parameters.
        collect: the whole task vector relative to θ₀ as it is now, under the model's own parameter names.
    """

    model: nn.Module
    parameters: int
    collect: Callable[[], TaskVector]


def on_adapter(model: nn.Module, start: Start) -> Trainable:
    """Add the frozen part to the model's weights and put the trained part on it as a PEFT adapter.

    Raises:
        ShapeMismatch, NotFound: a tensor that the model has not, or has in another shape.
    """
    names = NameIndex(n for n, _ in model.named_parameters())
    trained = _renamed(start.trained, names)
    frozen = _renamed(start.frozen, names) if start.frozen is not None else None
    parameters = dict(model.named_parameters())
    for vector in (trained, frozen):
        for name, d in vector.tensors.items() if vector is not None else ():
            stored = d.shape[::-1] if d.transposed else d.shape
            wanted = getattr(d, "weight_shape", None) or stored
            if tuple(parameters[name].shape) != tuple(wanted):
                raise ShapeMismatch(
                    f"'{name}' of shape {tuple(wanted)}",
                    f"the model has it with shape {tuple(parameters[name].shape)}",
                    "use the base that the adapter was made for",
                )
    if frozen is not None:
        with torch.no_grad():
            for name, d in frozen.tensors.items():
                parameters[name].add_(d.in_base_layout().to(parameters[name]))
    peft_model = _with_peft(model, trained)
    count = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)

    def collect() -> TaskVector:
        now = _renamed(_read_back(peft_model, start), names)
        return now if frozen is None else TaskVector(start.base, dict(frozen.tensors)) + now

    return Trainable(peft_model, count, collect)


def _with_peft(model: nn.Module, trained: TaskVector) -> nn.Module:
    from peft import PeftModel

    with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
        write_peft(trained, Path(folder) / "start")
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


def _renamed(vector: TaskVector, names: NameIndex) -> TaskVector:
    return TaskVector(vector.base, {names.resolve(n): d for n, d in vector.tensors.items()})
