"""Downloads: into a folder of verified files, going on where a cut left them, also in a later process."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx2
from filelock import FileLock

from comgrad.client.errors import NotTrusted, not_trusted
from comgrad.client.wire import Again, Wire
from comgrad.errors import FileRefused
from comgrad.registry import disk
from comgrad.registry.blobs import checked_digest
from comgrad.registry.copies import LocalCopies

At = Callable[[int], None]
KEPT_SECONDS = 7 * 86_400.0
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_RANGED = frozenset({206, 416})


class Downloads:
    """Files by their SHA-256, each hashed before it is seen.

    Args:
        folder: of this user alone; what is in it may be deleted at any time.
        limit: bytes to keep at most; the least recently used go first.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._partial = folder / "partial"
        self.copies = LocalCopies(folder / "files", limit)

    def prepare(self) -> None:
        """Create the folders, closed to others, and drop parts that nobody came back for. Raises StorageError."""
        with disk.storage(f"the folder '{self.folder}'"):
            if not self.folder.is_dir():
                disk.make_parents(self.folder.parent)
                self.folder.mkdir(mode=0o700, exist_ok=True)
            disk.make_folder(self._partial)
            for part in self._partial.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if part.suffix != ".lock" and time.time() - part.lstat().st_mtime > KEPT_SECONDS:
                        part.unlink()

    def here(self, digest: str) -> Path | None:
        """The file of a digest when it is here and whole."""
        return self.copies.path(checked_digest(digest))

    def fetch(self, wire: Wire, path: str, digest: str, size: int, at: At) -> Path:
        """The file of a digest, downloaded from `path` where it is not here.

        Args:
            size: its bytes; not one more is taken.
            at: called with how many bytes are here.

        Raises:
            NotTrusted: (`digest-mismatch`, `size-mismatch`) other bytes came; nothing is kept.
            ComgradError: the service's refusal; Unreachable; StorageError.
        """
        found = self.here(digest)
        if found is None:
            self.prepare()
            partial = self._partial / digest
            with FileLock(self._partial / f"{digest[:2]}.lock"), disk.storage(f"'{partial}'"):
                found = self.here(digest)  # another process may have been faster
                if found is None:
                    self._download(wire, path, partial, digest, size, at)
            found = found or self.here(digest)
        assert found is not None  # the most recently used file is never the one that makes room
        at(size)
        return found

    def _download(self, wire: Wire, path: str, partial: Path, digest: str, size: int, at: At) -> None:
        resumed = _fill(wire, path, partial, digest, size, at)
        try:
            self.copies.put(partial, digest)
        except FileRefused as error:
            partial.unlink()
            if error.code != "digest-mismatch":
                raise
            if not resumed:
                what = f"the file with SHA-256 {digest[:12]}…"
                raise not_trusted(what, "the bytes that came hash to something else", error.code) from error
            self._download(wire, path, partial, digest, size, at)  # the part from before was damaged: all of it, once
            return
        partial.unlink()


def _fill(wire: Wire, path: str, partial: Path, digest: str, size: int, at: At) -> bool:
    """Download what is missing of `partial`; whether some of it was there before."""
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | disk.OPEN_FLAGS, 0o600)
    with os.fdopen(fd, "r+b") as out:
        resumed = 0 < _end(out) <= size
        if not resumed:
            out.truncate(0)
        at(_end(out))
        while _end(out) < size:
            wire.patiently(lambda: _piece(wire, path, out, digest, size, at))
        out.flush()
        os.fsync(out.fileno())
    return resumed


def _piece(wire: Wire, path: str, out: BinaryIO, digest: str, size: int, at: At) -> None:
    """One request for what is missing. A cut after some progress is a success: the rest is asked for anew."""
    have = _end(out)
    headers = {"Range": f"bytes={have}-", "If-Range": f'"{digest}"'} if have else {}
    try:
        with wire.open("GET", path, headers=headers, also=_RANGED if have else frozenset()) as answer:
            if have and not _continues(answer, have, size):
                out.truncate(0)
                if answer.status_code != 200:
                    return  # the next request is for all of it
            _take(answer, out, size, at)
    except Again:
        if _end(out) == have:
            raise
    except NotTrusted:
        out.truncate(0)
        raise


def _take(answer: httpx2.Response, out: BinaryIO, size: int, at: At) -> None:
    """Append the answer's bytes. Raises NotTrusted."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise not_trusted("a file", "it is compressed, which was not asked for")
    here = _end(out)
    for piece in answer.iter_raw():
        here += len(piece)
        if here > size:
            raise not_trusted("a file", f"it is longer than the {size} bytes that were promised", "size-mismatch")
        out.write(piece)
        at(here)
    if here < size:
        raise not_trusted("a file", f"it ends after {here} of {size} bytes", "size-mismatch")


def _continues(answer: httpx2.Response, have: int, size: int) -> bool:
    """Whether the answer is exactly the missing end of the file."""
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return answer.status_code == 206 and found is not None and tuple(map(int, found.groups())) == (have, size - 1, size)


def _end(out: BinaryIO) -> int:
    return out.seek(0, os.SEEK_END)
