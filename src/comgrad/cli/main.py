"""The command line: every command is a few lines over one function of `comgrad.workflows`."""

from __future__ import annotations

import json
import sys
import warnings

import typer

from comgrad.cli import (
    add_cmd,
    backup_cmds,
    bench,
    build_tasks_cmd,
    checkpoint_cmds,
    compare_cmds,
    demo_cmd,
    doctor_cmd,
    explain_cmd,
    merge_cmd,
    people_cmds,
    registry_cmds,
    remote_cmds,
    serve_cmd,
    sign_cmds,
    suggest_cmd,
    train_cmd,
    trends_cmd,
)
from comgrad.cli.output import plain
from comgrad.errors import ComgradError

INTERRUPTED = 130  # what the command-line library makes of Ctrl-C

app = typer.Typer(
    name="comgrad",
    help="Share, compare, predict and train task vectors of open models.",
    epilog="Start here: comgrad demo. The registry's folder is COMGRAD_HOME.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"comgrad {version('comgrad')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Share, compare, predict and train task vectors of open models."""


for module in (
    demo_cmd,
    add_cmd,
    registry_cmds,
    compare_cmds,
    suggest_cmd,
    train_cmd,
    explain_cmd,
    trends_cmd,
    merge_cmd,
    checkpoint_cmds,
    build_tasks_cmd,
    bench,
    backup_cmds,
    serve_cmd,
    people_cmds,
    remote_cmds,
    sign_cmds,
    doctor_cmd,
):
    module.register(app)


def main() -> None:
    """Run the command line; a user's mistake becomes one line on stderr and exit code 1."""
    warnings.simplefilter("ignore", FutureWarning)  # other libraries' notes to their own developers
    try:
        app()
    except ComgradError as error:
        if "--json" in sys.argv:
            typer.echo(json.dumps({"error": error.as_dict()}))
        typer.echo(f"error: {plain(' '.join(str(error).split()))}", err=True)
        raise SystemExit(1) from None
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("stopped; what was finished is kept", err=True)
        raise
    except OSError as error:
        what = f"'{error.filename}'" if error.filename else "the operating system"
        typer.echo(
            f"error: {plain(what)}; {plain(error.strerror or str(error))}; check the path and the disk", err=True
        )
        raise SystemExit(1) from None
