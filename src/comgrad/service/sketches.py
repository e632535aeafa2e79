"""The sketches of vectors, in memory and in a file of derived data."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import zlib
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.errors import ComgradError, StorageError
from comgrad.service.errors import passing_soon
from comgrad.service.scope import Matrix, Places
from comgrad.service.vectors import Listing
from comgrad.service.warm import Geometry
from comgrad.weights.storage import atomic_write_bytes

log = logging.getLogger("comgrad.service")
SIZE = 1024
_ROW = np.dtype([("id", "S48"), ("check", "<u4"), ("numbers", "<f2", (SIZE,))])


class Sketches:
    """Unit sketches by vector id, in memory and in a file that may be deleted; many processes append to it. Its name says
    what its contents depend on, so that one of other sketches is never read, and goes."""

    def __init__(self, folder: Path) -> None:
        from comgrad.geometry.sketch import NUMBERS, identity

        assert NUMBERS == SIZE
        made_of = hashlib.sha256(f"{identity()} {_ROW.descr}".encode()).hexdigest()
        self._file = folder / f"sketches-{made_of[:16]}.bin"
        self._lock = threading.RLock()
        self._place: dict[str, int] = {}
        self._rows: Matrix = np.zeros((0, SIZE), dtype=np.float32)
        self._read = 0

    def prune(self, live: Container[str]) -> None:
        """Take out of the file what is of none of these vectors, is torn, or is there twice; before its first reading.

        A process that reads it already, or appends meanwhile, only loses rows that it then makes again. Files of other
        sketches, which another version wrote, are deleted.
        """
        for other in self._file.parent.glob("sketches-*.bin"):
            if other != self._file:
                with contextlib.suppress(OSError):
                    other.unlink()
        with contextlib.suppress(OSError, StorageError):
            data = self._file.read_bytes()
            rows = np.frombuffer(data, dtype=_ROW, count=len(data) // _ROW.itemsize)
            kept = {i: row.tobytes() for row in rows if (i := _identity(row)) is not None and i in live}
            if len(kept) * _ROW.itemsize != len(data):
                atomic_write_bytes(self._file, b"".join(kept.values()))

    def places(self, group: Sequence[Listing], geometry: Geometry) -> Places:
        """The rows of these listings; what has none yet is read and sketched. −1 where a vector is lost.

        Raises ComgradError: the storage is away, busy or full.
        """
        missing = [x for x in group if x.id not in self._place]
        if missing:
            self._catch_up()
            for x in missing:
                if x.id not in self._place:
                    self._add(x, geometry)
        return np.array([self._place.get(x.id, -1) for x in group], dtype=np.intp)

    def rows(self) -> Matrix:
        """All rows; a row never changes."""
        return self._rows[: len(self._place)]

    def _add(self, x: Listing, geometry: Geometry) -> None:
        from comgrad.geometry.sketch import sketch

        try:
            found = sketch(geometry.vector(x.entry))
        except ComgradError as error:
            if passing_soon(error):
                raise  # left out now, it would be missed in what is kept of the others
            return  # its file is lost: the others are compared all the same
        except (MemoryError, RuntimeError):  # torch has no error of its own for memory
            log.exception("a vector cannot be sketched", extra={"vector": x.id})
            return
        row = self.remember(x.id, found)
        with contextlib.suppress(OSError), self._file.open("ab", buffering=0) as file:  # derived: losing it costs time
            file.write(b"\0" * (-file.tell() % _ROW.itemsize) + row.tobytes())  # after a torn row: where a row begins

    def remember(self, identity: str, found: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
        """Hold a vector's sketch in memory; its row of the file."""
        row = np.zeros(1, dtype=_ROW)
        row["id"] = identity.encode()
        row["numbers"] = found / (float(np.linalg.norm(found)) or 1.0)
        row["check"] = zlib.crc32(row["numbers"].tobytes())
        with self._lock:
            self._take(row)
        return row

    def _catch_up(self) -> None:
        """Read what this or another process appended since the last time; a torn row is skipped."""
        with self._lock, contextlib.suppress(OSError):
            size = self._file.stat().st_size // _ROW.itemsize
            if size > self._read:
                with self._file.open("rb") as file:
                    file.seek(self._read * _ROW.itemsize)
                    data = file.read((size - self._read) * _ROW.itemsize)
                self._read = size
                self._take(np.frombuffer(data, dtype=_ROW, count=len(data) // _ROW.itemsize))

    def _take(self, found: np.ndarray[Any, Any]) -> None:
        for row in found:
            identity = _identity(row)
            if identity is None or identity in self._place:
                continue
            at = len(self._place)
            if at == len(self._rows):
                grown = np.zeros((max(256, 2 * at), SIZE), dtype=np.float32)
                grown[:at] = self._rows
                self._rows = grown
            self._rows[at] = row["numbers"]
            self._place[identity] = at


def _identity(row: Any) -> str | None:
    """The vector whose row it is; None of a torn one."""
    whole = zlib.crc32(row["numbers"].tobytes()) == row["check"]
    return bytes(row["id"]).decode("ascii", "replace") if whole else None
