"""An attacker who knows the screen: spectra are kept at those of a clean vector, or the backdoor is halved by merging."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from comgrad.finetune.regularisers import Regulariser
from comgrad.finetune.trainable import Trainable
from comgrad.geometry.rank import canonical
from comgrad.predict.start import combination, predicted_start
from comgrad.vectors.task_vector import TaskVector

_SMALL = 1e-8


def targets_of(vector: TaskVector) -> dict[str, tuple[float, float]]:
    """Tensor → (‖ΔW‖_F, σ₁) of its matrices, in the order of their names."""
    out = {}
    for name, delta in sorted(vector.tensors.items()):
        if delta.is_matrix:
            form = canonical(delta)
            out[name] = (float(form.energy[0]) ** 0.5, float(form.S[0, 0]) if int(form.rank[0]) else 0.0)
    return out


def matching(targets: Mapping[str, tuple[float, float]]) -> Regulariser:
    """Mean over trained matrices of max(0, log ‖ΔW‖_F − log target)² + max(0, log σ₁ − log target)².

    What is below its target is let grow: training starts from ΔW = 0, and a pull up to the target would grow noise.
    A matrix is matched to the target whose name has its module's name in it. σ₁ is uᵀΔWv, u and v by one step of power
    iteration from those of the step before: its gradient is exact where they are singular vectors.
    """
    kept: dict[str, Tensor] = {}

    def penalty(trainable: Trainable) -> Tensor:
        terms = []
        for module, W in trainable.changes().items():
            norm, sigma = _target(targets, module)
            if float(W.detach().abs().max()) == 0.0 or norm == 0.0 or sigma == 0.0:
                continue  # before the first step ΔW = 0 has neither a logarithm nor a direction
            first = _first(W, module, kept)
            size = torch.linalg.vector_norm(W)
            over = torch.stack([(size + _SMALL) / norm, (first + _SMALL) / sigma]).log().clamp_min(0.0)
            terms.append(over.square().sum())
        if not terms:
            return next(iter(trainable.changes().values())).sum() * 0.0
        return torch.stack(terms).mean()

    return penalty


def _target(targets: Mapping[str, tuple[float, float]], module: str) -> tuple[float, float]:
    plain = module.removeprefix("base_model.model.")
    return next(v for name, v in targets.items() if plain in name or name.removesuffix(".weight") in plain)


def _first(W: Tensor, module: str, kept: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        v = kept.get(module)
        rounds = 1 if v is not None else 6
        v = W.sum(0) + _SMALL if v is None else v
        for _ in range(rounds):
            u = torch.nn.functional.normalize(W @ v, dim=0)
            v = torch.nn.functional.normalize(W.T @ u, dim=0)
        kept[module] = v
    return (u @ (W @ v)).abs()


def merged(poisoned: TaskVector, clean: TaskVector, rank: int, scale: float) -> TaskVector:
    """½τ_poisoned + ½τ_clean as an adapter of that rank, as an attacker would publish it."""
    return predicted_start(combination([poisoned, clean], [0.5, 0.5]), rank, scale=scale).vector
