"""Jobs: submitted, run by workers, watched, and found again after a crash."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from comgrad.errors import ComgradError, NotFound, StorageError
from comgrad.service.auth.identity import Principal
from comgrad.service.errors import Busy, Conflict, TooMany, outward
from comgrad.service.jobs.progress import Progress
from comgrad.service.jobs.queue import open_queue
from comgrad.service.process import give_way
from comgrad.service.settings import Settings
from comgrad.service.store import work
from comgrad.service.store.database import Database, Rows, now
from comgrad.service.store.work import Job

log = logging.getLogger("comgrad.service.jobs")

Work = Callable[[Job, Progress], dict[str, Any]]
_LOOK = 0.05  # seconds between two looks at a job that is waited for


@dataclass(frozen=True)
class Kind:
    """A kind of job: its steps and what does it. `priority`: larger ones first. `after`: done once the result is kept;
    `failed`: once the error is, of a job that is not tried again."""

    steps: Sequence[str]
    work: Work
    priority: int = 0
    after: Callable[[Job], None] | None = None
    failed: Callable[[Job, dict[str, Any]], None] | None = None


class Jobs:
    """The queue and the rows of jobs as one."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._db = database
        self._settings = settings
        self._kinds: Mapping[str, Kind] = {}
        self._stale = timedelta(seconds=settings.job_stale_seconds)
        self._host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:16]  # whole: many begin alike
        self.worker = f"{self._host}:{os.getpid()}:{secrets.token_hex(4)}"
        self._huey = open_queue(settings.folder, settings.database)
        self._call = self._huey.task(name="run_job")(self._message)
        self._consumer: Any = None
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None
        self._on_look: list[Callable[[], object]] = []

    def register(self, kinds: Mapping[str, Kind]) -> None:
        """The kinds of jobs that there are."""
        self._kinds = kinds

    def each_minute(self, chore: Callable[[], object]) -> None:
        """Something to do about once a minute where workers run."""
        self._on_look.append(chore)

    # -- submitting and watching ---------------------------------------------------------------------------------
    def submit(self, kind: str, payload: dict[str, Any], account_id: str | None = None, key: str | None = None) -> Job:
        """Note a job durably and put it into the queue; of one `key` at most one waits. Raises TooMany (a quota)."""
        with self._db.write() as rows:
            job, new = self.note(rows, kind, payload, account_id, key)
        if new:
            self.push(job)
        return job

    def note(
        self, rows: Rows, kind: str, payload: dict[str, Any], account_id: str | None = None, key: str | None = None
    ) -> tuple[Job, bool]:
        """The row of a job in the transaction of what it belongs to, and whether it is new; `push` it afterwards."""
        if account_id is not None and work.waiting_jobs(rows, account_id) >= self._settings.max_jobs:
            why = f"{self._settings.max_jobs} of yours are waiting"
            raise TooMany("another job", why, "wait for them", seconds=30.0)
        return work.put_job(rows, kind, payload, account_id, list(self._kinds[kind].steps), key)

    def push(self, job: Job) -> None:
        """Put a noted job into the queue."""
        self._enqueue(job.id, self._kinds[job.kind].priority)

    def _enqueue(self, identity: str, priority: int = 0) -> None:
        try:
            self._call(identity, priority=priority)
        except Exception:
            log.exception("the queue did not take the job", extra={"job": identity})  # its row is there: `recover` does

    def get(self, who: Principal, identity: str) -> Job:
        """A job of the account that asks. Raises NotFound, SignInNeeded."""
        account = who.must("read")
        with self._db.read() as rows:
            found = work.job(rows, identity)
        if found is None or found.account_id != account:
            raise NotFound(f"the job {identity[:60]!a}", "you have none of that id", "see the list of your jobs")
        return found

    def list(self, who: Principal, limit: int = 50) -> list[Job]:
        """The account's jobs, newest first."""
        account = who.must("read")
        with self._db.read() as rows:
            return work.jobs_of(rows, account, max(1, min(limit, 200)))

    def wait(self, who: Principal, identity: str, seconds: float) -> Job:
        """A job, when it is over or the time is."""
        until = time.monotonic() + min(max(seconds, 0.0), 60.0)
        pause = _LOOK
        while not (found := self.get(who, identity)).over and time.monotonic() < until:
            time.sleep(pause)
            pause = min(1.5 * pause, 0.5)
        return found

    def counts(self) -> dict[str, int]:
        """State → number of jobs."""
        with self._db.read() as rows:
            return work.counts(rows)

    # -- running -------------------------------------------------------------------------------------------------
    def _message(self, identity: str) -> None:
        """What a worker does with a message. A job whose end could not be written down is found again by `recover`."""
        _quietly("a job's row could not be reached", lambda: self.run(identity))

    def run(self, identity: str) -> None:
        """Do a job, if it is to be done."""
        with self._db.write() as rows:
            job = work.claim_job(rows, identity, self.worker, self._stale)
        if job is None:
            return
        began = time.monotonic()
        with Progress(self._db, job, self.worker, self._settings.job_stale_seconds / 4) as progress:
            state, columns = self._done(job, progress)
        with self._db.write() as rows:
            ended = work.end_job(rows, job.id, self.worker, state, **columns)
        kind = self._kinds[job.kind]
        if ended and state == "done" and kind.after is not None:
            kind.after(job)
        if ended and state == "failed" and kind.failed is not None:
            kind.failed(job, columns["error"])
        told = {"job": job.id, "kind": job.kind, "state": state, "seconds": round(time.monotonic() - began, 3)}
        log.info("job ended", extra=told)

    def _done(self, job: Job, progress: Progress) -> tuple[str, dict[str, Any]]:
        again = job.attempts < self._settings.job_attempts
        if job.attempts > self._settings.job_attempts:  # it took its workers with it
            why = f"it ended its worker {job.attempts - 1} times"
            return "failed", {"error": _error(job, why), "steps": progress.finished("failed")}
        try:
            result = self._kinds[job.kind].work(job, progress)
        except (StorageError, Busy, Conflict) as error:
            if again:
                log.warning("job will be tried again", extra={"job": job.id, "code": error.code})
                return "queued", {"error": outward(error).as_dict()}
            return "failed", {"error": outward(error).as_dict(), "steps": progress.finished("failed")}
        except ComgradError as error:
            return "failed", {"error": error.as_dict(), "steps": progress.finished("failed")}
        except Exception:
            log.exception("job failed", extra={"job": job.id, "kind": job.kind})
            return "failed", {"error": _error(job, "the service made a mistake"), "steps": progress.finished("failed")}
        return "done", {"result": result, "error": None, "steps": progress.finished("done"), "done": 0, "total": 0}

    # -- workers -------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start this process's workers, and put back what an earlier process left."""
        self.recover(first=True)
        self._stop.clear()
        self._huey.on_startup("give way")(give_way)  # by each worker's thread
        self._consumer = self._huey.create_consumer(
            workers=self._settings.worker_threads,
            periodic=False,
            initial_delay=0.02,
            max_delay=0.25,
            check_worker_health=True,
            shutdown_timeout=20.0,
        )
        self._consumer._set_signal_handlers = lambda: None  # signals belong to the server around it
        self._consumer.start()
        self._keeper = threading.Thread(target=self._keep, name="job-keeper", daemon=True)
        self._keeper.start()

    def stop(self) -> None:
        """Let running jobs end for twenty seconds; what is not done by then is done after the next start."""
        self._stop.set()
        if self._consumer is not None:
            self._consumer.stop(graceful=True)
            self._consumer = None

    def close(self) -> None:
        """Close the queue."""
        self._huey.storage.close()

    def _keep(self) -> None:
        while not self._stop.wait(min(15.0, self._settings.job_stale_seconds / 2)):
            for chore in (self._consumer.check_worker_health, self.recover, *self._on_look):
                _quietly("a chore failed", chore)  # the next one is to be done all the same

    def recover(self, *, first: bool = False) -> Sequence[str]:
        """Put into the queue what should be in it and may not be. At the first start, also the jobs of this machine's
        processes that are no more."""
        with self._db.write() as rows:
            if first:
                dead = {w for w in work.workers(rows) if self._dead(w)}
                if dead:
                    work.free_jobs(rows, dead)
            lost = work.lost_jobs(rows, self._stale)
            work.old_jobs(rows, now() - timedelta(days=self._settings.job_days))
        if lost:
            queue = self._huey.storage.enqueued_items()
            present = {self._huey.serializer.deserialize(data).args[0] for data in queue}
            for identity in lost:
                if identity not in present:  # one that is being taken out just now comes twice, and is done once
                    self._enqueue(identity)
        return lost

    def _dead(self, worker: str) -> bool:
        host, pid, _ = (*worker.split(":"), "", "")[:3]
        if host != self._host or not pid.isdigit() or worker == self.worker:
            return False
        if int(pid) == os.getpid():
            return True  # an earlier one of this number
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def _quietly(what: str, work: Callable[[], object]) -> None:
    """Do something that is done again later; a storage that is away is a line, and a mistake of ours a whole trace."""
    try:
        work()
    except StorageError as error:
        log.warning(what, extra={"code": error.code})
    except Exception:
        log.exception(what)


def _error(job: Job, why: str) -> dict[str, str]:
    return ComgradError(
        f"the job {job.id}", why, "try again; tell the site's administrators if it stays", code="internal"
    ).as_dict()
