"""Rows of upload sessions and jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, and_, delete, func, insert, null, or_, select, update

from comgrad.service.store import tables as t
from comgrad.service.store.database import Rows, new_id, now


@dataclass(frozen=True)
class UploadRow:
    """A row of the uploads; parts are [name, size, sha256].

    Args:
        vector_id: the vector that came of it; while it is checked, the one that it brings into the registry, if any.
    """

    id: str
    account_id: str
    owner_id: str
    purpose: str
    request: dict[str, Any]
    parts: tuple[dict[str, Any], ...]
    state: str
    job_id: str | None
    vector_id: str | None
    error: dict[str, Any] | None
    created_at: datetime
    expires_at: datetime
    size_bytes: int


def put_upload(rows: Rows, **columns: Any) -> UploadRow:
    """Insert an upload session."""
    identity, size = new_id("up"), sum(int(part["size"]) for part in columns["parts"])
    values = {"id": identity, "state": "open", "created_at": now(), "size_bytes": size}
    rows.execute(insert(t.uploads).values(**values, **columns))
    found = upload(rows, identity)
    assert found is not None
    return found


def upload(rows: Rows, identity: str) -> UploadRow | None:
    """One upload session."""
    row = rows.execute(select(t.uploads).where(t.uploads.c.id == identity)).first()
    return None if row is None else _upload(row)


def uploads_of(rows: Rows, account_id: str, limit: int) -> list[UploadRow]:
    """An account's upload sessions, newest first."""
    c = t.uploads.c
    query = select(t.uploads).where(c.account_id == account_id).order_by(c.created_at.desc()).limit(limit)
    return [_upload(r) for r in rows.execute(query)]


def open_uploads(rows: Rows, account_id: str) -> tuple[int, int]:
    """How many open sessions an account has, and the bytes they declare."""
    c = t.uploads.c
    query = select(func.count(), func.sum(c.size_bytes)).where(
        c.account_id == account_id, c.state.in_(["open", "checking"])
    )
    count, size = rows.execute(query).one()
    return int(count), int(size or 0)


def change_upload(rows: Rows, identity: str, *, only: Sequence[str] | None = None, **columns: Any) -> bool:
    """Change a session's columns, `only` while it is in one of these states; whether it was."""
    c = t.uploads.c
    where = c.id == identity if only is None else and_(c.id == identity, c.state.in_(only))
    return bool(rows.execute(update(t.uploads).where(where).values(columns)).rowcount)


def stale_uploads(rows: Rows) -> list[UploadRow]:
    """Open sessions that are over."""
    c = t.uploads.c
    return [_upload(r) for r in rows.execute(select(t.uploads).where(c.state == "open", c.expires_at < now()))]


def live_uploads(rows: Rows) -> set[str]:
    """Ids of the sessions whose files are still needed."""
    c = t.uploads.c
    return set(rows.execute(select(c.id).where(c.state.in_(["open", "checking"]))).scalars())


def ended_uploads(rows: Rows, before: datetime, limit: int) -> list[UploadRow]:
    """Sessions that are over and whose time was up before, oldest first."""
    c = t.uploads.c
    query = select(t.uploads).where(c.state.in_(["done", "refused", "cancelled"]), c.expires_at < before)
    return [_upload(r) for r in rows.execute(query.order_by(c.created_at).limit(limit))]


def drop_uploads(rows: Rows, identities: Sequence[str]) -> None:
    """Delete sessions."""
    rows.execute(delete(t.uploads).where(t.uploads.c.id.in_(identities)))


def left_over_uploads(rows: Rows) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Sessions that are being checked by a job that is over: id, the job's state, its error."""
    u, j = t.uploads.c, t.jobs.c
    query = select(u.id, j.state, j.error).join(t.jobs, j.id == u.job_id)
    return [
        (r[0], r[1], r[2]) for r in rows.execute(query.where(u.state == "checking", j.state.in_(["done", "failed"])))
    ]


def sharing_tails(rows: Rows, size: int) -> set[str]:
    """The last characters of the ids of all sessions that share: how the registry's names of their vectors end."""
    return {i[-size:] for i in rows.execute(select(t.uploads.c.id).where(t.uploads.c.purpose == "share")).scalars()}


def brought(rows: Rows) -> set[str]:
    """The vectors that are being taken in just now and were not in the registry before."""
    c = t.uploads.c
    query = select(c.vector_id).where(c.state == "checking", c.vector_id.is_not(None))
    return {str(i) for i in rows.execute(query).scalars()}


def _upload(row: Row[Any]) -> UploadRow:
    values = dict(row._mapping)
    return UploadRow(**{**values, "parts": tuple(values["parts"])})


@dataclass(frozen=True)
class Job:
    """A job and how far it is.

    Args:
        steps: [{name, state}] with state `waiting`, `running`, `done` or `failed`.
        done, total: of the running step, where it can be counted.
    """

    id: str
    kind: str
    account_id: str | None
    payload: dict[str, Any]
    state: str
    steps: tuple[dict[str, str], ...]
    done: int
    total: int
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def step(self) -> str:
        """The step that is running."""
        return next((s["name"] for s in self.steps if s["state"] == "running"), "")

    @property
    def over(self) -> bool:
        """Whether it is done or failed."""
        return self.state in ("done", "failed")

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the payload."""
        plain = ("id", "kind", "state", "step", "done", "total", "result", "error", "attempts")
        out = {n: getattr(self, n) for n in plain} | {"steps": list(self.steps)}
        times = ("created_at", "started_at", "finished_at")
        return out | {n: v.isoformat() if (v := getattr(self, n)) else None for n in times}


_JOB = ("id", "kind", "account_id", "payload", "state", "steps", "done", "total", "result", "error", "attempts")
_COLUMNS = [t.jobs.c[n] for n in (*_JOB, "created_at", "started_at", "finished_at")]


def put_job(
    rows: Rows, kind: str, payload: dict[str, Any], account_id: str | None, steps: list[str], key: str | None
) -> tuple[Job, bool]:
    """Insert a job, or find the waiting one of the same key; and whether it is new."""
    c = t.jobs.c
    if key is not None:
        found = rows.execute(select(*_COLUMNS).where(c.key == key, c.state == "queued")).first()
        if found is not None:
            return _job(found), False
    values = {"id": new_id("job"), "kind": kind, "key": key, "account_id": account_id, "payload": payload}
    begun = {"state": "queued", "done": 0, "total": 0, "attempts": 0, "created_at": now()}
    waiting = [{"name": s, "state": "waiting"} for s in steps]
    rows.execute(insert(t.jobs).values(**values, **begun, steps=waiting))
    made = job(rows, str(values["id"]))
    assert made is not None
    return made, True


def job(rows: Rows, identity: str) -> Job | None:
    """One job."""
    row = rows.execute(select(*_COLUMNS).where(t.jobs.c.id == identity)).first()
    return None if row is None else _job(row)


def jobs_of(rows: Rows, account_id: str, limit: int) -> list[Job]:
    """An account's jobs, newest first, without their results (which hold whole reports)."""
    c = t.jobs.c
    columns = [null().label("result") if x.name == "result" else x for x in _COLUMNS]
    query = select(*columns).where(c.account_id == account_id).order_by(c.created_at.desc()).limit(limit)
    return [_job(r) for r in rows.execute(query)]


def waiting_jobs(rows: Rows, account_id: str) -> int:
    """How many jobs of an account are not over."""
    c = t.jobs.c
    query = select(func.count()).where(c.account_id == account_id, c.state.in_(["queued", "running"]))
    return int(rows.execute(query).scalar_one())


def counts(rows: Rows) -> dict[str, int]:
    """State → number of jobs."""
    c = t.jobs.c
    return {row[0]: int(row[1]) for row in rows.execute(select(c.state, func.count()).group_by(c.state))}


def claim_job(rows: Rows, identity: str, worker: str, stale: timedelta) -> Job | None:
    """Take a job that waits, or whose worker has been silent for `stale`; None when another has it or it is over."""
    c = t.jobs.c
    free = or_(c.state == "queued", and_(c.state == "running", c.beat_at < now() - stale))
    values = {"state": "running", "worker": worker, "beat_at": now(), "attempts": c.attempts + 1}
    times = {"started_at": now(), "error": None}
    if not rows.execute(update(t.jobs).where(c.id == identity, free).values(**values, **times)).rowcount:
        return None
    return job(rows, identity)


def beat_job(rows: Rows, identity: str, worker: str, **columns: Any) -> bool:
    """Note that the worker lives, and what it says; False when the job is no longer this worker's."""
    c = t.jobs.c
    mine = and_(c.id == identity, c.worker == worker, c.state == "running")
    return bool(rows.execute(update(t.jobs).where(mine).values(beat_at=now(), **columns)).rowcount)


def end_job(rows: Rows, identity: str, worker: str, state: str, **columns: Any) -> bool:
    """End a job that is this worker's."""
    finished = None if state == "queued" else now()
    return beat_job(rows, identity, worker, state=state, finished_at=finished, **columns)


def lost_jobs(rows: Rows, stale: timedelta) -> list[str]:
    """Jobs that wait or whose worker is silent, oldest first: what must be in the queue."""
    c = t.jobs.c
    silent = and_(c.state == "running", c.beat_at < now() - stale)
    query = select(c.id).where(or_(c.state == "queued", silent)).order_by(c.created_at)
    return [str(i) for i in rows.execute(query).scalars()]


def workers(rows: Rows) -> set[str]:
    """The workers that have a job."""
    c = t.jobs.c
    return {str(w) for w in rows.execute(select(c.worker).where(c.state == "running")).scalars() if w}


def free_jobs(rows: Rows, workers: set[str]) -> None:
    """Put the running jobs of workers that are known to be dead back to waiting."""
    c = t.jobs.c
    rows.execute(
        update(t.jobs).where(c.state == "running", c.worker.in_(sorted(workers))).values(state="queued", worker=None)
    )


def old_jobs(rows: Rows, before: datetime) -> int:
    """Delete jobs that ended before; how many."""
    c = t.jobs.c
    return int(rows.execute(delete(t.jobs).where(c.finished_at < before)).rowcount)


def _job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    return Job(**{**values, "steps": tuple(values["steps"])})
