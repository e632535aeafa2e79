"""Regularisers as rows of a table: one function each, from what is trained to a scalar that is added to the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from comgrad.errors import ComgradError
from comgrad.finetune.trainable import Trainable

Regulariser = Callable[[Trainable], Tensor]
"""What is trained, as it is now → a scalar with its graph; called once a step."""


@dataclass(frozen=True)
class NamedRegulariser:
    """One regulariser. `source` is where it was published."""

    name: str
    function: Regulariser
    meaning: str
    source: str


def orthogonality(trainable: Trainable) -> Tensor:
    """Σ over trained matrices ΔW (m, n) of ‖G − I‖_F, G = ΔWᵀΔW where m ≥ n, and ΔWΔWᵀ where m < n.

    The Frobenius norm is not squared, and the smaller Gram matrix is taken. The side an (m, n) matrix is stored on makes
    no difference; a fused tensor counts as one matrix, an adapter's ΔW as s·B·A.

    Raises:
        ComgradError: (`no-targets`) no matrix is trained.

    Source: OrthoReg, Liu et al., CVPR 2026, arXiv 2604.17078, in the form of the authors' code.
    """
    terms = [_to_identity(d) for d in trainable.changes().values() if d.ndim == 2]
    if not terms:
        raise ComgradError(
            "the regulariser 'orthoreg' with no trained matrix",
            "it is defined on the changes of matrices",
            "use a recipe that trains some, or leave it out",
            code="no-targets",
        )
    return torch.stack(terms).sum()


def _to_identity(change: Tensor) -> Tensor:
    small = change if change.shape[0] >= change.shape[1] else change.T
    gram = small.T @ small
    out: Tensor = torch.linalg.matrix_norm(gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device))
    return out


REGULARISERS: Mapping[str, NamedRegulariser] = {
    r.name: r
    for r in (
        NamedRegulariser(
            "orthoreg",
            orthogonality,
            "columns of every trained ΔW orthonormal, so that task vectors disentangle",
            "arXiv 2604.17078",
        ),
    )
}


def regulariser_named(name: str) -> NamedRegulariser:
    """The regulariser of that name. Raises ComgradError that lists the known ones."""
    found = REGULARISERS.get(name)
    if found is None:
        raise ComgradError(
            f"the regulariser '{name}'",
            "there is none of that name",
            f"use one of: {', '.join(REGULARISERS)}",
            code="bad-recipe",
        )
    return found


def weighted(regulariser: Regulariser, trainable: Trainable, weight: float) -> Callable[[], Tensor]:
    """weight · regulariser(trainable), for the loop. Raises ComgradError for a weight that is no positive number."""
    if not (math.isfinite(weight) and weight > 0.0):
        raise ComgradError(
            f"the regulariser's weight {weight}",
            "a weight is a positive number",
            "correct it, or leave the regulariser out",
            code="bad-recipe",
        )
    return lambda: weight * regulariser(trainable)
