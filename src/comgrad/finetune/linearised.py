"""The first-order Taylor model of a network in its parameters, trained and evaluated as such (the NTK recipe).

    f_lin(x; θ) = f(x; θ₀) + J(x; θ₀)(θ − θ₀)

is linear in θ. One forward-mode pass gives both terms. Forward mode exists for the plain ("math") attention kernel only,
so that kernel is forced. Dropout is off, as in Ortiz-Jimenez et al. (arXiv 2305.12827), whose model this is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from comgrad.errors import ComgradError
from comgrad.finetune.dense import begin
from comgrad.finetune.trainable import Start, Trainable


@dataclass(frozen=True)
class LinearOutput:
    """What a linearised transformer gives back: the one of the two that the model has."""

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None


class Linearised(nn.Module):
    """f(x;θ₀) + J(x;θ₀)(θ − θ₀), where θ are the parameters of `model` as they are now.

    Mean pooling is linear, so the linearised hidden state gives the linearised representation. To look at the vector τ
    at θ₀ + α·τ, move the parameters of `model` (`evaluate.classifier.shifted(lin.model, tau, alpha)`) and call this.

    Args:
        model: a module whose output is a tensor, or has `last_hidden_state` or `logits`.
        theta0: name → θ₀ of the parameters that may differ from it; default: every parameter as it is now.
    """

    def __init__(self, model: nn.Module, theta0: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.model = model
        parameters = dict(model.named_parameters())
        point = {n: p.detach().clone() for n, p in parameters.items()} if theta0 is None else theta0
        self._names = tuple(sorted(point))
        for i, name in enumerate(self._names):
            value = point[name].detach().to(parameters[name].device)
            self.register_buffer(f"theta0_{i}", value, persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """The inner model stays in evaluation mode: with dropout there would be one θ₀ for every call."""
        super().train(mode)
        self.model.eval()
        return self

    def theta0(self) -> dict[str, Tensor]:
        """θ₀ by parameter name."""
        return {name: self.get_buffer(f"theta0_{i}") for i, name in enumerate(self._names)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own; a `LinearOutput` in place of a transformer's.

        Raises:
            ComgradError: (`no-linear-output`) the model gives neither a tensor nor one of the two fields.
        """
        now, theta0, field = dict(self.model.named_parameters()), self.theta0(), ""

        def f(theta: dict[str, Tensor]) -> Tensor:
            nonlocal field
            field, value = _one_tensor(functional_call(self.model, theta, args, kwargs))
            return value

        _load_forward_mode()
        with math_attention():
            value, slope, *_ = jvp(f, (theta0,), ({n: now[n] - theta0[n] for n in self._names},))
        out = value + slope
        return LinearOutput(**{field: out}) if field else out


def ntk(model: nn.Module, start: Start, *, paradigm: str | None = None) -> Trainable:
    """Train the linearised model: of all parameters, or of a paradigm's. An init is where θ starts, never part of θ₀.

    Raises:
        ComgradError: as `dense.begin`.
    """
    begun = begin(model, start, paradigm)
    lin = Linearised(model, begun.theta0)
    return Trainable(lin, begun.chosen.parameters, begun.chosen.total, begun.collect, begun.changes, linearised=True)


def _one_tensor(output: Any) -> tuple[str, Tensor]:
    if isinstance(output, Tensor):
        return "", output
    for field in ("last_hidden_state", "logits") if isinstance(output, Mapping) else ():
        if isinstance(output.get(field), Tensor):
            return field, output[field]
    raise ComgradError(
        f"a model whose output is a {type(output).__name__}",
        "only a tensor, last_hidden_state or logits is linearised",
        "linearise the encoder without its head",
        code="no-linear-output",
    )


@cache
def _load_forward_mode() -> None:
    """The first forward-mode pass loads rules that torch compiles in a way it calls deprecated: no news for a user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
        jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


@contextmanager
def math_attention() -> Iterator[None]:
    """Inside the block attention is made of plain operations, which forward mode can differentiate."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
