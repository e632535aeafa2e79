"""The queue: nothing acknowledged is lost, whatever happens to the workers. On SQLite, and on PostgreSQL where it is."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huey.registry import Message

import stand_ins
from bounded import LONG, next_line
from comgrad.errors import NotFound
from comgrad.service.auth.identity import Principal
from comgrad.service.errors import TooMany
from comgrad.service.jobs.queue import JsonSerializer
from comgrad.service.jobs.runner import Jobs
from comgrad.service.store import people
from comgrad.service.store.database import Database
from service_worker import opened

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def server() -> Iterator[stand_ins.Postgres]:
    """A real PostgreSQL."""
    if not stand_ins.available():
        pytest.skip("the packages for a real PostgreSQL are not installed")
    with stand_ins.postgres() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str | None:
    """Where the rows and the queue are."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("server").new_database()
    return url


@contextlib.contextmanager
def worker(folder: Path, database: str | None) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(TESTS / "service_worker.py"), str(folder), *([database] if database else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout is not None
        assert next_line(process.stdout) == "working\n"
        yield process
    finally:
        process.kill()
        process.wait(LONG)
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def queue(folder: Path, database: str | None) -> Iterator[tuple[Database, Jobs, str]]:
    """The queue as a serving process has it, and an account."""
    store, jobs, _ = opened(folder, database)
    with store.write() as rows:
        people.put_account(rows, "ac-1", "bob")
    try:
        yield store, jobs, "ac-1"
    finally:
        jobs.stop()
        jobs.close()
        store.close()


def until(check: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_a_killed_workers_jobs_are_done_by_the_next(tmp_path: Path, database: str | None) -> None:
    file = tmp_path / "lines"
    who = Principal("ac-1", "bob")
    with queue(tmp_path, database) as (_, jobs, account):
        slow = jobs.submit("lines", {"file": str(file), "seconds": 30}, account)
        quick = [jobs.submit("lines", {"file": str(tmp_path / f"q{i}"), "seconds": 0}, account) for i in range(3)]
        with worker(tmp_path, database) as first:
            until(lambda: file.exists() and all(jobs.get(who, q.id).over for q in quick))
            later = jobs.submit("lines", {"file": str(tmp_path / "later"), "seconds": 0.2}, account)
            first.send_signal(signal.SIGKILL)
            first.wait(LONG)
        assert jobs.get(who, slow.id).state == "running"  # nobody knows yet
        file.with_suffix(".quick").touch()
        with worker(tmp_path, database):
            until(lambda: jobs.get(who, slow.id).over and jobs.get(who, later.id).over)
        done = jobs.get(who, slow.id)
        assert (done.state, done.attempts) == ("done", 2)
        assert file.read_text().splitlines() == ["first", "first", "second"]


def test_a_queue_that_lost_everything_is_filled_again(tmp_path: Path, database: str | None) -> None:
    who = Principal("ac-1", "bob")
    with queue(tmp_path, database) as (_, jobs, account):
        made = jobs.submit("lines", {"file": str(tmp_path / "x"), "seconds": 0}, account)
        jobs._huey.storage.flush_queue()
        with worker(tmp_path, database):
            until(lambda: jobs.get(who, made.id).state == "done")


def test_a_job_that_ends_its_workers_is_given_up(tmp_path: Path) -> None:
    who = Principal("ac-1", "bob")
    with queue(tmp_path, None) as (_, jobs, account):
        made = jobs.submit("lines", {"file": str(tmp_path / "x"), "seconds": 0, "die": True}, account)
        for _ in range(3):
            with worker(tmp_path, None) as process:
                process.wait(timeout=60)
        with worker(tmp_path, None):
            until(lambda: jobs.get(who, made.id).over)
        found = jobs.get(who, made.id)
        assert found.state == "failed"
        assert found.error is not None
        assert "ended its worker 3 times" in found.error["why"]


def test_two_messages_of_one_job_do_it_once(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    with queue(tmp_path, None) as (_, jobs, account):
        made = jobs.submit("lines", {"file": str(file), "seconds": 0}, account)
        for _ in range(3):
            jobs.run(made.id)
        assert file.read_text().splitlines() == ["first", "second"]
        assert [s["state"] for s in jobs.get(Principal("ac-1"), made.id).steps] == ["done", "done"]


def test_of_one_key_one_waits_and_accounts_have_a_quota(tmp_path: Path) -> None:
    store, jobs, _ = opened(tmp_path, None, max_jobs=2)
    payload = {"file": str(tmp_path / "x"), "seconds": 0}
    one, same = (jobs.submit("lines", payload, key="only") for _ in range(2))
    assert one.id == same.id
    for _ in range(2):
        jobs.submit("lines", payload, "ac-2")
    with pytest.raises(TooMany, match="2 of yours are waiting"):
        jobs.submit("lines", payload, "ac-2")
    with pytest.raises(NotFound, match="you have none of that id"):
        jobs.get(Principal("ac-3"), one.id)
    jobs.close()
    store.close()


def test_a_database_that_goes_and_comes_back_is_told_in_two_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three threads poll it four times a second and more."""
    if not stand_ins.available():
        pytest.skip("the packages for a real PostgreSQL are not installed")
    file, who = tmp_path / "lines", Principal("ac-1", "bob")

    def told(words: str) -> list[logging.LogRecord]:
        return [r for r in caplog.records if words in r.message]

    with stand_ins.postgres() as server, queue(tmp_path, server.new_database()) as (_, jobs, account):
        jobs.start()
        polls, storage = [0], jobs._huey.storage
        real = storage._connect

        def counted() -> object:
            polls[0] += 1
            return real()

        storage._create_connection = counted
        server.stop("fast")
        until(lambda: polls[0] >= 10)
        assert len(told("is away")) == 1
        assert told("is back") == []
        server.start()
        made = jobs.submit("lines", {"file": str(file), "seconds": 0}, account)
        until(lambda: jobs.get(who, made.id).over)
        until(lambda: bool(told("is back")))
    assert len(told("is away")) == len(told("is back")) == 1
    assert "server" in told("is away")[0].why or "connection" in told("is away")[0].why  # type: ignore[attr-defined]
    assert [r.message for r in caplog.records if r.name.startswith("huey") or r.exc_info] == []


def test_messages_are_json_and_nothing_is_unpickled() -> None:
    message = Message(id="1", name="x", args=("job-1",), kwargs={}, retries=0)
    data = JsonSerializer().serialize(message)
    assert JsonSerializer().deserialize(data)[:2] == ("1", "x")
    with pytest.raises(ValueError, match="."):
        JsonSerializer().deserialize(pickle.dumps(message))
