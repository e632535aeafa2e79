"""The waterfall: how much of the gap to a task's own adapter each step recovers."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from comgrad.atlas.picture import PALETTE
from comgrad.workflows.bench.plan import GIVEN
from comgrad.workflows.bench.score import gap_recovered, gr_interval
from comgrad.workflows.bench.tables import Group, Row, losses

STEPS = (
    ("base", ("zero",)),
    ("mean of all, scaled", ("mean-scaled",)),
    ("description", ("functional",)),
    ("+ 16 examples", ("ours+16",)),
    ("+ 160 examples", ("ours+160",)),
    ("fitted coefficients", ("oracle-functional", "oracle-linear")),
    ("second run", ("second-run-same-a",)),
    ("own adapter", ("own",)),
)


def steps(rows: Sequence[Row], split: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """The bars: name, method, GR, interval and number of tasks; a step that was not run is left out."""
    grouped = losses(rows)
    out = []
    for name, methods in STEPS:
        method = next((m for m in methods if Group(m, split, GIVEN) in grouped), None)
        if method is None:
            continue
        x = grouped[Group(method, split, GIVEN)]
        gr = gap_recovered(x)
        if math.isfinite(gr):
            low, high = gr_interval(x, seed=seed)
            out.append(
                {"step": name, "method": method, "gr": gr, "low": low, "high": high, "tasks": int(x.measurable.sum())}
            )
    return out


def as_html(bars: Sequence[Row], title: str) -> bytes:
    """A whole page with its own copy of the drawing library."""
    import plotly.graph_objects as go

    fig = go.Figure(
        go.Bar(
            x=[_label(b) for b in bars],
            y=[b["gr"] for b in bars],
            marker={"color": [PALETTE[i % len(PALETTE)] for i in range(len(bars))]},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [_or_zero(b["high"] - b["gr"]) for b in bars],
                "arrayminus": [_or_zero(b["gr"] - b["low"]) for b in bars],
            },
            text=[f"{b['gr']:.2f}" for b in bars],
            hovertemplate="%{x}: %{y:.3f}<extra></extra>",
        )
    )
    fig.update_layout(
        title=title, template="plotly_white", height=520, yaxis_title="gap recovered (GR)", margin={"l": 60, "r": 20}
    )
    page: str = fig.to_html(include_plotlyjs=True, full_html=True, div_id="waterfall")
    return page.encode()


def as_png(bars: Sequence[Row], title: str) -> bytes:
    """PNG bytes, the same for the same input."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(10, 5), dpi=110, layout="constrained")
    ax = fig.subplots()
    places = range(len(bars))
    errors = [[_or_zero(b["gr"] - b["low"]) for b in bars], [_or_zero(b["high"] - b["gr"]) for b in bars]]
    ax.bar(places, [b["gr"] for b in bars], yerr=errors, capsize=3, color=[PALETTE[i % len(PALETTE)] for i in places])
    for i, b in enumerate(bars):
        ax.annotate(f"{b['gr']:.2f}", (i, max(b["gr"], 0.0)), xytext=(10, 4), textcoords="offset points", fontsize=9)
    ax.set_xticks(list(places), [_label(b).replace("<br>", "\n") for b in bars], fontsize=8)
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.set_ylabel("gap recovered (GR)")
    ax.set_title(title, fontsize=10)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _label(bar: Row) -> str:
    return f"{bar['step']}<br>({bar['tasks']} tasks)"


def _or_zero(x: float) -> float:
    return max(x, 0.0) if math.isfinite(x) else 0.0
