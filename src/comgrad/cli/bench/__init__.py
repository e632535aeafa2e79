"""`comgrad bench NAME`: one file for each benchmark."""

from __future__ import annotations

import typer

from comgrad.cli.bench import arithmetic, descinit, screening, similarity, spectral

bench = typer.Typer(
    name="bench",
    help="Run a benchmark; stopped at any time, the same command goes on from there.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for module in (descinit, arithmetic, similarity, spectral, screening):
    module.register(bench)


def register(app: typer.Typer) -> None:
    app.add_typer(bench)
