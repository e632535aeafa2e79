"""JSON from strangers: sizes first, no duplicate key at any depth, no NaN, one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comgrad.weights.profile import refused, shown
from comgrad.weights.source import Source


class DuplicateKeyError(ValueError):
    """A JSON object gives one key twice."""


def parse_object(text: str) -> dict[str, Any]:
    """One JSON object; ValueError (DuplicateKeyError among them) or RecursionError for anything else."""
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    if type(value) is not dict:
        raise ValueError("not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(shown(key))
            seen.add(key)
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def read_json(path: Path, max_bytes: int = 1_000_000) -> dict[str, Any]:
    """Read a small JSON file strictly: a regular UTF-8 file up to `max_bytes` that holds one object.

    Raises:
        NotFound; FileRefused (`json-too-large`, `duplicate-key`, `json`, and those of `source.Source`).
    """
    source = Source(path)
    try:
        if source.size > max_bytes:
            raise refused("json-too-large", path, f"{source.size:,} bytes, at most {max_bytes:,} are read")
        data = source.read(0, source.size)
    finally:
        source.close()
    try:
        return parse_object(data.decode("utf-8"))
    except DuplicateKeyError as e:
        raise refused("duplicate-key", path, str(e)) from None
    except RecursionError:
        raise refused("json", path, "it is nested too deeply") from None
    except ValueError as e:
        raise refused("json", path, shown(str(e), 80)) from None
