"""`comgrad extract` and `apply`: full checkpoints, streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note, progress, say


def register(app: typer.Typer) -> None:
    app.command("extract")(extract)
    app.command("apply")(apply)


def extract(
    base: Annotated[str, typer.Argument(help="The base checkpoint: a folder, a file or a model's name.")],
    finetuned: Annotated[str, typer.Argument(help="The fine-tuned checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    as_json: AsJson = False,
) -> None:
    """Write the task vector of two full checkpoints.

    Example: comgrad extract bert-base-uncased ./my-bert -o my-bert-vector
    """
    from comgrad.workflows.checkpoints import extract as run

    with progress("extracting") as update:
        result = run(base, finetuned, out, progress=update)
    if as_json:
        emit_json(result.as_dict())
        return
    say(f"wrote {result.path}: {result.tensors} tensors")
    floor = result.noise_floor or {}
    say(
        f"{floor['zero_fraction']:.1%} of the stored differences are exactly 0; the change is {floor['ratio']:.1f} times "
        f"the rounding of the stored numbers"
    )
    for warning in result.warnings:
        note(f"warning: {warning}")


def apply(
    vector: Annotated[str, typer.Argument(help="Id or name in the registry, an adapter folder or a vector's folder.")],
    to: Annotated[str, typer.Option("--to", help="The base checkpoint to apply it to.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    scale: Annotated[float, typer.Option(help="Factor of the vector; negative to forget.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Write base + scale × vector as a full checkpoint.

    Example: comgrad apply intent-banking --to all-MiniLM-L6-v2 -o merged
    """
    from comgrad.workflows.checkpoints import apply as run

    with progress("applying") as update:
        result = run(vector, to, out, scale=scale, progress=update)
    if as_json:
        emit_json(result.as_dict())
        return
    say(f"wrote {result.path}: {result.tensors} tensors changed")
    for warning in result.warnings:
        note(f"warning: {warning}")
