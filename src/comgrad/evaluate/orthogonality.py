"""Proposition 1: how far the layer inputs of one task are orthogonal to the task vector of another.

A linear layer with weights W₀ + α₁ΔW₁ + α₂ΔW₂ answers an input x of task 1 as without vector 2 just when ΔW₂·x = 0. The
measure, layer by layer, is the root mean square over real tokens of ‖ΔW·x‖/(‖ΔW‖·‖x‖), which is

    ρ = √e / ‖ΔW‖,   e = tr(ΔW·C·ΔWᵀ),   C = E[x·xᵀ/‖x‖²]   (n, n),

with ‖ΔW‖ the Frobenius or the spectral norm. Both put ρ in [0, 1]. The null keeps ΔW's singular values and draws its
right singular vectors uniformly (Haar). Then tr(C) = 1 gives

    mean of e = ‖ΔW‖_F²/n,
    variance of e = 2·(‖ΔWᵀΔW‖_F² − ‖ΔW‖_F⁴/n)·(‖C‖_F² − 1/n) / ((n − 1)(n + 2)),

exactly: the traceless symmetric matrices are an irreducible representation of O(n), of dimension (n − 1)(n + 2)/2. No
simulation is needed. Source: Jin et al. (arXiv 2407.07089), Proposition 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from comgrad.errors import ShapeMismatch, Undefined
from comgrad.evaluate.arithmetic import TEST
from comgrad.evaluate.predictor import Predictor, Problem, Term
from comgrad.vectors.cutting import factored_svd
from comgrad.vectors.delta import Delta, LowRank, matrix_shape
from comgrad.vectors.task_vector import TaskVector

Norm = Literal["frobenius", "spectral"]
_LINEAR = ("Linear", "Conv1D")
_FUSED = "in_proj_weight"  # of nn.MultiheadAttention: query, key and value of one input


# -- the inputs --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Inputs:
    """What linear layers read on one task's data.

    Args:
        moments: tensor's name → C = E[x·xᵀ/‖x‖²] (n, n), fp64.
        unseen: tensors whose inputs cannot be seen, or that are not applied to them linearly (embeddings, norms,
            biases, convolutions, and the output projection inside `nn.MultiheadAttention`, which is not called).
    """

    moments: Mapping[str, Tensor]
    unseen: tuple[str, ...]


def layer_inputs(
    predictor: Predictor, problem: Problem, names: Sequence[str], *, split: str = TEST, at: Sequence[Term] = ()
) -> Inputs:
    """Second moments of the directions of the named layers' inputs over the real tokens of a split.

    Args:
        names: weights, such as `encoder.layer.0.attention.self.query.weight`.
        at: where the model stands: θ₀, or the task's own fine-tuned weights. For a linearised predictor leave it
            empty: the layers of a first-order model read what they read at θ₀.

    Raises:
        ShapeMismatch: the model has no tensor of such a name.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    mask: list[Tensor | None] = [None]
    with predictor.at(at) as model:
        modules = _modules(model, names)
        with _watched(modules, sums, counts, mask), torch.no_grad():
            for batch, _ in problem.part(split):
                mask[0] = batch.get("attention_mask")
                predictor.read(model, batch)
    found = {n: (C / counts[n]).cpu() for n, C in sums.items() if counts[n]}
    return Inputs(found, tuple(n for n in names if n not in found))


def _modules(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Tensor's name → the linear map or attention that holds it."""
    there, modules = dict(model.named_parameters(remove_duplicate=False)), dict(model.named_modules())
    out = {}
    for name in names:
        if name not in there:
            raise ShapeMismatch(
                f"tensor '{name}'", "the model has no such tensor", "use the model the vector stands on"
            )
        owner, _, attribute = name.rpartition(".")
        module = modules[owner]
        fused = isinstance(module, nn.MultiheadAttention) and attribute == _FUSED
        if fused or (type(module).__name__ in _LINEAR and attribute == "weight"):
            out[name] = module
    return out


@contextmanager
def _watched(
    modules: Mapping[str, nn.Module], sums: dict[str, Tensor], counts: dict[str, int], mask: Sequence[Tensor | None]
) -> Iterator[None]:
    """Hooks inside the block that add up x·xᵀ/‖x‖²."""

    def watch(name: str) -> Any:
        def add(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            real = mask[0]
            x = x[real.bool()] if real is not None and x.shape[:-1] == real.shape else x.reshape(-1, x.shape[-1])
            x = x.detach().double()
            size = x.norm(dim=1, keepdim=True)
            x = (x / torch.where(size > 0, size, 1.0))[size[:, 0] > 0]  # a zero input has no direction
            sums[name] = sums[name] + x.T @ x if name in sums else x.T @ x
            counts[name] = counts.get(name, 0) + len(x)

        return add

    handles = [m.register_forward_pre_hook(watch(name), with_kwargs=True) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# -- the ratio ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LayerRatio:
    """One layer.

    Args:
        ratio: ρ, 0 for orthogonal inputs. null_ratio: √(mean of e)/‖ΔW‖ under the null.
        z: (e − mean)/standard deviation under the null; NaN where it has no spread.
        energy, null_mean, null_variance: e and its moments. size: ‖ΔW‖_F².
    """

    name: str
    ratio: float
    null_ratio: float
    z: float
    energy: float
    null_mean: float
    null_variance: float
    size: float

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class VectorRatio:
    """A task vector on one task's inputs, all layers together.

    Args:
        ratio: √(Σe/Σ‖ΔW‖_F²), or with the spectral norms of the layers in the place of the Frobenius ones.
        relative: √(Σe/Σ mean of e): 1 is random, 0 orthogonal.
        z: (Σe − Σmean)/√Σvariance; layers are taken as independent.
    """

    vector: str
    inputs: str
    norm: Norm
    ratio: float
    relative: float
    z: float
    layers: tuple[LayerRatio, ...]
    unseen: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "layers": [x.as_dict() for x in self.layers], "unseen": list(self.unseen)}


def layer_ratio(name: str, d: Delta, C: Tensor, norm: Norm = "frobenius") -> LayerRatio:
    """ρ of one delta on inputs of second moment C, and its null.

    Raises:
        Undefined: a zero delta. ShapeMismatch: inputs of another width.
    """
    energy, size, square = _energies(name, d, C)
    if size == 0:
        raise Undefined(f"the ratio on '{name}'", "its delta is zero", "leave that tensor out")
    n = C.shape[0]
    trace, spread = float(C.diagonal().sum()), float(C.square().sum())
    mean = size * trace / n
    variance = 0.0
    if n > 1:
        variance = 2.0 * max(square - size**2 / n, 0.0) * max(spread - trace**2 / n, 0.0) / ((n - 1) * (n + 2))
    length = math.sqrt(size) if norm == "frobenius" else _spectral(d)
    significant = variance > (1e-12 * mean) ** 2
    z = (energy - mean) / math.sqrt(variance) if significant else float("nan")
    return LayerRatio(
        name, math.sqrt(max(energy, 0.0)) / length, math.sqrt(mean) / length, z, energy, mean, variance, size
    )


def vector_ratio(
    tau: TaskVector, inputs: Inputs, *, vector: str = "", task: str = "", norm: Norm = "frobenius"
) -> VectorRatio:
    """Proposition 1's measurement for all of a vector's layers whose inputs were seen; zero deltas are left out.

    Raises:
        Undefined: no layer to measure.
    """
    layers = []
    unseen = []
    for name, d in tau.tensors.items():
        if name not in inputs.moments:
            unseen.append(name)
            continue
        try:
            layers.append(layer_ratio(name, d, inputs.moments[name], norm))
        except Undefined:
            continue
    if not layers:
        raise Undefined(
            f"the ratio of vector '{vector}' on the inputs of '{task}'",
            "it changes no linear layer whose inputs were seen",
            "watch the layers that the vector changes",
        )
    energy, mean = math.fsum(x.energy for x in layers), math.fsum(x.null_mean for x in layers)
    lengths = math.fsum(x.null_mean / x.null_ratio**2 for x in layers)
    variance = math.fsum(x.null_variance for x in layers)
    z = (energy - mean) / math.sqrt(variance) if variance > (1e-12 * mean) ** 2 else float("nan")
    return VectorRatio(
        vector, task, norm, math.sqrt(max(energy, 0.0) / lengths), math.sqrt(max(energy, 0.0) / mean), z,
        tuple(layers), tuple(unseen),
    )  # fmt: skip


def _energies(name: str, d: Delta, C: Tensor) -> tuple[float, float, float]:
    """e = tr(ΔW·C·ΔWᵀ), ‖ΔW‖_F² and ‖ΔWᵀΔW‖_F², in fp64; a low-rank delta is not formed."""
    if matrix_shape(d)[-1] != C.shape[0]:
        raise ShapeMismatch(
            f"tensor '{name}' with inputs of width {matrix_shape(d)[-1]}",
            f"the layer was seen to read {C.shape[0]} numbers",
            "use the model the vector stands on",
        )
    if isinstance(d, LowRank):
        B, A = (x.double() for x in d.folded())
        outer, inner = B.T @ B, A @ A.T  # (r, r)
        core = outer @ inner
        return float((outer * (A @ C @ A.T)).sum()), float(core.diagonal().sum()), float((core * core.T).sum())
    W = d.dense().reshape(matrix_shape(d)).double()
    gram = W @ W.T if W.shape[0] < W.shape[1] else W.T @ W
    return float(((W @ C) * W).sum()), float(W.square().sum()), float(gram.square().sum())


def _spectral(d: Delta) -> float:
    """‖ΔW‖₂, the largest singular value."""
    if isinstance(d, LowRank):
        return float(factored_svd(d)[1][0])
    return float(torch.linalg.matrix_norm(d.dense().reshape(matrix_shape(d)).double(), 2))
