"""The registry's folder: blobs and catalogue as one, safe under concurrent processes and a kill at any point.

A blob is stored first and its row is committed last, so a row always has its blob. A blob is deleted only inside a
writing transaction that has checked that no active row needs it, and a row is inserted only inside one that has
checked that its blob is there; as such transactions exclude each other over all processes, neither can overtake the
other, and no further lock is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from sqlalchemy import Engine

from comgrad.errors import ComgradError, FileRefused, NotFound, StorageError
from comgrad.registry import database, disk, health
from comgrad.registry.blobs import FolderBlobs, Source
from comgrad.registry.catalogue import Catalogue, Writer, removed
from comgrad.registry.gradients import Attached, GradientEntry, GradientRecord
from comgrad.registry.models import AddResult, AuditReport, Entry, Facts, Hit, Reconciled, Record
from comgrad.registry.names import checked_name

Row = TypeVar("Row")
FORMAT = 1
GRACE_SECONDS = 3_600.0
_LOCK_SECONDS = 120.0
_ATTEMPTS = 20  # a blob may be collected between being stored and its row being written; each attempt stores it again


class Store:
    """A registry in a folder.

    Args:
        path: the folder; created when missing.
        read_only: never write. `None` decides by whether the folder can be written.
        grace: blobs without a row and temporary files are collected at opening when older than this many seconds.

    Raises:
        StorageError: the folder cannot be created or opened, or (`registry-newer`) a newer comgrad made it.
        NotFound: read-only, and there is no registry.
    """

    def __init__(self, path: str | Path, *, read_only: bool | None = None, grace: float = GRACE_SECONDS) -> None:
        self.path = Path(path).expanduser().absolute()
        self._what = f"the registry '{self.path}'"
        self._marker = self.path / "registry.json"
        self.read_only = _unwritable(self.path) if read_only is None else read_only
        self.blobs = FolderBlobs(self.path / "blobs")
        self.cache_dir = self.path / "cache"
        self._engine = self._opened()
        self.catalogue = Catalogue(self._engine, self._what)
        try:
            self.opening = Reconciled() if self.read_only else self.reconcile(grace=grace)
        except BaseException:
            self.close()
            raise

    # -- opening and closing -------------------------------------------------------------------------------------
    def _opened(self) -> Engine:
        _check_marker(self._marker, self._what)
        file = self.path / "catalogue.sqlite"
        if self.read_only:
            if not self._marker.is_file() or not file.is_file():
                raise NotFound(self._what, "there is no registry in that folder", "check COMGRAD_HOME, or add a vector")
            return self._checked(database.sqlite_engine(file, read_only=True))
        with disk.storage(self._what):
            disk.make_parents(self.path)
        self.blobs.prepare()
        with disk.storage(self._what):
            disk.make_folder(self.cache_dir)
        made = self._marker.is_file()
        if made and not file.is_file():
            raise self._without_catalogue()
        engine = database.sqlite_engine(file, read_only=False)
        try:
            found = self._revision(engine) if made else None
            if made and found is None:
                raise self._without_catalogue()
            if not database.check_revision(found, self._what):
                self._set_up(engine)
        except BaseException:
            engine.dispose()
            raise
        return engine

    def _without_catalogue(self) -> StorageError:
        """Going on with a new catalogue would take every blob for an orphan and delete it."""
        why = "its catalogue.sqlite is missing or empty, so nothing says what its blobs are"
        return StorageError(self._what, why, "restore that file; the blobs were not touched", code="registry-damaged")

    def _checked(self, engine: Engine) -> Engine:
        if database.check_revision(self._revision(engine), self._what):
            return engine
        why = "its schema is older than this comgrad and it cannot be upgraded without writing"
        raise StorageError(self._what, why, "open it once where it can be written", code="registry-older")

    def _revision(self, engine: Engine) -> str | None:
        return database.revision(engine, self._what)

    def _set_up(self, engine: Engine) -> None:
        """Make or upgrade the schema and write the marker, one process at a time. The lock dies with its process."""
        lock = FileLock(self.path / "set-up.lock", timeout=_LOCK_SECONDS)
        try:
            with disk.storage(self._what), lock:
                if not database.check_revision(self._revision(engine), self._what):
                    database.upgrade(engine, self._what)
                if not self._marker.is_file():
                    made = {"format": FORMAT, "kind": "comgrad registry", "created_at": datetime.now(UTC).isoformat()}
                    disk.replace_file(self._marker, json.dumps(made, indent=1).encode() + b"\n", self.blobs.temp)
        except Timeout as error:
            why = f"another process has been setting it up for {_LOCK_SECONDS:.0f} s"
            raise StorageError(self._what, why, "wait for it to end, then try again", code="locked") from error

    def close(self) -> None:
        """Close the database; the store is not used afterwards."""
        self.catalogue.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- writing -------------------------------------------------------------------------------------------------
    def add(self, entry: Entry, *, restore: bool = False) -> AddResult:
        """Store one vector; when this returns it is durable. The same bytes again give `exists` and the same id.

        Bytes that were removed come back only with `restore`: under their old id and name, with the new card.

        Raises:
            NameTaken: the name, or one that reads like it, belongs or once belonged to other bytes.
            FileRefused: the blob is a link, or (`digest-mismatch`) not what was declared.
            ComgradError: (`removed`, `name-refused`).
            StorageError: the disk or the database cannot do it. Nothing is stored.
        """
        digest, _ = self.blobs.measure(entry.blob)
        if entry.digest is not None and entry.digest.lower() != digest:
            why = f"its bytes hash to {digest}"
            raise FileRefused(
                f"a file declared as SHA-256 {entry.digest[:80]!a}", why, "transfer it again", code="digest-mismatch"
            )
        known = self.catalogue.by_digest(digest)
        if known is not None and known.state == "active" and known.damage is None and self.blobs.exists(digest):
            return AddResult("exists", known)
        if known is not None and known.state == "removed" and not restore:
            raise removed(known, "add it with --restore (restore=True) to bring it back under its old id and name")
        self._must_write()
        name = entry.name or entry.card.name
        if known is None:  # refused before anything is written
            name = checked_name(name)
            self.catalogue.check_free(name, digest)
        return self._stored(entry, name, digest, restore)

    def _stored(self, entry: Entry, name: str, digest: str, restore: bool) -> AddResult:
        def row(rows: Writer, size: int) -> AddResult:
            return rows.add(name, entry.card, entry.facts, digest, size, restore=restore)

        return self._committed(entry.blob, digest, row)

    def _committed(self, blob: Source, digest: str, row: Callable[[Writer, int], Row]) -> Row:
        """Store a blob, then the row that needs it."""
        try:
            for _ in range(_ATTEMPTS):
                _, size = self.blobs.put(blob, declared=digest)
                with self.catalogue.writing() as rows:
                    if self.blobs.exists(digest):
                        return row(rows, size)
        except ComgradError:
            with contextlib.suppress(ComgradError):  # the first error is the one to tell; opening collects the rest
                health.collect(self.blobs, self.catalogue, digest)
            raise
        why = f"its blob disappeared {_ATTEMPTS} times while it was being added"
        raise StorageError(self._what, why, "find what else deletes files in that folder")

    def add_many(self, entries: Iterable[Entry], *, restore: bool = False) -> Iterator[AddResult]:
        """Add entries one by one, yielding each result once it is durable.

        An entry that is refused yields `refused` with its error and the rest go on.

        Raises:
            StorageError: the disk or the database cannot go on; what was yielded is safe.
        """
        for entry in entries:
            try:
                result = self.add(entry, restore=restore)
            except StorageError:
                raise
            except ComgradError as error:
                result = AddResult("refused", None, error=error)
            yield result

    def remove(self, key: str, reason: str = "") -> Record:
        """Remove the vector of an id or a whole name: its row becomes a tombstone, then its blob is deleted.

        The name stays taken for ever.

        Raises:
            NotFound: unknown, or already removed.
            StorageError: the disk or the database cannot do it.
        """
        self._must_write()
        found = self.catalogue.get(key, exact=True)
        with self.catalogue.writing() as rows:
            gone = rows.remove(found.id, reason)
            gradient = rows.detach(found.id)
        for digest in (found.digest, gradient):
            if digest is not None:
                health.collect(self.blobs, self.catalogue, digest)
        return gone

    def attach_gradient(self, key: str, entry: GradientEntry) -> Attached:
        """Give a vector its task's gradient; durable when this returns. It goes when the vector is removed.

        The same bytes again change nothing (`exists`); others replace it (`replaced`), and the old ones are deleted.

        Raises:
            NotFound: no such vector, or it was removed. FileRefused: the blob is a link.
            StorageError: the disk or the database cannot do it. Nothing is changed.
        """
        owner = self.get(key)
        digest, _ = self.blobs.measure(entry.blob)
        known = self.catalogue.gradient(owner.id)
        if known is not None and known.digest == digest and known.damage is None and self.blobs.exists(digest):
            return Attached("exists", known)
        self._must_write()

        def row(rows: Writer, size: int) -> tuple[GradientRecord, str | None]:
            return rows.attach(owner.id, digest, size, entry.facts)

        record, before = self._committed(entry.blob, digest, row)
        if before is None or before == digest:
            return Attached("attached" if before is None else "exists", record)
        health.collect(self.blobs, self.catalogue, before)
        return Attached("replaced", record)

    def _must_write(self) -> None:
        if self.read_only:
            raise StorageError(
                self._what,
                "it is open read-only",
                "choose a folder that can be written (COMGRAD_HOME)",
                code="read-only",
            )

    # -- reading -------------------------------------------------------------------------------------------------
    def get(self, key: str, *, include_removed: bool = False) -> Record:
        """The record of an id, a name or a unique beginning of either. Raises NotFound, with close names."""
        return self.catalogue.get(key, include_removed=include_removed)

    def facts(self, key: str) -> Facts:
        """What was measured on a vector. Raises NotFound."""
        return self.get(key).facts

    def list(self, **filters: Any) -> Sequence[Record]:
        """The records, oldest first. Filters: `kind`, `base`, `include_removed`. See `Catalogue.list`."""
        return self.catalogue.list(**filters)

    def search(self, text: str, *, limit: int = 20) -> Sequence[Hit]:
        """Records by the words of name, labels, description and notes, best first."""
        return self.catalogue.search(text, limit=limit)

    def blob_path(self, key: str | Record) -> Path:
        """The read-only file with a vector's bytes; of a record without another look into the catalogue.

        Raises:
            NotFound; StorageError (`blob-missing`, `blob-linked`).
        """
        found = key if isinstance(key, Record) else self.get(key)
        with self._whole(found):
            return self.blobs.path(found.digest)

    def open_blob(self, key: str) -> BufferedReader:
        """A vector's bytes, for reading. Raises as `blob_path`."""
        found = self.get(key)
        with self._whole(found):
            return self.blobs.open(found.digest)

    def gradient(self, key: str) -> tuple[GradientRecord, Path] | None:
        """A vector's gradient and the read-only file with its bytes; None when it has none. Raises as `blob_path`."""
        found = self.get(key)
        record = self.catalogue.gradient(found.id)
        if record is None:
            return None
        with self._whole(found, "gradient of", "add the vector with --examples again"):
            return record, self.blobs.path(record.digest)

    def gradients(self) -> dict[str, GradientRecord]:
        """Vector id → its gradient's record, for all that have one, in one query; no file is looked at."""
        return self.catalogue.gradients()

    @contextlib.contextmanager
    def _whole(self, found: Record, part: str = "file of", remedy: str = "add the same file again") -> Iterator[None]:
        what = f"the {part} '{found.name}' ({found.id})"
        try:
            yield
        except NotFound as error:
            raise StorageError(what, "it is missing", remedy, code="blob-missing") from error
        except FileRefused as error:
            raise StorageError(what, error.why, remedy, code="blob-linked") from error

    # -- health --------------------------------------------------------------------------------------------------
    def reconcile(self, *, grace: float = GRACE_SECONDS) -> Reconciled:
        """Bring folder and catalogue together; done at each opening for writing.

        A row without its blob is marked damaged and reported, never dropped; one whose blob is back and whole is
        healed. Blobs without an active row and temporary files of dead processes are deleted if older than `grace`
        seconds.

        Raises:
            StorageError: the disk or the database cannot do it.
        """
        self._must_write()
        return health.reconcile(self.blobs, self.catalogue, grace)

    def audit(self, progress: Callable[[int, int], None] | None = None) -> AuditReport:
        """Re-hash the blob of every active row; damage is recorded in the rows unless the store is read-only.

        Args:
            progress: called after each blob with (done, all).

        Raises:
            StorageError: the disk or the database cannot be read.
        """
        return health.audit(self.blobs, self.catalogue, progress, record=not self.read_only)


def _unwritable(path: Path) -> bool:
    """Whether a registry is there that this process may not write. A missing folder is for writing."""
    file = path / "catalogue.sqlite"
    return file.is_file() and not (os.access(path, os.W_OK | os.X_OK) and os.access(file, os.W_OK))


def _check_marker(marker: Path, what: str) -> None:
    """Refuse a folder of a newer format before anything in it is touched."""
    try:
        raw = marker.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise disk.storage_error(what, error) from error
    try:
        found = json.loads(raw)["format"]
    except (ValueError, KeyError, TypeError) as error:
        why = "its registry.json cannot be read"
        raise StorageError(what, why, "restore that file from a backup", code="registry-damaged") from error
    if not isinstance(found, int) or found > FORMAT:
        why = f"its format {found!r} is newer than this comgrad (which knows up to {FORMAT})"
        raise StorageError(what, why, "update comgrad; the registry was not touched", code="registry-newer")
