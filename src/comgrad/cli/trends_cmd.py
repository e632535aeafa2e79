"""`comgrad trends`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note, say, table

if TYPE_CHECKING:
    from comgrad.workflows.trends import Trends


def register(app: typer.Typer) -> None:
    app.command("trends")(trends)


def trends(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="An .html file to write, with pictures.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="What counts as recent was added at or after this date; default: the last quarter."),
    ] = None,
    wanted: Annotated[
        Path | None,
        typer.Option(
            help="What people ask for: a file with a description per line, a .jsonl of cards, or task folders."
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model, when the registry holds several.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what grows in the registry, how its map drifts, what is copied or mixed, and what it lacks.

    Near-duplicates count once in everything but the list of them.

    Examples:

      comgrad trends -o trends.html

      comgrad trends --since 2026-01-31 --wanted asked.txt
    """
    from comgrad.workflows.trends import trends as run

    made = run(out=out, since=since, wanted=wanted, base=base)
    if as_json:
        emit_json(made.as_dict() | {"path": str(out) if out else None})
        return
    _show(made)
    if out is not None:
        say(f"\nwrote {out}")


def _show(made: Trends) -> None:
    from comgrad.workflows.trends import shortened
    from comgrad.workflows.trends_page import verdict

    say(f"{made.vectors} vectors, {made.counted} when near-duplicates count once, added over {made.span_days:.1f} days")
    for line in verdict(made):
        say(f"* {line}")
    for line in made.notes:
        note(f"note: {line}")
    made = shortened(made)
    sizes = zip(made.growth.labels, made.growth.total[:, -1].tolist(), strict=True)
    _part(f"Families (by {made.growth.unit} in --json)", ("family", "vectors"), list(sizes)[:15])
    for title, rows in (("Growing families", made.families), ("Growing clusters", made.clusters)):
        columns = ("group", "before", "since", "share before", "share since", "chance", "")
        _part(
            title,
            columns,
            [
                (r.label, r.before, r.after, r.share_before, r.share_after, r.chance, "emerging" if r.emerging else "")
                for r in rows
            ],
        )
    if made.drift is not None:
        _part("Farthest drift on the map (1 is its radius)", ("task", "drift"), list(made.drift.points[:5]))
    _part(
        "Near-duplicates",
        ("vector", "copy of", "kind", "cosine", "times as long"),
        [(c["name"], c["of"], c["kind"], c["cosine"], c["length"]) for c in made.copies],
    )
    _part(
        "Made of others",
        ("vector", "parents", "its own"),
        [(m["name"], _parents(m["parents"]), m["residual"]) for m in made.mixtures],
    )
    _part(
        "Wanted, the farthest first",
        ("description", "nearest", "cosine", ""),
        [
            (_short(g["description"]), g["nearest"], g["cosine"], "lacking" if g["lacking"] else "")
            for g in made.lacking
        ],
    )
    _part("Thin families", ("family", "vectors"), list(made.thin))
    _part("Farthest from any other", ("vector", "nearest", "centred cosine"), list(made.lonely))


def _part(title: str, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    if rows:
        say(f"\n{title}")
        table(columns, rows)


def _parents(parents: list[dict[str, float | str]]) -> str:
    shown = ", ".join(f"{p['coefficient']:+.3f} {p['name']}" for p in parents[:4])
    return shown if len(parents) <= 4 else f"{shown} and {len(parents) - 4} more"


def _short(text: str, length: int = 70) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
