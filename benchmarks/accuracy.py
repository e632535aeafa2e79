"""How exact the geometry is: self-distance, planted angles, gauge changes and planted ranks, printed.

    python benchmarks/accuracy.py [FOLDER]

FOLDER holds a PEFT adapter; the default is one of the starter zoo. References: the planted truth, and
scipy.linalg.subspace_angles in fp64 on the very factors we are given.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from comgrad.geometry.angles import angles_of_deltas, principal_angles
from comgrad.geometry.rank import numerical_rank
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.demo import starter

RESOLVED = {torch.bfloat16: 10.0, torch.float16: 30.0, torch.float32: 1e3}  # largest condition the dtype can hold


def self_distance(tau: TaskVector, dtype: torch.dtype) -> float:
    """Sum of all principal angles over all tensors between a vector and a gauge-changed copy of it, in radians."""
    g = torch.Generator().manual_seed(0)
    mine, copy = {}, {}
    for name, d in tau.tensors.items():
        assert isinstance(d, LowRank)
        turn = torch.linalg.qr(torch.randn(d.rank, d.rank, generator=g, dtype=torch.float64))[0]
        mine[name] = replace(d, B=d.B.to(dtype), A=d.A.to(dtype), stored=dtype)
        copy[name] = replace(d, B=(d.B.double() @ turn).to(dtype), A=(turn.T @ d.A.double()).to(dtype), stored=dtype)
    angles = principal_angles(TaskVector(tau.base, mine), TaskVector(tau.base, copy))
    return float(sum(a.sum() for a in angles.values()))


def planted(theta: float, dtype: torch.dtype, seed: int) -> tuple[float, float, float]:
    """Relative error of the mean and of the worst of eight equal planted angles, and of the worst against scipy."""
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(384, 16, generator=g, dtype=torch.float64))[0]
    frames = (Q[:, :8], Q[:, :8] * math.cos(theta) + Q[:, 8:] * math.sin(theta))
    turns = [torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64))[0] for _ in frames]
    A = torch.randn(8, 64, generator=g, dtype=torch.float64).to(dtype)
    a, b = (LowRank((F @ t).to(dtype), A, stored=dtype) for F, t in zip(frames, turns, strict=True))
    found = angles_of_deltas(a, b)[0].numpy()
    exact = np.sort(scipy.linalg.subspace_angles(a.B.double().numpy(), b.B.double().numpy()))
    return abs(found.mean() / theta - 1), float(np.abs(found / theta - 1).max()), float(np.abs(found / exact - 1).max())


def gauge(condition: float) -> float:
    """Largest principal angle between (B, A) and (BG, G⁻¹A) with the given cond(G), fp64."""
    g = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64))[0] for _ in range(2))
    spread = torch.logspace(0, -math.log10(condition), 8, dtype=torch.float64)
    B, A = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((384, 8), (8, 384)))
    changed = LowRank(B @ (U * spread @ V.T), (V / spread @ U.T) @ A, stored=torch.float64)
    return float(angles_of_deltas(LowRank(B, A, stored=torch.float64), changed)[0].max())


def rank_cases() -> list[tuple[Tensor, int]]:
    """Matrices of known rank in every stored dtype, rank, width, condition and height, and their rank."""
    out = []
    for dtype, most in RESOLVED.items():
        for rank, width in [(1, 8), (4, 16), (8, 8), (8, 32), (16, 16)]:
            for condition in (1.0, math.sqrt(most), most):
                for m in (256, 1024):
                    g = torch.Generator().manual_seed(rank + width)
                    U, V = (
                        torch.linalg.qr(torch.randn(n, rank, generator=g, dtype=torch.float64))[0] for n in (m, width)
                    )
                    S = torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)
                    out.append(((U * S @ V.T).to(dtype), rank))
    return out


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else starter("zoo", "intent-banking")
    tau = TaskVector.from_peft(folder)
    for dtype in (torch.float32, torch.float64):
        print(f"self-distance in {dtype}, {len(tau.tensors)} tensors, total: {self_distance(tau, dtype):.1e} rad")
    print("planted angle, relative error     mean of 8   worst of 8   against scipy on the same factors")
    for dtype in (torch.float32, torch.float64):
        for theta in (1e-4, 1e-3, 1e-2, 0.1, 1.0):
            mean, worst, added = np.max([planted(theta, dtype, seed) for seed in range(4)], axis=0)
            print(f"  {dtype!s:14} θ = {theta:<8g}      {mean:9.1e}   {worst:9.1e}    {added:9.1e}")
    for condition in (1e2, 1e4, 1e6):
        print(f"gauge change with cond(G) = {condition:.0e}: angles move by at most {gauge(condition):.1e} rad")
    cases = rank_cases()
    right = sum(numerical_rank(X) == rank for X, rank in cases)
    print(f"planted numerical rank: {right} of {len(cases)} exact")


if __name__ == "__main__":
    main()
