"""`comgrad login`, `logout`, `push` and `pull`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note, progress, say, table
from comgrad.errors import ComgradError

Server = Annotated[
    str | None, typer.Option("--server", help="Address of the service; default: the one signed in to last.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow http to another machine: everybody on the way can read the token.")
]


def register(app: typer.Typer) -> None:
    app.command("login")(login)
    app.command("logout")(logout)
    app.command("push")(push)
    app.command("pull")(pull)


def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the service.")],
    account: Annotated[str | None, typer.Option(help="Your account's handle; asked for otherwise.")] = None,
    token: Annotated[
        bool, typer.Option("--token", help="Sign in with a token, which is asked for or read from stdin.")
    ] = False,
    first_start: Annotated[
        bool, typer.Option("--first-start", help="Make a new service's first account with the secret that it printed.")
    ] = False,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Sign in to a service. A token is made and kept in a file that only you can read; the password is not kept.

    The token is sent to this address and to no other.

    Examples:

      comgrad login hub.example.org

      comgrad login http://127.0.0.1:8000 --first-start

      comgrad login hub.example.org --token < token.txt
    """
    from comgrad.client import signing_in
    from comgrad.client.address import address

    where = address(url, insecure=insecure)
    if token:
        held, path = signing_in.with_token(where, _secret("token"))
    else:
        secret = _secret("one-time secret") if first_start else None
        handle = account or _line("account")
        password = _secret("password")
        if secret is not None:
            signing_in.first_start(where, secret, handle, password)
        held, path = signing_in.with_password(where, handle, password)
    if as_json:
        emit_json({"server": held.origin, "account": held.handle, "expires_at": held.expires_at, "path": str(path)})
    else:
        until = f" until {held.expires_at[:10]}" if held.expires_at else ""
        say(f"signed in to {held.origin} as {held.handle or 'the token says'}{until}; the token is in {path}")


def logout(
    url: Annotated[str | None, typer.Argument(metavar="[URL]", help="Default: the service signed in to last.")] = None,
    as_json: AsJson = False,
) -> None:
    """Have the token of a service revoked, and forget it here.

    When the service cannot be reached the token is forgotten all the same, and it is said how to revoke it there.

    Example: comgrad logout
    """
    from comgrad.client import credentials, signing_in
    from comgrad.client.address import address

    named = url or credentials.current()
    if named is None:
        raise ComgradError("nobody", "no service is signed in to", "there is nothing to do", code="no-server")
    where = address(named, insecure=True)
    result = signing_in.out(where)
    if as_json:
        emit_json({"server": where.origin, **result.as_dict()})
    elif result.revoked:
        say(f"signed out of {where.origin}; the token is revoked there and forgotten here")
    elif not result.known:
        say(f"nobody was signed in to {where.origin}")
    else:
        say(f"signed out of {where.origin} here; the token is forgotten, and not revoked there")
    if result.known and not result.revoked:
        held, error = result.credential, result.error
        ends = f", which ends on {held.expires_at[:10]}" if held is not None and held.expires_at else ""
        why = error.why if error is not None else ""
        note(
            f"note: {where.origin}: {why}. To end the token there before its time, open {where.origin}/account#tokens and "
            f"revoke 'comgrad login'{ends}"
        )


def push(
    what: Annotated[list[str], typer.Argument(metavar="ID_OR_PATH", help="Ids or names in the registry, or folders.")],
    name: Annotated[str | None, typer.Option(help="Its name on the service; default: that of its card.")] = None,
    describe: Annotated[str | None, typer.Option(help="What it does, in words; default: as its card says.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody may see and use it; default: only you.")] = False,
    org: Annotated[str | None, typer.Option(help="Share it as this organisation.")] = None,
    base: Annotated[str | None, typer.Option(help="Its base's name on the hub, where the files do not say it.")] = None,
    gradient: Annotated[
        bool, typer.Option(help="Send the gradient of its task too, where there is one: suggestions are better for it.")
    ] = True,
    server: Server = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Share fine-tunes on a service. After a cut, the same command goes on where it stopped.

    Examples:

      comgrad push my-adapter --describe "Sort support e-mails by urgency"

      comgrad push intent-banking intent-home --public

      comgrad push my-adapter --org our-lab --server hub.example.org
    """
    from comgrad.client.client import Client
    from comgrad.workflows.sharing import PushRequest, push_all

    request = PushRequest(name or "", describe or "", public, org, base, gradient)
    with Client(server, insecure=insecure) as client, progress("pushing") as update:
        results = push_all(client, what, request, progress=update)
    if as_json:
        emit_json([r.as_dict() for r in results])
    else:
        table(("status", "name", "id"), [(r.status, r.name, r.id or "–") for r in results])
        for r in results:
            for warning in r.warnings:
                note(f"warning: {r.name}: {warning}")
    for r in results:
        if r.error is not None:
            note(f"error: {r.error['given']}; {r.error['why']}; {r.error['remedy']}")
    if any(r.status == "refused" for r in results):
        raise typer.Exit(1)


def pull(
    refs: Annotated[list[str], typer.Argument(metavar="OWNER/NAME", help="Names on the service, or ids.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; of several vectors, one folder in it for each.")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Put them into the registry.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what was pulled before.")] = False,
    accept_change: Annotated[
        bool, typer.Option("--accept-change", help="Take it although the name meant another vector before.")
    ] = False,
    server: Server = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Fetch task vectors from a service: a folder that stock PEFT loads, or into the registry with --add.

    Every file is checked against its digest, and kept: a second pull works without the network.

    Examples:

      comgrad pull ada/mood -o mood

      comgrad pull ada/mood bob/topics --add
    """
    from comgrad.client.client import Client
    from comgrad.workflows.sharing import pull_all

    with Client(server, insecure=insecure, offline=offline) as client, progress("pulling") as update:
        results = pull_all(client, refs, out=out, add=add, accept_change=accept_change, progress=update)
    if as_json:
        emit_json([r.as_dict() for r in results])
        return
    for r in results:
        if r.offline:
            note(f"note: the service was not asked; '{r.name}' is as it was on {r.seen[:10]}")
    table(("name", "id", "written to", "registry"), [(r.name, r.id, r.path or "–", r.status or "–") for r in results])


def _secret(what: str) -> str:
    """A secret from the terminal, not shown, or a line of stdin; never from the command line, which others can see."""
    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True, err=True))
    return _from_stdin(what)


def _line(what: str) -> str:
    return str(typer.prompt(what, err=True)) if sys.stdin.isatty() else _from_stdin(what)


def _from_stdin(what: str) -> str:
    line = sys.stdin.readline(4096).strip()
    if not line:
        raise ComgradError(f"no {what}", "stdin has none", "type it in, or send it as a line", code="no-secret")
    return line
