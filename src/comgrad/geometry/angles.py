"""Principal angles between the column spaces of two task vectors, and the distances made of them, by their names.

The column space of ΔW = B A is the output side, cut to the numerical rank of the stored delta (`rank`). Computed in
fp64 whatever the factors' dtype: what limits the answer is the rounding of what was stored.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from comgrad.errors import ComgradError, Undefined
from comgrad.geometry.kernels import HALF_PI, angles_exact
from comgrad.geometry.rank import ENERGY, canonical
from comgrad.geometry.stack import same_base
from comgrad.vectors import delta as _delta
from comgrad.vectors.delta import Delta
from comgrad.vectors.task_vector import TaskVector

VARIANTS = ("grassmann_l1", "geodesic", "chordal", "projection", "overlap")
CONVENTIONS = ("containment", "full")


def angles_of_deltas(a: Delta, b: Delta, *, energy: float = ENERGY) -> tuple[Tensor, tuple[int, int]]:
    """Principal angles between the column spaces of two deltas of one tensor.

    Returns:
        (k,) radians in fp64, ascending, k the smaller numerical rank (0 when one is zero); and both ranks.
    """
    first, second = canonical(a, energy), canonical(b, energy)
    r1, r2 = int(first.rank[0]), int(second.rank[0])
    if min(r1, r2) == 0:
        return torch.zeros(0, dtype=torch.float64), (r1, r2)
    return angles_exact(first.U[:, :, :r1].mT, second.U[:, :, :r2].mT)[0], (r1, r2)


def shared_matrices(a: TaskVector, b: TaskVector) -> tuple[str, ...]:
    """Tensors that both vectors hold and that have a column space. Raises BaseMismatch, ShapeMismatch."""
    same_base([a, b])
    names = []
    for name in a.tensors:
        if name in b.tensors:
            x, y = a.tensors[name], b.tensors[name]
            _delta.same_place(x, y, name)
            if x.is_matrix and y.is_matrix:
                names.append(name)
    return tuple(names)


def principal_angles(
    a: TaskVector, b: TaskVector, *, energy: float = ENERGY, skip_undefined: bool = False
) -> dict[str, Tensor]:
    """Principal angles θ₁ ≤ … ≤ θ_k of every tensor that both vectors hold, k the smaller numerical rank.

    cos θ_i are the singular values of U_aᵀU_b, U an orthonormal basis of the column space of ΔW; small angles come
    from the sine, ‖(I − UUᵀ)Vz‖ (see `kernels`). Tensors that are no matrix are left out.

    Args:
        energy: share of Σσ² that the directions of a dense full-rank delta must hold (see `rank.canonical_dense`).
        skip_undefined: leave out tensors on which a vector is zero, instead of refusing.

    Returns:
        name → (k,) radians, fp64.

    Raises:
        Undefined: a delta is zero on a shared tensor (its column space has no angle), or no tensor is shared.
        BaseMismatch, ShapeMismatch.
    """
    out, undefined = _measure(a, b, energy)
    if undefined and not skip_undefined:
        raise Undefined(
            f"the angles on {_listed(undefined)}",
            "a delta is zero there, and a zero delta has no column space",
            "pass skip_undefined=True to compare the other tensors",
        )
    if not out:
        raise Undefined(
            "the angles between two vectors",
            "there is no matrix on which both are different from zero",
            "compare vectors that change the same tensors",
        )
    return {name: theta for name, (theta, _) in out.items()}


def grassmann(
    a: TaskVector,
    b: TaskVector,
    variant: str = "grassmann_l1",
    *,
    convention: str = "containment",
    energy: float = ENERGY,
    skip_undefined: bool = False,
) -> float:
    """Distance between column spaces, the mean of `grassmann_by_tensor` over the tensors (T̄ of the slides).

    Raises as `principal_angles`.
    """
    by_tensor = grassmann_by_tensor(a, b, variant, convention=convention, energy=energy, skip_undefined=skip_undefined)
    return math.fsum(by_tensor.values()) / len(by_tensor)


def grassmann_by_tensor(
    a: TaskVector,
    b: TaskVector,
    variant: str = "grassmann_l1",
    *,
    convention: str = "containment",
    energy: float = ENERGY,
    skip_undefined: bool = False,
) -> dict[str, float]:
    """Distance between the column spaces of each shared tensor; `overlap` is a similarity in [0, 1].

    | variant | containment, over the min(r₁, r₂) angles | full, d = |r₁ − r₂| |
    |---|---|---|
    | `grassmann_l1` | Σθ | + d·π/2 |
    | `geodesic` | √Σθ² | √(Σθ² + d·(π/2)²) |
    | `chordal` | √Σsin²θ | √(Σsin²θ + d) |
    | `projection` | sin θ_max = ‖P₁ − P₂‖₂ for equal ranks | 1 when d > 0 |
    | `overlap` | φ = ‖U₁ᵀU₂‖_F²/min(r₁, r₂) | /max(r₁, r₂) |

    Containment distances are 0 when one space lies in the other; the full ones are metrics over all ranks (Ye and
    Lim 2016). Raises as `principal_angles`, and ComgradError for an unknown variant or convention.
    """
    if variant not in VARIANTS or convention not in CONVENTIONS:
        raise ComgradError(
            f"variant '{variant}' with convention '{convention}'",
            "there is none of that name",
            f"use one of {', '.join(VARIANTS)} and one of {', '.join(CONVENTIONS)}",
        )
    angles = principal_angles(a, b, energy=energy, skip_undefined=skip_undefined)
    ranks = _ranks(a, b, energy, angles) if convention == "full" else dict.fromkeys(angles, (1, 1))
    return {n: distance(theta, variant, abs(ranks[n][0] - ranks[n][1])) for n, theta in angles.items()}


def distance(theta: Tensor, variant: str, missing: int = 0) -> float:
    """The named distance from (k,) angles, with `missing` further right angles."""
    k = theta.numel()
    if variant == "grassmann_l1":
        return float(theta.sum()) + missing * HALF_PI
    if variant == "geodesic":
        return math.sqrt(float(theta.square().sum()) + missing * HALF_PI**2)
    if variant == "chordal":
        return math.sqrt(float(theta.sin().square().sum()) + missing)
    if variant == "projection":
        return 1.0 if missing else float(theta.max().sin())
    return float(theta.cos().square().sum()) / (k + missing)


def undefined_tensors(a: TaskVector, b: TaskVector) -> tuple[str, ...]:
    """Shared matrices on which the angle has no value because a delta is zero there."""
    return tuple(_measure(a, b, ENERGY)[1])


def _measure(
    a: TaskVector, b: TaskVector, energy: float
) -> tuple[dict[str, tuple[Tensor, tuple[int, int]]], list[str]]:
    out, undefined = {}, []
    for name in shared_matrices(a, b):
        theta, ranks = angles_of_deltas(a.tensors[name], b.tensors[name], energy=energy)
        if theta.numel():
            out[name] = (theta, ranks)
        else:
            undefined.append(name)
    return out, undefined


def _ranks(a: TaskVector, b: TaskVector, energy: float, names: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    return {
        n: (int(canonical(a.tensors[n], energy).rank[0]), int(canonical(b.tensors[n], energy).rank[0])) for n in names
    }


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{n}'" for n in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
