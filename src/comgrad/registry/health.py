"""Bringing blobs and catalogue together after whatever happened, and auditing every digest."""

from __future__ import annotations

from collections.abc import Callable

from comgrad.registry.blobs import BlobStore
from comgrad.registry.catalogue import Catalogue
from comgrad.registry.models import AuditReport, Reconciled


def collect(blobs: BlobStore, catalogue: Catalogue, digest: str) -> bool:
    """Delete a blob that no active row needs; whether there was one."""
    with catalogue.writing() as rows:
        return not rows.is_active(digest) and blobs.delete(digest)


def reconcile(blobs: BlobStore, catalogue: Catalogue, grace: float) -> Reconciled:
    """Mark rows without a blob, heal those whose blob is back, delete orphans and temporary files older than `grace`.

    Raises:
        StorageError: the disk or the database cannot do it.
    """
    swept = blobs.sweep(grace)
    stored = set(blobs.digests())
    rows = catalogue.digests()  # every difference is looked at again inside a writing transaction
    lost = [digest for digest, (_, damage) in rows.items() if digest not in stored and damage is None]
    back = [digest for digest, (_, damage) in rows.items() if digest in stored and damage is not None]
    damaged = [rows[digest][0] for digest in lost if mark(blobs, catalogue, digest, rows[digest][0])]
    healed = [rows[digest][0] for digest in back if not mark(blobs, catalogue, digest, rows[digest][0])]
    old = [digest for digest in stored - rows.keys() if blobs.age(digest) >= grace]
    deleted = sum(collect(blobs, catalogue, digest) for digest in old)
    known = [identity for identity, damage in rows.values() if damage is not None and identity not in healed]
    return Reconciled(tuple(sorted(damaged + known)), tuple(sorted(healed)), deleted, swept)


def mark(blobs: BlobStore, catalogue: Catalogue, digest: str, identity: str) -> bool:
    """Re-hash a blob and record in its row what is wrong with it, if anything; whether something is."""
    with catalogue.writing() as rows:
        if not rows.is_active(digest):
            return False
        condition = blobs.verify(digest)
        rows.mark(identity, None if condition == "ok" else condition)
        return condition != "ok"


def audit(
    blobs: BlobStore, catalogue: Catalogue, progress: Callable[[int, int], None] | None, *, record: bool
) -> AuditReport:
    """Re-hash the blob of every active row; with `record`, note in the rows what is wrong.

    Raises:
        StorageError: the disk or the database cannot be read.
    """
    rows = catalogue.digests()
    found: dict[str, list[str]] = {"missing": [], "corrupt": [], "linked": []}
    for done, (digest, (identity, known)) in enumerate(rows.items(), start=1):
        condition = blobs.verify(digest)
        if condition != "ok" and _active(catalogue, digest):
            found[condition].append(identity)
        if record and (None if condition == "ok" else condition) != known:
            mark(blobs, catalogue, digest, identity)
        if progress is not None:
            progress(done, len(rows))
    orphans = sorted(set(blobs.digests()) - catalogue.digests().keys())
    wrong = sorted(found["corrupt"] + found["linked"])
    return AuditReport(len(rows), tuple(wrong), tuple(sorted(found["missing"])), tuple(orphans))


def _active(catalogue: Catalogue, digest: str) -> bool:
    """Whether the row is still active: it may have been removed while the audit ran."""
    found = catalogue.by_digest(digest)
    return found is not None and found.state == "active"
