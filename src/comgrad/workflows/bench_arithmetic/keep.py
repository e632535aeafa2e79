"""What is kept on disk between runs: results in atomic files that name what they depend on, and outcomes by content."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comgrad.evaluate.digests import digest_of
from comgrad.weights.storage import atomic_write_bytes
from comgrad.workflows.bench.keep import source_digest

VERSION = 1
_READING = (
    "comgrad.evaluate.predictor",
    "comgrad.evaluate.linear",
    "comgrad.evaluate.classifier",
    "comgrad.finetune.linearised",
)


@dataclass(frozen=True)
class Kept:
    """Records under names, each with the digest of all that it depends on."""

    folder: Path

    def read(self, name: str, depends: Any) -> dict[str, Any] | None:
        """A record, unless something it depends on has changed since."""
        found = _read(self.folder / f"{name}.json")
        return found["record"] if found is not None and found.get("key") == _key(depends) else None

    def write(self, name: str, depends: Any, record: Mapping[str, Any]) -> None:
        """Keep a record."""
        path = self.folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, (json.dumps({"key": _key(depends), "record": record}) + "\n").encode())


class Outcomes(MutableMapping[str, Any]):
    """A predictor's results on disk, by their digests; those of other code for reading texts are not found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / digest_of([source_digest(m) for m in _READING])[:16]
        self._there: dict[str, Any] = {}

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"

    def __getitem__(self, key: str) -> Any:
        if key not in self._there:
            found = _read(self._path(key))
            if found is None:
                raise KeyError(key)
            self._there[key] = found
        return self._there[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._path(key).parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(self._path(key), (json.dumps(value) + "\n").encode())
        self._there[key] = value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and (key in self._there or _read(self._path(key)) is not None)

    def __delitem__(self, key: str) -> None:
        self._path(key).unlink()
        self._there.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return (p.stem for p in sorted(self._folder.glob("*/*.json")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _key(depends: Any) -> str:
    return digest_of([VERSION, depends])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
