"""The input-weighted inner product: task vectors compared by what they do to the inputs that layers really get.

    ⟨τ_i, τ_j⟩_C = Σ_l tr(ΔW_i C_l ΔW_jᵀ) = Σ_l E_x⟨ΔW_i x, ΔW_j x⟩,   C_l = E[xxᵀ] (n, n) of layer l's inputs

on generic text, computed once per base. With A → A·C^½ it is the ordinary inner product, so that everything in
`geometry` takes the weighted vectors as they are.

Source: the input side of Kronecker-factored curvature (Martens & Grosse 2015, §3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from comgrad.evaluate.classifier import Bench
from comgrad.vectors.delta import Delta, LowRank
from comgrad.vectors.task_vector import TaskVector

BATCH = 32


@torch.no_grad()
def input_roots(bench: Bench, texts: Sequence[str], names: Sequence[str]) -> dict[str, Tensor]:
    """C^½ (n, n), fp64, of each named weight's inputs over all real tokens of the texts.

    Args:
        names: weights of linear layers, such as `encoder.layer.0.attention.self.query.weight`.
    """
    model = bench.encoder()
    modules = dict(model.named_modules())
    sums: dict[str, Tensor] = {}
    mask: Tensor | None = None

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert mask is not None
            x = inputs[0][mask].double()
            sums[name] = sums.get(name, torch.zeros(x.shape[1], x.shape[1]).to(x)) + x.T @ x

        return module.register_forward_pre_hook(add)

    handles = [watch(name, modules[name.removesuffix(".weight")]) for name in names]
    tokens = 0
    try:
        for start in range(0, len(texts), BATCH):
            batch = bench.tokens(texts[start : start + BATCH])
            mask = batch["attention_mask"].bool()
            tokens += int(mask.sum())
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _root(C / tokens).cpu() for name, C in sums.items()}


def weighted(vector: TaskVector, roots: Mapping[str, Tensor]) -> TaskVector:
    """The vector with each low-rank ΔW replaced by ΔW·C^½; tensors without a root are left out."""
    parts: dict[str, Delta] = {}
    for name, d in vector.tensors.items():
        if isinstance(d, LowRank) and name in roots:
            parts[name] = replace(d, A=d.A.double() @ roots[name], B=d.B.double())
    return TaskVector(vector.base, parts)


def _root(C: Tensor) -> Tensor:
    size, turn = torch.linalg.eigh(C)
    root: Tensor = (turn * size.clamp_min(0.0).sqrt()) @ turn.T
    return root
