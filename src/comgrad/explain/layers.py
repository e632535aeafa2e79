"""Tensors in their layers, and what each layer of a vector is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from comgrad.explain.decomposition import decompose
from comgrad.explain.null import random_inner
from comgrad.explain.reference import Probe, Reference
from comgrad.weights.layouts import layout_of

ELSEWHERE = "other"
DRAWS = 9
_NUMBER = re.compile(r"\.(\d+)\.")


def layer_names(tensors: Sequence[str]) -> list[str]:
    """The layer of each tensor: its block's number, with the tower where a model has two, or `other`."""
    layout = layout_of(tensors)
    out = []
    for name in tensors:
        if layout is not None:
            role = layout.role(name)
            number, tower = role.layer, role.tower
        else:
            match = _NUMBER.search(name)
            number, tower = (int(match[1]) if match else None), ""
        out.append(ELSEWHERE if number is None else f"{tower} {number}".strip())
    return out


def ordered(layers: Sequence[str]) -> tuple[str, ...]:
    """Each layer once, by tower and number, `other` last."""

    def key(layer: str) -> tuple[bool, str, int]:
        tower, _, number = layer.rpartition(" ")
        return (layer == ELSEWHERE, tower, int(number) if number.isdigit() else 0)

    return tuple(sorted(set(layers), key=key))


def summed(
    per_tensor: Float[np.ndarray, "t ..."], layers: Sequence[str], order: Sequence[str]
) -> Float[np.ndarray, "l ..."]:
    """Per-tensor numbers added up within each layer."""
    at = np.array(layers, dtype=object)
    return np.stack([per_tensor[at == layer].sum(axis=0) for layer in order])


@dataclass(frozen=True)
class Layer:
    """One layer of the vector.

    Args:
        energy: its share of ‖τ‖². usual: the median share among the described vectors.
        explained: share of the layer's energy that the layer's own sparse decomposition explains; `random` what it would
            explain of a random vector; None where the layer is zero or unknown to the described vectors.
        nearest: the described vector with the largest coefficient there, by place; None without one.
    """

    name: str
    energy: float
    usual: float
    explained: float | None
    random: float | None
    nearest: int | None


def layer_profile(
    reference: Reference, probe: Probe, spread: Float[np.ndarray, "l k k"], *, seed: int = 0
) -> list[Layer]:
    """The vector layer by layer.

    Args:
        spread: covariance of a random vector's inner products in each layer, see `null`.
    """
    total = probe.total
    own = np.stack([np.diag(g) for g in reference.gram])  # (L, K)
    whole = own.sum(axis=0)
    shares = np.median(own[:, whole > 0] / whole[whole > 0], axis=1) if (whole > 0).any() else np.zeros(len(own))
    out = []
    for i, name in enumerate(reference.layers):
        energy, G = float(probe.energy[i]), reference.gram[i]
        explained = random = nearest = None
        if energy > 0.0 and own[i].any():
            found = decompose(G, probe.inner[i], energy)
            explained = found.explained
            random = float(np.mean([decompose(G, b, energy).explained for b in random_inner(spread[i], DRAWS, seed)]))
            weight = found.coefficients * np.sqrt(np.maximum(own[i], 0.0))
            nearest = int(np.argmax(weight)) if weight.any() else None
        out.append(Layer(name, energy / total if total > 0 else 0.0, float(shares[i]), explained, random, nearest))
    return out
