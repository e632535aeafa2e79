"""One tensor across a whole collection, stacked so that every pair is a block of one matrix product."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comgrad.engine.plan import CACHE_BUDGET, plan_blocks
from comgrad.errors import ComgradError, ShapeMismatch
from comgrad.geometry.rank import ENERGY, Canonical, canonical_dense, canonical_lowrank
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, Dense, LowRank, matrix_shape
from comgrad.vectors.task_vector import TaskVector


@dataclass(frozen=True, eq=False)
class Slice:
    """The deltas of one tensor in K vectors; None where a vector does not have the tensor (its delta is zero)."""

    name: str
    deltas: tuple[Delta | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, n), or the shape of a tensor that is no matrix."""
        return next(matrix_shape(d) for d in self.deltas if d is not None)

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2

    def __len__(self) -> int:
        return len(self.deltas)


@dataclass(frozen=True, eq=False)
class Factors:
    """Raw factors of c low-rank deltas, zero-padded to one width w: ΔW_i = Σ_a Bt[i·w+a] ⊗ At[i·w+a].

    Bt (c·w, m) carries the scaling, At is (c·w, n); `index` (c,) are the vectors' places in the collection.
    """

    index: Tensor
    Bt: Tensor
    At: Tensor
    width: int


@dataclass(frozen=True, eq=False)
class Frames:
    """Canonical forms of c deltas, zero-padded to one width w: Ut (c·w, m), S (c, w), Vt (c·w, n), rank (c,)."""

    index: Tensor
    Ut: Tensor
    S: Tensor
    Vt: Tensor
    rank: Tensor
    width: int
    energy: Tensor  # (c,) ‖ΔW‖² of the whole delta
    exact: bool  # every ΔW of the bundle equals U diag(S) Vᵀ: nothing was cut

    def __len__(self) -> int:
        return self.index.numel()


def same_base(vectors: Sequence[TaskVector]) -> BaseRef:
    """The base all vectors stand on.

    Raises:
        ComgradError: no vectors. BaseMismatch: two bases, named.
    """
    if not vectors:
        raise ComgradError("an empty collection", "there is nothing to compare", "pass at least one task vector")
    base = vectors[0].base
    for i, v in enumerate(vectors[1:], start=1):
        base = base.joined(v.base, what=f"vectors 0 and {i}")
    return base


def tensor_names(*collections: Iterable[TaskVector]) -> tuple[str, ...]:
    """Union of the vectors' tensor names, sorted."""
    return tuple(sorted({name for vectors in collections for v in vectors for name in v.tensors}))


def take(vectors: Sequence[TaskVector], name: str) -> Slice:
    """The deltas of one tensor; deferred ones are computed here, and live as long as the slice does.

    Raises:
        ShapeMismatch: two vectors hold different shapes for the tensor.
        ComgradError: `not-finite`, with the tensor and the vector's place.
    """
    deltas = tuple(v.tensors.get(name) for v in vectors)
    first: tuple[int, Delta] | None = None
    for i, d in enumerate(deltas):
        if d is None:
            continue
        first = first or (i, d)
        if matrix_shape(d) != matrix_shape(first[1]):
            raise ShapeMismatch(
                f"tensor '{name}' has shape {first[1].shape} in vector {first[0]} and {d.shape} in vector {i}",
                "deltas of one tensor must have its shape",
                "check that both were made from the same base and the same revision",
            )
    return Slice(name, deltas)


def stack_factors(part: Slice) -> tuple[list[Factors], dict[int, Tensor]]:
    """Raw low-rank factors in bundles of one width, and the deltas for which the full matrix is the smaller form.

    Returns:
        bundles of one width each, ranks 1, 2, 3–4, 5–8, … together; and place → W (m, n) or flat (size,).
    """
    groups: dict[int, list[int]] = defaultdict(list)
    full: dict[int, Tensor] = {}
    for i, d in enumerate(part.deltas):
        if isinstance(d, LowRank) and d.rank * sum(d.shape) < d.numel:
            groups[_padded(d.rank)].append(i)
        elif d is not None:
            W = d.dense()
            _require_finite(part.name, [i], W)
            full[i] = W.reshape(matrix_shape(d)) if d.is_matrix else W.reshape(-1)
    bundles = []
    for places in (groups[w] for w in sorted(groups)):
        lows = [d for d in (part.deltas[i] for i in places) if isinstance(d, LowRank)]
        width = max(1, max(d.rank for d in lows))
        B = _stacked([d.B for d in lows], width, rows=False)
        A = _stacked([d.A for d in lows], width, rows=True)
        _require_finite(part.name, places, B, A)
        B *= torch.tensor([d.scale for d in lows], dtype=torch.float64)[:, None, None]
        bundles.append(Factors(torch.tensor(places), B.flatten(0, 1), A.flatten(0, 1), width))
    return bundles, full


def stack_frames(part: Slice, energy: float = ENERGY) -> list[Frames]:
    """Canonical forms of the slice's matrices in bundles of one width. Tensors that are no matrix have none.

    Low-rank deltas of one rank and dtype are decomposed in batches that fit the cache; dense ones one by one (see `rank`).
    """
    if not part.is_matrix:
        return []
    groups: dict[tuple[int, torch.dtype], list[int]] = defaultdict(list)
    pieces: dict[int, list[tuple[list[int], Canonical]]] = defaultdict(list)
    for i, d in enumerate(part.deltas):
        if isinstance(d, LowRank) and d.rank > 0:
            groups[d.rank, d.stored].append(i)
        elif isinstance(d, Dense):
            _require_finite(part.name, [i], d.W)
            form = canonical_dense(d.W.reshape(matrix_shape(d)), d.stored, energy)
            pieces[_padded(form.S.shape[1])].append(([i], form))
    for (_, stored), members in groups.items():
        form = _decomposed(part, members, stored)
        pieces[_padded(form.S.shape[1])].append((members, form))
    return [_bundle(width, found) for width, found in sorted(pieces.items())]


def _decomposed(part: Slice, members: list[int], stored: torch.dtype) -> Canonical:
    """Canonical forms of low-rank deltas of one rank and dtype, in batches that fit the cache."""
    lows = [d for d in (part.deltas[i] for i in members) if isinstance(d, LowRank)]
    rank, (m, n) = lows[0].rank, part.shape
    width = min(m, n, rank)
    Ut, Vt = (torch.empty(len(members), width, size, dtype=torch.float64) for size in (m, n))
    forms = []
    for block in plan_blocks(len(members), 8 * rank * (m + n), CACHE_BUDGET // 4):
        some = lows[block.slice]
        Bt, A = torch.stack([d.B.T for d in some]).double(), torch.stack([d.A for d in some]).double()
        _require_finite(part.name, members[block.slice], Bt, A)
        scale = torch.tensor([d.scale for d in some], dtype=torch.float64)
        forms.append(canonical_lowrank(Bt.mT, A, scale, stored, out=(Ut[block.slice], Vt[block.slice])))
    S, known, energy, cut = (torch.cat([getattr(f, field) for f in forms]) for field in ("S", "rank", "energy", "cut"))
    return Canonical(Ut.mT, S, Vt.mT, known, energy, cut)


def _bundle(width: int, found: list[tuple[list[int], Canonical]]) -> Frames:
    order = sorted((place, k, j) for k, (places, _) in enumerate(found) for j, place in enumerate(places))
    U = _joined([_widen(f.U.mT, width, dim=1) for _, f in found])
    V = _joined([_widen(f.V.mT, width, dim=1) for _, f in found])
    S = _joined([_widen(f.S, width, dim=1) for _, f in found])
    offset = [0]
    for places, _ in found:
        offset.append(offset[-1] + len(places))
    rows = torch.tensor([offset[k] + j for _, k, j in order])
    if rows.tolist() != list(range(len(rows))):
        U, V, S = U[rows], V[rows], S[rows]
    return Frames(
        index=torch.tensor([place for place, _, _ in order]),
        Ut=U.reshape(-1, U.shape[2]),
        S=S,
        Vt=V.reshape(-1, V.shape[2]),
        rank=torch.cat([f.rank for _, f in found])[rows],
        width=width,
        energy=torch.cat([f.energy for _, f in found])[rows],
        exact=not any(bool((f.cut & (f.energy > 0)).any()) for _, f in found),
    )


def _stacked(parts: list[Tensor], width: int, *, rows: bool) -> Tensor:
    """(k, width, n) fp64 of k matrices of at most `width` rows (r, n), or columns (n, r), with zeros below."""
    along = 0 if rows else 1
    ranks = {x.shape[along] for x in parts}
    if len(ranks) > 1:
        wide = torch.stack([_widen(x, width, dim=along) for x in parts]).double()
        return wide if rows else wide.mT.contiguous()
    out = torch.zeros(len(parts), width, parts[0].shape[1 - along], dtype=torch.float64)
    found = torch.stack(parts)
    out[:, : ranks.pop()] = found if rows else found.mT
    return out


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _padded(width: int) -> int:
    """The next power of two: few different widths, so few kinds of blocks, whatever ranks a collection mixes."""
    return 1 << max(0, width - 1).bit_length()


def _widen(x: Tensor, width: int, dim: int = 0) -> Tensor:
    """x with zeros appended along `dim` up to `width`."""
    missing = width - x.shape[dim]
    if missing == 0:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_zeros(shape)], dim=dim)


def _require_finite(name: str, places: list[int], *stacked: Tensor) -> None:
    if all(bool(x.sum().isfinite()) or bool(x.isfinite().all()) for x in stacked):
        return  # a finite sum has only finite terms, and costs no temporary
    bad = [i for j, i in enumerate(places) if len(places) == 1 or any(not bool(x[j].isfinite().all()) for x in stacked)]
    raise ComgradError(
        f"tensor '{name}' of vector {bad[0]} holds NaN or infinite numbers",
        "no similarity to it has a value, and NaN would win every ranking",
        "leave the vector out, or extract it again",
        code="not-finite",
    )
