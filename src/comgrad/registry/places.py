"""Where a registry lives: a folder (here), or a database server with an object store (`served`)."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from sqlalchemy import Engine

from comgrad import config
from comgrad.errors import ComgradError, NotFound, StorageError
from comgrad.registry import database, disk
from comgrad.registry.blobs import BlobStore, FolderBlobs

FORMAT = 1
MARKER = "registry.json"
_LOCK_SECONDS = 120.0


class Place(Protocol):
    """What a store needs to know of the place where it lives."""

    what: str  # the place, for messages; never with a secret
    path: Path  # a folder of this machine: all of the registry, or what this machine keeps of it
    cache_dir: Path

    @property
    def blobs(self) -> BlobStore:
        """Where its blobs are."""

    def unwritable(self) -> bool:
        """Whether a registry is there that this process may not write."""

    def open(self, *, read_only: bool) -> Engine:
        """The database, with the current schema; made or upgraded unless read-only. Raises StorageError, NotFound."""

    def close(self) -> None:
        """Close what is open."""

    def due(self, engine: Engine, grace: float) -> bool:
        """Whether opening should bring blobs and catalogue together now."""

    def reconciled(self, engine: Engine) -> None:
        """Note that this was done."""


def configured() -> Place:
    """Where the environment says the registry is: `COMGRAD_DATABASE` and `COMGRAD_BLOBS`, or else a folder.

    Raises:
        ComgradError: only one of the two is set, one is no address, or the libraries for them are not installed.
    """
    pair, home = config.served(), config.home()
    if pair is None:
        return FolderPlace(home)
    try:
        from comgrad.registry.served import ServedPlace  # only the larger size needs its libraries
    except ImportError as error:
        raise ComgradError(
            "COMGRAD_DATABASE and COMGRAD_BLOBS",
            f"the module '{error.name}' that they need is not installed",
            "pip install 'comgrad[scale]'",
            code="not-installed",
        ) from error
    return ServedPlace(*pair, home, copies=config.copies_bytes())


class FolderPlace:
    """A registry in a folder: SQLite and files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.what = f"the registry '{self.path}'"
        self.cache_dir = self.path / "cache"
        self.blobs = FolderBlobs(self.path / "blobs")
        self._marker = self.path / MARKER

    def unwritable(self) -> bool:
        """A missing folder is for writing."""
        file = self.path / "catalogue.sqlite"
        return file.is_file() and not (os.access(self.path, os.W_OK | os.X_OK) and os.access(file, os.W_OK))

    def close(self) -> None:
        """Nothing is open."""

    def due(self, engine: Engine, grace: float) -> bool:
        """At every opening: listing a folder is cheap."""
        del engine, grace
        return True

    def reconciled(self, engine: Engine) -> None:
        """Nothing to note."""
        del engine

    def open(self, *, read_only: bool) -> Engine:
        """The SQLite file. Raises as `Place.open`; (`registry-damaged`) when the catalogue is lost."""
        check_marker(_read(self._marker, self.what), self.what)
        file = self.path / "catalogue.sqlite"
        if read_only:
            if not self._marker.is_file() or not file.is_file():
                raise NotFound(self.what, "there is no registry in that folder", "check COMGRAD_HOME, or add a vector")
            return current(database.sqlite_engine(file, read_only=True), self.what)
        with disk.storage(self.what):
            disk.make_parents(self.path)
        self.blobs.prepare()
        with disk.storage(self.what):
            disk.make_folder(self.cache_dir)
        made = self._marker.is_file()
        if made and not file.is_file():
            raise self._without_catalogue()
        engine = database.sqlite_engine(file, read_only=False)
        try:
            found = database.revision(engine, self.what) if made else None
            if made and found is None:
                raise self._without_catalogue()
            if not database.check_revision(found, self.what):
                self._set_up(engine)
        except BaseException:
            engine.dispose()
            raise
        return engine

    def _without_catalogue(self) -> StorageError:
        """Going on with a new catalogue would take every blob for an orphan and delete it."""
        why = "its catalogue.sqlite is missing or empty, so nothing says what its blobs are"
        return StorageError(self.what, why, "restore that file; the blobs were not touched", code="registry-damaged")

    def _set_up(self, engine: Engine) -> None:
        """Make or upgrade the schema and write the marker, one process at a time. The lock dies with its process."""
        lock = FileLock(self.path / "set-up.lock", timeout=_LOCK_SECONDS)
        try:
            with disk.storage(self.what), lock:
                if not database.check_revision(database.revision(engine, self.what), self.what):
                    database.upgrade(engine, self.what)
                if not self._marker.is_file():
                    disk.replace_file(self._marker, marker(), self.blobs.temp)
        except Timeout as error:
            why = f"another process has been setting it up for {_LOCK_SECONDS:.0f} s"
            raise StorageError(self.what, why, "wait for it to end, then try again", code="locked") from error


def current(engine: Engine, what: str) -> Engine:
    """The engine, if its schema needs no upgrade. Raises StorageError (`registry-older`, `registry-newer`)."""
    if database.check_revision(database.revision(engine, what), what):
        return engine
    why = "its schema is older than this comgrad and it cannot be upgraded without writing"
    raise StorageError(what, why, "open it once where it can be written", code="registry-older")


def marker(**more: str) -> bytes:
    """What stands in a registry's marker file."""
    made = {"format": FORMAT, "kind": "comgrad registry", "created_at": datetime.now(UTC).isoformat(), **more}
    return json.dumps(made, indent=1).encode() + b"\n"


def check_marker(raw: bytes | None, what: str) -> dict[str, Any]:
    """The marker's values ({} without one); a newer format is refused before anything is touched."""
    if raw is None:
        return {}
    try:
        values = json.loads(raw)
        found = values["format"]
    except (ValueError, KeyError, TypeError) as error:
        why = f"its {MARKER} cannot be read"
        raise StorageError(what, why, "restore that file from a backup", code="registry-damaged") from error
    if not isinstance(found, int) or found > FORMAT:
        why = f"its format {found!r} is newer than this comgrad (which knows up to {FORMAT})"
        raise StorageError(what, why, "update comgrad; the registry was not touched", code="registry-newer")
    return dict(values)


def _read(path: Path, what: str) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise disk.storage_error(what, error) from error
