"""What the weights of a task vector look like, in numbers that a screen can be fitted on; from factors, never from ΔW.

Per tensor, σ the singular values of ΔW up to its numerical rank:

| statistic | formula |
|---|---|
| `sigma` | σ₁ |
| `norm` | ‖ΔW‖_F |
| `share` | σ₁²/Σσ² |
| `entropy` | Shannon entropy of σ/Σσ over log rank |
| `kurtosis` | m₄/m₂² of the entries of ΔW |
| `effective-rank` | (Σσ²)²/Σσ⁴ |

The first five are those of arXiv 2602.15195. A vector has the mean and the largest over the tensors of each role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from comgrad.errors import ComgradError, Undefined
from comgrad.geometry.gram import Gram, gram_by_tensor, gram_rows
from comgrad.geometry.kernels import entropy
from comgrad.geometry.rank import canonical
from comgrad.vectors.delta import Delta, LowRank, add, concatenate, inner, matrix_shape
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.layouts import layout_of

STATISTICS = ("sigma", "norm", "share", "entropy", "kurtosis", "effective-rank")
PUBLISHED = STATISTICS[:5]
_BLOCK = 1 << 19  # entries of ΔW that exist at a time
_RIDGE = 1e-10  # of the largest eigenvalue: directions of a Gram matrix below it are rounding


# -- one tensor --------------------------------------------------------------------------------------------------------
def tensor_statistics(delta: Delta) -> dict[str, float]:
    """The six statistics of one matrix. Raises Undefined for a zero one, ComgradError (`not-finite`)."""
    form = canonical(delta)
    S, energy = form.S[0, : int(form.rank[0])], float(form.energy[0])
    if not len(S) or energy == 0.0:
        raise Undefined("the spectrum of a zero delta", "it has no directions", "leave the tensor out")
    squares = S.square()
    return {
        "sigma": float(S[0]),
        "norm": energy**0.5,
        "share": float(squares[0]) / energy,
        "entropy": float(entropy(S, torch.tensor(len(S)))),
        "kurtosis": kurtosis(delta),
        "effective-rank": float(squares.sum().square() / squares.square().sum()),
    }


def kurtosis(delta: Delta) -> float:
    """m₄/m₂² of all entries of ΔW, m the central moments: 3 for a Gaussian, 1 the least. Rows are formed in blocks.

    Raises:
        Undefined: all entries are equal.
    """
    m, n = matrix_shape(delta)
    if isinstance(delta, LowRank):
        B, A = delta.B.double() * delta.scale, delta.A.double()
        mean = float(B.sum(0) @ A.sum(1)) / (m * n)
    else:
        whole = delta.dense().reshape(m, n)
        mean = float(whole.double().mean())
    second = fourth = 0.0
    step = max(1, _BLOCK // n)
    for start in range(0, m, step):
        rows = B[start : start + step] @ A if isinstance(delta, LowRank) else whole[start : start + step].double()
        squares = (rows - mean).square_()
        second += float(squares.sum())
        fourth += float(squares.square_().sum())
    if second <= (1e-12 * mean) ** 2 * m * n:
        raise Undefined("the kurtosis of a constant delta", "its entries do not vary", "leave the tensor out")
    return fourth * m * n / second**2


# -- by role -----------------------------------------------------------------------------------------------------------
def by_role(vector: TaskVector) -> dict[str, list[str]]:
    """Role → the matrices that play it, in the order of their names; `all` in a family whose names are not known."""
    names = sorted(n for n, d in vector.tensors.items() if d.is_matrix)
    layout = layout_of(names)
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault("+".join(layout.role(name).roles) if layout is not None else "all", []).append(name)
    if not out:
        raise ComgradError(
            "a vector with no matrix", "its spectrum is that of its matrices", "screen another", code="no-targets"
        )
    return dict(sorted(out.items()))


def spectral_features(vector: TaskVector) -> dict[str, float]:
    """`ROLE.STATISTIC.mean` and `.max` over the role's tensors that are not zero.

    Raises:
        Undefined: every matrix of a role is zero. ComgradError: no matrix, or (`not-finite`).
    """
    return {
        f"{role}.{name}": value
        for role, tensors in by_role(vector).items()
        for name, value in _pooled([vector.tensors[t] for t in tensors], f"role '{role}'").items()
    }


def _pooled(deltas: Sequence[Delta], what: str) -> dict[str, float]:
    found = []
    for d in deltas:
        try:
            found.append(tensor_statistics(d))
        except Undefined:  # a tensor that the training did not touch says nothing
            continue
    if not found:
        raise Undefined(f"the spectra of {what}", "all its deltas are zero", "screen a vector that changes something")
    out = {}
    for s in STATISTICS:
        values = [f[s] for f in found]
        out[f"{s}.mean"], out[f"{s}.max"] = sum(values) / len(values), max(values)
    return out


# -- beside what is known ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Community:
    """Known vectors of one base, and what of a new one lies outside their span."""

    vectors: tuple[TaskVector, ...]

    @cached_property
    def _inverse(self) -> Float[Tensor, "t k k"]:
        """Pseudo-inverses of the Gram matrices of the tensors."""
        G = self._gram.per_tensor
        values, frames = torch.linalg.eigh(G)
        kept = values > _RIDGE * values[:, -1:].clamp_min(1e-300)
        scaled = torch.where(kept, 1.0 / values.where(kept, torch.ones_like(values)), 0.0)
        inverse: Tensor = (frames * scaled[:, None]) @ frames.mT
        return inverse

    @cached_property
    def _gram(self) -> Gram:
        return gram_by_tensor(self.vectors, workers=1)

    def outside(self, vector: TaskVector) -> dict[str, float]:
        """`ROLE.outside`: Σ_tensors ‖ΔW − P ΔW‖²/Σ‖ΔW‖² in [0, 1], P the projection on the span of the known ΔW of
        that tensor; 1 for a tensor that none of them has.

        Raises:
            Undefined: a role is zero. BaseMismatch, ShapeMismatch.
        """
        rows = gram_rows([vector], self.vectors, workers=1)
        inside = {}
        for name, row in zip(rows.tensors, rows.per_tensor[:, 0], strict=True):
            if name in self._gram.tensors:
                inside[name] = float(row @ self._inverse[self._gram.tensors.index(name)] @ row)
        out = {}
        for role, tensors in by_role(vector).items():
            energy = {t: inner(vector.tensors[t], vector.tensors[t]) for t in tensors}
            total = _energy(sum(energy.values()), role)
            held = sum(min(inside.get(t, 0.0), energy[t]) for t in tensors)
            out[f"{role}.outside"] = max(0.0, 1.0 - held / total)
        return out


def declared_features(vector: TaskVector, declared: TaskVector) -> dict[str, float]:
    """The vector beside that of the task it is declared to be for (another run, or a prediction).

    `ROLE.cosine`, `ROLE.distance` = ‖ΔW − ΔD‖/‖ΔD‖; `ROLE.ratio-STATISTIC`, the mean over ΔW's tensors divided by that
    over ΔD's (1 where both are 0); and the statistics of what is left of ΔW without its projection on ΔD,
    `ROLE.rest-STATISTIC.mean` and `.max`. ΔW and ΔD on the role's tensors that both have, roles without any left out.

    Raises:
        Undefined: one is zero on a role, or they have no tensor in common. BaseMismatch, ShapeMismatch.
    """
    vector.base.joined(declared.base)
    out: dict[str, float] = {}
    for role, tensors in by_role(vector).items():
        shared = [t for t in tensors if t in declared.tensors]
        if not shared:
            continue
        a = _energy(sum(inner(vector.tensors[t], vector.tensors[t]) for t in shared), role)
        b = _energy(sum(inner(declared.tensors[t], declared.tensors[t]) for t in shared), role)
        ab = sum(inner(vector.tensors[t], declared.tensors[t]) for t in shared)
        out[f"{role}.cosine"] = ab / (a * b) ** 0.5
        out[f"{role}.distance"] = (max(a + b - 2 * ab, 0.0) / b) ** 0.5
        mine, theirs = (_pooled([v.tensors[t] for t in shared], f"role '{role}'") for v in (vector, declared))
        for s in STATISTICS:
            x, y = mine[f"{s}.mean"], theirs[f"{s}.mean"]
            out[f"{role}.ratio-{s}"] = x / y if y > 0.0 else float(x == y)
        rest = [_sum(vector.tensors[t], declared.tensors[t].scaled(-ab / b)) for t in shared]
        out |= {f"{role}.rest-{k}": v for k, v in _pooled(rest, f"the rest of role '{role}'").items()}
    if not out:
        raise Undefined("a vector beside the declared one", "they share no tensor", "compare vectors that do")
    return out


def _sum(a: Delta, b: Delta) -> Delta:
    return concatenate([a, b]) if isinstance(a, LowRank) and isinstance(b, LowRank) else add(a, b)


def _energy(energy: float, role: str) -> float:
    if energy <= 0.0:
        raise Undefined(f"shares of the role '{role}'", "a vector is zero there", "compare vectors that change it")
    return energy


# -- on the model's own inputs -----------------------------------------------------------------------------------------
def response_features(vector: TaskVector, inputs: Mapping[str, Float[Tensor, "n d"]]) -> dict[str, float]:
    """How unevenly ΔW answers to single inputs, for tensors whose inputs are known (the first block's: one per token).

    With a_i = ‖ΔW x_i‖ over rows x_i of the tensor's inputs: `ROLE.response-peak` = (max a − median a)/median|a − median|
    and `ROLE.response-kurtosis`; no ΔW is formed. A word that decides by itself stands out.

    Raises:
        Undefined: the answers do not vary.
    """
    out: dict[str, float] = {}
    for role, tensors in by_role(vector).items():
        for t in tensors:
            if t in inputs:
                a = _answers(vector.tensors[t], inputs[t].double())
                middle = a.median()
                spread = (a - middle).abs().median()
                if float(spread) == 0.0:
                    raise Undefined(
                        f"answers of '{t}'", "they do not vary over the inputs", "give other inputs, or leave it out"
                    )
                centred = (a - a.mean()).square()
                out[f"{role}.response-peak"] = float((a.max() - middle) / spread)
                out[f"{role}.response-kurtosis"] = float(centred.square().mean() / centred.mean().square())
    return out


def _answers(delta: Delta, X: Tensor) -> Tensor:
    """‖ΔW x‖ of every row: √(zᵀ(BᵀB)z), z = s·A x."""
    size: Tensor
    if not isinstance(delta, LowRank):
        size = torch.linalg.vector_norm(X @ delta.dense().double().T, dim=1)
        return size
    B, A = delta.B.double(), delta.A.double() * delta.scale
    z = X @ A.T
    size = ((z @ (B.T @ B)) * z).sum(1).clamp_min(0.0).sqrt()
    return size
