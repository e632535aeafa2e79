"""`comgrad reset-password`: for whoever runs a service, on its machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note, say
from comgrad.cli.serve_cmd import service_part


def register(app: typer.Typer) -> None:
    app.command("reset-password")(reset_password)


def reset_password(
    handle: Annotated[str, typer.Argument(help="The account's handle.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the registry and of the service; default: COMGRAD_HOME.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Issue a one-time secret with which an account of this machine's service chooses a new password.

    No e-mail is sent: give the secret to the person yourself. It works once, for a day, and only its digest is kept; the
    service may run meanwhile. Administrators do the same on the page of people.

    Example: comgrad reset-password ada
    """
    with service_part():
        from comgrad.service.auth.recovery import here
        from comgrad.service.settings import Settings
    given = {"data": data.expanduser()} if data is not None else {}
    settings = Settings.from_environment(**given)
    made = here(settings, handle)
    where = f"{settings.public_url}/reset?handle={made.handle}"
    if as_json:
        until = made.expires_at.isoformat()
        emit_json({"handle": made.handle, "url": where, "secret": made.secret, "expires_at": until})
        return
    say(f"{where}\n{made.secret}")
    note(f"works once, until {made.expires_at:%Y-%m-%d %H:%M} UTC; give both to the person you know by a way you trust")
