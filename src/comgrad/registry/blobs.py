"""Content-addressed blobs: the name of a blob is the SHA-256 of its bytes, always computed from the bytes written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Literal, Protocol

from comgrad.errors import ComgradError, FileRefused, NotFound, StorageError
from comgrad.registry import disk

if sys.platform != "win32":  # Windows: stale temporary files are told by their age alone
    import fcntl

Condition = Literal["ok", "missing", "corrupt", "linked"]
Source = Path | bytes

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_CHUNK = 1 << 20


class BlobStore(Protocol):
    """Where blobs live: a folder (here), or an object store in the larger size (`s3.S3Blobs`)."""

    def prepare(self) -> None:
        """Make ready for writing."""

    def measure(self, source: Source) -> tuple[str, int]:
        """SHA-256 and size in bytes of a source, without storing it."""

    def put(self, source: Source, *, declared: str | None = None) -> tuple[str, int]:
        """Store a source durably; returns the digest and size of what was written. Idempotent."""

    def exists(self, digest: str) -> bool:
        """Whether the blob is there. Does not read it."""

    def path(self, digest: str) -> Path:
        """A local, read-only file with the blob's bytes."""

    def open(self, digest: str) -> BufferedReader:
        """The blob, for reading."""

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes `start` to `stop` (exclusive; None is the end) in pieces, without a local copy where none is needed."""

    def delete(self, digest: str) -> bool:
        """Delete the blob; whether there was one."""

    def digests(self) -> Iterator[str]:
        """The digests of all blobs, in no order."""

    def age(self, digest: str) -> float:
        """Seconds since the blob was stored; infinite when it is not there."""

    def verify(self, digest: str) -> Condition:
        """Read the blob and compare its hash with its name."""

    def sweep(self, grace: float) -> int:
        """Delete what interrupted writers left behind, if older than `grace` seconds; returns how many."""


class FolderBlobs:
    """Blobs as read-only files `ab/<sha256>` in a folder, `ab` being the first two digits.

    A blob is written to a temporary file in `tmp/` of the same folder, flushed to the disk, renamed into place, and
    the folder is flushed: it is there whole or not at all. The writer holds a lock on its temporary file, which the
    system drops when the writer dies, however it dies. Links are never followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.temp = root / "tmp"

    def prepare(self) -> None:
        """Create the folders. Raises StorageError."""
        with disk.storage(f"the folder '{self.root}'"):
            disk.make_folder(self.root)
            disk.make_folder(self.temp)

    # -- writing -------------------------------------------------------------------------------------------------
    def measure(self, source: Source) -> tuple[str, int]:
        """SHA-256 and size in bytes. Raises NotFound, FileRefused, StorageError."""
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest(), len(source)
        fd = disk.open_regular(source, f"'{source}'")
        with disk.storage(f"'{source}'"), os.fdopen(fd, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return digest, file.tell()

    def put(self, source: Source, *, declared: str | None = None) -> tuple[str, int]:
        """Store bytes, or the file at a path, durably; returns the digest and size of what was written.

        Raises:
            NotFound, FileRefused: the source is missing, a link or not a file; (`digest-mismatch`) the declared
                digest is not that of the bytes. Nothing is stored.
            StorageError: the disk is full, read-only, not permitted, ... The temporary file is removed.
        """
        if isinstance(source, bytes):
            return self.put_pieces(iter((source,)), declared=declared)
        fd = disk.open_regular(source, f"'{source}'")
        try:
            return self.put_pieces(iter(lambda: os.read(fd, _CHUNK), b""), declared=declared)
        finally:
            os.close(fd)

    def put_pieces(self, pieces: Iterator[bytes], *, declared: str | None = None) -> tuple[str, int]:
        """Store the pieces as one blob, as they come. Raises as `put`."""
        with disk.storage(f"storing a blob in '{self.root}'"):
            return self._write(pieces, declared)

    def put_bytes(self, data: bytes, *, declared: str | None = None) -> str:
        """Store bytes; returns their digest. Raises as `put`."""
        return self.put(data, declared=declared)[0]

    def put_file(self, path: Path, *, declared: str | None = None) -> str:
        """Store a copy of a file; returns its digest. Raises as `put`."""
        return self.put(path, declared=declared)[0]

    def _write(self, pieces: Iterator[bytes], declared: str | None) -> tuple[str, int]:
        partial = self.temp / f"{os.getpid()}-{os.urandom(8).hex()}.part"
        out = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | disk.OPEN_FLAGS, 0o600)
        try:
            try:
                _lock(out)
                digest, size = _copy(pieces, out)
                _agree(digest, declared)
                if sys.platform != "win32":
                    os.fchmod(out, 0o444)
                os.fsync(out)
                self._place(partial, digest)
            finally:
                os.close(out)  # drops the lock
        finally:
            with contextlib.suppress(FileNotFoundError):  # the name is gone when the file was renamed
                partial.unlink()
        return digest, size

    def _place(self, partial: Path, digest: str) -> None:
        """Rename the complete file to its digest, over what is there: these bytes are right, those may not be."""
        folder = self.root / digest[:2]
        disk.make_folder(folder)
        partial.replace(folder / digest)
        disk.sync_folder(folder)

    # -- reading -------------------------------------------------------------------------------------------------
    def exists(self, digest: str) -> bool:
        """Whether a regular file of that digest is there; its bytes are not read (`verify` does)."""
        return self._stat(digest) is not None

    def path(self, digest: str) -> Path:
        """The blob's file. Raises NotFound, FileRefused (a link), StorageError."""
        path = self._path(digest)
        os.close(self._open(digest))
        return path

    def open(self, digest: str) -> BufferedReader:
        """The blob for reading. Raises NotFound, FileRefused (a link), StorageError."""
        return os.fdopen(self._open(digest), "rb")

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes `start` to `stop` (exclusive) in pieces. Raises NotFound, FileRefused (a link), StorageError."""
        with self.open(digest) as file, disk.storage(f"the blob '{self._path(digest)}'"):
            file.seek(start)
            left = float("inf") if stop is None else stop - start
            while left > 0 and (piece := file.read(int(min(left, _CHUNK)))):
                left -= len(piece)
                yield piece

    def delete(self, digest: str) -> bool:
        """Delete the blob; whether there was one. Raises StorageError."""
        path = self._path(digest)
        with disk.storage(f"deleting the blob '{path}'"):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            disk.sync_folder(path.parent)
        return True

    def digests(self) -> Iterator[str]:
        """The digests of all blobs, in no order; files of other names are not blobs. Raises StorageError."""
        with disk.storage(f"the folder '{self.root}'"):
            with os.scandir(self.root) as found:
                folders = [e.name for e in found if len(e.name) == 2 and e.is_dir(follow_symlinks=False)]
            for folder in folders:
                with os.scandir(self.root / folder) as found:
                    files = [e.name for e in found if e.is_file(follow_symlinks=False)]
                yield from (name for name in files if _DIGEST.match(name) and name.startswith(folder))

    def age(self, digest: str) -> float:
        """Seconds since the blob's file was written; infinite when it is not there."""
        found = self._stat(digest)
        return float("inf") if found is None else max(0.0, time.time() - found.st_mtime)

    def verify(self, digest: str) -> Condition:
        """Read every byte: `ok`, `missing`, `corrupt`, or `linked`. Raises StorageError when it cannot be read."""
        try:
            with self.open(digest) as file, disk.storage(f"the blob '{self._path(digest)}'"):
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except NotFound:
            return "missing"
        except FileRefused:
            return "linked"
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
                return "corrupt"  # a bad sector: one blob is lost, not the audit
            raise
        return "ok" if found == digest else "corrupt"

    def sweep(self, grace: float) -> int:
        """Delete temporary files older than `grace` seconds that no live process holds. Raises StorageError."""
        swept = 0
        with disk.storage(f"the folder '{self.temp}'"):
            for entry in list(os.scandir(self.temp)):
                with contextlib.suppress(FileNotFoundError):
                    old = time.time() - entry.stat(follow_symlinks=False).st_mtime >= grace
                    if old and not (entry.is_file(follow_symlinks=False) and _held(Path(entry.path))):
                        Path(entry.path).unlink()
                        swept += 1
        return swept

    # -- inside --------------------------------------------------------------------------------------------------
    def _path(self, digest: str) -> Path:
        return self.root / digest[:2] / checked_digest(digest)

    def _stat(self, digest: str) -> os.stat_result | None:
        path = self._path(digest)
        try:
            folder, found = os.lstat(path.parent), os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise disk.storage_error(f"the blob '{path}'", error) from error
        regular = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        return found if regular and stat.S_ISDIR(folder.st_mode) else None

    def _open(self, digest: str) -> int:
        path = self._path(digest)
        if path.parent.is_symlink():
            raise disk.linked(f"the blob folder '{path.parent}'", "a symbolic link")
        return disk.open_regular(path, f"the blob '{path}'")


def is_digest(text: str) -> bool:
    """Whether the text is a SHA-256 in lower-case hex."""
    return _DIGEST.match(text) is not None


def checked_digest(digest: str) -> str:
    """The digest, if it is one: it is made here, never by a user, and this keeps the promise. Raises ComgradError."""
    if not is_digest(digest):
        raise ComgradError(f"the digest {digest[:80]!a}", "it is not a SHA-256 in hex", "give 64 hex digits")
    return digest


def _copy(pieces: Iterator[bytes], out: int) -> tuple[str, int]:
    """Write the pieces to `out`; the digest and size of what was written."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        disk.write_all(out, piece)
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size


def _agree(digest: str, declared: str | None) -> None:
    if declared is not None and declared != digest:
        raise FileRefused(
            f"a file declared as SHA-256 {declared[:80]!a}",
            f"its bytes hash to {digest}",
            "transfer the file again",
            code="digest-mismatch",
        )


def _lock(fd: int) -> None:
    """Mark an open temporary file as in use, for as long as this process lives."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # some network file systems cannot lock; age decides there
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _held(path: Path) -> bool:
    """Whether a live process holds the temporary file."""
    if sys.platform == "win32":
        return False
    try:
        fd = os.open(path, os.O_RDONLY | disk.OPEN_FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False
