"""Where in the model a task vector acts: the share of its squared norm in each layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from comgrad.explain.layers import layer_names, ordered
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class LayerEnergy:
    """One layer.

    Args:
        share: ‖τ_l‖²/‖τ‖². rank: the largest rank of its tensors; None where one is dense. tensors: how many.
    """

    layer: str
    share: float
    rank: int | None
    tensors: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def layer_profile(tau: TaskVector) -> list[LayerEnergy]:
    """The vector's layers in the model's order; shares sum to 1, or are 0 for a zero vector."""
    energy = tau.inner_by_tensor(tau)
    names = tuple(energy)
    layers = layer_names(names)
    total = sum(energy.values())
    out = []
    for layer in ordered(layers):
        inside = [n for n, at in zip(names, layers, strict=True) if at == layer]
        share = float(np.sum([energy[n] for n in inside])) / total if total > 0 else 0.0
        deltas = [tau.tensors[n] for n in inside]
        ranks = [d.rank for d in deltas if isinstance(d, LowRank)]
        out.append(LayerEnergy(layer, share, max(ranks) if len(ranks) == len(deltas) else None, len(inside)))
    return out
