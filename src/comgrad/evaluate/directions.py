"""What task vectors do inside a running model: the first-order response of each module to a change of its parameters.

A module y = f(x; W) that is linear in W answers a change ΔW, its input held, with f(x; ΔW). With δ = ∂z/∂y from one
backward pass, the derivative of z along ΔW is Σ_tokens δ·f(x; ΔW); for ΔW = s·B·A that is Σ_tokens (s·Bᵀδ)·(A x), and
no ΔW is formed. Summed over modules this is the exact derivative along the whole task vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from comgrad.engine.plan import plan_blocks
from comgrad.errors import ComgradError, ShapeMismatch
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BUDGET = 128 << 20  # bytes of intermediates held at one time
_TABLES = ("Linear", "Conv1D", "Embedding")  # those with a matrix, for which low-rank changes have a meaning
_TURNED = ("Conv1D", "Embedding")  # those that store (input, output)
_LINEAR = (*_TABLES, "LayerNorm", "RMSNorm")


@dataclass(frozen=True)
class Call:
    """One use of a module in the forward pass: its input and its output, for `batch` texts at once."""

    x: Tensor
    y: Tensor


class Trace:
    """Forward hooks that record what goes into and comes out of some modules, with outputs one can differentiate at."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._batch = 0
        self.calls: dict[nn.Module, list[Call]] = {}

    @contextmanager
    def recording(self) -> Iterator[Trace]:
        """Hooks are in place inside the block, and gone after it."""
        handles = [m.register_forward_hook(self._record) for m in self._modules]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self.calls = {}

    def start(self, batch: int) -> None:
        """Forget the last forward pass; the next one is over `batch` texts."""
        self._batch = batch
        self.calls = {m: [] for m in self._modules}

    def _record(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if output.shape[0] == 1 < self._batch:  # the same for all texts, as position embeddings are
            output = output.expand(self._batch, *output.shape[1:])
        y = output if output.requires_grad else output.detach().requires_grad_(True)
        self.calls[module].append(Call(inputs[0].detach(), y))
        return y.clone()  # the model may go on in place


class Directions:
    """K task vectors as directions at a model's parameters, sorted by tensor.

    Raises:
        ShapeMismatch: the model lacks one of the vectors' tensors, or has it in another shape or layout.
        ComgradError: (`no-tangent`) a tensor belongs to a kind of module whose response is not known here.
    """

    def __init__(self, model: nn.Module, vectors: Sequence[TaskVector]) -> None:
        self.count = len(vectors)
        self.names = tuple(sorted({name for v in vectors for name in v.tensors}))
        owners = _owners(model)
        self._places: list[tuple[int, nn.Module, _Stack]] = []
        for t, name in enumerate(self.names):
            if name not in owners:
                raise ShapeMismatch(
                    f"tensor '{name}'", "the model has no such tensor", "use the model the vectors stand on"
                )
            for module, attribute in owners[name]:
                held = {k: v.tensors[name] for k, v in enumerate(vectors) if name in v.tensors}
                self._places.append((t, module, _Stack.of(name, module, attribute, held)))
        self.modules = list(dict.fromkeys(module for _, module, _ in self._places))

    def respond(self, trace: Trace, slopes: dict[int, list[Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """The derivatives of c numbers per text along every vector, tensor by tensor.

        Args:
            trace: after the forward pass.
            slopes: id of a call → c tensors ∂z_c/∂y, of the output's shape.

        Yields:
            tensor's place in `names`, and (c, batch, K). A tensor used twice comes twice: its responses add.
        """
        for t, module, stack in self._places:
            for call in trace.calls[module]:
                if id(call) in slopes:
                    yield t, stack.respond(module, call, slopes[id(call)], self.count)


@dataclass(frozen=True)
class _Stack:
    """All vectors' changes of one parameter: stacked factors (s·B)ᵀ (R, m) and A (R, n) with their owners (R,), and the
    changes in full, as the model stores the parameter."""

    name: str
    attribute: str
    Bt: Tensor
    A: Tensor
    owner: Tensor
    full: tuple[tuple[int, Tensor], ...]

    @classmethod
    def of(cls, name: str, module: nn.Module, attribute: str, held: dict[int, Delta]) -> _Stack:
        parameter: Tensor = getattr(module, attribute)
        kind = type(module).__name__
        for k, d in held.items():
            _check(name, kind, attribute, parameter, k, d)
        low = {k: d.folded() for k, d in held.items() if isinstance(d, LowRank)}
        empty = [parameter.new_zeros(0, 0)]
        return cls(
            name,
            attribute,
            torch.cat([B.T.to(parameter) for B, _ in low.values()] or empty),
            torch.cat([A.to(parameter) for _, A in low.values()] or empty),
            torch.tensor([k for k, (_, A) in low.items() for _ in range(len(A))], device=parameter.device).long(),
            tuple((k, d.in_base_layout().to(parameter)) for k, d in held.items() if isinstance(d, Dense)),
        )

    def respond(self, module: nn.Module, call: Call, slopes: list[Tensor], count: int) -> Tensor:
        batch = call.y.shape[0]
        flat = [s.reshape(batch, -1, s.shape[-1]) for s in slopes]
        out = flat[0].new_zeros(len(flat), batch, count, dtype=self.A.dtype)
        item = 2 * flat[0].shape[0] * flat[0].shape[1] * flat[0].element_size()
        for block in plan_blocks(len(self.A), item, BUDGET):
            into = _through(module, call.x, self.A[block.slice])
            for c, slope in enumerate(flat):
                along = (into * (slope @ self.Bt[block.slice].T)).sum(1, dtype=out.dtype)
                out[c].index_add_(1, self.owner[block.slice], along)
        for k, change in self.full:
            answer = _response(module, self.attribute, call.x, change)
            answer = answer.expand_as(call.y).reshape(batch, -1)
            for c, slope in enumerate(slopes):
                out[c, :, k] += torch.linalg.vecdot(slope.reshape(batch, -1), answer)
        return out


def _owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Parameter's name → every module that holds it, tied ones included."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            holders.setdefault(id(parameter), []).append((module, attribute))
    return {name: holders[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def _check(name: str, kind: str, attribute: str, parameter: Tensor, k: int, d: Delta) -> None:
    matrix = kind in _TABLES and attribute == "weight"
    if kind not in _LINEAR or attribute not in ("weight", "bias") or (isinstance(d, LowRank) and not matrix):
        raise ComgradError(
            f"tensor '{name}' of vector {k}, a {d.kind} change of the {attribute} of a {kind}",
            "its first-order response is known for linear maps, embeddings and norms alone",
            "leave that tensor out of the vector",
            code="no-tangent",
        )
    turned = kind in _TURNED
    shape = d.shape if isinstance(d, LowRank) else tuple(d.in_base_layout().shape)
    expected = tuple(reversed(parameter.shape)) if isinstance(d, LowRank) and turned else tuple(parameter.shape)
    if shape != expected or (isinstance(d, LowRank) and d.transposed != turned):
        raise ShapeMismatch(
            f"tensor '{name}' of vector {k} has shape {d.shape}",
            f"the model has it as {tuple(parameter.shape)}{' (input, output)' if turned else ''}",
            "use the model the vectors stand on",
        )


def _through(module: nn.Module, x: Tensor, A: Tensor) -> Tensor:
    """A x at every token: (batch or 1, tokens, R)."""
    if type(module).__name__ == "Embedding":
        return functional.embedding(x, A.T).reshape(x.shape[0], -1, len(A))
    return x.reshape(x.shape[0], -1, x.shape[-1]) @ A.T


def _response(module: nn.Module, attribute: str, x: Tensor, change: Tensor) -> Tensor:
    """f(x; ΔW): the module with the change in the place of one parameter and zero in that of the other."""
    kind = type(module).__name__
    if attribute == "bias":
        return change
    if kind == "Linear":
        return x @ change.T
    if kind == "Conv1D":
        return x @ change
    if kind == "Embedding":
        return functional.embedding(x, change)
    shape: Any = getattr(module, "normalized_shape", tuple(change.shape))
    if kind == "LayerNorm":
        return functional.layer_norm(x, shape, change, None, float(module.eps))  # type: ignore[arg-type]
    eps: Any = getattr(module, "eps", None)
    return functional.rms_norm(x, shape, change, eps)
