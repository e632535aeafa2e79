"""Spectral projection: how one delta uses the singular directions of another.

ΔW₁ = U S₁ Vᵀ, and S₂ = argmin over diagonal S of ‖U S Vᵀ − ΔW₂‖_F. The rank-one matrices u_i v_iᵀ are orthonormal, so
the least squares separate: s_i = u_iᵀ ΔW₂ v_i, with its sign. Where singular values of ΔW₁ are equal, the directions
and so S₂ are not unique.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from comgrad.errors import ComgradError, Undefined
from comgrad.geometry.angles import shared_matrices
from comgrad.geometry.kernels import entropy, lp_distance, shares
from comgrad.geometry.rank import ENERGY, canonical
from comgrad.vectors.delta import Delta, LowRank, matrix_shape
from comgrad.vectors.task_vector import TaskVector


@dataclass(frozen=True, eq=False)
class SpectralProjection:
    """ΔW₂ seen in the singular frame of ΔW₁.

    Args:
        s1: (k,) singular values of ΔW₁, descending, k its numerical rank.
        s2: (k,) signed coefficients u_iᵀ ΔW₂ v_i.
        energy: ‖ΔW₂‖_F².
        core_energy: ‖UᵀΔW₂V‖_F²: what the two spaces hold of ΔW₂ in any pairing of their directions.
    """

    s1: Tensor
    s2: Tensor
    energy: float
    core_energy: float

    @property
    def explained(self) -> float:
        """Σs2²/‖ΔW₂‖_F², in [0, 1]: the share of ΔW₂ the comparison is about. Read it before anything else here."""
        return float(self.s2.square().sum()) / self.energy

    @property
    def core_explained(self) -> float:
        """‖UᵀΔW₂V‖_F²/‖ΔW₂‖_F², at least `explained`: same directions, whatever their pairing."""
        return self.core_energy / self.energy

    def lp(self, p: float | int, *, normalised: bool = False) -> float:
        """L_p(S₁, S₂) = (Σ|s1 − s2|^p)^(1/p), on the spectra themselves, with sign (the slides' formula).

        Args:
            p: at least 1.
            normalised: on |s|/Σ|s| instead, which forgets scale and sign; then L₁ = 2(1 − REC).

        Raises:
            ComgradError: p below 1 is no norm.
        """
        if not p >= 1:
            raise ComgradError(f"p = {p}", "L_p is a norm for p of at least 1", "use 1 or 2")
        s1, s2 = (shares(self.s1), shares(self.s2)) if normalised else (self.s1, self.s2)
        return float(lp_distance(s1, s2, p))

    @property
    def rec(self) -> float:
        """REC = Σ min(|s1|/Σ|s1|, |s2|/Σ|s2|), in [0, 1]; NaN when every s2 is zero."""
        return float(torch.minimum(shares(self.s1), shares(self.s2)).sum())

    @property
    def entropy_1(self) -> float:
        """Shannon entropy of s1/Σs1 divided by log k, in [0, 1]; 0 for k = 1."""
        return float(entropy(self.s1, torch.tensor(self.s1.numel())))

    @property
    def entropy_2(self) -> float:
        """The same of |s2|."""
        return float(entropy(self.s2, torch.tensor(self.s2.numel())))


def project_delta(a: Delta, b: Delta, *, energy: float = ENERGY) -> SpectralProjection | None:
    """ΔW_b in the singular frame of ΔW_a; None when either is zero. Low-rank deltas are never formed."""
    frame = canonical(a, energy)
    r = int(frame.rank[0])
    U, V = frame.U[0, :, :r], frame.V[0, :, :r]
    if isinstance(b, LowRank):
        left, right = U.T @ b.B.double(), b.A.double() @ V * b.scale
        core = left @ right
        whole = b.scale**2 * float(((b.B.double().T @ b.B.double()) * (b.A.double() @ b.A.double().T)).sum())
    else:
        W = b.dense().reshape(matrix_shape(b)).double()
        core, whole = U.T @ (W @ V), float(W.square().sum())
    if r == 0 or whole == 0:
        return None
    return SpectralProjection(frame.S[0, :r], core.diagonal().clone(), whole, float(core.square().sum()))


def spectral_projection(
    a: TaskVector, b: TaskVector, *, energy: float = ENERGY, skip_undefined: bool = False
) -> dict[str, SpectralProjection]:
    """Spectral projection of b on a for every matrix both hold; not symmetric: swap them for the other direction.

    Raises:
        Undefined: a vector is zero on a shared tensor (unless `skip_undefined`), or no tensor is left.
        BaseMismatch, ShapeMismatch.
    """
    names = shared_matrices(a, b)
    found = {n: project_delta(a.tensors[n], b.tensors[n], energy=energy) for n in names}
    out = {n: p for n, p in found.items() if p is not None}
    if len(out) < len(found) and not skip_undefined:
        zero = next(n for n, p in found.items() if p is None)
        raise Undefined(
            f"the spectral projection on '{zero}'",
            "a delta is zero there and has no singular directions",
            "pass skip_undefined=True to compare the other tensors",
        )
    if not out:
        raise Undefined(
            "the spectral projection of two vectors",
            "there is no matrix on which both are different from zero",
            "compare vectors that change the same tensors",
        )
    return out
