"""T(i, j, l): every measure of every vector with every zoo vector on every tensor, kept on disk, a file per tensor.

Beside it the same tables of vectors that know nothing: each delta keeps its size and its singular values and gets random
singular vectors. What a measure gives there is its null.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from comgrad.errors import NotFound
from comgrad.evaluate.digests import digest_of
from comgrad.geometry.measures import matrices
from comgrad.geometry.table import MEASURES
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.derived import read_arrays, write_arrays
from comgrad.workflows.bench.keep import source_digest
from comgrad.workflows.bench_similarity.plan import Study

VERSION = 1
_CODE = ("comgrad.geometry.angles", "comgrad.geometry.gram", "comgrad.geometry.kernels", "comgrad.geometry.measures",
         "comgrad.geometry.null", "comgrad.geometry.pairs", "comgrad.geometry.rank", "comgrad.geometry.spectral",
         "comgrad.geometry.stack", "comgrad.geometry.table", "comgrad.workflows.bench_similarity.tables")  # fmt: skip
STORED = tuple(name for name in MEASURES if name != "centred_cosine")  # that one follows from `inner`
Table = Float[np.ndarray, "n k"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tensor:
    """One tensor's tables: `ahead[m]` (N, K) is value(i, zoo j), `back[m]` value(zoo j, i); energy (N,) is ‖ΔW_i‖²."""

    ahead: dict[str, Table]
    back: dict[str, Table]
    energy: Float[np.ndarray, "n"]

    def symmetric(self, measure: str) -> Table:
        """Mean of the two directions; one of them alone where the other is undefined."""
        if MEASURES[measure].symmetric:
            return self.ahead[measure]
        a, b = self.ahead[measure], self.back[measure]
        out: Table = np.where(np.isnan(a), b, np.where(np.isnan(b), a, (a + b) / 2))
        return out


def tables(study: Study, *, random: bool = False, progress: Progress = lambda _d, _t: None) -> list[Tensor]:
    """The tables of all tensors; those kept by an earlier run of the same vectors and code are read.

    Args:
        random: of the vectors with random singular vectors, drawn with the request's seed.

    Raises:
        NotFound: (`request.kept`) one is not kept. ComgradError: as `geometry.measures.matrices`.
    """
    out = []
    code = [source_digest(m) for m in _CODE]
    for done, name in enumerate(study.tensors):
        seed = study.request.seed if random else None
        key = digest_of([VERSION, study.digest, [i.id for i in study.zoo], name, seed, code])
        file = study.request.out / "tables" / f"{key[:32]}.npz"
        found = read_arrays(file)
        if found is None:
            if study.request.kept:
                raise NotFound(f"'{study.request.out}'", f"tensor '{name}' is not kept there", "leave --kept out")
            found = _arrays(study, done, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(file, **found)
        out.append(_read(found))
        progress(done + 1, len(study.tensors))
    return out


def _arrays(study: Study, place: int, seed: int | None) -> dict[str, np.ndarray]:
    name, K = study.tensors[place], len(study.zoo)
    parts = [_only(v, name, study.vectors[0]) for v in study.vectors]
    if seed is not None:
        parts = [
            TaskVector(v.base, {name: randomised(v.tensors[name], np.random.SeedSequence([seed, place, i]))})
            for i, v in enumerate(parts)
        ]
    out: dict[str, np.ndarray] = {}
    for measure, found in matrices(parts, STORED, workers=1).items():
        whole = found.values if MEASURES[measure].pool == "gram" else found.per_tensor[0]
        values = whole.numpy().astype(np.float64 if measure == "inner" else np.float32)
        out[f"ahead/{measure}"] = values[:, :K]
        if not MEASURES[measure].symmetric:
            out[f"back/{measure}"] = values[:K].T
        if measure == "inner":
            out["energy"] = values.diagonal().copy()
    return out


def _only(vector: TaskVector, name: str, first: TaskVector) -> TaskVector:
    """The vector's part on one tensor; an absent one is zero."""
    delta = vector.tensors.get(name)
    return TaskVector(vector.base, {name: Dense(torch.zeros(first.tensors[name].shape)) if delta is None else delta})


def _read(found: dict[str, np.ndarray]) -> Tensor:
    parts: dict[str, dict[str, Table]] = {"ahead": {}, "back": {}}
    for key, values in found.items():
        side, _, measure = key.partition("/")
        if measure:
            parts[side][measure] = values.astype(np.float64)
    return Tensor(parts["ahead"], parts["back"], found["energy"])


# -- random singular vectors -------------------------------------------------------------------------------------------
def randomised(delta: Delta, seed: np.random.SeedSequence) -> Delta:
    """The delta with its singular values, and singular vectors drawn uniformly (a vector: its direction)."""
    rng = np.random.default_rng(seed)
    if isinstance(delta, LowRank):
        B, A = delta.B.double(), delta.A.double()
        B = _frame(B.shape[0], B.shape[1], rng) @ torch.linalg.qr(B)[1] if B.shape[0] >= B.shape[1] else B
        A = torch.linalg.qr(A.mT)[1].mT @ _frame(A.shape[1], A.shape[0], rng).mT if A.shape[1] >= A.shape[0] else A
        return replace(delta, B=B.to(delta.B.dtype), A=A.to(delta.A.dtype))
    W = delta.W.double()
    if not delta.is_matrix or W.ndim != 2:
        g = torch.from_numpy(rng.standard_normal(tuple(W.shape)))
        return replace(delta, W=(g * W.norm() / g.norm()).to(delta.W.dtype), pinned=None)
    W = _frame(W.shape[0], W.shape[0], rng) @ W @ _frame(W.shape[1], W.shape[1], rng)
    return replace(delta, W=W.to(delta.W.dtype), pinned=None)


def _frame(m: int, r: int, rng: np.random.Generator) -> torch.Tensor:
    """r orthonormal columns of ℝᵐ, uniform: QR of a Gaussian matrix with R's diagonal made positive."""
    Q, R = torch.linalg.qr(torch.from_numpy(rng.standard_normal((m, r))))
    return torch.as_tensor(Q * torch.sign(R.diagonal()))
