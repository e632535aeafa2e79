"""Refusals that a client meets: the service's own, in its words, and those of the way there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from comgrad.errors import ComgradError, NameTaken, NotFound

_CODE = re.compile(r"[a-z0-9\-]{1,60}")
_LONGEST = 1_000


class Unreachable(ComgradError):
    """The service does not answer, or not in time."""

    default_code = "unreachable"


class Remote(ComgradError):
    """The service refused; `status` is its HTTP status."""

    default_code = "remote"

    def __init__(self, given: str, why: str, remedy: str, *, code: str | None = None, status: int = 0) -> None:
        super().__init__(given, why, remedy, code=code)
        self.status = status


class NotTrusted(ComgradError):
    """What came back is not what was asked for; nothing of it was kept."""

    default_code = "not-trusted"


def refusal(status: int, body: Any, origin: str) -> ComgradError:
    """The error of an answer with an error's status; its words are the service's where it gives three."""
    found = body.get("error") if isinstance(body, Mapping) else None
    words = [_word(found, key) for key in ("given", "why", "remedy")] if isinstance(found, Mapping) else []
    code = found.get("code") if isinstance(found, Mapping) else None
    code = code if isinstance(code, str) and _CODE.fullmatch(code) else f"http-{status}"
    if not words or not all(words):
        words = [f"a request to {origin}", f"it answered with status {status}", "ask who runs the service"]
    given, why, remedy = words
    if status == 404:
        return NotFound(given, why, remedy, code=code)
    if code == "name-taken":
        return NameTaken(given, why, remedy, code=code)
    if status == 401:
        remedy = f"sign in with: comgrad login {origin}"
    return Remote(given, why, remedy, code=code, status=status)


def _word(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    return " ".join(value.split())[:_LONGEST] if isinstance(value, str) else ""


def not_trusted(what: str, why: str, code: str = "not-trusted") -> NotTrusted:
    """The refusal of an answer that breaks the protocol or its own digests."""
    return NotTrusted(what, why, "try again; if it stays so, do not use this service", code=code)
