"""The pictures of the page: PNG bytes, the same for the same rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from comgrad.workflows.bench_spectral.plan import DEVELOPMENT, TEST
from comgrad.workflows.bench_spectral.rows import Row

BLUE, RED, GREEN, GREY = "#4477aa", "#ee6677", "#228833", "#888888"
PANELS = (("rec", "REC"), ("explained", "explained energy"), ("l1", "L₁"), ("entropy_1", "H(S₁)"))


def pictures(triples: Sequence[Row], pairs: Sequence[Row], directions: Sequence[Row]) -> dict[str, bytes]:
    """Name's end → PNG; without what there are no rows for."""
    out = {}
    if triples:
        out["triples"] = triples_png(triples)
    if pairs:
        out["pairs"] = pairs_png(pairs)
    if directions:
        out["direction"] = direction_png(directions)
    return out


def triples_png(rows: Sequence[Row]) -> bytes:
    """Both directions of every triple's pair, and the control, with intervals over modules and the null of REC."""
    fig, axes = _figure(1, len(PANELS), (15, 0.42 * len({r["triple"] for r in rows}) + 1.8))
    numbers = sorted({r["triple"] for r in rows})
    shown = (("G→C", BLUE, -0.22), ("C→G", RED, 0.0), ("G→K", GREEN, 0.22))
    for ax, (measure, title) in zip(axes, PANELS, strict=True):
        for arrow, colour, shift in shown[: 2 if measure == "entropy_1" else 3]:  # H(S₁) is the frame's alone
            own = [next(r for r in rows if r["triple"] == n and r["arrow"] == arrow) for n in numbers]
            x = np.array([r[measure] for r in own])
            gap = np.abs(np.array([[r[f"{measure}_low"] for r in own], [r[f"{measure}_high"] for r in own]]) - x)
            y = np.arange(len(own)) + shift
            if measure in ("rec", "explained"):
                null = [r[f"{measure}_random"] for r in own]
                ax.scatter(null, y, marker="|", color=GREY, s=60, label="random adapter" if arrow == "G→K" else None)
            ax.errorbar(x, y, xerr=gap, fmt="o", color=colour, markersize=4, linewidth=1, label=arrow)
        ax.set_title(title, fontsize=10)
        ax.set_yticks(range(len(numbers)), [_name(rows, n) for n in numbers] if ax is axes[0] else [], fontsize=7)
        ax.invert_yaxis()
        ax.grid(axis="x", alpha=0.3)
    axes[1].set_xscale("log")
    fig.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=4)
    return _png(fig)


def pairs_png(rows: Sequence[Row]) -> bytes:
    """Listed pairs: REC and explained energy against unrelated tasks in the same frame, and the two entropies."""
    fig, axes = _figure(1, 3, (13.5, 4.8))
    for ax, (measure, title) in zip(axes, PANELS[:2], strict=False):
        for way, colour, words in (("forward", BLUE, "general"), ("backward", RED, "contained")):
            own = [r for r in rows if r["way"] == way]
            null = [r[f"{measure}_zoo"] for r in own]
            label = f"listed pairs, frame of the {words} task"
            ax.scatter(null, [r[measure] for r in own], s=16, color=colour, label=label)
            drawn = [r[f"{measure}_random"] for r in own]
            ax.scatter(
                null,
                drawn,
                s=12,
                marker="x",
                linewidth=0.7,
                color=GREY,
                label="random adapters" if way == "backward" else None,
            )
        if measure == "explained":
            ax.set_yscale("log")
        _diagonal(ax)
        ax.set_xlabel(f"{title} of unrelated tasks in the same frame (mean)")
        ax.set_ylabel(title)
        ax.legend(fontsize=7)
    forward = [r for r in rows if r["way"] == "forward"]
    back = {(r["general"], r["contained"]): r for r in rows if r["way"] == "backward"}
    for kind, colour in zip(sorted({r["kind"] for r in forward}), (BLUE, RED, GREEN), strict=False):
        own = [r for r in forward if r["kind"] == kind]
        other = [back[r["general"], r["contained"]]["entropy_1"] for r in own]
        axes[2].scatter(other, [r["entropy_1"] for r in own], s=16, color=colour, label=f"contains its {kind}")
    _diagonal(axes[2])
    axes[2].set_xlabel("H(S₁) of the contained task")
    axes[2].set_ylabel("H(S₁) of the general task")
    axes[2].legend(fontsize=7)
    return _png(fig)


def direction_png(rows: Sequence[Row]) -> bytes:
    """Accuracy of the direction by candidate, on both halves, averaged over general tasks."""
    names = list(dict.fromkeys(r["candidate"] for r in rows))
    fig, axes = _figure(1, 1, (8.5, 0.42 * len(names) + 1.4))
    ax = axes[0]
    for half, colour, shift in ((DEVELOPMENT, GREY, -0.15), (TEST, BLUE, 0.15)):
        own = {r["candidate"]: r for r in rows if r["half"] == half}
        there = [k for k, n in enumerate(names) if n in own]
        x = np.array([own[names[k]]["macro"] for k in there])
        bounds = np.array([[own[names[k]][f"macro_{e}"] for k in there] for e in ("low", "high")])
        ax.errorbar(
            x, np.array(there) + shift, xerr=np.nan_to_num(np.abs(bounds - x)), fmt="o", color=colour, label=half
        )
    ax.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("accuracy of the direction, mean over general tasks")
    fig.legend(fontsize=8, loc="outside upper center", ncols=2)
    ax.grid(axis="x", alpha=0.3)
    return _png(fig)


def _name(rows: Sequence[Row], number: int) -> str:
    r = next(r for r in rows if r["triple"] == number)
    return f"{r['general']} ⊃\n{r['contained']}"


def _diagonal(ax: Any) -> None:
    """The line of equal values, over the extent of the horizontal axis."""
    low, high = ax.get_xlim()
    ax.plot([low, high], [low, high], color="black", linewidth=0.7, linestyle="--", zorder=0)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    fig = Figure(figsize=size, dpi=110, layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False)[0]


def _png(fig: Any) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
