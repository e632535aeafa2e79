"""What was pulled before: which vector a name meant and which files it had, so that a pull works without the network."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from comgrad.client.errors import not_trusted
from comgrad.errors import ComgradError
from comgrad.registry.blobs import is_digest
from comgrad.weights.storage import atomic_write_bytes

KNOWN = ("vector.safetensors", "adapter_model.safetensors", "adapter_config.json", "task_card.json", "README.md")
CONTAINER = KNOWN[0]


@dataclass(frozen=True)
class RemoteFile:
    """One file that a service offers."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Offer:
    """A vector on a service: what is said of it, and its files.

    Args:
        seen: when the service said so.
        bundle: the service's signature over the files, where it signs.
    """

    vector: Mapping[str, Any]
    files: tuple[RemoteFile, ...]
    seen: str
    bundle: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        """The vector's id."""
        return str(self.vector["id"])

    @property
    def digest(self) -> str:
        """SHA-256 of the vector's container."""
        return next(f.sha256 for f in self.files if f.name == CONTAINER)

    @classmethod
    def of(cls, vector: Any, files: Any, bundle: Any = None, seen: str | None = None) -> Offer:
        """What a service said, checked.

        Files of other names than those known here are left out. Raises NotTrusted: no usable answer, or
        (`digest-mismatch`) the id is not that of the container's bytes, or the vector's digest is another one.
        """
        if not isinstance(vector, dict) or not isinstance(vector.get("id"), str) or not isinstance(files, list):
            raise not_trusted(
                "a vector", "the answer about it has another form: this is no comgrad service", "no-service"
            )
        listed = [found for f in files if isinstance(f, dict) and (found := file_of(f)) is not None]
        if len({f.name for f in listed}) != len(listed):
            raise not_trusted(vector["id"][:60], "one of its files is listed twice")
        digest = next((f.sha256 for f in listed if f.name == CONTAINER), None)
        if digest is None or vector.get("digest") != digest or vector["id"] != f"tv-{digest[:16]}":
            why = "its id, its digest and its files do not belong together"
            raise not_trusted(f"the vector {vector['id'][:60]!a}", why, "digest-mismatch")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(vector, tuple(listed), seen or now, bundle if isinstance(bundle, dict) else None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `of` reads it back."""
        files = [dict(f.__dict__) for f in self.files]
        return {"vector": dict(self.vector), "files": files, "seen": self.seen, "bundle": self.bundle}


class Remembered:
    """Offers by address and reference, in a folder that may be deleted at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, origin: str, ref: str) -> Offer | None:
        """What the reference meant when it was last pulled."""
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError, ComgradError
        ):  # damaged is as good as not there
            data = json.loads(self._path(origin, ref).read_bytes())
            if data["origin"] == origin and data["ref"] == ref:
                return Offer.of(data["vector"], data["files"], data["bundle"], data["seen"])
        return None

    def put(self, origin: str, refs: Sequence[str], offer: Offer) -> None:
        """Remember what the references mean. Raises StorageError."""
        for ref in dict.fromkeys(refs):
            path = self._path(origin, ref)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"origin": origin, "ref": ref, **offer.as_dict()})
            atomic_write_bytes(path, text.encode())

    def _path(self, origin: str, ref: str) -> Path:
        key = hashlib.sha256(json.dumps([origin, ref]).encode()).hexdigest()
        return self._folder / f"{key}.json"


def file_of(found: Mapping[str, Any]) -> RemoteFile | None:
    """A file as a service lists it; None for a name that is not known here. Raises NotTrusted."""
    name, size, digest = found.get("name"), found.get("size"), found.get("sha256")
    if not isinstance(name, str) or name not in KNOWN:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise not_trusted(f"the file '{name}'", "the service gives it no size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise not_trusted(f"the file '{name}'", "the service gives it no SHA-256")
    return RemoteFile(name, size, digest)
