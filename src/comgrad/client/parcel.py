"""A parcel: the files of one fine-tune, hashed, as they are sent."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from comgrad.errors import NotFound
from comgrad.registry import disk

CONTAINER, WEIGHTS, CONFIG, CARD = (
    "vector.safetensors",
    "adapter_model.safetensors",
    "adapter_config.json",
    "task_card.json",
)
GRADIENT, GRADIENT_FACTS = "task_gradient.safetensors", "task_gradient.json"


@dataclass(frozen=True)
class Part:
    """One file to send: from a path, or small and in memory."""

    name: str
    size: int
    sha256: str
    source: Path | bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, source: Path | bytes) -> Part:
        """The part with its digest. Raises NotFound, FileRefused (links), StorageError."""
        if isinstance(source, bytes):
            return cls(name, len(source), hashlib.sha256(source).hexdigest(), source)
        fd = disk.open_regular(source, f"'{source}'")
        with disk.storage(f"'{source}'"), os.fdopen(fd, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(name, file.tell(), digest, source)

    def read(self, start: int, size: int) -> bytes:
        """At most `size` bytes from `start` on. Raises NotFound, FileRefused, StorageError."""
        if isinstance(self.source, bytes):
            return self.source[start : start + size]
        fd = disk.open_regular(self.source, f"'{self.source}'")
        with disk.storage(f"'{self.source}'"), os.fdopen(fd, "rb") as file:
            file.seek(start)
            return file.read(size)

    def as_dict(self) -> dict[str, object]:
        """As a service is told of it."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


def parcel(path: str | Path, *, card: bytes | None = None, gradient: bool = True) -> list[Part]:
    """The files of an adapter's folder, or of a vector's folder or file.

    Args:
        card: sent instead of the task_card.json beside the weights.
        gradient: send the gradient of its task too, where the folder holds one: suggestions are better for it.

    Raises:
        NotFound: (`no-adapter`) there is neither an adapter nor a vector.
        FileRefused: a part is a link. StorageError: it cannot be read.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and (path / WEIGHTS).exists():
        parts = [Part.of(CONFIG, path / CONFIG), Part.of(WEIGHTS, path / WEIGHTS)]
    else:
        own = path / CONTAINER if path.is_dir() else path
        if own.name != CONTAINER or not own.exists():
            raise NotFound(
                f"'{path}'",
                f"it holds no {WEIGHTS} and no {CONTAINER}",
                "give an adapter's folder; of a full checkpoint, what comgrad extract wrote",
                code="no-adapter",
            )
        parts = [Part.of(CONTAINER, own)]
    if card is not None:
        parts.insert(0, Part.of(CARD, card))
    elif (folder / CARD).exists():
        parts.insert(0, Part.of(CARD, folder / CARD))
    if gradient and (folder / GRADIENT).exists() and (folder / GRADIENT_FACTS).exists():
        parts += [Part.of(n, folder / n) for n in (GRADIENT, GRADIENT_FACTS)]
    return parts
