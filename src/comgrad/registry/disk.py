"""The disk: durable writes, files opened without following links, and operating-system errors in three parts."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from comgrad.errors import ComgradError, FileRefused, NotFound, StorageError

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # opening a pipe must not wait for its writer
_BINARY = getattr(os, "O_BINARY", 0)
OPEN_FLAGS = _NOFOLLOW | _CLOEXEC | _NONBLOCK | _BINARY

_REASONS: dict[int, tuple[str, str, str]] = {
    errno.ENOSPC: ("disk-full", "the disk is full", "free some space and try again; nothing half-written was kept"),
    errno.EDQUOT: ("disk-full", "the disk quota is used up", "free some space and try again"),
    errno.EFBIG: ("disk-full", "the file would be larger than this system allows", "raise the limit (ulimit -f)"),
    errno.EROFS: ("read-only", "the file system is read-only", "choose a folder that can be written (COMGRAD_HOME)"),
    errno.EACCES: ("permission", "the permission is missing", "change its owner or mode, or choose another folder"),
    errno.EPERM: ("permission", "the operation is not permitted", "change its owner or mode, or choose another folder"),
    errno.ENOTDIR: ("not-a-folder", "a part of the path is not a folder", "choose another folder (COMGRAD_HOME)"),
    errno.EEXIST: ("not-a-folder", "a file of that name is in the way", "choose another folder (COMGRAD_HOME)"),
    errno.ELOOP: ("symlink", "it is a symbolic link, which is never followed here", "put the file itself in its place"),
    errno.EMFILE: ("too-many-files", "too many files are open", "close some, or raise the limit (ulimit -n)"),
}


def storage_error(what: str, error: OSError) -> StorageError:
    """The `StorageError` that says what an operating-system error means for the user."""
    fallback = ("storage", error.strerror or str(error), "check the disk and try again")
    code, why, remedy = _REASONS.get(error.errno or 0, fallback)
    return StorageError(what, why, remedy, code=code)


@contextlib.contextmanager
def storage(what: str) -> Iterator[None]:
    """Turn any `OSError` of the block into a `StorageError` about `what`."""
    try:
        yield
    except OSError as error:
        raise storage_error(what, error) from error


def sync_folder(path: Path) -> None:
    """Make the folder's entries durable: a rename is on the disk only after this."""
    if os.name == "nt":  # Windows has no such call; its renames are journalled
        return
    fd = os.open(path, os.O_RDONLY | _CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Create the folder and its parents, durably; a link in its place is refused."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        if path.parent != path:
            make_parents(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            sync_folder(path.parent)
        found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def make_parents(path: Path) -> None:
    """Create the folders that lead to a registry; these belong to the user and may be links."""
    if not path.is_dir():
        make_folder(path)


def open_regular(path: Path, what: str) -> int:
    """Open a file for reading and return its descriptor; links, pipes and devices are refused.

    Raises:
        NotFound: there is no such file.
        FileRefused: it is a symbolic link, has several hard links, or is not a regular file.
        StorageError: it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | OPEN_FLAGS)
    except FileNotFoundError as error:
        raise NotFound(what, "there is no such file", "check the path") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) or path.is_symlink():
            raise linked(what, "a symbolic link") from error
        raise storage_error(what, error) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise FileRefused(what, "it is not a regular file", "give the file itself", code="not-a-file")
        if found.st_nlink > 1:
            raise linked(what, "one of several hard links to the same bytes")
    except BaseException:
        os.close(fd)
        raise
    return fd


def linked(what: str, kind: str) -> ComgradError:
    """The refusal of a link: its bytes could be changed from elsewhere."""
    return FileRefused(what, f"it is {kind}, so its bytes could change from elsewhere", "copy the file", code="linked")


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte: one system call may write fewer than asked."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_file(path: Path, data: bytes, temp: Path) -> None:
    """Write a small file atomically: a temporary file in `temp` (same file system), fsync, rename, fsync."""
    partial = temp / f"{os.getpid()}-{os.urandom(8).hex()}.part"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o644)
    try:
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)
