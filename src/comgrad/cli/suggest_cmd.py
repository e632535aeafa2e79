"""`comgrad suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from comgrad.cli.output import AsJson, emit_json, progress, say, table
from comgrad.errors import ComgradError


def register(app: typer.Typer) -> None:
    app.command("suggest")(suggest)


def suggest(
    text: Annotated[str, typer.Argument(help="The new task, in words.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the starting adapter to.")],
    rank: Annotated[
        int | None, typer.Option(help="Rank of the adapter; default: that of the known vectors.", min=1)
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help="A task folder with labelled examples (8 to 160 are used) to fit coefficients on."),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="How to predict: functional (default), ridge, softmax5, eq1 and others, see docs/prediction.md."
        ),
    ] = None,
    dare: Annotated[bool, typer.Option("--dare", help="Write the prediction even where the rule abstains.")] = False,
    base: Annotated[str | None, typer.Option(help="Base model, when the registry holds several.")] = None,
    share: Annotated[
        float, typer.Option(help="Say what is worth training with this part of the adapter's parameters.")
    ] = 1.0,
    remote: Annotated[
        bool, typer.Option("--remote", help="Have it predicted by the service signed in to, from what is shared there.")
    ] = False,
    server: Annotated[str | None, typer.Option("--server", help="Address of the service; means --remote.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict a starting adapter for a task from its description.

    The folder is a PEFT adapter that stock PEFT loads, with a card that says what it was made from.

    Where nothing is known that helps, it abstains: the adapter is then a plain zero start, and the reason is given.

    Examples:

      comgrad suggest "Which of 77 things does a bank customer ask about?" -o start

      comgrad suggest "Is this tweet sarcastic?" --examples my-task/ -o start

      comgrad suggest "Is this tweet sarcastic?" --share 0.25 -o start

      comgrad suggest "Is this tweet sarcastic?" --remote -o start
    """
    if remote or server:
        if examples is not None or share != 1.0:
            raise ComgradError(
                "--remote with --examples or --share",
                "examples stay on this machine, and the service predicts from words alone",
                "leave them out, or pull vectors with: comgrad pull OWNER/NAME --add",
                code="usage",
            )
        _suggest_remote(text, out, {"rank": rank, "rule": rule, "dare": dare, "base": base}, server, as_json)
        return
    from comgrad.workflows.suggesting import suggest as run

    result = run(text, out, rank=rank, task_dir=examples, base=base, rule=rule, dare=dare, share=share)
    if as_json:
        emit_json(result.as_dict())
        return
    if result.abstained:
        say(f"No prediction: {result.reason} The adapter written is a plain zero start.")
    for warning in result.warnings:
        say(f"warning: {warning}")
    rows = [(s.coefficient, s.name, s.id) for s in result.sources[:10]]
    if rows:
        table(("coefficient", "from", "id"), rows)
    if result.expected_gain is not None:
        gain, low, high = result.expected_gain
        say(f"expected fall of the loss {gain:.3f} nats (90 % interval {low:.3f} to {high:.3f})")
    say(
        f"rule {result.rule}, confidence {result.confidence:.2f}, scale {result.scale:.3f}, energy kept {result.energy_kept:.3f}"
    )
    if share < 1.0:
        table(("worth training", "rank"), sorted(result.trainable.items()))
    say(f"wrote {result.path}; load it with peft.PeftModel.from_pretrained(base, '{result.path}', is_trainable=True)")


def _suggest_remote(text: str, out: Path, how: dict[str, Any], server: str | None, as_json: bool) -> None:
    from comgrad.client.client import Client

    with Client(server) as client, progress("fetching") as update:
        made = client.suggest(text, out, **how, progress=update)
    if as_json:
        emit_json(made)
        return
    if made.get("abstained"):
        say(f"No prediction: {made.get('reason')} The adapter written is a plain zero start.")
    rows = [(s.get("coefficient"), s.get("name"), s.get("id")) for s in made.get("sources", [])[:10]]
    if rows:
        table(("coefficient", "from", "id"), rows)
    say(f"wrote {made['path']}; load it with peft.PeftModel.from_pretrained(base, '{made['path']}', is_trainable=True)")
