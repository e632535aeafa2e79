"""The registry: blobs and catalogue as one, safe under concurrent processes and a kill at any point.

A blob is stored first and its row is committed last, so a row always has its blob. A blob is deleted only inside a
writing transaction that has checked that no active row needs it, and a row is inserted only inside one that has
checked that its blob is there; as such transactions exclude each other over all processes, neither can overtake the
other, and no further lock is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from io import BufferedReader
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from comgrad.errors import ComgradError, FileRefused, NotFound, StorageError
from comgrad.registry import health
from comgrad.registry.blobs import Source
from comgrad.registry.catalogue import Catalogue
from comgrad.registry.database import repeated
from comgrad.registry.gradients import Attached, GradientEntry, GradientRecord
from comgrad.registry.models import AddResult, AuditReport, Entry, Facts, Hit, Reconciled, Record
from comgrad.registry.names import checked_name
from comgrad.registry.places import FolderPlace, Place
from comgrad.registry.rows import removed
from comgrad.registry.writer import Writer

Row = TypeVar("Row")
GRACE_SECONDS = 3_600.0
_ATTEMPTS = 20  # a blob may be collected between being stored and its row being written; each attempt stores it again


class Store:
    """A registry: in a folder, or on a database server and an object store.

    Args:
        path: the folder, created when missing; or another place (`served.ServedPlace`).
        read_only: never write. `None` decides by whether the registry can be written.
        grace: blobs without a row and temporary files are collected at opening when older than this many seconds.

    Raises:
        StorageError: the place cannot be made or opened, or (`registry-newer`) a newer comgrad made it.
        NotFound: read-only, and there is no registry.
    """

    def __init__(
        self, path: str | Path | Place, *, read_only: bool | None = None, grace: float = GRACE_SECONDS
    ) -> None:
        self.place = FolderPlace(path) if isinstance(path, str | Path) else path
        self.path = self.place.path
        self._what = self.place.what
        self.read_only = self.place.unwritable() if read_only is None else read_only
        self.blobs = self.place.blobs
        self.cache_dir = self.place.cache_dir
        self._engine = self.place.open(read_only=self.read_only)
        self.catalogue = Catalogue(self._engine, self._what)
        try:
            due = not self.read_only and self.place.due(self._engine, grace)
            self.opening = self.reconcile(grace=grace) if due else Reconciled()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Store({self._what})"

    def close(self) -> None:
        """Close the database; the store is not used afterwards."""
        self.place.close()
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
        began, tries = datetime.now(UTC), count()

        def row(rows: Writer, size: int) -> AddResult:
            again = next(tries) > 0
            return rows.add(name, entry.card, entry.facts, digest, size, restore=restore, at=began, again=again)

        return self._committed(entry.blob, digest, row)

    def _committed(self, blob: Source, digest: str, row: Callable[[Writer, int], Row]) -> Row:
        """Store a blob, then the row that needs it."""
        try:
            for _ in range(_ATTEMPTS):
                _, size = repeated(self._engine, lambda: self.blobs.put(blob, declared=digest))
                done = self.catalogue.write(
                    lambda rows, size=size: (row(rows, size),) if self.blobs.exists(digest) else None  # type: ignore[misc]
                )
                if done is not None:
                    return done[0]
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
        began, reason = datetime.now(UTC), reason.replace("\0", " ")

        def tombstone(rows: Writer) -> tuple[Record, str | None]:
            return rows.remove(found.id, reason, at=began), rows.detach(found.id)

        gone, gradient = self.catalogue.write(tombstone)
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

    def stream_blob(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes `start` to `stop` (exclusive; None is the end) of a vector, in pieces. Raises as `blob_path`."""
        found = self.get(key)
        with self._whole(found):
            if not self.blobs.exists(found.digest):
                raise NotFound(f"the blob {found.digest}", "there is no such file", "add the same file again")
        return self.blobs.stream(found.digest, start, stop)

    def gradient(self, key: str) -> tuple[GradientRecord, Path] | None:
        """A vector's gradient and the read-only file with its bytes; None when it has none. Raises as `blob_path`."""
        found = self.get(key)
        record = self.catalogue.gradient(found.id)
        if record is None:
            return None
        with self._whole(found, "gradient of", "add the vector with --examples again"):
            return record, self.blobs.path(record.digest)

    def gradients(self, of: Sequence[str] | None = None) -> dict[str, GradientRecord]:
        """Vector id → its gradient's record, for all that have one, or for those of a few ids (some hundred at most) that
        do, in one query; no file is looked at."""
        return self.catalogue.gradients(of)

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
        found = health.reconcile(self.blobs, self.catalogue, grace)
        self.place.reconciled(self._engine)
        return found

    def audit(self, progress: Callable[[int, int], None] | None = None) -> AuditReport:
        """Re-hash the blob of every active row; damage is recorded in the rows unless the store is read-only.

        Args:
            progress: called after each blob with (done, all).

        Raises:
            StorageError: the disk or the database cannot be read.
        """
        return health.audit(self.blobs, self.catalogue, progress, record=not self.read_only)
