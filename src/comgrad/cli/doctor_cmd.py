"""`comgrad doctor`."""

from __future__ import annotations

import typer

from comgrad.cli.output import AsJson, emit_json, progress, say


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check versions, base models and the registry; re-hash every stored byte.

    Example: comgrad doctor --json
    """
    from comgrad.workflows.doctor import doctor as run

    with progress("auditing") as update:
        report = run(progress=update)
    if as_json:
        emit_json(report.as_dict())
    else:
        for check in report.checks:
            say(f"{'ok ' if check.ok else 'BAD'} {check.name:22} {check.detail}")
    if not report.ok:
        raise typer.Exit(1)
