"""Journeys: a backup of a registry that goes on being used, and a restore that is proved byte by byte.

A backup is a folder: `catalogue.jsonl` (every row, tombstones too), `blobs/` (as in a registry's folder) and
`backup.json`, written last. It fits both sizes. Accounts of a service and derived data are not in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from comgrad.errors import ComgradError, FileRefused, NotFound, StorageError
from comgrad.registry import disk
from comgrad.registry.blobs import FolderBlobs
from comgrad.registry.models import REVISIONS
from comgrad.registry.places import configured
from comgrad.registry.snapshot import Snapshot
from comgrad.registry.store import Store

FORMAT = 1
_MANIFEST, _ROWS, _PARTIAL = "backup.json", "catalogue.jsonl", "backup.partial"
_ROUNDS = 10
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What a backup or a restored registry holds.

    Args:
        vectors, removed, gradients: rows: active vectors, tombstones, gradients of active vectors.
        blobs, bytes: files, and their size together.
        checked: files whose every byte was read again at the end and hashed to their name.
        damaged: ids whose file (or gradient's file) was already lost or wrong in the registry that was backed up.
    """

    path: str
    vectors: int
    removed: int
    gradients: int
    blobs: int
    bytes: int
    checked: int
    damaged: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is lost."""
        return not self.damaged and self.checked == self.blobs

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "damaged": list(self.damaged), "ok": self.ok}


# -- backup ----------------------------------------------------------------------------------------------------------
def backup(folder: Path, *, store: Store | None = None, progress: Progress | None = None) -> Outcome:
    """Copy a registry as it is at one moment, while others go on writing to it; every copied byte is hashed at the end.

    A backup that was interrupted is gone on with by the same call.

    Args:
        folder: a new or empty folder, or that of an interrupted backup.
        store: the registry; default: the one that the environment names.
        progress: called with (blobs done, all).

    Raises:
        ComgradError: (`not-empty`) something else is in the folder. StorageError: a disk or a server fails.
    """
    folder = folder.expanduser().absolute()
    target = _begun(folder)
    if store is None:
        with Store(configured()) as opened:
            return _backed_up(folder, target, opened, progress or _silent)
    return _backed_up(folder, target, store, progress or _silent)


def _begun(folder: Path) -> FolderBlobs:
    partial = folder / _PARTIAL
    with disk.storage(f"the folder '{folder}'"):
        disk.make_parents(folder)
        if any(folder.iterdir()) and not partial.is_file():
            why = "it is not empty, and a backup is never written over anything"
            raise ComgradError(f"the folder '{folder}'", why, "give a new folder", code="not-empty")
        partial.touch()
    target = FolderBlobs(folder / "blobs")
    target.prepare()
    return target


def _backed_up(folder: Path, target: FolderBlobs, store: Store, progress: Progress) -> Outcome:
    snapshot, lost = _copied(target, store, progress)
    needed = snapshot.needed()
    for digest in set(target.digests()) - needed.keys():
        target.delete(digest)  # its vector was removed while this ran
    rows = snapshot.lines()
    disk.replace_file(folder / _ROWS, rows, target.temp)
    kept = sorted(needed.keys() - lost)
    wrong = [digest for digest in kept if target.verify(digest) != "ok"]
    if wrong:
        why = f"{len(wrong)} of {len(kept)} files do not hash to their name after being copied"
        raise StorageError(f"the backup '{folder}'", why, "check that disk, and start anew", code="backup-damaged")
    size = sum(target.path(digest).stat().st_size for digest in kept)
    damaged = tuple(sorted(set().union(*(needed[digest] for digest in lost)))) if lost else ()
    outcome = Outcome(str(folder), **_counts(snapshot), blobs=len(kept), bytes=size, checked=len(kept), damaged=damaged)
    disk.replace_file(folder / _MANIFEST, _manifest(outcome, rows), target.temp)
    (folder / _PARTIAL).unlink(missing_ok=True)
    disk.sync_folder(folder)
    return outcome


def _copied(target: FolderBlobs, store: Store, progress: Progress) -> tuple[Snapshot, set[str]]:
    """A snapshot whose blobs have all been copied, and the digests of those that cannot be.

    A blob that is gone may have been removed since the snapshot: then the next snapshot does not name it. Should that
    go on and on, the last round holds the writers up.
    """
    before: set[str] | None = None
    for left in reversed(range(_ROUNDS)):
        still = left == 0 and not store.read_only
        with store.catalogue.writing() if still else contextlib.nullcontext():
            snapshot = store.catalogue.snapshot()
            lost = _copy_missing(sorted(snapshot.needed()), target, store, progress)
        if not lost or lost == before:
            break
        before = lost
    return snapshot, lost


def _copy_missing(needed: list[str], target: FolderBlobs, store: Store, progress: Progress) -> set[str]:
    lost: set[str] = set()
    for done, digest in enumerate(needed, start=1):
        if target.verify(digest) != "ok":
            try:
                target.put_pieces(store.blobs.stream(digest), declared=digest)
            except (NotFound, FileRefused):
                lost.add(digest)
        progress(done, len(needed))
    return lost


def _counts(snapshot: Snapshot) -> dict[str, int]:
    active = len(snapshot.active)
    removed = len(snapshot.tables["vectors"]) - active
    return {"vectors": active, "removed": removed, "gradients": len(snapshot.tables["gradients"])}


def _manifest(outcome: Outcome, rows: bytes) -> bytes:
    values = {
        "format": FORMAT,
        "kind": "comgrad backup",
        "made_at": datetime.now(UTC).isoformat(),
        "made_by": f"comgrad {version('comgrad')}",
        "schema": REVISIONS[-1],
        "catalogue_sha256": hashlib.sha256(rows).hexdigest(),
        **{key: value for key, value in outcome.as_dict().items() if key not in ("path", "ok", "checked")},
    }
    return json.dumps(values, indent=1).encode() + b"\n"


# -- restore ---------------------------------------------------------------------------------------------------------
def restore(folder: Path, *, store: Store | None = None, progress: Progress | None = None) -> Outcome:
    """Fill an empty registry from a backup, then read every blob of it again and hash it.

    Nothing is visible before everything is there: blobs first, then all rows in one transaction.

    Args:
        folder: the backup.
        store: the registry; default: the one that the environment names.
        progress: called with (blobs done, all), twice: copying, then reading again.

    Raises:
        ComgradError: (`registry-not-empty`) it has vectors, or tombstones; (`backup-damaged`) the backup is not whole;
            (`backup-newer`) a newer comgrad made it. NotFound: there is no backup.
        StorageError: a disk or a server fails.
    """
    folder = folder.expanduser().absolute()
    snapshot, manifest = _read(folder)
    if store is None:
        with Store(configured()) as opened:
            return _restored(folder, snapshot, manifest, opened, progress or _silent)
    return _restored(folder, snapshot, manifest, store, progress or _silent)


def _read(folder: Path) -> tuple[Snapshot, dict[str, Any]]:
    what = f"the backup '{folder}'"
    raw = _file(folder / _MANIFEST, what)
    try:
        manifest = json.loads(raw)
        kind, made, schema = manifest["kind"], manifest["format"], manifest["schema"]
        digest, damaged = manifest["catalogue_sha256"], manifest["damaged"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(what, f"its {_MANIFEST} cannot be read") from error
    if kind != "comgrad backup" or not (isinstance(damaged, list) and all(isinstance(i, str) for i in damaged)):
        raise _damaged(what, f"its {_MANIFEST} is not that of a backup")
    if made != FORMAT or schema not in REVISIONS:
        why = f"its format {str(made)[:20]!a} or schema {str(schema)[:20]!a} is not known to this comgrad"
        raise ComgradError(what, why, "update comgrad", code="backup-newer")
    rows = _file(folder / _ROWS, what)
    if hashlib.sha256(rows).hexdigest() != digest:
        raise _damaged(what, f"its {_ROWS} does not hash to what {_MANIFEST} says")
    return Snapshot.from_lines(rows, what), manifest


def _file(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(what, f"there is no {path.name} in it", "give the folder of a finished backup") from error
    except OSError as error:
        raise disk.storage_error(what, error) from error


def _damaged(what: str, why: str) -> ComgradError:
    return ComgradError(what, why, "use another backup", code="backup-damaged")


def _restored(folder: Path, snapshot: Snapshot, manifest: dict[str, Any], store: Store, progress: Progress) -> Outcome:
    store.catalogue.check_empty()
    needed, expected = snapshot.needed(), set(manifest["damaged"])
    source = FolderBlobs(folder / "blobs")
    absent = {digest for digest, ids in needed.items() if ids & expected and source.verify(digest) != "ok"}
    wanted = sorted(needed.keys() - absent)
    for _ in range(_ROUNDS):
        _fill(wanted, source, store, progress, f"the backup '{folder}'")
        if store.catalogue.write(lambda rows: set(wanted) <= set(store.blobs.digests()) and rows.fill(snapshot)):
            break
    else:
        why = f"its blobs disappeared {_ROUNDS} times while they were being restored"
        raise StorageError(f"the registry at '{store.path}'", why, "find what else deletes files there")
    report = store.audit(progress)
    wrong = {*report.damaged, *report.missing, *report.gradients}
    if wrong - expected:
        why = f"after restoring, {sorted(wrong - expected)[:5]} do not hash to their digests"
        raise StorageError(f"the registry at '{store.path}'", why, "check its disk; remove it; restore again")
    size = sum(row["size_bytes"] for row in _one_per_digest(snapshot, wanted))
    return Outcome(
        str(store.path),
        **_counts(snapshot),
        blobs=len(wanted),
        bytes=size,
        checked=sum(1 for digest in wanted if not needed[digest] & wrong),  # the audit read what every row needs
        damaged=tuple(sorted(wrong)),
    )


def _fill(wanted: list[str], source: FolderBlobs, store: Store, progress: Progress, what: str) -> None:
    there = set(store.blobs.digests())
    for done, digest in enumerate(wanted, start=1):
        if digest not in there:
            try:
                store.blobs.put(source.path(digest), declared=digest)
            except (NotFound, FileRefused) as error:
                raise _damaged(what, f"its file {digest} is missing or not what its name says") from error
        progress(done, len(wanted))


def _one_per_digest(snapshot: Snapshot, wanted: list[str]) -> list[Any]:
    rows = {row["digest"]: row for row in (*snapshot.active, *snapshot.tables["gradients"])}
    return [rows[digest] for digest in wanted]


def _silent(done: int, total: int) -> None:
    del done, total
