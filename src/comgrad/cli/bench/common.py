"""What benchmarks' commands share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from comgrad.cli.output import emit_json, say, table

Names = str | None  # names with commas
Data = Annotated[
    Path | None, typer.Option(help="Folder with tasks/ and, where vectors are needed, zoo/; default: what is shipped.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for results and everything kept.")]
Page = Annotated[Path | None, typer.Option(help="Write the results page here, its pictures beside it.")]
Kept = Annotated[bool, typer.Option("--kept", help="Report what earlier runs left in --out; compute no more.")]
Jobs = Annotated[int, typer.Option(help="Processes, of one thread each.", min=1)]
Seed = Annotated[int, typer.Option(help="Of every choice of examples, and of bootstrap draws.", min=0)]
Draws = Annotated[int, typer.Option(help="Bootstrap draws and shuffles of every interval.", min=100)]
DEFAULT_OUT = Path("bench-out")


def names(text: str | None) -> tuple[str, ...]:
    """Names with commas, apart."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def command() -> str:
    """What the user typed, for the results page."""
    return shlex.join(["comgrad", *sys.argv[1:]])


def answer(found: Mapping[str, Any], head: Sequence[str], lines: Sequence[Sequence[object]], *, as_json: bool) -> None:
    """The whole result as JSON, or a table and the files written."""
    if as_json:
        emit_json(found)
        return
    table(head, lines)
    for path in found["files"]:
        say(f"wrote {path}")
