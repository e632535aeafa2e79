"""The pictures of the page: PNG bytes, the same for the same tables."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from comgrad.atlas.layout import lay_out
from comgrad.atlas.picture import MARKERS, PALETTE
from comgrad.explain.grouping import filled, principal_positions
from comgrad.workflows.bench_similarity.plan import NEARNESS, Study
from comgrad.workflows.bench_similarity.pool import Pools
from comgrad.workflows.bench_similarity.score import HONEST, TARGET, Row

COMPARED = ("grassmann_l1", "cosine")  # the slides' two
PROFILED = ("grassmann_l1", "overlap", "cosine", "centred_cosine", "l2")
FEWEST_ON_A_MAP = 4


def best_of(rows: Sequence[Row]) -> tuple[str, str]:
    """Measure and pooling of the largest honest figure; the slides' measure where there is none."""
    found = [(r["measure"], r["pooling"]) for r in rows if r["section"] == "best" and r["figure"] == HONEST]
    return found[0] if found else (COMPARED[0], "mean")


def pictures(pools: Pools, rows: Sequence[Row]) -> dict[str, bytes]:
    """Name's end → PNG."""
    best = best_of(rows)
    shown = list(dict.fromkeys([best, *((m, "mean") for m in COMPARED)]))
    out = {}
    if len(pools.study.zoo) >= FEWEST_ON_A_MAP:
        for measure, pooling in shown:
            out[f"map-{measure}"] = map_png(pools, measure, pooling)
    out["matrix"] = matrix_png(pools, shown[:2])
    out["profile"] = profile_png(pools.study, rows, best[0])
    if pools.study.kinds:
        out["identify"] = identify_png(pools.study, rows)
        out["seeds"] = seeds_png(pools, shown)
    return out


# -- maps --------------------------------------------------------------------------------------------------------------
def map_png(pools: Pools, measure: str, pooling: str) -> bytes:
    """PCA of T̄ (the diagonal replaced by the column's mean) and ordinal scaling, coloured by family."""
    S = pools.among_zoo(measure, pooling)
    T = filled(S)
    off = ~np.eye(len(T), dtype=bool)
    least, most = T[off].min(), T[off].max()
    unit = (T - least) / max(most - least, 1e-300)
    np.fill_diagonal(T, 0.0)
    np.fill_diagonal(T, T.sum(0) / (len(T) - 1))
    scores, shares = principal_positions(T)
    layout = lay_out(np.where(off, unit, 1.0))
    names = [f"PC{k + 1}: {share:.0%} of the variance" for k, share in enumerate(shares)]
    fig = _figure(13.5, 6.4)
    left, right = fig.subplots(1, 2)
    _scatter(left, scores, pools.study, label=True)
    left.set_xlabel(names[0], fontsize=9)
    left.set_ylabel(names[1], fontsize=9)
    left.set_title("PCA of T̄", fontsize=10)
    _scatter(right, layout.positions, pools.study)
    right.set_title(f"ordinal scaling (stress {layout.stress:.2f})", fontsize=10)
    for ax in (left, right):
        ax.set_xticks([])
        ax.set_yticks([])
        ax.margins(0.06)
    fig.suptitle(f"{measure} ({pooling}) of {len(S)} vectors", fontsize=11)
    fig.legend(fontsize=7.5, title="family", loc="outside right center")
    return _png(fig)


def _scatter(ax: Any, positions: np.ndarray, study: Study, *, label: bool = False) -> None:
    for f, family in enumerate(_families(study)):
        at = [i for i, item in enumerate(study.zoo) if item.family == family]
        shape = MARKERS[(f + f // len(PALETTE)) % len(MARKERS)]
        text = f"{family or '(none)'} ({len(at)})" if label else None
        ax.scatter(*positions[at].T, s=34, color=PALETTE[f % len(PALETTE)], marker=shape, label=text, alpha=0.9)


def _families(study: Study) -> list[str]:
    """By size, largest first."""
    families = [item.family for item in study.zoo]
    return sorted(set(families), key=lambda f: (-families.count(f), f))


# -- the ordered matrix ------------------------------------------------------------------------------------------------
def matrix_png(pools: Pools, shown: Sequence[tuple[str, str]]) -> bytes:
    """T̄ with the tasks ordered by family; colours are the share of pairs that are less near."""
    from scipy.stats import rankdata

    families = _families(pools.study)
    order = sorted(
        range(len(pools.study.zoo)),
        key=lambda i: (families.index(pools.study.zoo[i].family), pools.study.zoo[i].source_group, i),
    )
    sizes = [sum(item.family == f for item in pools.study.zoo) for f in families]
    edges = np.cumsum([0, *sizes])
    fig = _figure(7.4 * len(shown) + 0.8, 7.2)
    axes = np.atleast_1d(fig.subplots(1, len(shown)))
    image = None
    for ax, (measure, pooling) in zip(axes, shown, strict=True):
        T = filled(pools.among_zoo(measure, pooling))[np.ix_(order, order)]
        off = ~np.eye(len(T), dtype=bool)
        shares = np.full(T.shape, np.nan)
        shares[off] = rankdata(T[off]) / off.sum()
        image = ax.imshow(shares, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        for e in edges[1:-1]:
            ax.axhline(e - 0.5, color="white", linewidth=0.4)
            ax.axvline(e - 0.5, color="white", linewidth=0.4)
        ticks = (edges[:-1] + edges[1:] - 1) / 2
        ax.set_yticks(ticks, [f or "(none)" for f in families], fontsize=6)
        wide = [k for k, n in enumerate(sizes) if n >= len(T) / 40]  # narrower ones have no room for a name below
        ax.set_xticks(ticks[wide], [families[k] or "(none)" for k in wide], fontsize=6, rotation=90)
        ax.set_title(f"{measure} ({pooling})", fontsize=10)
    fig.colorbar(image, ax=list(axes), label="share of pairs that are less near", shrink=0.7)
    return _png(fig)


# -- profiles ----------------------------------------------------------------------------------------------------------
def profile_png(study: Study, rows: Sequence[Row], best: str) -> bytes:
    """The honest family accuracy of each layer and role alone, beside that of all tensors."""
    chosen = list(dict.fromkeys([best, *PROFILED]))
    found = {(r["measure"], r["scope"]): r for r in rows if r["figure"] == HONEST and r["pooling"] == "mean"
             and r["section"] == "families"}  # fmt: skip
    base = next((r["value"] for r in rows if r["figure"] == "majority-disjoint"), float("nan"))
    fig = _figure(11, 4.4)
    axes = fig.subplots(1, 2, sharey=True)
    for ax, what in zip(axes, ("layer", "role"), strict=True):
        scopes = [s for s in study.scopes if s.startswith(what)]
        names = [s.split()[1] for s in scopes] + ["all"]
        for k, measure in enumerate(chosen):
            there = [found.get((measure, s)) for s in [*scopes, "all"]]
            values = np.array([np.nan if r is None else r["value"] for r in there])
            nudge = (k - (len(chosen) - 1) / 2) * 0.07
            x = np.arange(len(names)) + nudge
            ends = np.array([[np.nan, np.nan] if r is None else [r["low"], r["high"]] for r in there]).T
            bars = np.maximum(np.abs(ends - values), 0.0)
            join = slice(0, -1)
            ax.errorbar(x, values, bars, fmt=MARKERS[k], markersize=5, color=PALETTE[k], linewidth=0.8, label=measure)
            ax.plot(x[join], values[join], color=PALETTE[k], linewidth=1.2 if what == "layer" else 0.0)
        ax.axhline(base, color="grey", linestyle="--", linewidth=1, label="most frequent family")
        ax.set_xticks(range(len(names)), names)
        ax.set_xlabel(what)
    axes[0].set_ylabel("nearest neighbour of another\nsource has the family (95 %)")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, loc="outside right center")
    return _png(fig)


# -- identification ----------------------------------------------------------------------------------------------------
def identify_png(study: Study, rows: Sequence[Row]) -> bytes:
    """Top-1 of every measure (mean pooling) and kind of further vector."""
    cells = {(r["measure"], r["kind"]): r["value"] for r in rows
             if (r["section"], r["figure"], r["pooling"], r["scope"]) == ("identify", "top1", "mean", "all")}  # fmt: skip
    M = np.array([[cells.get((m, k), np.nan) for k in study.kinds] for m in NEARNESS])
    fig = _figure(3.2 + 0.95 * len(study.kinds), 6.2)
    ax = fig.subplots()
    image = ax.imshow(M, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto", alpha=0.7)
    for (i, j), value in np.ndenumerate(M):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, weight="bold" if value >= TARGET else None)
    names = [f"{k.replace('_', ' ').replace('-', ' ')} ({len(study.rows(k))})" for k in study.kinds]
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    ax.set_yticks(range(len(NEARNESS)), NEARNESS, fontsize=8)
    ax.set_title(f"own task first among {len(study.zoo)} (bold: ≥ {TARGET:.0%})", fontsize=9)
    fig.colorbar(image, label="top-1", shrink=0.8)
    return _png(fig)


def seeds_png(pools: Pools, shown: Sequence[tuple[str, str]]) -> bytes:
    """Similarities of further vectors with other tasks' zoo vectors, and with their own task's."""
    study = pools.study
    fig = _figure(4.4 * len(shown) + 1.6, 1.6 + 0.55 * len(study.kinds) + 1.4)
    axes = np.atleast_1d(fig.subplots(1, len(shown), sharey=True))
    for ax, (measure, pooling) in zip(axes, shown, strict=True):
        S = pools.similarity(measure, pooling)
        for y, kind in enumerate(study.kinds):
            Q, right = S[study.rows(kind)], study.right(kind)
            own = Q[np.arange(len(right)), right]
            wrong = np.delete(Q.ravel(), np.arange(len(right)) * Q.shape[1] + right)
            first = y == 0
            ax.scatter(wrong, np.full(wrong.size, y - 0.12), s=5, color="#999999", alpha=0.25, linewidths=0,
                       label="other tasks" if first else None)  # fmt: skip
            ax.scatter(own, np.full(own.size, y + 0.12), s=26, color=PALETTE[1], marker="D", alpha=0.8,
                       label="the same task" if first else None)  # fmt: skip
        ax.set_yticks(range(len(study.kinds)), [k.replace("_", " ") for k in study.kinds], fontsize=8)
        ax.set_ylim(-0.6, len(study.kinds) - 0.4)
        ax.set_title(f"{measure} ({pooling})", fontsize=9)
        ax.set_xlabel("T̄, larger is nearer", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=2)
    return _png(fig)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(fig: Any) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
