"""Pictures of disentanglement errors and of other matrices: PNG bytes, the same for the same input."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from comgrad.evaluate.disentanglement import Surface

_WORDS = {"disagreement": "predictions that differ", "kl": "symmetric KL of representations (nats)"}


def surfaces_png(
    surfaces: Sequence[Surface],
    titles: Sequence[str],
    distance: str = "disagreement",
    *,
    top: float | None = None,
    title: str = "",
) -> bytes:
    """ξ(α₁, α₂) of one or more surfaces side by side on one colour scale, with the unit square drawn.

    Args:
        top: upper end of the colour scale; the largest value shown when left out.
    """
    highest = max(float(s.xi(distance).max()) for s in surfaces)
    limit = max(highest if top is None else top, np.finfo(float).tiny)
    fig, axes = _panels(len(surfaces))
    image = None
    for ax, s, name in zip(axes, surfaces, titles, strict=True):
        edges = _edges(np.array(s.alphas))
        image = ax.pcolormesh(edges, edges, s.xi(distance).T, cmap="coolwarm", vmin=0.0, vmax=limit)
        ax.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color="black", linewidth=1.5)
        ax.set_xlabel(f"α₁ ({s.tasks[0]})", fontsize=8)
        ax.set_ylabel(f"α₂ ({s.tasks[1]})", fontsize=8)
        ax.set_title(f"{name}\nmean in the square {s.unit_mean(distance):.3g}", fontsize=9)
        ax.set_aspect("equal")
    return _drawn(fig, axes, image, f"ξ: {_WORDS.get(distance, distance)}", title)


def matrices_png(
    matrices: Sequence[np.ndarray],
    titles: Sequence[str],
    names: Sequence[str],
    *,
    low: float = -1.0,
    high: float = 1.0,
    label: str = "cosine",
    title: str = "",
) -> bytes:
    """Square matrices over the same names side by side on one colour scale, with their numbers, such as cosines."""
    fig, axes = _panels(len(matrices))
    image = None
    for ax, matrix, name in zip(axes, matrices, titles, strict=True):
        image = ax.imshow(matrix, cmap="coolwarm", vmin=low, vmax=high)
        ax.set_xticks(range(len(names)), list(names), rotation=60, ha="right", fontsize=6)
        ax.set_yticks(range(len(names)), list(names), fontsize=6)
        ax.set_title(name, fontsize=9)
        if len(names) <= 12:
            for (i, j), value in np.ndenumerate(matrix):
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=5)
    return _drawn(fig, axes, image, label, title)


def _panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(4.2 * count + 0.8, 4.4), dpi=110, layout="constrained")
    return fig, list(np.atleast_1d(fig.subplots(1, count)))


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders of the cells around ascending centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _drawn(fig: Any, axes: Sequence[Any], image: Any, label: str, title: str) -> bytes:
    fig.colorbar(image, ax=list(axes), label=label, shrink=0.8)
    if title:
        fig.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
