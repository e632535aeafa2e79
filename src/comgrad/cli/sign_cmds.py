"""`comgrad sign` and `comgrad verify`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.output import AsJson, emit_json, say
from comgrad.errors import ComgradError

PASSWORD = "COMGRAD_KEY_PASSWORD"


def register(app: typer.Typer) -> None:
    app.command("sign")(sign)
    app.command("verify")(verify)


def sign(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="The folder to sign.")] = None,
    key: Annotated[Path | None, typer.Option(help="The private key, an elliptic-curve one in PEM.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="The key's certificate in PEM.")] = None,
    chain: Annotated[list[Path] | None, typer.Option(help="Certificates between it and a trusted root.")] = None,
    new_key: Annotated[Path | None, typer.Option(help="Make a key pair: FILE, and FILE.pub to give away.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sign every file of a folder: writes model.sig, in the form of OpenSSF model signing, without any network.

    The password of an encrypted key is read from the environment variable COMGRAD_KEY_PASSWORD.

    Examples:

      comgrad sign --new-key me.pem

      comgrad sign my-adapter --key me.pem
    """
    from comgrad.workflows import signing

    if new_key is not None:
        private, public = signing.new_key(new_key)
        if as_json and folder is None:
            emit_json({"private": str(private), "public": str(public)})
        elif not as_json:
            say(f"wrote {private}, which is yours alone, and {public}, which others verify with")
        if folder is None:
            return
        key = key or new_key
    if folder is None or key is None:
        raise ComgradError("nothing to sign", "a folder and --key are needed", "see: comgrad sign --help", code="usage")
    password = os.environ.get(PASSWORD)
    made = signing.sign(folder, key, password=password, certificate=certificate, chain=chain or ())
    if as_json:
        emit_json(made.as_dict())
    else:
        say(f"signed {len(made.files)} files into {made.path} with the key {made.key[:16]}…")


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with model.sig.")],
    key: Annotated[Path | None, typer.Option(help="The signer's public key in PEM.")] = None,
    chain: Annotated[list[Path] | None, typer.Option(help="Trusted certificates, where one signed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a folder is as it was signed: every file, no more and no less, without any network.

    Example: comgrad verify mood --key hub.pem.pub
    """
    from comgrad.workflows import signing

    found = signing.verify(folder, key=key, chain=chain or ())
    if as_json:
        emit_json(found.as_dict())
    else:
        say(f"all {len(found.files)} files are as signed by {found.signer}")
