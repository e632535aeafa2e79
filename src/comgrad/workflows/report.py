"""The demo's report: one HTML file with everything in it, readable without a network."""

from __future__ import annotations

import html
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comgrad.atlas.picture import PALETTE, figure
from comgrad.weights.writer import atomic_write_bytes

if TYPE_CHECKING:
    from comgrad.workflows.demo import DemoResult


def write_report(result: DemoResult, path: Path) -> None:
    """Write the report atomically."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files("comgrad.workflows").joinpath("templates/demo.html").read_text("utf-8"))
    curves = result.curves
    page = template.render(
        task=result.task,
        added=result.added,
        suggestions=result.suggestions,
        curves=curves,
        steps=[r.step for r in next(iter(curves.values()))],
        seconds=result.seconds,
        verdict=_verdict(result),
        map_div=_div(figure(result.layout, result.points, title="")),
        curve_div=_div(_curves(curves)),
        script=_script(),
    )
    atomic_write_bytes(path, page.encode())


def _verdict(result: DemoResult) -> list[str]:
    """What happened, in words that follow the figures either way."""
    zero = result.curves["from zero"]
    out = []
    for name, readings in result.curves.items():
        if name == "from zero":
            continue
        first, last = readings[0].loss - zero[0].loss, readings[-1].loss - zero[-1].loss
        out.append(
            f"{name[0].upper()}{name[1:]}: {_than(first)} before any training, "
            f"and {_than(last)} after {readings[-1].step} steps, compared with starting from zero."
        )
    return out


def _than(difference: float) -> str:
    if abs(difference) < 5e-4:
        return "the same loss"
    return f"loss {abs(difference):.3f} {'lower' if difference < 0 else 'higher'}"


def _curves(curves: dict[str, Any]) -> Any:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    fig = make_subplots(rows=1, cols=2, subplot_titles=("test loss (nats)", "test accuracy"))
    for i, (name, readings) in enumerate(curves.items()):
        line = {"color": PALETTE[i], "dash": ("solid", "dash", "dot")[i % 3]}
        for col, key in ((1, "loss"), (2, "accuracy")):
            fig.add_trace(
                go.Scatter(
                    x=[r.step for r in readings],
                    y=[getattr(r, key) for r in readings],
                    name=html.escape(name, quote=False),
                    mode="lines+markers",
                    line=line,
                    showlegend=col == 1,
                ),
                row=1,
                col=col,
            )
    fig.update_xaxes(title_text="training step")
    fig.update_layout(
        template="plotly_white",
        height=420,
        margin={"l": 40, "r": 20, "t": 50, "b": 40},
        legend={"orientation": "h", "y": -0.25},
    )
    return fig


def _div(fig: Any) -> str:
    text: str = fig.to_html(include_plotlyjs=False, full_html=False)
    return text


def _script() -> str:
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text
