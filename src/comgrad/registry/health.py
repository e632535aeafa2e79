"""Bringing blobs and catalogue together after whatever happened, and auditing every digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from comgrad.registry.blobs import BlobStore
from comgrad.registry.catalogue import Catalogue
from comgrad.registry.models import AuditReport, Held, Reconciled
from comgrad.registry.writer import Writer


def collect(blobs: BlobStore, catalogue: Catalogue, digest: str) -> bool:
    """Delete a blob that no active row needs; whether there was one."""
    return catalogue.write(lambda rows: not rows.is_needed(digest) and blobs.delete(digest))


def reconcile(blobs: BlobStore, catalogue: Catalogue, grace: float) -> Reconciled:
    """Mark rows without a blob, heal those whose blob is back, delete orphans and temporary files older than `grace`.

    Raises:
        StorageError: the disk or the database cannot do it.
    """
    swept = blobs.sweep(grace)
    stored = set(blobs.digests())
    rows = catalogue.held()  # every difference is looked at again inside a writing transaction
    lost = [held for held in rows if held.digest not in stored and held.damage is None]
    back = [held for held in rows if held.digest in stored and held.damage is not None]
    damaged = {held for held in lost if mark(blobs, catalogue, held)}
    healed = {held for held in back if not mark(blobs, catalogue, held)}
    old = [digest for digest in stored - {held.digest for held in rows} if blobs.age(digest) >= grace]
    deleted = sum(collect(blobs, catalogue, digest) for digest in old)
    wrong = damaged | {held for held in rows if held.damage is not None and held not in healed}
    return Reconciled(_ids(wrong, "vector"), _ids(healed, "vector"), deleted, swept, _ids(wrong, "gradient"))


def mark(blobs: BlobStore, catalogue: Catalogue, held: Held) -> bool:
    """Re-hash a blob and record in its row what is wrong with it, if anything; whether something is."""

    def look(rows: Writer) -> bool:
        if not rows.holds(held):
            return False
        condition = blobs.verify(held.digest)
        rows.mark(held, None if condition == "ok" else condition)
        return condition != "ok"

    return catalogue.write(look)


def audit(
    blobs: BlobStore, catalogue: Catalogue, progress: Callable[[int, int], None] | None, *, record: bool
) -> AuditReport:
    """Re-hash the blob of every active row; with `record`, note in the rows what is wrong.

    Raises:
        StorageError: the disk or the database cannot be read.
    """
    rows = catalogue.held()
    found: dict[str, set[Held]] = {"missing": set(), "corrupt": set(), "linked": set()}
    for done, held in enumerate(rows, start=1):
        condition = blobs.verify(held.digest)
        if condition != "ok" and held.digest in {now.digest for now in catalogue.held()}:  # not removed meanwhile
            found[condition].add(held)
        if record and (None if condition == "ok" else condition) != held.damage:
            mark(blobs, catalogue, held)
        if progress is not None:
            progress(done, len(rows))
    orphans = sorted(set(blobs.digests()) - {held.digest for held in catalogue.held()})
    changed = found["corrupt"] | found["linked"]
    return AuditReport(
        len(rows),
        _ids(changed, "vector"),
        _ids(found["missing"], "vector"),
        tuple(orphans),
        _ids(changed | found["missing"], "gradient"),
    )


def _ids(rows: Iterable[Held], kind: str) -> tuple[str, ...]:
    return tuple(sorted(held.id for held in rows if held.kind == kind))
