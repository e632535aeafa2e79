"""Pictures of the map: interactive HTML that needs no network, or PNG and SVG."""

from __future__ import annotations

import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comgrad.atlas.layout import Layout

# Okabe and Ito's colours, readable with the common colour-vision deficiencies, then darker variants of them
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6000", "#555555",
    "#004C7A", "#8F3E00", "#00664A", "#8A4B70", "#9A6900", "#2F7FA8", "#B8A500", "#999999",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")


@dataclass(frozen=True)
class Point:
    """One task on the map."""

    id: str
    name: str
    family: str
    description: str


def figure(layout: Layout, points: Sequence[Point], *, title: str = "Map of tasks") -> Any:
    """A plotly figure: colour and symbol show the family, hovering the description and the cluster."""
    import plotly.graph_objects as go

    fig = go.Figure()
    for f, family in enumerate(sorted({p.family for p in points})):
        at = [i for i, p in enumerate(points) if p.family == family]
        fig.add_trace(
            go.Scatter(
                x=[float(layout.positions[i, 0]) for i in at],
                y=[float(layout.positions[i, 1]) for i in at],
                mode="markers",
                name=html.escape(family or "(no family)", quote=False),
                marker={"size": 11, "color": PALETTE[f % len(PALETTE)], "symbol": SYMBOLS[_shape(f)]},
                text=[_hover(points[i], int(layout.clusters[i])) for i in at],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    fig.update_layout(
        title=html.escape(title, quote=False),
        template="plotly_white",
        height=640,
        margin={"l": 20, "r": 20, "t": 50, "b": 20},
        legend={"title": "family"},
    )
    fig.update_xaxes(showticklabels=False, zeroline=False, showgrid=False)
    fig.update_yaxes(showticklabels=False, zeroline=False, showgrid=False, scaleanchor="x")
    return fig


def _shape(family: int) -> int:
    """Number of the family's symbol: shifted when the colours start again, so that no two families look alike."""
    return (family + family // len(PALETTE)) % len(MARKERS)


def _hover(point: Point, cluster: int) -> str:
    words = "<br>".join(html.escape(line, quote=False) for line in textwrap.wrap(point.description, 60)[:6])
    return f"<b>{html.escape(point.name, quote=False)}</b> · cluster {cluster}<br>{words}"


def as_html(layout: Layout, points: Sequence[Point], *, title: str = "Map of tasks") -> bytes:
    """A whole page with its own copy of the drawing library."""
    page: str = figure(layout, points, title=title).to_html(include_plotlyjs=True, full_html=True)
    return page.encode()


def as_image(layout: Layout, points: Sequence[Point], kind: str, *, title: str = "Map of tasks") -> bytes:
    """PNG or SVG bytes, the same for the same input."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "comgrad", "svg.fonttype": "none", "text.parse_math": False}):
        fig = Figure(figsize=(11, 8), dpi=120, layout="constrained")
        ax = fig.subplots()
        for f, family in enumerate(sorted({p.family for p in points})):
            at = [i for i, p in enumerate(points) if p.family == family]
            ax.scatter(
                layout.positions[at, 0],
                layout.positions[at, 1],
                s=45,
                color=PALETTE[f % len(PALETTE)],
                marker=MARKERS[_shape(f)],
                label=family or "(no family)",
            )
        if len(points) <= 80:
            for i, p in enumerate(points):
                ax.annotate(p.name, layout.positions[i], fontsize=6.5, xytext=(4, 3), textcoords="offset points")
        ax.set_title(f"{title} (stress {layout.stress:.2f})")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_aspect("equal", adjustable="datalim")
        ax.margins(x=0.16, y=0.06)  # room for the names
        fig.legend(fontsize=8, title="family", loc="outside right upper")
        buffer = io.BytesIO()
        fig.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()
