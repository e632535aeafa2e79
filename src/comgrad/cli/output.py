"""What commands share: JSON or a table on stdout, progress on stderr, terminal-safe text."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
PIPED_WIDTH = 200  # a file or a pager has no width of its own
Progress = Callable[[int, int], None]
Steps = Callable[[str, int, int], None]


def plain(text: str) -> str:
    """The text without control characters, so that a name cannot drive the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "�" for c in text)


def emit_json(value: Any) -> None:
    """One JSON document on stdout; a number that is not finite becomes null."""
    typer.echo(json.dumps(_finite(value), ensure_ascii=False, indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; cells are plain text, numbers with four significant digits."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Table(header_style="bold", box=None, pad_edge=False)
    for name, sample in zip(columns, rows[0] if rows else columns, strict=True):
        out.add_column(name, justify="right" if isinstance(sample, int | float) else "left", overflow="fold")
    for row in rows:
        out.add_row(*(Text(plain(cell(c))) for c in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(out)


def cell(value: object) -> str:
    """A table cell: floats with four significant digits, None as a dash."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    """A line of human output on stdout."""
    typer.echo(plain(text))


def note(text: str) -> None:
    """A line on stderr."""
    typer.echo(plain(text), err=True)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A progress bar on stderr, shown only on a terminal; the callback takes (done, total)."""
    with stages(what) as (update, _):
        yield update


@contextmanager
def stages(what: str) -> Iterator[tuple[Progress, Steps]]:
    """A progress bar for work in steps; the second callback takes (the step's name, its number from 0, how many)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None, lambda _name, _at, _of: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def step(name: str, at: int, of: int) -> None:
            bar.update(task, description=plain(name), completed=at, total=of)

        yield update, step
