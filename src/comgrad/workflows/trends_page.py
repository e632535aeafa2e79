"""The page of a registry's trends: one HTML file with everything in it, readable without a network."""

from __future__ import annotations

import html
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.atlas.duplicates import APART, DUPLICATE
from comgrad.atlas.picture import PALETTE, figure
from comgrad.weights.writer import atomic_write_bytes
from comgrad.workflows.trends import Trends


def write_page(made: Trends, path: Path) -> None:
    """Write the page atomically."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files("comgrad.workflows").joinpath("templates/trends.html").read_text("utf-8"))
    page = template.render(
        t=made,
        verdict=verdict(made),
        growth_div=_div(_growth(made)),
        map_div=_div(_map(made)) if made.layout is not None else "",
        duplicate=DUPLICATE,
        apart=APART,
        script=get_plotlyjs(),
    )
    atomic_write_bytes(path, page.encode())


def verdict(made: Trends) -> list[str]:
    """What happened, in words that follow the figures."""
    out = []
    for what, rows in (("Families", made.families), ("Clusters", made.clusters)):
        up = [r.label for r in rows if r.emerging]
        if rows:
            out.append(f"{what} whose share grew by more than chance explains: {', '.join(up) if up else 'none'}.")
    if made.drift is not None:
        least = "less" if made.drift.overall < made.drift.shuffled / 2 else "not less"
        out.append(
            f"The map drifted by {made.drift.overall:.2f} of its radius, {least} than half of what no shared shape "
            f"would give ({made.drift.shuffled:.2f})."
        )
    out.append(
        f"{_count(len(made.copies), 'near-duplicate')} and {_count(len(made.mixtures), 'vector')} made of others."
    )
    if made.lacking:
        lacking = sum(g["lacking"] for g in made.lacking)
        out.append(
            f"{lacking} of {_count(len(made.lacking), 'wanted description')} are farther off than known tasks are."
        )
    return out


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _growth(made: Trends) -> Any:
    import plotly.graph_objects as go

    fig = go.Figure()
    g = made.growth
    shown = 14
    rows = [(name, row) for name, row in zip(g.labels, g.total, strict=True)]
    if len(rows) > shown:
        rest = np.sum([row for _, row in rows[shown:]], axis=0)
        rows = [*rows[:shown], (f"{len(rows) - shown} other families", rest)]
    for i, (name, row) in enumerate(rows):
        fig.add_trace(
            go.Bar(
                x=[d.isoformat() for d in g.starts],
                y=row.tolist(),
                name=html.escape(name, quote=False),
                marker={"color": PALETTE[i % len(PALETTE)]},
            )
        )
    fig.update_layout(
        barmode="stack",
        template="plotly_white",
        height=420,
        margin={"l": 40, "r": 20, "t": 20, "b": 40},
        yaxis_title="vectors",
        xaxis={"type": "category", "title": f"{g.unit} beginning"},
        showlegend=True,
    )
    return fig


def _map(made: Trends) -> Any:
    assert made.layout is not None
    fig = figure(made.layout, made.points, title="")
    if made.before is not None:
        import plotly.graph_objects as go

        xs: list[float | None] = []
        ys: list[float | None] = []
        for then, now in zip(made.before, made.layout.positions, strict=True):
            if np.isfinite(then).all():
                xs += [float(then[0]), float(now[0]), None]
                ys += [float(then[1]), float(now[1]), None]
        line = {"color": "#9aa5b1", "width": 1}
        fig.add_trace(go.Scatter(x=xs, y=ys, mode="lines", line=line, name="drift", hoverinfo="skip"))
        fig.data = (fig.data[-1], *fig.data[:-1])  # under the points
    return fig


def _div(fig: Any) -> str:
    text: str = fig.to_html(include_plotlyjs=False, full_html=False)
    return text
