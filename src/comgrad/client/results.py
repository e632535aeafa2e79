"""What came of a push and of a pull."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Pushed:
    """What became of a push.

    Args:
        id: the vector's id on the service; its digest is that of the bytes that the service wrote.
        status: `added`, or `exists` when its owner shares these bytes already.
    """

    id: str
    name: str
    digest: str
    status: str
    server: str
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self)


@dataclass(frozen=True)
class Pulled:
    """A vector that is here, every file of it hashed.

    Args:
        files: name → local file.
        path: the folder that was written, where one was asked for.
        offline: the service was not asked; `seen` says when it was last.
        downloaded: bytes that had to come over the network.
    """

    id: str
    name: str
    description: str
    digest: str
    server: str
    files: dict[str, Path]
    path: str = ""
    offline: bool = False
    seen: str = ""
    downloaded: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return {**self.__dict__, "files": sorted(self.files)}
