"""Bytes of an upload's part as they come: written at the end of one file, by one request at a time, within limits."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from comgrad.errors import FileRefused, NotFound
from comgrad.registry import disk
from comgrad.service.errors import Conflict, TooLarge, TooSlow

if os.name != "nt":
    import fcntl

_BLOCK = 1 << 20


@contextlib.contextmanager
def appending(path: Path) -> Iterator[int]:
    """The part's file, open for appending by one request at a time; the lock dies with its process.

    Raises:
        NotFound: its folder is gone. Conflict: (`writing`) another request has it. StorageError.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | disk.OPEN_FLAGS, 0o600)
    except FileNotFoundError as error:
        raise NotFound("the upload", "its files are gone", "begin a new one") from error
    except OSError as error:
        raise disk.storage_error("the upload", error) from error
    try:
        if os.name != "nt":
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict("the part", "another request is writing it", "wait for it", code="writing") from error
        yield fd
    finally:
        os.close(fd)


async def take(fd: int, chunks: AsyncIterator[bytes], room: int, *, idle: float, whole: float) -> None:
    """Write what comes, at most `room` bytes; what arrived before a cut stays, and is on the disk at the end.

    Args:
        idle, whole: seconds between two pieces, and for all of them.

    Raises:
        TooLarge, TooSlow, StorageError.
    """
    took, held = 0, bytearray()
    try:
        with anyio.fail_after(whole):
            while True:
                with anyio.fail_after(idle):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                if took + len(chunk) > room:
                    why = f"{room} bytes were expected at most"
                    raise TooLarge("the chunk", why, "send smaller chunks, up to the declared size")
                took += len(chunk)
                held += chunk
                if len(held) >= _BLOCK:  # pieces are small: handing each to a thread would take longer than writing it
                    block, held = held, bytearray()  # never written twice, whatever ends this
                    with anyio.CancelScope(shield=True):
                        await to_thread.run_sync(_written, fd, block)
    except TimeoutError as error:
        raise TooSlow("the chunk", "it came too slowly", "go on at the offset that HEAD gives") from error
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(_ended, fd, held)


def _written(fd: int, data: bytes | bytearray) -> None:
    with disk.storage("the upload"):
        disk.write_all(fd, memoryview(data))


def _ended(fd: int, rest: bytearray) -> None:
    _written(fd, rest)
    with disk.storage("the upload"):
        os.fsync(fd)


def check_digest(path: Path, part: dict[str, Any]) -> None:
    """Refuse a part whose bytes are not those that were declared. Raises FileRefused (`digest-mismatch`), StorageError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise disk.storage_error("the upload", error) from error
    if digest.hexdigest() != part["sha256"]:
        raise FileRefused(
            f"'{part['name']}' declared as SHA-256 {part['sha256']}",
            f"its bytes hash to {digest.hexdigest()}",
            "send it again",
            code="digest-mismatch",
        )
