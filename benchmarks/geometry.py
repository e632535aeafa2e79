"""All pairs × all tensors × every measure: the batched code against a loop over pairs, in one run.

    python benchmarks/geometry.py FOLDER [--json FILE] [--pairs N] [--repeats R] [--seed S]

FOLDER holds PEFT adapter directories of one base. Two loops are timed on a random sample of pairs and scaled to all
pairs; both call numpy and scipy on the factors, never on the full matrices:

- `loop`: what a careful user writes. Each vector is decomposed once and kept (QR of both factors, SVD of the core);
  per pair and tensor scipy.linalg.subspace_angles(B_i, B_j), the trace formula, and both spectral projections.
- `naive loop`: the same, decomposing both vectors of every pair again.

The sample's values are compared with the batched ones. Timings interleave batched and loop runs; medians are printed.
The batched code uses all cores and the loop one, so wall-clock ratios hold on an idle machine only; the load average is
printed, and the ratio of processor seconds, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
import scipy.linalg
import torch

from comgrad.geometry.measures import MEASURES, matrices
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector

MEASURED = tuple(n for n in MEASURES if n != "centred_cosine")  # it belongs to the collection, not to a pair


@dataclass
class Adapter:
    """What the loop keeps of one adapter on one tensor."""

    B: np.ndarray
    A: np.ndarray
    U: np.ndarray
    S: np.ndarray
    V: np.ndarray
    energy: float


def decompose(d: LowRank) -> Adapter:
    B, A = d.B.double().numpy() * d.scale, d.A.double().numpy()
    Qb, Rb = np.linalg.qr(B)
    Qa, Ra = np.linalg.qr(A.T)
    u, S, vh = np.linalg.svd(Rb @ Ra.T)
    return Adapter(B, A, Qb @ u, S, Qa @ vh.T, float((S**2).sum()))


def entropy(s: np.ndarray) -> float:
    p = np.abs(s) / np.abs(s).sum()
    p = p[p > 0]
    return float(-(p * np.log(p)).sum() / math.log(len(s)))


def spectral(a: Adapter, b: Adapter) -> dict[str, float]:
    core = (a.U.T @ b.B) @ (b.A @ a.V)
    s2 = np.diagonal(core)
    p1, p2 = a.S / a.S.sum(), np.abs(s2) / np.abs(s2).sum()
    gap = a.S - s2
    return {
        "spectral_explained": float((s2**2).sum()) / b.energy,
        "spectral_core_explained": float((core**2).sum()) / b.energy,
        "spectral_l1": float(np.abs(gap).sum()),
        "spectral_l2": float(np.sqrt((gap**2).sum())),
        "spectral_rec": float(np.minimum(p1, p2).sum()),
        "spectral_entropy_1": entropy(a.S),
        "spectral_entropy_2": entropy(s2),
    }


def one_tensor(a: Adapter, b: Adapter) -> tuple[dict[str, float], dict[str, float]]:
    """Every measure of (a, b), and of (b, a) where that differs."""
    inner = float(((a.B.T @ b.B) * (a.A @ b.A.T)).sum())
    theta = scipy.linalg.subspace_angles(a.B, b.B)
    squared = float((np.cos(theta) ** 2).sum())
    m, r1, r2 = len(a.B), len(a.S), len(b.S)
    variance = 2 * r1 * r2 * (m - r1) * (m - r2) / (m**2 * (m - 1) * (m + 2))
    both = {
        "inner": inner,
        "cosine": inner / math.sqrt(a.energy * b.energy),
        "l2": math.sqrt(max(0.0, a.energy + b.energy - 2 * inner)),
        "grassmann_l1": float(theta.sum()),
        "geodesic": float(np.sqrt((theta**2).sum())),
        "chordal": float(np.sqrt((np.sin(theta) ** 2).sum())),
        "projection_metric": float(np.sin(theta.max())),
        "overlap": squared / min(r1, r2),
        "overlap_z": (squared - r1 * r2 / m) / math.sqrt(variance),
    }
    ahead = {**both, "projection": inner / b.energy, **spectral(a, b)}
    return ahead, {**both, "projection": inner / a.energy, **spectral(b, a)}


def run_loop(
    vectors: list[TaskVector], pairs: list[tuple[int, int]], cached: bool
) -> tuple[float, float, dict[tuple[int, int], list[dict[str, float]]]]:
    """Seconds to decompose all vectors once (0 when not cached), seconds for the pairs, and every tensor's values."""
    names = list(vectors[0].tensors)
    start = time.perf_counter()
    kept = [[decompose(v.tensors[n]) for n in names] for v in vectors] if cached else []
    once = time.perf_counter() - start if cached else 0.0
    values: dict[tuple[int, int], list[dict[str, float]]] = {}
    start = time.perf_counter()
    for i, j in pairs:
        for t, n in enumerate(names):
            a = kept[i][t] if cached else decompose(vectors[i].tensors[n])
            b = kept[j][t] if cached else decompose(vectors[j].tensors[n])
            ahead, back = one_tensor(a, b)
            values.setdefault((i, j), []).append(ahead)
            values.setdefault((j, i), []).append(back)
    return once, time.perf_counter() - start, values


def disagreement(found: dict, values: dict[tuple[int, int], list[dict[str, float]]]) -> dict[str, float]:
    """Largest |batched − loop| per measure and tensor, relative to the larger of 1 and the loop's value."""
    worst = dict.fromkeys(MEASURED, 0.0)
    for (i, j), tensors in values.items():
        for t, row in enumerate(tensors):
            for name in MEASURED:
                ours = float(found[name].per_tensor[t, i, j])
                gap = abs(ours - row[name]) / max(1.0, abs(row[name]))
                worst[name] = max(worst[name], gap if math.isfinite(gap) else math.inf)
    return worst


def read(folder: Path) -> list[TaskVector]:
    found = sorted(p.parent for p in folder.glob("*/adapter_model.safetensors"))
    vectors = [TaskVector.from_peft(p).loaded() for p in found]
    names = {tuple(v.tensors) for v in vectors}
    if len(vectors) < 3 or len(names) != 1 or any(v.kind != "lowrank" for v in vectors):
        raise SystemExit(
            f"error: '{folder}' needs at least 3 plain LoRA adapters with the same tensors; found {len(found)}"
        )
    return vectors


def measure(vectors: list[TaskVector], sample: int, repeats: int, seed: int) -> dict:
    K, T = len(vectors), len(vectors[0].tensors)
    everything = [(i, j) for i in range(K) for j in range(i + 1, K)]
    chosen = random.Random(seed).sample(everything, min(sample, len(everything)))
    few = chosen[: max(1, len(chosen) // 5)]
    matrices(vectors[:3], MEASURED)  # first calls load the numeric libraries
    run_loop(vectors[:3], [(0, 1)], cached=True)
    ours, loops, naives, ours_cpu, loops_cpu = [], [], [], [], []
    worst: dict[str, float] = {}
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        found = matrices(vectors, MEASURED)
        ours.append(time.perf_counter() - start)
        ours_cpu.append(time.process_time() - cpu)
        cpu, start = time.process_time(), time.perf_counter()
        once, per_sample, values = run_loop(vectors, chosen, cached=True)
        busy = (time.process_time() - cpu) / (time.perf_counter() - start)
        loops.append(once + per_sample * len(everything) / len(chosen))
        loops_cpu.append(loops[-1] * busy)
        naives.append(run_loop(vectors, few, cached=False)[1] * len(everything) / len(few))
        worst = disagreement(found, values)
    batched, loop, naive = (statistics.median(x) for x in (ours, loops, naives))
    return {
        "vectors": K,
        "tensors": T,
        "pairs": len(everything),
        "measures": len(MEASURED),
        "sampled_pairs": len(chosen),
        "repeats": repeats,
        "seed": seed,
        "batched_seconds": batched,
        "batched_seconds_all": ours,
        "loop_seconds": loop,
        "loop_seconds_all": loops,
        "naive_loop_seconds": naive,
        "pairs_per_second": len(everything) / batched,
        "pair_tensors_per_second": len(everything) * T / batched,
        "ratio": loop / batched,
        "ratio_naive": naive / batched,
        "batched_cpu_seconds": statistics.median(ours_cpu),
        "loop_cpu_seconds": statistics.median(loops_cpu),
        "ratio_cpu": statistics.median(loops_cpu) / statistics.median(ours_cpu),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "ratio_all": [a / b for a, b in zip(loops, ours, strict=True)],
        "max_disagreement": max(worst.values()),
        "disagreement": worst,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=300, help="pairs in the loop's sample (default 300)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = measure(read(args.folder), args.pairs, args.repeats, args.seed)
    print(
        f"{result['vectors']} vectors, {result['pairs']} pairs × {result['tensors']} tensors × {result['measures']} "
        f"measures, {result['cores']} cores, median of {result['repeats']}\n"
        f"batched     {result['batched_seconds']:9.2f} s   {result['pairs_per_second']:10.0f} pairs/s\n"
        f"loop        {result['loop_seconds']:9.2f} s   ratio {result['ratio']:6.1f}   "
        f"(from {result['sampled_pairs']} pairs)\n"
        f"naive loop  {result['naive_loop_seconds']:9.2f} s   ratio {result['ratio_naive']:6.1f}\n"
        f"processor seconds: batched {result['batched_cpu_seconds']:.2f}, loop {result['loop_cpu_seconds']:.2f}, ratio "
        f"{result['ratio_cpu']:.1f} on one core; load average {result['load_average']:.1f}\n"
        f"largest disagreement {result['max_disagreement']:.1e}"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
