"""`comgrad add`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note, progress, say, table


def register(app: typer.Typer) -> None:
    app.command("add")(add)


def add(
    paths: Annotated[
        list[Path], typer.Argument(help="PEFT adapter folders, folders full of them, or (with --base) a checkpoint.")
    ],
    describe: Annotated[str | None, typer.Option(help="What the fine-tune does, in words.")] = None,
    name: Annotated[str | None, typer.Option(help="Its name in the registry.")] = None,
    base: Annotated[str | None, typer.Option(help="Its base model: a name or a path.")] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Its task's folder, for its card and the gradient of its examples; or a folder with one per adapter."
        ),
    ] = None,
    drop_heads: Annotated[bool, typer.Option(help="Leave out heads that the base does not have.")] = False,
    restore: Annotated[bool, typer.Option(help="Bring back a removed vector under its old id and name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check fine-tunes and put them into the registry.

    A task_card.json in the folder is read as the description. Adding the same bytes twice changes nothing.

    With --examples the task's gradient at the base is computed (from at most 160 training examples) and kept beside the
    vector, also when the vector is there already: it tells which known vectors help the task, better than the
    description can.

    Examples:

      comgrad add my-adapter --describe "Sort support e-mails by urgency"

      comgrad add zoo/ --json

      comgrad add zoo/ --examples tasks/

      comgrad add finetuned-bert/ --base bert-base-uncased --name reviews
    """
    from comgrad.workflows.adding import AddRequest, add_paths

    request = AddRequest(
        describe=describe, name=name, base=base, task_dir=examples, drop_heads=drop_heads, restore=restore
    )
    began = time.perf_counter()
    with progress("adding") as update:
        results = add_paths(paths, request, progress=update)
    seconds = time.perf_counter() - began
    if as_json:
        emit_json([r.as_dict() for r in results])
    else:
        rows = [(r.status, r.id or "–", r.name, _near(r.neighbours)) for r in results]
        table(("status", "id", "name", "nearest known task (cosine, centred from 10 vectors on)"), rows)
        for r in results:
            for warning in r.warnings:
                note(f"warning: {r.name}: {warning}")
        counts = {s: sum(r.status == s for r in results) for s in ("added", "exists", "refused")}
        done = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
        gradients = sum(r.gradient is not None for r in results)
        done += f", {gradients} with a gradient" if gradients else ""
        say(f"{done} in {seconds:.1f} s ({len(results) / seconds:.0f} per second)")
    for r in results:
        if r.error is not None:
            note(f"error: {r.error['given']}; {r.error['why']}; {r.error['remedy']}")
    if any(r.status == "refused" for r in results):
        raise typer.Exit(1)


def _near(neighbours: list[dict[str, object]]) -> str:
    return f"{neighbours[0]['name']} ({neighbours[0]['cosine']:.3f})" if neighbours else "–"
