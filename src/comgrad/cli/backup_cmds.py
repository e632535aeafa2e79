"""`comgrad backup` and `comgrad restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, progress, say

if TYPE_CHECKING:
    from comgrad.workflows.backup import Outcome


def register(app: typer.Typer) -> None:
    app.command("backup")(backup)
    app.command("restore")(restore)


def backup(
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder to write to.")],
    as_json: AsJson = False,
) -> None:
    """Copy the registry as it is now, while others go on using it; hash every copied byte.

    Example: comgrad backup -o backup-monday
    """
    from comgrad.workflows.backup import backup as run

    with progress("backing up") as update:
        _tell("backed up to", run(out, progress=update), as_json)


def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a backup.")],
    as_json: AsJson = False,
) -> None:
    """Fill an empty registry from a backup; hash every byte of it again.

    Example: COMGRAD_HOME=restored comgrad restore backup-monday
    """
    from comgrad.workflows.backup import restore as run

    with progress("restoring") as update:
        _tell("restored to", run(folder, progress=update), as_json)


def _tell(done: str, outcome: Outcome, as_json: bool) -> None:
    if as_json:
        emit_json(outcome.as_dict())
    else:
        rows = f"{outcome.vectors} vectors, {outcome.removed} tombstones, {outcome.gradients} gradients"
        say(f"{done} {outcome.path}: {rows}")
        say(f"{outcome.checked} of {outcome.blobs} files ({outcome.bytes / 1e6:.1f} MB) hash to their digest")
        if outcome.damaged:
            say(f"DAMAGED before the backup was made: {', '.join(outcome.damaged)}; add those files again")
    if not outcome.ok:
        raise typer.Exit(1)
