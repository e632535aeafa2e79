"""Reading a card's JSON strictly, checking its text, and bringing older schemas up to date."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from comgrad.errors import FileRefused
from comgrad.registry.disk import open_regular

MAX_FILE_BYTES = 1_048_576
MAX_DEPTH = 8
MAX_INTEGER = 2**63 - 1

_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ALLOWED_CONTROLS = frozenset("\n\t")


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; duplicate keys, NaN, deep nesting and files over 1 MiB are refused."""
    what = f"'{path}'"
    fd = open_regular(path, what)
    with os.fdopen(fd, "rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise _refused(what, f"it is larger than {MAX_FILE_BYTES} bytes")
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except RecursionError as error:
        raise _refused(what, "it is nested too deeply") from error
    except ValueError as error:  # also UnicodeDecodeError, JSONDecodeError and integers of thousands of digits
        raise _refused(what, f"it is not a JSON card ({error})") from error
    if not isinstance(data, dict):
        raise _refused(what, "it is not a JSON object")
    return data


def _refused(what: str, why: str) -> FileRefused:
    return FileRefused(what, why, "correct the card", code="card-refused")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def checked_text(value: Any, depth: int = 0) -> Any:
    """The value with CR LF as LF in every string; control characters and direction overrides are refused.

    Strings are checked in containers too; a nested model checks its own.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return _checked_string(value)
    if isinstance(value, tuple):
        return tuple(checked_text(item, depth + 1) for item in value)
    if isinstance(value, list):
        return [checked_text(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_checked_string(str(key)): checked_text(item, depth + 1) for key, item in value.items()}
    return value


def _checked_string(text: str) -> str:
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.isprintable():
        return text
    for char in text:
        hidden = unicodedata.category(char) in ("Cc", "Cs") and char not in _ALLOWED_CONTROLS
        if hidden or char in _DIRECTION:
            raise ValueError(f"the text has the character U+{ord(char):04X}, which hides or reorders what is read")
    return text


def checked_json(value: Any, depth: int = 0) -> Any:
    """The value, if it is plain JSON: finite numbers, 64-bit integers, string keys, at most eight levels."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError("an integer does not fit 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("NaN and infinity are not allowed")
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key is not a string")
        return {key: checked_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [checked_json(item, depth + 1) for item in value]
    raise ValueError(f"a {type(value).__name__} is not JSON")


def _from_0(data: dict[str, Any]) -> dict[str, Any]:
    """Cards without a schema number, written by hand: the American spelling of licence is common there."""
    if "license" in data and "licence" not in data:
        data["licence"] = data.pop("license")
    return data


# Append only: the function at place i takes a card of schema i to schema i + 1.
MIGRATIONS: list[Callable[[dict[str, Any]], dict[str, Any]]] = [_from_0]


def upgraded(data: Mapping[str, Any], current: int, what: str) -> dict[str, Any]:
    """The card's data in the current schema. A card without a schema number is of schema 0.

    Raises:
        FileRefused: (`card-newer`) written by a newer comgrad; (`card-refused`) the number is not one.
    """
    found = data.get("schema", data.get("schema_version", 0))
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise _refused(what, f"its schema is {found!r}, not a number")
    if found > current:
        why = f"its schema is {found} and this comgrad knows schemas up to {current}"
        raise FileRefused(what, why, "update comgrad", code="card-newer")
    new = {key: value for key, value in data.items() if key not in ("schema", "schema_version")}
    for step in MIGRATIONS[found:current]:
        new = step(new)
    return {**new, "schema": current}
