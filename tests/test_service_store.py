"""The service's tables: migrations make what the code says, on SQLite and PostgreSQL; writers exclude each other."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError, SQLAlchemyError

import stand_ins
from bounded import joined, started
from comgrad.errors import StorageError
from comgrad.service.errors import Conflict
from comgrad.service.store import people, things, trail, work
from comgrad.service.store.database import Database
from comgrad.service.store.tables import VERSION_TABLE, metadata
from service_site import running

API = "/api/v1"


@pytest.fixture(scope="module")
def server() -> Iterator[stand_ins.Postgres]:
    """A real PostgreSQL."""
    if not stand_ins.available():
        pytest.skip("the packages for a real PostgreSQL are not installed")
    with stand_ins.postgres() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = None if request.param == "sqlite" else request.getfixturevalue("server").new_database()
    found = Database(tmp_path / "service", url)
    yield found
    found.close()


def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    def ours(thing: object, name: str | None, kind: str, *rest: object) -> bool:
        return not (kind == "table" and name == VERSION_TABLE)

    with database.read() as rows:
        context = MigrationContext.configure(rows, opts={"compare_type": True, "include_object": ours})
        assert compare_metadata(context, metadata) == []


def test_opening_again_changes_nothing_and_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Database(tmp_path).close()
    again = Database(tmp_path)
    with again.write() as rows:
        rows.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = 's9999'")
    again.close()
    with pytest.raises(StorageError, match="newer than this comgrad"):
        Database(tmp_path)


def test_uploads_of_an_older_schema_count_with_the_bytes_they_declare(database: Database, tmp_path: Path) -> None:
    url = None if database.sqlite else database.engine.url.render_as_string(hide_password=False)
    parts = [{"name": "a", "size": 2**40, "sha256": "0"}, {"name": "b", "size": 5, "sha256": "0"}]
    until = datetime.now(UTC)
    with database.write() as rows:
        people.put_account(rows, "ac-1", "bob", password="x")
        more = {"account_id": "ac-1", "owner_id": "ac-1", "purpose": "share", "request": {}, "expires_at": until}
        for state in ("open", "checking", "done"):
            made = work.put_upload(rows, parts=parts, **more)
            work.change_upload(rows, made.id, state=state)
        before = work.open_uploads(rows, "ac-1")
        rows.exec_driver_sql("DROP INDEX ix_service_uploads_quota")
        rows.exec_driver_sql("DROP INDEX ix_service_jobs_waiting")
        rows.exec_driver_sql("ALTER TABLE service_uploads DROP COLUMN size_bytes")
        rows.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = 's0003'")
    again = Database(tmp_path / "service", url)
    with again.read() as rows:
        assert work.open_uploads(rows, "ac-1") == before == (2, 2 * (2**40 + 5))
        assert work.open_uploads(rows, "ac-2") == (0, 0)
    again.close()


def test_the_database_file_is_its_owners_alone(tmp_path: Path) -> None:
    found = Database(tmp_path)
    assert found.file.stat().st_mode & 0o077 == 0
    found.close()


def test_a_handle_is_taken_once(database: Database) -> None:
    with database.write() as rows:
        people.put_handle(rows, "bob", "bob", "ac-1", "account")
    with pytest.raises(Conflict, match="under the same key"), database.write() as rows:
        people.put_handle(rows, "bob", "b0b", "ac-2", "account")


def test_numbers_of_changes_are_in_the_order_of_commits(database: Database) -> None:
    seen: list[int] = []

    def change() -> None:
        for _ in range(10):
            with database.write() as rows:
                seen.append(things.next_version(rows))

    threads = [threading.Thread(target=change) for _ in range(4)]
    started(threads)
    joined(threads)
    assert seen == list(range(1, 41))


def test_the_audit_log_is_a_chain(database: Database) -> None:
    for i in range(3):
        with database.write() as rows:
            trail.append(rows, None, "bob", "act", f"target\n{i}", {"n": i}, "client")
    with database.read() as rows:
        assert trail.broken(rows) is None
        assert [e["number"] for e in trail.entries(rows, 2)] == [3, 2]
        assert [e["number"] for e in trail.entries(rows, 5, before=3)] == [2, 1]
    for sql, number in (
        ("UPDATE service_audit SET handle = 'eve' WHERE number = 2", 2),
        ("DELETE FROM service_audit WHERE number = 1", 2),
    ):
        with database.write() as rows:
            rows.exec_driver_sql(sql)
        with database.read() as rows:
            assert trail.broken(rows) == number


def test_the_service_works_over_both(database: Database, tmp_path: Path) -> None:
    url = None if database.sqlite else database.engine.url.render_as_string(hide_password=False)
    data = b"x" * 100
    parts = [{"name": "vector.safetensors", "size": 100, "sha256": hashlib.sha256(data).hexdigest()}]
    with running(tmp_path / "whole", database=url, workers="none") as site:
        assert site.call("member", "GET", f"{API}/orgs/lab").json()["org"]["members"] == 2
        made = site.call("owner", "POST", f"{API}/uploads", json={"parts": parts, "name": "näme"}).json()["upload"]
        assert site.send("owner", made["id"], "vector.safetensors", data, 0).status_code == 204
        done = site.call("owner", "POST", f"{API}/uploads/{made['id']}/complete")
        assert (done.status_code, done.json()["job"]["state"]) == (202, "queued")
        again = site.call("owner", "POST", f"{API}/uploads/{made['id']}/complete")
        assert again.json()["job"]["id"] == done.json()["job"]["id"]
        site.service.jobs.run(done.json()["job"]["id"])
        job = site.call("owner", "GET", f"{API}/jobs/{done.json()['job']['id']}").json()["job"]
        assert (job["state"], job["error"]["code"]) == ("failed", "header-too-large")
        assert site.call("owner", "GET", f"{API}/uploads/{made['id']}").json()["upload"]["state"] == "refused"
        assert site.call("anonymous", "GET", f"{API}/vectors?q=x").json()["total"] == 0
        assert site.client.get("/readyz").status_code == 200
        assert site.service.audit.broken() is None


@pytest.mark.parametrize(
    "place",
    [(Database, "_revision"), (people, "owner_by_key"), (people, "has_admin"), (things, "version")],
    ids=["migrations", "adoption", "first secret", "listings"],
)
def test_a_start_outlives_a_restart_of_the_database(
    server: stand_ins.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str]
) -> None:
    cut: list[Exception] = []
    owner, name = place
    own = getattr(owner, name)

    def killed(first: Any, *rest: Any) -> Any:
        if not cut:
            with contextlib.ExitStack() as inside:
                rows = first if isinstance(first, Connection) else inside.enter_context(first.read())
                cut.append(ValueError("the server did not end the connection"))
                try:
                    rows.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
                except SQLAlchemyError as error:
                    cut.append(error)
                    raise
        return own(first, *rest)

    monkeypatch.setattr(owner, name, killed)
    with running(tmp_path / "whole", database=server.new_database(), workers="none", publish_unowned=True) as site:
        assert site.service._warming is not None
        site.service._warming.join(timeout=60)
        assert site.client.get("/readyz").status_code == 200
        assert site.call("member", "GET", f"{API}/orgs/lab").status_code == 200
    assert [type(x) for x in cut] == [ValueError, OperationalError]
