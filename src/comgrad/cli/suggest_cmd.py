"""`comgrad suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, say, table


def register(app: typer.Typer) -> None:
    app.command("suggest")(suggest)


def suggest(
    text: Annotated[str, typer.Argument(help="The new task, in words.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the starting adapter to.")],
    rank: Annotated[
        int | None, typer.Option(help="Rank of the adapter; default: that of the known vectors.", min=1)
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="A task folder with a few labelled examples, to choose the scale.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model, when the registry holds several.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict a starting adapter for a task from its description.

    The folder is a PEFT adapter that stock PEFT loads, with a card that says what it was made from.

    Example: comgrad suggest "Which of 77 things does a bank customer ask about?" -o start
    """
    from comgrad.workflows.suggesting import suggest as run

    result = run(text, out, rank=rank, task_dir=examples, base=base)
    if as_json:
        emit_json(result.as_dict())
        return
    if result.abstained:
        say(f"No prediction: {result.reason} The adapter written is a plain zero start.")
    rows = [(s.coefficient, s.name, s.id) for s in result.sources[:10]]
    if rows:
        table(("coefficient", "from", "id"), rows)
    say(
        f"rule {result.rule}, confidence {result.confidence:.2f}, scale {result.scale:.3f}, energy kept {result.energy_kept:.3f}"
    )
    say(f"wrote {result.path}; load it with peft.PeftModel.from_pretrained(base, '{result.path}', is_trainable=True)")
