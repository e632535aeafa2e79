"""Training a model's own parameters in place: all of them, or those of a paradigm; the result is a dense task vector."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from comgrad.errors import ComgradError, NotFound
from comgrad.finetune.selection import Selection, select
from comgrad.finetune.trainable import Start, Trainable, check_fits, renamed
from comgrad.vectors.delta import Delta, Dense
from comgrad.vectors.exact import put_pinned, recombine, subtract
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.layouts import Layout, layout_of
from comgrad.weights.names import NameIndex
from comgrad.weights.reader import open_checkpoint

_IN_A_BLOCK = re.compile(r"(^|\.)\d+\.")


@dataclass(frozen=True)
class Begun:
    """A model with θ = θ₀ + init in place and the chosen parameters trainable.

    Args:
        chosen: what is trained.
        theta0: θ₀ on the CPU, of the chosen parameters and those that the init changes; of no others.
        init: the init under the model's names.
    """

    model: nn.Module
    start: Start
    chosen: Selection
    theta0: Mapping[str, Tensor]
    init: TaskVector | None

    def collect(self) -> TaskVector:
        """θ − θ₀ of the trained tensors, exact: θ comes back bit for bit from θ₀ and the delta; and the rest of the init.

        Tensors that did not move are left out, as a task vector's absent tensors are zero.
        """
        now, layout = dict(self.model.named_parameters()), _layout(self.model)
        moved = {n: _delta(self.theta0[n], now[n], _turned(layout, n)) for n in self.chosen.names}
        tensors: dict[str, Delta] = {n: d for n, d in moved.items() if d.pinned is not None or bool(d.W.any())}
        if self.init is not None:
            tensors |= {n: d for n, d in self.init.tensors.items() if n not in moved}
        return TaskVector(self.start.base, tensors or dict(moved))

    def changes(self) -> dict[str, Tensor]:
        """θ − θ₀ of what is trained, with its graph."""
        now = dict(self.model.named_parameters())
        return {n: now[n] - self.theta0[n].to(now[n].device) for n in self.chosen.names}


def in_place(model: nn.Module, start: Start, *, paradigm: str | None = None) -> Trainable:
    """Train the parameters of a paradigm (`selection.PARADIGMS`) where they are, or all of them.

    Raises:
        ComgradError: as `begin`.
    """
    begun = begin(model, start, paradigm)
    return Trainable(model, begun.chosen.parameters, begun.chosen.total, begun.collect, begun.changes)


def begin(model: nn.Module, start: Start, paradigm: str | None) -> Begun:
    """Add the init to the model's weights, make the chosen parameters trainable and all others not.

    A parameter that the base's checkpoint lacks (a pooler, say) was made up when the model was built: it is never
    trained.

    Raises:
        ComgradError: as `selection.select`; (`bad-start`) the start has an adapter; (`names-differ`) the model's blocks
            have other names than the checkpoint's. ShapeMismatch, NotFound: the init
            has a tensor that the model has not, or has in another shape.
    """
    if start.trained is not None:
        raise ComgradError(
            "a start with an adapter to train",
            "this recipe trains the model's own parameters",
            "give the adapter as the part that is merged first",
            code="bad-start",
        )
    parameters = dict(model.named_parameters())
    shapes = {n: tuple(p.shape) for n, p in parameters.items()}
    chosen = select(_stored(shapes, start), paradigm, tower=start.tower)
    chosen = Selection(chosen.names, chosen.parameters, sum(p.numel() for p in parameters.values()))
    init = renamed(start.frozen, NameIndex(shapes)) if start.frozen is not None else None
    if init is not None:
        check_fits(init, shapes)
    kept = {*chosen.names, *(init.tensors if init is not None else ())}
    theta0 = {n: parameters[n].detach().to("cpu", copy=True) for n in sorted(kept)}
    with torch.no_grad():
        for name, d in init.tensors.items() if init is not None else ():
            parameters[name].copy_(_moved(theta0[name], d))
    for name, p in parameters.items():
        p.requires_grad_(name in set(chosen.names))
    return Begun(model, start, chosen, theta0, init)


def _stored(shapes: Mapping[str, tuple[int, ...]], start: Start) -> dict[str, tuple[int, ...]]:
    """The parameters that the base's checkpoint has. Raises ComgradError (`names-differ`) where a block's are lacking."""
    if start.base_path is None:
        return dict(shapes)
    with open_checkpoint(start.base_path, check_finite=False) as checkpoint:
        there = NameIndex(checkpoint.names)
    out = {}
    for name, shape in shapes.items():
        with suppress(NotFound):
            there.resolve(name)
            out[name] = shape
    renamed_when_loaded = [n for n in shapes if n not in out and _IN_A_BLOCK.search(n)]
    if renamed_when_loaded:
        raise ComgradError(
            f"the model's '{renamed_when_loaded[0]}'",
            "the base's checkpoint has no tensor of that name, so what is trained could not be told as a change of the base",
            "use a model whose tensors keep their names when they are loaded, or an adapter recipe",
            code="names-differ",
        )
    return out


def _moved(theta0: Tensor, d: Delta) -> Tensor:
    """θ₀ + ΔW, rounded once; bit for bit the fine-tuned tensor where the delta was kept exactly."""
    out = recombine(theta0, d.in_base_layout(), theta0.dtype)
    return put_pinned(out, d.pinned) if isinstance(d, Dense) and d.pinned is not None else out


def _delta(before: Tensor, now: Tensor, turned: bool) -> Dense:
    W, pinned = subtract(before, now.detach().cpu())
    across = turned and W.ndim == 2
    return Dense(W.T if across else W, now.dtype, across, pinned)


def _layout(model: nn.Module) -> Layout | None:
    with suppress(ComgradError):  # a composite model has no single layout, and then nothing is taken as transposed
        return layout_of(n for n, _ in model.named_parameters())
    return None


def _turned(layout: Layout | None, name: str) -> bool:
    return layout is not None and layout.role(name).transposed
