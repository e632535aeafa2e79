"""A worker process whose jobs only write lines, for the tests that kill it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from comgrad.service.jobs.progress import Progress
from comgrad.service.jobs.runner import Jobs, Kind
from comgrad.service.settings import Settings
from comgrad.service.store.database import Database
from comgrad.service.store.work import Job


def opened(folder: Path, database: str | None = None, **settings: Any) -> tuple[Database, Jobs, Settings]:
    """The queue over a folder, with the one kind of job."""
    chosen = Settings.checked(data=folder, job_stale_seconds=2.0, worker_threads=2, database=database, **settings)
    store = Database(chosen.folder, chosen.database)
    jobs = Jobs(store, chosen)

    def lines(job: Job, progress: Progress) -> dict[str, Any]:
        file = Path(job.payload["file"])
        for step in ("first", "second"):
            progress.step(step)
            with file.open("a") as out:
                out.write(f"{step}\n")
            time.sleep(0 if file.with_suffix(".quick").exists() else job.payload["seconds"])
        if job.payload.get("die") and job.attempts < 99:
            os.kill(os.getpid(), 9)
        return {"lines": len(file.read_text().splitlines())}

    jobs.register({"lines": Kind(("first", "second"), lines)})
    return store, jobs, chosen


if __name__ == "__main__":
    _, found, _ = opened(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
    found.start()
    print("working", flush=True)
    while True:
        time.sleep(1)
