"""Atomic files and folders: what appears under its final name is whole, or it does not appear."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from comgrad.errors import StorageError

_WHY = {
    errno.ENOSPC: ("the disk is full", "free some space, or write elsewhere"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or write elsewhere"),
    errno.EFBIG: ("the file would be larger than the system allows", "raise the limit, or write elsewhere"),
    errno.EROFS: ("the file system is read-only", "write elsewhere"),
    errno.EACCES: ("permission is denied", "check the folder's permissions, or write elsewhere"),
    errno.EPERM: ("permission is denied", "check the folder's permissions, or write elsewhere"),
    errno.ENOENT: ("its folder does not exist", "make the folder first"),
    errno.EEXIST: ("a part of its path is a file", "choose another path"),
    errno.ENOTDIR: ("a part of its path is a file", "choose another path"),
    errno.EISDIR: ("a folder of that name is there", "choose another path"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def storage_error(path: Path, error: OSError) -> StorageError:
    """What the operating system said, in three parts."""
    why, remedy = _WHY.get(error.errno or 0, (error.strerror or str(error), "check the disk"))
    code = "disk-full" if error.errno in _FULL else None
    return StorageError(f"'{path}' cannot be written", why, remedy, code=code)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut (a no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the name `path`, synced to disk, when the block ends without an error.

    Raises:
        StorageError: the operating system refused; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(fd, "wb") as out:
            yield out
            out.flush()
            os.fchmod(out.fileno(), 0o666 & ~_umask())  # mkstemp makes it private; a result is an ordinary file
            os.fsync(out.fileno())
        temporary.replace(path)
        temporary = None
        sync_folder(path.parent)
    except OSError as e:
        raise storage_error(path, e) from e
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically. Raises StorageError."""
    with atomic_file(Path(path)) as out:
        out.write(data)


@contextlib.contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill that takes the name `path` when the block ends without an error.

    Args:
        path: the final name. An empty folder there is replaced.
        replace: replace a folder with contents too, in one step on Linux; the old one is removed last.

    Raises:
        StorageError: `exists` when something is in the way; or the operating system refused. Nothing is left behind.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link at `path` is replaced, not followed
    check_free(path, replace=replace)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        _sync_tree(temporary)
        _put_in_place(temporary, path, replace)
        temporary = None
        sync_folder(path.parent)
    except OSError as e:
        raise storage_error(path, e) from e
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: Path, *, replace: bool = False) -> None:
    """Refuse a folder's name that is taken, before long work for it begins. Raises StorageError (`exists`)."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise StorageError(f"'{path}'", "a file of that name is there", "choose another path", code="exists")
    try:
        occupied = any(path.iterdir())
    except OSError as e:
        raise storage_error(path, e) from e
    if occupied and not replace:
        raise StorageError(f"'{path}'", "the folder is not empty", "choose another path or empty it", code="exists")


def _put_in_place(temporary: Path, path: Path, replace: bool) -> None:
    """Give `temporary` the name `path`; a folder with contents there goes away only after the name is taken over."""
    check_free(path, replace=replace)  # again: another process may have been faster
    if not path.is_dir() or not any(path.iterdir()):
        temporary.replace(path)
    elif _exchanged(temporary, path):
        shutil.rmtree(temporary, ignore_errors=True)  # now the old folder
    else:  # two renames: a crash between them leaves the name free and the old folder beside it
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".old", dir=path.parent))
        path.rename(aside / path.name)
        try:
            temporary.replace(path)
        except OSError:
            (aside / path.name).rename(path)
            aside.rmdir()
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchanged(a: Path, b: Path) -> bool:
    """Swap two names in one step where the system can (Linux `renameat2` with RENAME_EXCHANGE)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd, exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            fd = os.open(Path(root) / name, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(root))


def _umask() -> int:
    """The process's umask. It can only be read by setting it, so a file mode is asked for where the system tells."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    return 0o022
