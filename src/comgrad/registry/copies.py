"""Local copies of remote blobs: fetched once, hashed before they are seen, bounded in size, safe to delete."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from comgrad.errors import ComgradError, FileRefused, NotFound
from comgrad.registry.blobs import Condition, FolderBlobs, Source

LIMIT_BYTES = 20 << 30
_COUNT_SECONDS = 60.0
HOLD_SECONDS = 60.0  # a file whose path was handed out this recently is not deleted: it may not be open yet


class LocalCopies:
    """A folder of blobs that another place holds.

    A copy becomes visible under its digest only when its bytes hash to it. Each process hashes a copy again the first
    time it uses it, and whenever the file has changed; one that is wrong is deleted and counts as absent. The least
    recently used copies are deleted when all together exceed `limit` bytes.

    Args:
        root: the folder; several processes may share it.
        limit: bytes to keep at most, apart from what was used in the last `hold` seconds.
    """

    def __init__(self, root: Path, limit: int = LIMIT_BYTES, hold: float = HOLD_SECONDS) -> None:
        self.files = FolderBlobs(root)
        self.limit = limit
        self.hold = hold
        self._seen: dict[str, tuple[int, int, int]] = {}  # digest → inode, size, change when it was last hashed
        self._lock = threading.Lock()
        self._room, self._counted = -1, 0.0  # bytes left, and when that was counted; other processes write here too

    def put(self, source: Source, declared: str | None) -> tuple[str, int]:
        """Copy a source here; digest and size. Raises as `FolderBlobs.put`."""
        self.files.prepare()
        digest, size = self.files.put(source, declared=declared)
        self._note(digest, self.files.path(digest))
        self._grown(size)
        return digest, size

    def fetch(self, digest: str, pieces: Callable[[], Iterator[bytes]]) -> Path:
        """The local file, written from `pieces` when it is not here.

        Raises:
            FileRefused: (`digest-mismatch`) the pieces hash to something else; nothing is kept.
            StorageError: the disk cannot take it.
        """
        found = self.path(digest)
        if found is None:
            self.files.prepare()
            _, size = self.files.put_pieces(pieces(), declared=digest)
            found = self.files.path(digest)
            self._note(digest, found)
            self._grown(size)
        return found

    def path(self, digest: str) -> Path | None:
        """The local file if it is here and whole; it is then the most recently used one."""
        try:
            path = self.files.path(digest)
            if self._seen.get(digest) != _identity(path):
                if self.verify(digest) != "ok":
                    self.drop(digest)
                    return None
                self._note(digest, path)
            _used(path)
        except (NotFound, FileNotFoundError):
            return None
        except (FileRefused, PermissionError):  # a link, or another user's: not ours to trust
            return None
        return path

    def verify(self, digest: str) -> Condition:
        """Read the copy and compare its hash with its name."""
        return self.files.verify(digest)

    def drop(self, digest: str) -> None:
        """Delete the copy, if there is one."""
        self._seen.pop(digest, None)
        with contextlib.suppress(ComgradError):
            self.files.delete(digest)

    def _grown(self, size: int) -> None:
        """Count anew when the room is used up or the count is old: listing the folder at each write would be slow."""
        self._room -= size
        if self._room < 0 or time.monotonic() - self._counted > _COUNT_SECONDS:
            self.shrink()

    def shrink(self) -> int:
        """Delete the least recently used copies beyond the limit; how many. A copy in use stays readable where open."""
        with self._lock:
            kept: list[tuple[int, int, str]] = []
            for digest in self.files.digests():
                with contextlib.suppress(OSError):
                    found = (self.files.root / digest[:2] / digest).stat()
                    kept.append((found.st_atime_ns, found.st_size, digest))
            total, deleted = sum(size for _, size, _ in kept), 0
            spared = time.time_ns() - int(self.hold * 1e9)
            for used, size, digest in sorted(kept):
                if total <= self.limit or used > spared:
                    break
                self.drop(digest)
                total, deleted = total - size, deleted + 1
            self._room, self._counted = self.limit - total, time.monotonic()
            return deleted

    def sweep(self, grace: float) -> int:
        """Delete what interrupted writers left, as `FolderBlobs.sweep`."""
        self.files.prepare()
        return self.files.sweep(grace)

    def _note(self, digest: str, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._seen[digest] = _identity(path)
            _used(path)


def _used(path: Path) -> None:
    """Set the time of use, by a clock finer than the file system's; the time of change stays."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def sha256_of(pieces: Iterator[bytes]) -> str:
    """The hash of all pieces together, in hex."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()
