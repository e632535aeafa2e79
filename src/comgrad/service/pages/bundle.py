"""Several files as one download: a plain, uncompressed zip, written while it is sent."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence

from starlette.responses import StreamingResponse

from comgrad.service.files import Opened

CHUNK = 1 << 20
DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same files


class _Pipe(io.RawIOBase):
    """What was written and not yet sent."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = bytearray()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: object) -> int:
        """Keep the bytes."""
        view = memoryview(data)  # type: ignore[arg-type]
        self._kept += view
        return view.nbytes

    def taken(self) -> bytes:
        """The bytes since the last time."""
        found = bytes(self._kept)
        self._kept.clear()
        return found


def chunks(files: Sequence[Opened], folder: str) -> Iterator[bytes]:
    """The archive in pieces of about a megabyte."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in files:
            info = zipfile.ZipInfo(f"{folder}/{file.name}", DATE)
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=file.size >= 1 << 31) as out:
                for piece in _pieces(file):
                    out.write(piece)
                    yield pipe.taken()
    yield pipe.taken()


def _pieces(file: Opened) -> Iterator[bytes]:
    if file.path is None:
        yield file.data
        return
    with file.path.open("rb") as source:
        while piece := source.read(CHUNK):
            yield piece


def bundle(files: Sequence[Opened], folder: str) -> StreamingResponse:
    """The download; its name is made here, never by a user."""
    headers = {"Content-Disposition": f'attachment; filename="{folder}.zip"'}
    return StreamingResponse(chunks(files, folder), media_type="application/zip", headers=headers)
