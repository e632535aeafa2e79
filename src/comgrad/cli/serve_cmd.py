"""`comgrad serve`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, note
from comgrad.errors import ComgradError


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the registry and of the service; default: COMGRAD_HOME.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Threads for slow work; 0 when worker processes of their own do it.", min=0, max=64),
    ] = None,
    public_url: Annotated[
        str | None, typer.Option(help="How browsers reach the service, where a proxy adds https.")
    ] = None,
    show_registry: Annotated[
        bool, typer.Option("--show-registry", help="Show what the registry holds already to everybody.")
    ] = False,
    sign_up: Annotated[bool, typer.Option("--sign-up", help="Let everybody make an account.")] = False,
    signing_key: Annotated[
        Path | None, typer.Option(help="Sign what is served with this key; made by: comgrad sign --new-key FILE.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the start page in the browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the service: pages and API, catalogue, files and workers, with nothing else to install.

    At the first start a one-time secret is printed: it makes the first administrator. Other settings are environment
    variables, COMGRAD_SERVICE_*; see docs/service.md. Ctrl-C lets running requests and jobs end.

    Examples:

      comgrad serve

      comgrad serve --show-registry --open

      comgrad serve --host 0.0.0.0 --port 80 --data /srv/comgrad --public-url https://hub.example.org
    """
    given = {
        "data": data.expanduser() if data is not None else None,
        "worker_threads": workers or None,
        "workers": "none" if workers == 0 else None,
        "public_url": public_url,
        "publish_unowned": show_registry or None,
        "open_sign_up": sign_up or None,
        "signing_key": signing_key,
    }
    with service_part():
        from comgrad.service.serve import serve as run
        from comgrad.service.settings import Settings
    settings = Settings.from_environment(**{k: v for k, v in given.items() if v is not None})
    run(settings, host=host, port=port, say=lambda text: _tell(text, open_page, as_json))


@contextmanager
def service_part() -> Iterator[None]:
    """Around imports of the service: what is missing is said in one line. Raises ComgradError (`not-installed`)."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("comgrad"):
            raise
        why = f"a part of it is not installed ({error.name} is missing)"
        raise ComgradError("the service", why, "run: pip install 'comgrad[service]'", code="not-installed") from error


def _tell(text: str, open_page: bool, as_json: bool) -> None:
    """Pass on where the service is, and the first start's secret; as JSON each is a document of its own."""
    first = text.startswith("serving ")
    found = re.search(r"https?://[^\s/]+", text)
    url = found[0] if found else None
    if as_json:
        secret = None if first else text.rsplit(" ", 1)[1]
        emit_json({"url": url} if first else {"url": url, "first_start_secret": secret})
    else:
        note(text)
    if open_page and first and url:
        import webbrowser

        webbrowser.open(url)
