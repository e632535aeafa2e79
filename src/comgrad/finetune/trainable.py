"""Where a run starts, and a model made ready for the loop: what every recipe takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from comgrad.errors import ShapeMismatch
from comgrad.types import BaseRef
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.names import NameIndex


@dataclass(frozen=True)
class Start:
    """Where a run starts: θ₀ + frozen + trained.

    Args:
        base: the base, and `base_path` its folder; None when the model was not read from one.
        trained: the adapter that is trained; None for a recipe that trains the model's own parameters.
        frozen: a part of the result that is added to the model's weights first. An adapter is then trained beside it;
            a recipe that trains the model's own parameters moves it on.
        tower: train only this tower (`text`, `vision`) of a model with two.
    """

    base: BaseRef
    base_path: Path | None
    trained: TaskVector | None = None
    frozen: TaskVector | None = None
    tower: str | None = None


@dataclass(frozen=True)
class Trainable:
    """A model ready for the loop.

    Args:
        model: what to put the task's head on.
        parameters: number of trainable parameters.
        total: number of parameters of the representation model, an adapter's own not counted.
        collect: the whole task vector relative to θ₀ as it is now, under the model's own parameter names.
        changes: name → ΔW (as the model stores the tensor) of what is trained, as it is now and with its graph, for
            regularisers.
        linearised: the model is f(x;θ₀) + J(x;θ₀)(θ − θ₀), and its task vector is to be evaluated so.
    """

    model: nn.Module
    parameters: int
    total: int
    collect: Callable[[], TaskVector]
    changes: Callable[[], dict[str, Tensor]]
    linearised: bool = False

    @property
    def share(self) -> float:
        """Trainable parameters over those of the representation model."""
        return self.parameters / self.total


def renamed(vector: TaskVector, names: NameIndex) -> TaskVector:
    """The vector under the names of `names`. Raises NotFound, ComgradError for one that is not there or ambiguous."""
    return TaskVector(vector.base, {names.resolve(n): d for n, d in vector.tensors.items()})


def check_fits(vector: TaskVector, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a vector that has a tensor in another shape than the model. Raises ShapeMismatch."""
    for name, d in vector.tensors.items():
        stored = d.shape[::-1] if d.transposed else d.shape
        wanted = getattr(d, "weight_shape", None) or stored
        if tuple(shapes[name]) != tuple(wanted):
            raise ShapeMismatch(
                f"'{name}' of shape {tuple(wanted)}",
                f"the model has it with shape {tuple(shapes[name])}",
                "use the base that the adapter was made for",
            )
