"""Uploads: declared first, sent in chunks at an offset, resumed after a cut, checked against the declared digest.

A session has one to five named parts, each with its size and SHA-256, and no archive. Bytes go into a file of a name that
the server made; the file's length is the offset, so nothing is believed that is not on the disk. When all parts are whole
a job reads them strictly, writes the vector again in our own bytes, and the sent files are deleted whatever comes of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from anyio import to_thread

from comgrad.errors import ComgradError, FileRefused, NotFound
from comgrad.registry import disk
from comgrad.registry.card import Card
from comgrad.registry.names import checked_name
from comgrad.service.auth.identity import Principal
from comgrad.service.errors import Busy, Conflict, Forbidden, TooMany
from comgrad.service.jobs.runner import Jobs
from comgrad.service.listings import checked_visibility
from comgrad.service.parcels import NewUpload, Upload, check_parts
from comgrad.service.receiving import appending, check_digest, take
from comgrad.service.settings import Settings
from comgrad.service.store import things, work
from comgrad.service.store.database import Database, Rows, now
from comgrad.service.store.work import Job, UploadRow
from comgrad.weights.hub import is_repo_id
from comgrad.workflows.searching import checked_description


class Uploads:
    """Upload sessions over rows and files."""

    def __init__(self, database: Database, settings: Settings, jobs: Jobs) -> None:
        self._db = database
        self._settings = settings
        self._jobs = jobs
        self.folder = settings.folder / "uploads"
        with disk.storage(f"the folder '{self.folder}'"):
            disk.make_parents(self.folder)

    # -- sessions ------------------------------------------------------------------------------------------------
    def create(self, who: Principal, new: NewUpload) -> Upload:
        """Begin a session. Raises Forbidden, TooLarge, TooMany, NameTaken, ComgradError."""
        account = who.must("write")
        check_parts(new.parts, self._settings.max_upload_bytes)
        if new.purpose not in ("share", "explain"):
            raise ComgradError(f"the purpose {new.purpose[:40]!a}", "there is none", "share or explain", code="purpose")
        request = self._request(who, new)
        until = now() + timedelta(hours=self._settings.upload_hours)
        with self._db.write() as rows:
            self._check_quota(rows, account, sum(p.size for p in new.parts), new.purpose)
            row = work.put_upload(
                rows,
                account_id=account,
                owner_id=request["owner_id"],
                purpose=new.purpose,
                request=request,
                parts=[dict(p.__dict__) for p in new.parts],
                expires_at=until,
            )
        with disk.storage("the folder of uploads"):
            (self.folder / row.id).mkdir(mode=0o700, exist_ok=True)
        return self._seen(row)

    def _request(self, who: Principal, new: NewUpload) -> dict[str, Any]:
        """What the job needs to know, checked before a byte is sent."""
        owner = who.handle if new.owner is None else new.owner
        owner_id = who.account_id if owner == who.handle else who.org_ids.get(owner)
        if owner_id is None:
            raise Forbidden(f"sharing as {owner[:60]!a}", "you are in no organisation of that handle", "check it")
        if new.base is not None and not (is_repo_id(new.base) and len(new.base) <= 200):
            raise ComgradError(f"the base {new.base[:80]!a}", "it is no name on the model hub", "write owner/name")
        card = Card.from_dict(new.card, what="the card") if new.card is not None else None
        return {
            "owner": owner,
            "owner_id": owner_id,
            "name": checked_name(new.name) if new.name.strip() else "",
            "description": checked_description(new.description) if new.description.strip() else "",
            "claim": checked_description(new.claim) if new.claim.strip() else "",
            "base": new.base,
            "visibility": checked_visibility(new.visibility),
            "tags": list(new.tags),
            "card": card.to_dict() if card is not None else None,
        }

    def _check_quota(self, rows: Rows, account: str, size: int, purpose: str) -> None:
        count, declared = work.open_uploads(rows, account)
        if count >= self._settings.max_open_uploads:
            raise TooMany("another upload", f"{count} of yours are open", "complete or cancel one", code="quota")
        vectors, held = things.held_by(rows, account)
        if purpose == "share" and vectors >= self._settings.max_vectors:
            raise TooMany("another vector", f"you share {vectors} already", "remove one", code="quota")
        if held + declared + size > self._settings.max_stored_bytes:
            raise TooMany(f"{size} more bytes", "they are over your quota", "remove something", code="quota")
        if shutil.disk_usage(self.folder).free < size + self._settings.min_free_bytes:
            raise Busy("the upload", "the service has too little room for it", "try again later", code="disk-full")

    def get(self, who: Principal, identity: str) -> Upload:
        """A session of the account that asks. Raises NotFound."""
        return self._seen(self._mine(who, identity))

    def list(self, who: Principal, limit: int = 50) -> list[Upload]:
        """The account's sessions, newest first."""
        account = who.must("read")
        with self._db.read() as rows:
            return [self._seen(r) for r in work.uploads_of(rows, account, max(1, min(limit, 200)))]

    def _mine(self, who: Principal, identity: str) -> UploadRow:
        account = who.must("write")
        with self._db.read() as rows:
            found = work.upload(rows, identity)
        if found is None or found.account_id != account:
            raise NotFound(f"the upload {identity[:60]!a}", "you have none of that id", "begin a new one")
        return found

    def _seen(self, row: UploadRow) -> Upload:
        return Upload(row, {p["name"]: self._received(row.id, p["name"]) for p in row.parts})

    def _received(self, identity: str, part: str) -> int:
        try:
            return self.path(identity, part).stat().st_size
        except FileNotFoundError:
            return 0

    def path(self, identity: str, part: str) -> Path:
        """Where a part's bytes are: both names are the server's own, the part's is one of a few."""
        return self.folder / identity / part

    # -- bytes ---------------------------------------------------------------------------------------------------
    async def append(
        self, who: Principal, identity: str, part: str, offset: int, chunks: AsyncIterator[bytes]
    ) -> Upload:
        """Write what comes at the offset; what arrived before a cut stays. Raises Conflict (`offset`, with the right
        one in `given`), TooLarge, TooSlow, NotFound."""
        row = await to_thread.run_sync(self._open, who, identity)
        declared = next((p for p in row.parts if p["name"] == part), None)
        if declared is None:
            raise NotFound(f"the part {part[:60]!a}", "this upload has none of that name", "see its list of parts")
        limits = self._settings
        with appending(self.path(identity, part)) as fd:
            at = os.fstat(fd).st_size
            if at != offset:
                raise Conflict(f"offset {offset}", f"{at} bytes are here", f"go on at {at}", code="offset")
            room = min(declared["size"] - at, limits.max_chunk_bytes)
            await take(fd, chunks, room, idle=limits.chunk_idle_seconds, whole=4 * limits.body_seconds)
        return self._seen(row)

    def _open(self, who: Principal, identity: str) -> UploadRow:
        row = self._mine(who, identity)
        if row.state != "open":
            raise _over(row)
        return row

    # -- the end -------------------------------------------------------------------------------------------------
    def complete(self, who: Principal, identity: str) -> tuple[Upload, Job]:
        """Check that all parts are whole and hand them to a job; for one that was handed over, give its job.

        Raises:
            Conflict: (`incomplete`) bytes are missing. FileRefused: (`digest-mismatch`) a part is not what was
                declared; the session is over and its bytes are deleted.
        """
        row = self._mine(who, identity)
        if row.state == "open":
            try:
                return self._handed_over(who, row)
            except ComgradError:
                row = self._mine(who, identity)
                if row.state == "open" or row.job_id is None:
                    raise
                # another completion was first, and its job may have taken the files already: the job answers for both
        if row.job_id is None:
            raise _over(row)
        return self._seen(row), self._jobs.get(who, row.job_id)

    def _handed_over(self, who: Principal, row: UploadRow) -> tuple[Upload, Job]:
        if row.owner_id not in who.owner_ids:
            raise Forbidden(f"sharing as {row.request['owner']}", "you are in that organisation no more", "begin anew")
        for p in row.parts:
            received = self._received(row.id, p["name"])
            if received != p["size"]:
                why = f"{received} of {p['size']} bytes of '{p['name']}' are here"
                raise Conflict(f"the upload {row.id}", why, "send the rest", code="incomplete")
        try:
            for p in row.parts:
                check_digest(self.path(row.id, p["name"]), p)
        except FileRefused as error:
            self.end(row.id, "refused", only=("open",), error=error.as_dict())
            raise
        with self._db.write() as rows:
            if not work.change_upload(rows, row.id, only=("open",), state="checking"):
                raise Conflict(f"the upload {row.id}", "another request completes it", "look at it again")
            kind = "admit" if row.purpose == "share" else "explain"
            job, _ = self._jobs.note(rows, kind, {"upload": row.id}, row.account_id)
            work.change_upload(rows, row.id, job_id=job.id)
        self._jobs.push(job)
        return self.get(who, row.id), job

    def end(self, identity: str, state: str, *, only: Sequence[str] = ("open", "checking"), **columns: Any) -> None:
        """End a session that is in one of these states, and delete its files; one that is over stays as it ended."""
        with self._db.write() as rows:
            ended = work.change_upload(rows, identity, only=only, state=state, **columns)
        if ended:
            self.clear(identity)

    def clear(self, identity: str) -> None:
        """Delete the files of a session that is over."""
        shutil.rmtree(self.folder / identity, ignore_errors=True)

    def cancel(self, who: Principal, identity: str) -> Upload:
        """Give a session up. Raises NotFound, Conflict when it is being checked."""
        row = self._mine(who, identity)
        if row.state == "open":
            self.end(row.id, "cancelled", only=("open",))
        found = self.get(who, identity)
        if found.row.state == "checking":
            raise Conflict(f"the upload {row.id}", "it is being checked", "wait for its job", code="upload-state")
        return found


def _over(row: UploadRow) -> Conflict:
    return Conflict(f"the upload {row.id}", f"it is {row.state}", "begin a new one", code="upload-state")
