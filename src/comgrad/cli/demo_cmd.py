"""`comgrad demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report and the pictures.")] = Path(
        "demo-out"
    ),
    task: Annotated[str, typer.Option(help="Which shipped task to start ahead on.")] = "banking-intent",
    steps: Annotated[int, typer.Option(help="Training steps of each run.", min=1)] = 40,
    as_json: AsJson = False,
) -> None:
    """Do the main job on real adapters, from nothing: registry, map, suggestion, fine-tune that starts ahead.

    Example: comgrad demo -o my-demo
    """
    from comgrad.workflows.demo import run_demo

    result = run_demo(out, task_id=task, steps=steps, say=note if as_json else typer.echo)
    if as_json:
        emit_json(result)
