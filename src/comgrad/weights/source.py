"""Opening a file that may be hostile: a regular file, not a link, never blocking, and the same one all along."""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from comgrad.errors import NotFound
from comgrad.weights.profile import refused

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(r"((?:\.\./)+)blobs/([0-9a-f]{40}|[0-9a-f]{64})")
_SHARED = re.compile(r"\.\./\.\./blobs/([0-9a-f]{2}/[0-9a-f]{64})")  # from a repository's blob to the cache's own store


@dataclass(frozen=True)
class Identity:
    """What tells one state of a file from another."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, st: os.stat_result) -> Identity:
        return cls(st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns)


class Source:
    """An open regular file, read by position and checked against change.

    Args:
        path: the file. A symbolic link is refused, except a Hugging Face cache link
            `snapshots/<commit>/...` → `blobs/<hash>` inside one repository folder.
        untrusted: refuse a file with several hard links as well. Off for a user's own disk, where package managers
            and caches share files that way.

    Raises:
        NotFound, FileRefused (`symlink`, `hard-link`, `not-a-file`, `unreadable`).
    """

    def __init__(self, path: Path, *, untrusted: bool = False) -> None:
        self.path = path
        self.real = _followed(path)
        self.fd = _open(self.real, path)
        try:
            st = os.fstat(self.fd)
            if not stat.S_ISREG(st.st_mode):
                raise refused("not-a-file", path)
            if untrusted and st.st_nlink > 1:
                raise refused("hard-link", path, f"{st.st_nlink} links")
        except BaseException:
            os.close(self.fd)
            raise
        self.identity = Identity.of(st)
        self.size = st.st_size
        self._held: bytes | None = None

    def read(self, at: int, length: int) -> bytes:
        """Exactly `length` bytes from position `at`."""
        if self._held is not None:
            return self._held[at : at + length]
        parts = []
        while length > 0:
            try:
                part = os.pread(self.fd, length, at)
            except OSError as e:
                raise refused("unreadable", self.path, e.strerror or "") from e
            if not part:
                raise refused("changed-while-reading", self.path, "it became shorter")
            parts.append(part)
            at, length = at + len(part), length - len(part)
        return b"".join(parts)

    def hold(self) -> bytes:
        """All of the file, which later reads are answered from. For files that are small enough."""
        if self._held is None:
            self._held = self.read(0, self.size)
        return self._held

    @property
    def held(self) -> bool:
        """Whether all of the file is in memory."""
        return self._held is not None

    def unchanged(self) -> None:
        """Raise `changed-while-reading` when the path now holds another file, or this one was written to."""
        try:
            there = Identity.of(self.real.lstat())
        except OSError as e:
            raise refused("changed-while-reading", self.path, "it is gone") from e
        if there != self.identity or Identity.of(os.fstat(self.fd)) != self.identity:
            raise refused("changed-while-reading", self.path)

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        self._held = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _followed(path: Path) -> Path:
    """The path to open: itself, or the blob behind a Hugging Face cache link."""
    try:
        st = path.lstat()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise NotFound(f"'{path}'", "there is no such file", "check the path") from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise refused("unreadable", path, str(e)) from e
    if stat.S_ISLNK(st.st_mode):
        return _cache_blob(path)
    if not stat.S_ISREG(st.st_mode):
        raise refused("not-a-file", path)  # before opening: opening a device can act on it
    return path


def _cache_blob(path: Path) -> Path:
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the very link in question
    match = _BLOB.fullmatch(str(path.readlink()))
    if match is None:
        raise refused("symlink", path)
    up = len(match[1]) // 3  # '../' once per folder between the file and the repository
    if up < 2 or up >= len(absolute.parents):
        raise refused("symlink", path)
    commit, snapshots = absolute.parents[up - 2], absolute.parents[up - 1]
    if snapshots.name != "snapshots" or not _COMMIT.fullmatch(commit.name):
        raise refused("symlink", path)
    repository = absolute.parents[up]
    blob = repository / "blobs" / match[2]
    if blob.is_symlink() and (shared := _SHARED.fullmatch(str(blob.readlink()))):
        blob = repository.parent / "blobs" / shared[1]
    if blob.is_symlink() or not blob.is_file():
        raise refused("symlink", path, "its target is not a file of the cache")
    return blob


def _open(real: Path, shown_path: Path) -> int:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(real, flags)
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise refused("symlink", shown_path) from e
        raise refused("unreadable", shown_path, e.strerror or "") from e
