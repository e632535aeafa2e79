"""How a running job says how far it is, and that it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from comgrad.service.errors import Conflict
from comgrad.service.store import work
from comgrad.service.store.database import Database

_OFTEN = 0.5  # seconds between two counts that are written down


class Progress:
    """The voice of one running job; a thread of its own keeps saying that the worker lives."""

    def __init__(self, database: Database, job: work.Job, worker: str, beat: float) -> None:
        self._db = database
        self._job = job
        self._worker = worker
        self._beat = beat
        self._steps = [dict(s) for s in job.steps]
        self._told = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"beat-{job.id}", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    @property
    def steps(self) -> Sequence[dict[str, str]]:
        """The steps as they stand."""
        return self._steps

    def step(self, name: str) -> None:
        """Begin a step; those before it are done. Raises Conflict when the job was given to another worker."""
        names = [s["name"] for s in self._steps]
        at = names.index(name)
        for i, s in enumerate(self._steps):
            s["state"] = "done" if i < at else "running" if i == at else "waiting"
        self._say(steps=self._steps, done=0, total=0)

    def count(self, done: int, total: int) -> None:
        """How far the step is; written down at most twice a second."""
        if done == total or time.monotonic() - self._told > _OFTEN:
            self._told = time.monotonic()
            self._say(done=done, total=total)

    def finished(self, state: str) -> Sequence[dict[str, str]]:
        """The steps of a job that is over."""
        for s in self._steps:
            if state == "done" or s["state"] == "running":
                s["state"] = state
        return self._steps

    def _say(self, **columns: object) -> None:
        with self._db.write() as rows:
            if not work.beat_job(rows, self._job.id, self._worker, **columns):
                raise Conflict(f"the job {self._job.id}", "another worker has it", "nothing is to be done")

    def _live(self) -> None:
        while not self._over.wait(self._beat):
            try:
                with self._db.write() as rows:
                    if not work.beat_job(rows, self._job.id, self._worker):
                        return
            except Exception:  # noqa: BLE001 - a busy database is no reason to stop; silence is noticed by others
                continue
