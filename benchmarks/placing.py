"""Where to put further points on a finished map: the choices behind docs/decisions/0013, judged against exact cosines.

    python benchmarks/placing.py DATA/zoo --landmarks 62
    python benchmarks/placing.py                            # the shipped adapters, half of them landmarks

Recall: how many of a placed vector's ten truly nearest (by exact centred cosine) are among its 10 or 50 nearest on the map.
rho: Spearman's, of exact dissimilarity and distance on the map, over all pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.isotonic import IsotonicRegression

from comgrad.atlas.collection import Collection, Member
from comgrad.atlas.duplicates import centred_by
from comgrad.atlas.layout import lay_out
from comgrad.atlas.placing import centred, place
from comgrad.geometry.sketch import sketch
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.demo import starter
from comgrad.workflows.resolve import read_vector

Rows = np.ndarray[Any, np.dtype[np.float64]]
STEPS = 60
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def main() -> None:
    """Read, lay out, place in each way, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a folder of adapters over one base")
    parser.add_argument("--landmarks", type=int, help="how many are laid out (half)")
    asked = parser.parse_args()
    paths = sorted(p for p in (asked.folder or starter("zoo")).iterdir() if (p / "adapter_model.safetensors").exists())
    paths = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
    vectors = [read_vector(p) for p in paths]
    members = [Member(p.name, p.name, "", "", lambda t=t: t) for p, t in zip(paths, vectors, strict=True)]  # type: ignore[misc]
    atlas = Collection.build(members)
    K, L = len(paths), asked.landmarks or len(paths) // 2
    rows = np.array([_unit(t) for t in vectors])
    exact = atlas.centred_cosine()
    sure = lay_out(atlas.subset(range(L)).centred_cosine()).positions
    print(f"{K} vectors, {L} landmarks; sketched and exact centred cosines: {_apart(rows, exact)}")
    print(f"{'places of the others':<52}{'rho':>7}{'@10':>7}{'@50':>7}")
    for name, positions in _ways(atlas, rows, sure, L):
        rho, few, many = _judged(exact, positions, L)
        print(f"{name:<52}{rho:>7.2f}{few:>7.2f}{many:>7.2f}")


def _unit(tau: TaskVector) -> Rows:
    found = sketch(tau).astype(np.float64)
    return found / (np.linalg.norm(found) or 1.0)


def _apart(rows: Rows, exact: Rows) -> str:
    upper = np.triu_indices(len(rows), 1)
    unit = centred(rows, rows.mean(axis=0))
    off = (unit @ unit.T - exact)[upper]
    return f"they differ by {np.sqrt((off**2).mean()):.3f}, the exact ones spread by {exact[upper].std():.3f}"


def _ways(atlas: Collection, rows: Rows, sure: Rows, L: int) -> Iterator[tuple[str, Rows]]:
    """Each way's name and the positions of all."""
    K = len(rows)
    weights = atlas.subset(range(L)).groups.weights()
    unit = centred(rows, weights @ rows[:L])
    s, own = unit[L:] @ unit[:L].T, unit[:L] @ unit[:L].T
    inner = centred_by(atlas.cosine(), np.concatenate([weights, np.zeros(K - L)]))
    size = np.sqrt(np.maximum(np.diag(inner), 1e-12))
    true = (inner / np.outer(size, size))[L:, :L]
    for nearest in (4, 8, 16):
        yield (
            f"mean of the {nearest} nearest landmarks by sketch",
            np.vstack([sure, place(s, sure, nearest=nearest)[0]]),
        )
    exact = atlas.subset(range(L)).centred_cosine()
    yield "least squares of the distances to all landmarks", np.vstack([sure, _fitted(exact, sure, s)])
    yield "ridge regression of places on sketches", np.vstack([sure, _ridge(own, s, sure)])
    axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    yield "no landmarks: two principal axes of the sketches", axes[0][:, :2] * axes[1][:2]
    yield "mean of the 4 nearest landmarks by exact cosine", np.vstack([sure, place(true, sure)[0]])
    yield "no landmarks: all laid out exactly", lay_out(atlas.centred_cosine()).positions
    yield "at random", np.random.default_rng(0).standard_normal((K, 2))


def _fitted(own: Rows, sure: Rows, s: Rows) -> Rows:
    """argmin_x Σ_l (‖x − x_l‖ − d(s_l))², d monotone, by majorisation begun at the nearest landmarks."""
    upper = np.triu_indices(len(sure), 1)
    apart = np.sqrt(((sure[:, None] - sure[None]) ** 2).sum(-1))
    wanted = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(own[upper], apart[upper])
    d = wanted.predict(s.ravel()).reshape(s.shape)
    x = place(s, sure, nearest=3)[0]
    for _ in range(STEPS):
        away = x[:, None] - sure[None]
        away /= np.maximum(np.linalg.norm(away, axis=2, keepdims=True), 1e-12)
        x = (sure[None] + d[..., None] * away).mean(axis=1)
    return x


def _ridge(own: Rows, s: Rows, sure: Rows) -> Rows:
    """Kernel ridge regression, its strength by leaving one out."""
    best: tuple[float, float] | None = None
    for strength in RIDGES:
        hat = own @ np.linalg.inv(own + strength * np.eye(len(own)))
        off = (sure - hat @ sure) / (1.0 - np.diag(hat))[:, None]
        best = min(best or (np.inf, 0.0), (float((off**2).mean()), strength))
    assert best is not None
    return np.asarray(s @ np.linalg.solve(own + best[1] * np.eye(len(own)), sure))


def _judged(exact: Rows, positions: Rows, L: int) -> tuple[float, float, float]:
    K = len(exact)
    upper = np.triu_indices(K, 1)
    apart = np.sqrt(((positions[:, None] - positions[None]) ** 2).sum(-1))
    near = np.argsort(-exact + 9 * np.eye(K), axis=1)[:, :10]
    shown = np.argsort(apart + 1e9 * np.eye(K), axis=1)
    recalls = [np.mean([len({*near[i]} & {*shown[i, :n]}) / 10 for i in range(L, K)]) for n in (10, 50)]
    return float(spearmanr(-exact[upper], apart[upper])[0]), float(recalls[0]), float(recalls[1])


if __name__ == "__main__":
    main()
