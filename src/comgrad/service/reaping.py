"""What is left of uploads when they are over: files, rows, and vectors that came with one and were never listed."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from comgrad.registry.store import Store
from comgrad.service.audit import SERVICE, Audit
from comgrad.service.settings import Settings
from comgrad.service.store import work
from comgrad.service.store.database import Database, now
from comgrad.service.store.work import Job, UploadRow
from comgrad.service.uploads import Uploads
from comgrad.service.vectors import TAIL, drop_unlisted

YOUNG = 3600.0  # seconds that files are left alone: the row of their session is being written
MOST = 1000  # rows that go at one time


@dataclass(frozen=True)
class Reaper:
    """Clears up after uploads, about once a minute."""

    database: Database
    store: Store
    uploads: Uploads
    audit: Audit
    settings: Settings

    def reap(self) -> int:
        """End sessions whose time or job is over, delete files that none needs, and rows that ended long ago; how many
        sessions it ended."""
        with self.database.read() as rows:
            stale, live, left_over = work.stale_uploads(rows), work.live_uploads(rows), work.left_over_uploads(rows)
        for row in stale:
            self.uploads.end(row.id, "cancelled", only=("open",))
        for identity, state, error in left_over:  # the job ended, or ended its workers, before it said so here
            if state == "done":
                self.uploads.end(identity, "done", only=("checking",))
            else:
                self.give_up(identity, error)
        self._files(live)
        self._rows()
        return len(stale) + len(left_over)

    def failed(self, job: Job, error: dict[str, Any]) -> None:
        """Clear up after a job that is not tried again, at whatever step it failed."""
        self.give_up(str(job.payload["upload"]), error)

    def give_up(self, upload: str, error: dict[str, Any] | None) -> None:
        """End a session whose job failed for good; first the vector goes that an attempt may have stored."""
        with self.database.read() as rows:
            row = work.upload(rows, upload)
        if row is not None and row.state == "checking" and row.vector_id is not None:
            drop_unlisted(self.database, self.store, row.vector_id, "its upload was not taken in")
        self.uploads.end(upload, "refused", only=("checking",), error=error, vector_id=None)

    def drop_strays(self, uploads: Set[str]) -> int:
        """Remove the vectors that came with these uploads, by their names, and that nobody lists; how many. An earlier
        version wrote down of no upload which vector it brought."""
        tails = {i[-TAIL:] for i in uploads}
        found = [r.id for r in self.store.list() if r.name[-TAIL:] in tails]
        return sum(drop_unlisted(self.database, self.store, i, "its upload was not taken in") for i in found)

    def _files(self, live: Set[str]) -> None:
        for path in [p for p in self.uploads.folder.iterdir() if p.name not in live]:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < now().timestamp() - YOUNG:
                    shutil.rmtree(path, ignore_errors=True)

    def _rows(self) -> None:
        """Delete the rows of sessions that ended long ago; figures about them stay in the audit log."""
        before = now() - timedelta(days=self.settings.job_days)
        with self.database.read() as rows:
            old = work.ended_uploads(rows, before, MOST)
        if not old:
            return
        swept = {r.id for r in old}
        self.drop_strays(swept)  # once its row is gone, nothing tells a stray from the registry's own
        with self.database.write() as rows:
            left = [r for r in work.ended_uploads(rows, before, MOST) if r.id in swept]
            if left:  # another process may have been quicker
                work.drop_uploads(rows, [r.id for r in left])
                self.audit.write(rows, None, SERVICE, "uploads-reaped", "uploads", _figures(left))


def _figures(old: list[UploadRow]) -> dict[str, Any]:
    """What is kept of sessions: how many of each purpose and end, their bytes, and when they were."""
    ends = Counter(f"{r.purpose} {r.state}" for r in old)
    begun = sorted(r.created_at for r in old)
    return {
        "sessions": len(old),
        "accounts": len({r.account_id for r in old}),
        "ends": dict(sorted(ends.items())),
        "bytes": sum(int(p["size"]) for r in old for p in r.parts),
        "first": begun[0].isoformat(),
        "last": begun[-1].isoformat(),
    }
