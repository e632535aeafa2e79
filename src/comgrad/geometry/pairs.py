"""Every quantity of every pair on one tensor, from stacked frames, in blocks that stay in the cache.

With ΔW_i = U_i S_i V_iᵀ, M = U_iᵀU_j and N = V_iᵀV_j (all pairs: two products of stacks), everything is a block of M
and of P = M ∘ N: angles are the singular values of M, the overlap is ‖M‖², the spectrum of ΔW_j in the frame of i is
s_a = Σ_b P_ab S_j,b, and the inner product is Σ_a S_i,a s_a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from comgrad.engine.plan import CACHE_BUDGET, Block, plan_blocks
from comgrad.geometry.gram import gram_of_tensor
from comgrad.geometry.kernels import angles_exact, angles_inside, entropy, needs_exact, spectral_stats
from comgrad.geometry.rank import ENERGY
from comgrad.geometry.stack import Frames, Slice, stack_factors, stack_frames, take
from comgrad.vectors.task_vector import TaskVector

INNER, OVERLAP, ANGLES, SPECTRAL, CORE = "inner", "overlap", "angles", "spectral", "core"
EXACT_BUDGET = 16 << 20  # bytes of frames gathered at one time for the pairs that need the exact form

Needs = Set[str]


@dataclass(eq=False)
class PairTable:
    """What was asked for about one tensor: (K, K) fp64 by name, and (K,) by name.

    `overlap` ‖U_iᵀU_j‖_F², `theta_sum` Σθ, `theta_squared` Σθ², `sine_squared` Σsin²θ, `theta_max` over min(rank)
    angles; `explained`, `core_explained`, `l1`, `l2`, `rec`, `entropy_2` of ΔW_j in the frame of i (row i, column j);
    `inner`. NaN marks a pair without a value. By vector: `rank`, `energy`, `entropy_1`.
    """

    shape: tuple[int, ...]
    rank: Tensor
    energy: Tensor
    entropy_1: Tensor
    pair: dict[str, Tensor] = field(default_factory=dict)


SYMMETRIC = {
    OVERLAP: ("overlap",),
    ANGLES: ("theta_sum", "theta_squared", "sine_squared", "theta_max"),
}
DIRECTED = {SPECTRAL: ("explained", "l1", "l2", "rec", "entropy_2"), CORE: ("core_explained",)}


def pair_table(vectors: Sequence[TaskVector], name: str, needs: Needs, energy: float = ENERGY) -> PairTable:
    """Compute `needs` for one tensor of a collection. Raises as `gram`."""
    K = len(vectors)
    table = PairTable(
        (), torch.zeros(K, dtype=torch.int64), torch.zeros(K).double(), torch.full((K,), math.nan).double()
    )
    if not needs - {INNER}:
        table.pair["inner"] = gram_of_tensor(vectors, name)
        return table
    part = take(vectors, name)
    table.shape = part.shape
    for names in (*(v for k, v in SYMMETRIC.items() if k in needs), *(v for k, v in DIRECTED.items() if k in needs)):
        table.pair.update({n: torch.full((K, K), math.nan, dtype=torch.float64) for n in names})
    frames = stack_frames(part, energy)
    for f in frames:
        table.rank[f.index], table.energy[f.index] = f.rank, f.energy
        table.entropy_1[f.index] = entropy(f.S, f.rank)
    simple = bool(frames) and all(f.exact for f in frames)
    if INNER in needs:
        table.pair["inner"] = torch.zeros(K, K).double() if simple else gram_of_tensor(vectors, name)
    for a, p in enumerate(frames):
        for q in frames[a:]:
            _symmetric_blocks(table, p, q, needs, simple)
    if not simple and needs & {SPECTRAL, CORE}:
        _directed_general(table, frames, part, needs)
    _finish(table, needs, simple)
    return table


def _finish(table: PairTable, needs: Needs, simple: bool) -> None:
    """Mirror what is symmetric; on the diagonal a space is at distance 0 from itself, by definition."""
    mirrored = [n for key in (OVERLAP, ANGLES) if key in needs for n in SYMMETRIC[key]]
    for n in mirrored + (["inner"] if INNER in needs and simple else []):
        x = table.pair[n]
        table.pair[n] = torch.triu(x) + torch.triu(x, 1).mT
    alive = table.rank > 0
    for n in mirrored:
        own = table.rank.double() if n == "overlap" else torch.zeros_like(table.energy)
        table.pair[n].diagonal().copy_(torch.where(alive, own, torch.nan))


def _symmetric_blocks(table: PairTable, p: Frames, q: Frames, needs: Needs, simple: bool) -> None:
    """All pairs (i in p, j in q), i before j when p is q, block of rows by block of rows."""
    per_row = 8 * 4 * p.width * q.width * len(q)
    for block in plan_blocks(len(p), per_row, CACHE_BUDGET):
        cols = Block(block.start if p is q else 0, len(q))
        rows = slice(block.start * p.width, block.stop * p.width)
        right = slice(cols.start * q.width, cols.stop * q.width)
        shape = (len(block), p.width, len(cols), q.width)
        M = (p.Ut[rows] @ q.Ut[right].T).view(shape)
        Mb = _by_pair(M) if needs & {OVERLAP, ANGLES, CORE} else M
        if needs & {OVERLAP, ANGLES}:
            _subspaces(table, p, q, block, cols, Mb, needs)
        if simple and needs & {INNER, SPECTRAL, CORE}:
            N = (p.Vt[rows] @ q.Vt[right].T).view(shape)
            if CORE in needs:
                _cores(table, p, q, block, cols, Mb, _by_pair(N))
            if needs & {INNER, SPECTRAL}:
                _spectra(table, p, q, block, cols, N.mul_(M), needs)


def _by_pair(M: Tensor) -> Tensor:
    """(b, w, c, w') → (b·c, w, w'), one small matrix after another."""
    b, w, c, x = M.shape
    return M.permute(0, 2, 1, 3).reshape(b * c, w, x)


def _put(table: PairTable, name: str, rows: Tensor, cols: Tensor, values: Tensor) -> None:
    """Write into the upper triangle, whichever way round the two bundles lie; mirrored in `_finish`."""
    table.pair[name][torch.minimum(rows, cols), torch.maximum(rows, cols)] = values


def _subspaces(table: PairTable, p: Frames, q: Frames, block: Block, cols: Block, Mb: Tensor, needs: Needs) -> None:
    """Overlaps and angles of the block's pairs; Mb (b·c, w, w') are their U_iᵀU_j."""
    i = torch.arange(block.start, block.stop).repeat_interleave(len(cols))
    j = torch.arange(cols.start, cols.stop).repeat(len(block))
    chosen = (p.rank[i] > 0) & (q.rank[j] > 0)
    if p is q:
        chosen &= i < j
    if not bool(chosen.all()):
        i, j, Mb = i[chosen], j[chosen], Mb[chosen]
    if i.numel() == 0:
        return
    rows, columns = p.index[i], q.index[j]
    if OVERLAP in needs:
        flat = Mb.flatten(1)
        _put(table, "overlap", rows, columns, torch.linalg.vecdot(flat, flat))
    if ANGLES not in needs:
        return
    theta, squared = angles_inside(Mb)
    valid = torch.arange(theta.shape[1]) < torch.minimum(p.rank[i], q.rank[j])[:, None]
    hard = needs_exact(squared, valid).nonzero().flatten()
    Up, Uq = p.Ut.view(len(p), p.width, -1), q.Ut.view(len(q), q.width, -1)
    for piece in plan_blocks(hard.numel(), 8 * (p.width + q.width) * Up.shape[2], EXACT_BUDGET):
        at = hard[piece.slice]
        theta[at] = angles_exact(Up[i[at]], Uq[j[at]])
    theta *= valid
    _put(table, "theta_sum", rows, columns, theta.sum(1))
    _put(table, "theta_squared", rows, columns, torch.linalg.vecdot(theta, theta))
    sine = theta.sin()
    _put(table, "sine_squared", rows, columns, torch.linalg.vecdot(sine, sine))
    _put(table, "theta_max", rows, columns, theta.amax(1))


def _spectra(table: PairTable, p: Frames, q: Frames, block: Block, cols: Block, P: Tensor, needs: Needs) -> None:
    """Both directions of every pair of the block, from P = M ∘ N; only when U S Vᵀ is the whole of every delta."""
    b, w, c, x = P.shape
    rows, columns = p.index[block.slice], q.index[cols.slice]
    S1, S2 = p.S[block.slice], q.S[cols.slice]
    backward = torch.bmm(S1[:, None], P.view(b, w, c * x)).view(b, c, x)  # ΔW_i in the frame of j
    forward = P.mul_(S2).sum(3).mT  # ΔW_j in the frame of i, (b, c, w)
    if INNER in needs:
        inner = (forward * S1[:, None]).sum(2)
        at_i, at_j = rows[:, None].expand(b, c), columns.expand(b, c)
        upper = torch.ones(b, c, dtype=torch.bool) if p is not q else at_i <= at_j
        _put(table, "inner", at_i[upper], at_j[upper], inner[upper])
    if SPECTRAL in needs:
        _put_spectral(table, rows, columns, S1, p.rank[block.slice], q.energy[cols.slice], forward)
        _put_spectral(table, columns, rows, S2, q.rank[cols.slice], p.energy[block.slice], backward.transpose(0, 1))


def _put_spectral(
    table: PairTable, basis: Tensor, delta: Tensor, S: Tensor, rank: Tensor, energy: Tensor, s2: Tensor
) -> None:
    """Write the comparison of the frames `basis` with the deltas `delta`; s2 is (basis, delta, w)."""
    stats = spectral_stats(S[:, None], s2, rank[:, None], energy)
    for n in DIRECTED[SPECTRAL]:
        table.pair[n][basis[:, None], delta] = getattr(stats, n)


def _cores(table: PairTable, p: Frames, q: Frames, block: Block, cols: Block, Mb: Tensor, Nb: Tensor) -> None:
    """‖U_iᵀΔW_jV_i‖²/‖ΔW_j‖² in both directions: the cores are M S_j Nᵀ and Mᵀ S_i N."""
    b, c = len(block), len(cols)
    S1 = p.S[block.slice, None].expand(b, c, -1).reshape(b * c, p.width, 1)
    S2 = q.S[None, cols.slice].expand(b, c, -1).reshape(b * c, q.width, 1)
    ahead = (Mb @ (Nb.mT * S2)).flatten(1)
    back = (Mb.mT @ (Nb * S1)).flatten(1)
    rows, columns = p.index[block.slice], q.index[cols.slice]
    energy_ahead = torch.linalg.vecdot(ahead, ahead).view(b, c)
    energy_back = torch.linalg.vecdot(back, back).view(b, c).T
    target = table.pair["core_explained"]
    target[rows[:, None], columns] = _share(energy_ahead, p.rank[block.slice][:, None], q.energy[cols.slice])
    target[columns[:, None], rows] = _share(energy_back, q.rank[cols.slice][:, None], p.energy[block.slice])


def _share(part: Tensor, rank: Tensor, energy: Tensor) -> Tensor:
    return torch.where((rank > 0) & (energy > 0), part / energy, torch.nan)


def _directed_general(table: PairTable, frames: list[Frames], part: Slice, needs: Needs) -> None:
    """Spectra when some delta is dense or rank deficient: the frames of i against the whole delta j, as stored."""
    low, full = stack_factors(part)
    for f in frames:
        c, w = len(f), f.width
        Ut = f.Ut.view(c, w, -1)
        for q in low:
            for block in plan_blocks(c, 24 * w * q.width * q.index.numel(), CACHE_BUDGET):
                rows = slice(block.start * w, block.stop * w)
                X = (f.Ut[rows] @ q.Bt.T).view(len(block), w, -1, q.width)
                Y = (f.Vt[rows] @ q.At.T).view(len(block), w, -1, q.width)
                core = torch.einsum("badx,bedx->bdae", X, Y) if CORE in needs else None
                _general(table, f, block, q.index, (X * Y).sum(3).mT, core, needs)
        for j, W in full.items():
            Z = (f.Vt @ W.double().T).view(c, w, -1)  # (c, w, m): ΔW_j V_i
            core = (Ut @ Z.mT)[:, None] if CORE in needs else None
            _general(table, f, Block(0, c), torch.tensor([j]), (Ut * Z).sum(2)[:, None], core, needs)


def _general(
    table: PairTable, f: Frames, block: Block, delta: Tensor, s2: Tensor, core: Tensor | None, needs: Needs
) -> None:
    """s2 (basis, delta, w) and the cores (basis, delta, w, w) of some frames against some deltas."""
    basis, rank, energy = f.index[block.slice], f.rank[block.slice], table.energy[delta]
    if SPECTRAL in needs:
        _put_spectral(table, basis, delta, f.S[block.slice], rank, energy, s2)
    if core is not None:
        share = _share(core.square().sum((2, 3)), rank[:, None], energy)
        table.pair["core_explained"][basis[:, None], delta] = share
