"""Signing in and out: a password becomes a token of its own, which is kept; the password is not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

from comgrad.client import credentials
from comgrad.client.address import Address
from comgrad.client.credentials import Credential
from comgrad.client.errors import Remote, not_trusted
from comgrad.client.paths import API
from comgrad.client.wire import Answer, Wire
from comgrad.errors import ComgradError

COOKIES = ("__Host-comgrad_session", "comgrad_session")  # over https, and over http
SCOPES = ("read", "write")
_TOKEN = re.compile(r"cgt_[A-Za-z0-9_\-]{22,200}")


def with_token(where: Address, token: str, *, wire: Wire | None = None) -> tuple[Credential, Path]:
    """Check a token and keep it for this address; the credential and the file it is in. Raises ComgradError."""
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise ComgradError("the token", "it is none: tokens begin with cgt_", "copy it again", code="bad-token")
    answer = _once(wire or Wire(where, token), "GET", f"{API}/session")
    held = Credential(where.origin, token, _handle(answer.json))
    return held, credentials.keep(held)


def with_password(
    where: Address,
    handle: str,
    password: str,
    *,
    days: int = 90,
    scopes: Sequence[str] = SCOPES,
    wire: Wire | None = None,
) -> tuple[Credential, Path]:
    """Sign in, have a token made, keep it, and end the session. Raises ComgradError."""
    with closing(wire or Wire(where)) as open_wire:
        held = _token_made(open_wire, where, handle, password, days, scopes)
    return held, credentials.keep(held)


def _token_made(wire: Wire, where: Address, handle: str, password: str, days: int, scopes: Sequence[str]) -> Credential:
    answer = wire.ask("POST", f"{API}/session", body={"handle": handle, "password": password}, repeatable=False)
    csrf = answer.json.get("csrf") if isinstance(answer.json, Mapping) else None
    session = _session(answer)
    if not isinstance(csrf, str) or session is None:
        raise not_trusted(
            f"an answer of {where.origin}", "it opens no session: this is no comgrad service", "no-service"
        )
    headers = {"Cookie": session, "X-CSRF-Token": csrf}
    wanted = {"name": "comgrad login", "scopes": list(scopes), "days": days}
    try:
        made = wire.ask("POST", f"{API}/tokens", body=wanted, headers=headers, repeatable=False).json
    finally:
        with suppress(ComgradError):  # a session ends by itself
            wire.ask("DELETE", f"{API}/session", headers=headers)
    secret, about = (made.get("secret"), made.get("token")) if isinstance(made, Mapping) else (None, None)
    if not isinstance(secret, str) or not isinstance(about, Mapping):
        raise not_trusted(f"an answer of {where.origin}", "it makes no token", "no-service")
    return Credential(where.origin, secret, handle, str(about.get("id") or ""), str(about.get("expires_at") or ""))


def first_start(where: Address, secret: str, handle: str, password: str, *, wire: Wire | None = None) -> None:
    """Make a new service's first account with the secret that it printed. Raises ComgradError."""
    body = {"secret": secret, "handle": handle, "password": password}
    with closing(wire or Wire(where)) as open_wire:
        open_wire.ask("POST", f"{API}/first-start", body=body, repeatable=False)


@dataclass(frozen=True)
class SignedOut:
    """What became of a token: it is forgotten here in any case.

    Args:
        known: whether there was one.
        revoked: whether the service has ended it; otherwise `error` says why not, and it works until it ends by itself.
    """

    known: bool
    revoked: bool
    credential: Credential | None = None
    error: ComgradError | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "was_signed_in": self.known,
            "revoked": self.revoked,
            "error": None if self.error is None else self.error.as_dict(),
        }


def out(where: Address, *, wire: Wire | None = None) -> SignedOut:
    """Have the service revoke the token of an address, and forget it here whatever comes of that. Raises StorageError."""
    held = credentials.found(where)
    if held is None:
        return SignedOut(False, False)
    error = _revoked(wire or Wire(where, held.token))
    credentials.forget(where)
    return SignedOut(True, error is None, held, error)


def _revoked(wire: Wire) -> ComgradError | None:
    """Ask the service to end the token, and look whether it did; what was in the way."""
    with closing(wire), wire.briefly():
        try:
            wire.ask("DELETE", f"{API}/session")
            wire.ask("GET", f"{API}/session")
        except Remote as error:
            return None if error.status == 401 else error  # one that was over already is over too
        except ComgradError as error:
            return error
    return Remote(wire.where.origin, "it signed out and still takes the token", "revoke it there", code="not-revoked")


def _once(wire: Wire, method: str, path: str) -> Answer:
    with closing(wire):
        return wire.ask(method, path)


def _session(answer: Answer) -> str | None:
    """The session's cookie, name and secret, as the answer sets it."""
    for line in answer.headers.get_list("set-cookie"):
        with suppress(CookieError):
            for name, found in SimpleCookie(line).items():
                if name in COOKIES and found.value:
                    return f"{name}={found.value}"
    return None


def _handle(body: Any) -> str:
    """The handle in the answer about a session: in its account, or beside it."""
    found = body if isinstance(body, Mapping) else {}
    account = found.get("account", found)
    return str(account.get("handle") or "") if isinstance(account, Mapping) else ""
