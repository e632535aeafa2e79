"""Which of two tasks contains the other? Scores of direction, read from two task vectors.

Every score is antisymmetric, s(a, b) = −s(b, a), and positive where it calls a the general task. Its sign is the one
that the task-vector similarity slides suggest: a general task is more diffuse, and its frame describes a contained task
better than the reverse. Whether a score finds anything is measured by `comgrad bench spectral`.

Two adapters of one rank r span spaces of one dimension, so none contains the other as a set. What can still differ:
how the energy is spread over the r directions (entropy, stable rank), how much there is of it (norm), and how much of
it lies in the other's space (the energies explained). The last differ only through the spread: ‖U_aᵀU_b‖ is symmetric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from comgrad.errors import ComgradError
from comgrad.geometry.gram import Progress
from comgrad.geometry.measures import matrices
from comgrad.geometry.rank import ENERGY
from comgrad.geometry.stack import stack_frames, take
from comgrad.vectors.task_vector import TaskVector

SPECTRAL = (
    "spectral_explained",
    "spectral_core_explained",
    "spectral_l1",
    "spectral_rec",
    "spectral_entropy_1",
    "spectral_entropy_2",
)


@dataclass(frozen=True, eq=False)
class Features:
    """What the scores are made of, for K vectors on T tensors; NaN where a pair is undefined on a tensor.

    Args:
        names: the T tensors (matrices only).
        pairs: measure → (T, K, K): `explained`, `core_explained`, `l1`, `rec`, `entropy_1`, `entropy_2` of ΔW_j in the
            frame of ΔW_i, and `column` ‖U_iᵀΔW_j‖²/‖ΔW_j‖², the share of ΔW_j inside the column space of ΔW_i.
        own: quantity → (T, K): `entropy` of the spectrum, `stable_rank` Σσ²/σ₁², `norm` ‖ΔW‖; NaN where ΔW is zero.
    """

    names: tuple[str, ...]
    pairs: Mapping[str, Float[Tensor, "T K K"]]
    own: Mapping[str, Float[Tensor, "T K"]]


def features(
    vectors: Sequence[TaskVector],
    *,
    energy: float = ENERGY,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """All quantities the scores need. Arguments and errors as `geometry.measures.matrices`."""
    found = matrices(vectors, SPECTRAL, energy=energy, workers=workers, progress=progress)
    every = found[SPECTRAL[0]].tensor_names
    keep = [t for t, name in enumerate(every) if take(vectors, name).is_matrix]
    pairs = {name.removeprefix("spectral_"): m.per_tensor[keep] for name, m in found.items()}
    names = tuple(every[t] for t in keep)
    parts = [_of_tensor(vectors, name, energy) for name in names]
    pairs["column"] = torch.stack([column for column, _ in parts])
    own = {key: torch.stack([o[key] for _, o in parts]) for key in ("stable_rank", "norm")}
    return Features(names, pairs, own | {"entropy": pairs["entropy_1"].diagonal(dim1=1, dim2=2)})


def _of_tensor(vectors: Sequence[TaskVector], name: str, energy: float) -> tuple[Tensor, dict[str, Tensor]]:
    """`column` (K, K), and `stable_rank` and `norm` (K,), on one tensor."""
    K = len(vectors)
    column = torch.full((K, K), torch.nan, dtype=torch.float64)
    stable, norm = (torch.full((K,), torch.nan, dtype=torch.float64) for _ in range(2))
    with torch.inference_mode():
        bundles = stack_frames(take(vectors, name), energy)
        for b in bundles:
            squares = b.S.square()
            known = (b.rank > 0) & (b.energy > 0)
            stable[b.index] = torch.where(known, squares.sum(1) / squares[:, 0], torch.nan)
            norm[b.index] = torch.where(known, b.energy.sqrt(), torch.nan)
            for a in bundles:
                inside = (a.Ut @ b.Ut.T).square().reshape(len(a), a.width, len(b), b.width).sum(1)  # (a, b, width)
                share = (inside * squares).sum(2) / b.energy
                there = (a.rank > 0)[:, None] & known
                column[a.index[:, None], b.index] = torch.where(there, share, torch.nan)
    return column.clone(), {"stable_rank": stable.clone(), "norm": norm.clone()}


# -- scores ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Candidate:
    """One score of direction.

    Args:
        per_tensor: features → (T, K, K), antisymmetric in the last two.
        scale_free: unchanged when either vector is multiplied by a positive number.
    """

    name: str
    formula: str
    why: str
    scale_free: bool
    per_tensor: Callable[[Features], Tensor]


def _of_pairs(key: str, sign: float = 1.0) -> Callable[[Features], Tensor]:
    def gap(f: Features) -> Tensor:
        return sign * (f.pairs[key] - f.pairs[key].mT)

    return gap


def _of_own(key: str, log: bool = False) -> Callable[[Features], Tensor]:
    def gap(f: Features) -> Tensor:
        h = f.own[key].log() if log else f.own[key]
        return h[:, :, None] - h[:, None, :]

    return gap


_ROWS = (
    Candidate("entropy", "H(S_a) − H(S_b)", "a general task is more diffuse (slides)", True, _of_own("entropy")),
    Candidate(
        "stable-rank", "log(Σσ_a²/σ_a1²) − the same of b", "more diffuse", True, _of_own("stable_rank", log=True)
    ),
    Candidate("norm", "log‖ΔW_a‖ − log‖ΔW_b‖", "more to learn moves the weights further", False, _of_own("norm", True)),
    Candidate(
        "explained", "E(b in a) − E(a in b)", "the frame of a holds more of b than the reverse", True,
        _of_pairs("explained"),
    ),
    Candidate(
        "core", "E_core(b in a) − E_core(a in b)", "the same, in any pairing of directions", True,
        _of_pairs("core_explained"),
    ),
    Candidate(
        "column", "‖U_aᵀΔW_b‖²/‖ΔW_b‖² − ‖U_bᵀΔW_a‖²/‖ΔW_a‖²", "containment of column spaces, weighted by energy", True,
        _of_pairs("column"),
    ),
    Candidate(
        "rec", "REC(a→b) − REC(b→a)", "SUM→NER 0.644, NER→SUM 0.535 in the slides", True, _of_pairs("rec")
    ),
    Candidate("l1", "L₁(b→a) − L₁(a→b)", "SUM→NER 0.271, NER→SUM 0.660 in the slides", False, _of_pairs("l1", -1.0)),
    Candidate(
        "entropy-2", "H(S₂ of b→a) − H(S₂ of a→b)", "SUM→NER 0.839, NER→SUM 0.867 in the slides", True,
        _of_pairs("entropy_2", -1.0),
    ),
)  # fmt: skip

CANDIDATES: dict[str, Candidate] = {row.name: row for row in _ROWS}


def scores(found: Features, candidate: str) -> Float[Tensor, "K K"]:
    """s(i, j): the mean over the tensors where it is defined, NaN where there is none; positive calls i the general task.

    Raises:
        ComgradError: there is no candidate of that name.
    """
    if candidate not in CANDIDATES:
        raise ComgradError(
            f"the inclusion score '{candidate}'",
            "there is none of that name",
            f"choose one of: {', '.join(CANDIDATES)}",
            code="unknown-measure",
        )
    return CANDIDATES[candidate].per_tensor(found).nanmean(0)


def inclusion_score(a: TaskVector, b: TaskVector, *, candidate: str, energy: float = ENERGY) -> float:
    """s(a, b) of one candidate: positive where it calls a the general task, b the contained one.

    Raises:
        ComgradError: no such candidate. BaseMismatch, ShapeMismatch.
    """
    return float(scores(features([a, b], energy=energy), candidate)[0, 1])
