"""Derived data on disk: arrays that can be computed again, so that a broken file costs time and nothing else."""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.errors import StorageError
from comgrad.weights.storage import atomic_write_bytes

Array = np.ndarray[Any, np.dtype[Any]]


def read_arrays(path: Path) -> dict[str, Array] | None:
    """The arrays of a file, or None when there is none of use."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error):
        return None


def write_arrays(path: Path, **arrays: Array) -> None:
    """Write the arrays atomically; a folder that cannot be written is left as it is."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    with contextlib.suppress(StorageError):
        atomic_write_bytes(path, buffer.getvalue())
