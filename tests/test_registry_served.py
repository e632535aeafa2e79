"""The larger size by itself: addresses, secrets, outages, uploads in parts, local copies, the schema on PostgreSQL."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stand_ins
from bounded import joined, started
from comgrad.errors import ComgradError, FileRefused, StorageError

if not stand_ins.available():
    pytest.skip("the packages of the larger size are not installed", allow_module_level=True)

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from botocore.exceptions import ClientError

from comgrad.registry import database, objects, postgres, served_tables
from comgrad.registry.card import Card
from comgrad.registry.copies import LocalCopies
from comgrad.registry.models import REVISIONS, Entry, Facts, metadata
from comgrad.registry.places import FolderPlace, configured
from comgrad.registry.s3 import S3Blobs
from comgrad.registry.served import ServedPlace
from comgrad.registry.store import Store
from comgrad.types import BaseRef

FACTS = Facts(BaseRef("m"), "lowrank", 1, 1.0)
SECRETS = ("never-printed-password", "never-printed-secret", "hunter2")


@pytest.fixture(autouse=True)
def servers(monkeypatch: pytest.MonkeyPatch) -> stand_ins.Servers:
    found = stand_ins.servers()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def url(servers: stand_ins.Servers) -> str:
    return servers.postgres.new_database(servers.template())


@pytest.fixture
def place(url: str, tmp_path: Path) -> ServedPlace:
    return ServedPlace(url, stand_ins.new_prefix(), tmp_path)


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[S3Blobs]:
    address = objects.Address.parsed(stand_ins.new_prefix())
    found = S3Blobs(address, LocalCopies(tmp_path / "copies"), part=5 << 20)
    found.prepare()
    yield found
    found.close()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(data: bytes, name: str) -> Entry:
    return Entry(data, Card.make(name=name), FACTS)


# -- addresses and secrets -------------------------------------------------------------------------------------------
def test_the_environment_says_where_the_registry_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(configured(), FolderPlace)
    monkeypatch.setenv("COMGRAD_DATABASE", "postgresql+psycopg://me:hunter2@db.example/registry?sslpassword=hunter2")
    with pytest.raises(ComgradError, match="COMGRAD_DATABASE is set; COMGRAD_BLOBS is not, .*; set COMGRAD_BLOBS too"):
        configured()
    monkeypatch.setenv("COMGRAD_BLOBS", "s3://bucket/some/prefix/")
    found = configured()
    assert isinstance(found, ServedPlace)
    assert found.what == "the registry 'postgresql+psycopg://me:***@db.example/registry with s3://bucket/some/prefix'"
    assert "hunter2" not in repr(found) + repr(vars(found)) + repr(found.blobs)
    monkeypatch.setenv("COMGRAD_COPIES_GIB", "many")
    with pytest.raises(ComgradError, match="COMGRAD_COPIES_GIB='many'; it is not a number of gibibytes"):
        configured()


@pytest.mark.parametrize(
    ("database_url", "blobs_url", "why"),
    [
        ("hunter2", "s3://bucket", "it is no address of a database"),
        ("mysql://me:hunter2@host/db", "s3://bucket", "it is no address of a database|'mysql' is not supported"),
        ("sqlite:///hunter.db", "s3://bucket", "'sqlite' is not supported"),
        ("postgresql+psycopg://me:hunter2@host", "s3://bucket", "it names no database"),
        ("postgresql+psycopg://me:hunter2@host/db", "s3://AKIA:hunter2@bucket/x", "it is not s3://BUCKET/PREFIX"),
        ("postgresql+psycopg://me:hunter2@host/db", "s3://bucket/../other", "it is not s3://BUCKET/PREFIX"),
        ("postgresql+psycopg://me:hunter2@host/db", "https://me:hunter2@host/x", "it is not s3://BUCKET/PREFIX"),
    ],
)
def test_what_is_no_address_is_refused_without_showing_a_secret(
    database_url: str, blobs_url: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(ComgradError, match=why) as caught:
        ServedPlace(database_url, blobs_url, tmp_path)
    assert caught.value.code == "bad-address"
    assert "me:hunter2" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


def test_no_error_shows_a_secret(
    place: ServedPlace, servers: stand_ins.Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comgrad.registry.served.OPENING_SECONDS", 0.0)
    url = servers.postgres.url("none")
    told = []
    for bad in (url, url.replace(str(servers.postgres.folder), "/nowhere")):
        with pytest.raises(StorageError) as caught:
            Store(ServedPlace(bad, str(place.blobs.address), tmp_path))
        told.append(caught.value)
    with Store(place) as store:
        store.add(entry(b"x", "x"))
        told.append(StorageError(repr(store), repr(store.place), repr(store._engine.url)))
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        store.blobs.close()  # type: ignore[attr-defined]
        with pytest.raises(StorageError) as caught:
            store.blobs.exists("0" * 64)
        told.append(caught.value)
    with pytest.raises(StorageError, match="there is no such bucket; create it, or correct COMGRAD_BLOBS") as caught:
        monkeypatch.setenv("AWS_ENDPOINT_URL", servers.endpoint)
        Store(ServedPlace(servers.postgres.new_database(servers.template()), "s3://another-bucket/x", tmp_path))
    told.append(caught.value)
    assert [error.code for error in told] == [
        "database-missing",
        "unavailable",
        "storage",
        "unavailable",
        "bucket-missing",
    ]
    assert "hunter2" not in repr(postgres.engine(postgres.parsed("postgresql+psycopg://h/d?sslpassword=hunter2")).url)
    for error in told:
        for secret in SECRETS:
            assert secret not in str(error) + repr(error)


def test_a_database_and_a_bucket_that_do_not_belong_together_are_refused(
    place: ServedPlace, url: str, servers: stand_ins.Servers, tmp_path: Path
) -> None:
    with Store(place, grace=0.0) as store:
        store.add(entry(b"x", "x"))
    new, other = servers.postgres.new_database(), stand_ins.new_prefix()
    for bad, why in (
        (ServedPlace(new, str(place.blobs.address), tmp_path), "the bucket belongs to another database"),
        (ServedPlace(url, other, tmp_path), "the bucket holds no registry"),
    ):
        with pytest.raises(StorageError, match=why) as caught:
            Store(bad, grace=0.0)
        assert caught.value.code == "registry-mismatch"
    place.blobs._s3().delete_object(Bucket=stand_ins.BUCKET, Key=f"{place.blobs.address.prefix}registry.json")
    with pytest.raises(StorageError, match="the database is new and the bucket holds blobs that nothing names"):
        Store(ServedPlace(servers.postgres.new_database(), str(place.blobs.address), tmp_path), grace=0.0)
    assert place.blobs.verify(digest(b"x")) == "ok"


# -- outages ---------------------------------------------------------------------------------------------------------
def test_clients_recover_when_the_database_crashes_under_load(place: ServedPlace, servers: stand_ins.Servers) -> None:
    acknowledged: list[str] = []
    errors: list[BaseException] = []
    going = threading.Event()
    going.set()

    def work(number: int) -> None:
        try:
            i = 0
            while going.is_set():
                i += 1
                result = store.add(entry(f"{number} {i}".encode(), f"of {number} no {i}"))
                assert result.status == "added"
                assert result.record is not None
                acknowledged.append(result.record.digest)
                if i % 3 == 0:
                    store.remove(result.record.id, "load")
                    acknowledged.remove(result.record.digest)
                store.search("of")
                store.get(f"of {number} no 1")
        except BaseException as error:  # noqa: BLE001 - told below, in the test's own thread
            errors.append(error)

    with Store(place) as store:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        started(threads)
        for mode in ("immediate", "fast"):
            time.sleep(1.0)
            servers.postgres.stop(mode)
            time.sleep(0.5)
            servers.postgres.start()
            before = len(acknowledged)
            deadline = time.monotonic() + 60
            while len(acknowledged) < before + 6 and not errors and time.monotonic() < deadline:
                time.sleep(0.1)
            assert len(acknowledged) >= before + 6 or errors
        going.clear()
        joined(threads)
        assert errors == []
        assert {row.digest for row in store.list()} == set(acknowledged)
        assert store.audit().ok


def test_an_outage_that_lasts_is_told(
    place: ServedPlace, servers: stand_ins.Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(place) as store:
        store.add(entry(b"x", "x"))
        monkeypatch.setattr(postgres, "PATIENCE_SECONDS", 0.2)
        servers.postgres.stop("fast")
        try:
            with pytest.raises(StorageError, match="the database does not answer: .*; check that it runs") as caught:
                store.list()
            assert caught.value.code == "unavailable"
        finally:
            servers.postgres.start()
        assert [row.name for row in store.list()] == ["x"]


def test_a_commit_whose_answer_was_lost_is_recognised(place: ServedPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(place) as store:
        real, lost = store.catalogue.writing, [0]

        @contextlib.contextmanager
        def losing() -> Iterator[Any]:
            with real() as rows:
                yield rows
            lost[0] += 1
            if lost[0] in (1, 3):
                raise StorageError("it", "the connection was lost", "try again", code="unavailable")

        monkeypatch.setattr(store.catalogue, "writing", losing)
        assert store.add(entry(b"x", "x")).status == "added"
        assert store.add(entry(b"x", "x")).status == "exists"
        assert store.remove("x", "why").removed_reason == "why"
        assert lost[0] >= 4
        with pytest.raises(ComgradError, match="it was removed"):
            store.remove("x")


def test_work_that_collides_is_done_again(place: ServedPlace) -> None:
    with Store(place) as store:
        tries: list[int] = []

        def collide(connection: Any) -> str:
            tries.append(1)
            if len(tries) < 4:
                state = "40001" if len(tries) % 2 else "40P01"
                connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = '{state}'; END $$")
            return "done"

        assert store.catalogue.read(collide) == "done"
        assert len(tries) == 4


def test_a_lock_that_is_held_too_long_and_a_standby_are_told(place: ServedPlace, url: str, tmp_path: Path) -> None:
    with Store(place) as store:
        hasty = ServedPlace(url + "&options=-c lock_timeout%3D100", str(place.blobs.address), tmp_path)
        with (
            Store(hasty) as other,
            store.catalogue.writing(),
            pytest.raises(StorageError, match="held it for") as caught,
        ):
            other.add(entry(b"x", "x"))
        assert caught.value.code == "locked"
        readers = ServedPlace(
            url + "&options=-c default_transaction_read_only%3Don", str(place.blobs.address), tmp_path
        )
        with pytest.raises(StorageError, match="the database cannot be written") as caught, Store(readers) as other:
            other.add(entry(b"y", "y"))
        assert caught.value.code == "read-only"


# -- the schema ------------------------------------------------------------------------------------------------------
def test_the_migrations_make_exactly_the_models_on_postgresql(place: ServedPlace) -> None:
    with Store(place) as store, store._engine.connect() as connection:
        for tables, version in ((metadata, "alembic_version"), (served_tables.metadata, "alembic_version_served")):
            options = {
                "compare_type": True,
                "version_table": version,
                "include_name": lambda name, kind, _, tables=tables: kind != "table" or name in tables.tables,
            }
            context = MigrationContext.configure(connection, opts=options)
            found = compare_metadata(context, tables)
            assert [f for f in found if "fk" not in str(f[0])] == []


@pytest.mark.parametrize("version", REVISIONS)
def test_every_earlier_schema_on_postgresql_is_upgraded_with_its_rows(servers: stand_ins.Servers, version: str) -> None:
    engine = postgres.engine(postgres.parsed(servers.postgres.new_database()))
    columns = (
        "id, digest, name, name_key, description, search_text, base_name, kind, size_bytes, card, state, created_at"
    )
    values = f"'tv-{'0' * 16}', '{'0' * 64}', 'One', 'one', '', 'one', 'm', 'lowrank', 1, '{{}}', 'active', now()"
    with database.transaction(engine, write=True, what="it") as connection:
        database.migrate(connection, to=version)
        connection.exec_driver_sql(f"INSERT INTO vectors ({columns}) VALUES ({values})")
    assert database.revision(engine, "it") == version
    database.upgrade(engine, "it")
    database.upgrade(engine, "it")
    assert database.revision(engine, "it") == database.HEAD
    with database.transaction(engine, write=False, what="it") as connection:
        assert connection.exec_driver_sql("SELECT name, digest FROM vectors").all() == [("One", "0" * 64)]
        assert connection.exec_driver_sql("SELECT count(*) FROM gradients").scalar() == 0
    engine.dispose()


def test_an_owner_who_is_no_superuser_needs_nothing_made_first(servers: stand_ins.Servers, tmp_path: Path) -> None:
    new = servers.postgres.new_database()
    name = postgres.parsed(new).database
    admin = postgres.engine(postgres.parsed(new))
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE ROLE owner_{name} LOGIN")
        connection.exec_driver_sql(f"ALTER DATABASE {name} OWNER TO owner_{name}")
    theirs = ServedPlace(new.replace("comgrad:", f"owner_{name}:"), stand_ins.new_prefix(), tmp_path)
    admin.dispose()
    with Store(theirs) as store:
        assert store.add(entry(b"x", "x")).status == "added"


def test_a_reader_sees_one_moment(place: ServedPlace) -> None:
    with Store(place) as store:
        store.add(entry(b"1", "one"))
        with database.transaction(store._engine, write=False, what="it") as connection:
            count = "SELECT count(*) FROM vectors"
            before = connection.exec_driver_sql(count).scalar()
            store.add(entry(b"2", "two"))
            assert connection.exec_driver_sql(count).scalar() == before == 1


# -- blobs -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [0, 1, 5 << 20, (5 << 20) + 1, (11 << 20) + 7])
def test_blobs_of_any_size_come_back(blobs: S3Blobs, size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert blobs.put(tmp_path / "file") == blobs.put(data) == (digest(data), size)
    assert list(blobs.digests()) == [digest(data)]
    assert blobs.verify(digest(data)) == "ok"
    blobs.copies.drop(digest(data))
    assert blobs.path(digest(data)).read_bytes() == data
    assert 0 <= blobs.age(digest(data)) < 100
    assert blobs.delete(digest(data))
    assert not blobs.delete(digest(data))
    assert blobs.age(digest(data)) == float("inf")


def test_an_upload_that_is_cut_leaves_nothing_to_see_and_is_swept(
    blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, real, parts = os.urandom(11 << 20), blobs._call, []

    def cut(operation: str, name: str, **values: Any) -> Any:
        if operation == "abort_multipart_upload":
            raise StorageError("the process", "it was killed", "start it again")
        if operation == "upload_part":
            parts.append(1)
            if len(parts) == 2:
                raise KeyboardInterrupt
        return real(operation, name, **values)

    monkeypatch.setattr(blobs, "_call", cut)
    with pytest.raises(KeyboardInterrupt):
        blobs.put(data)
    monkeypatch.undo()
    assert list(blobs.digests()) == []
    assert not blobs.exists(digest(data))
    assert blobs.sweep(0.0) == 1
    assert blobs.sweep(0.0) == 0
    assert blobs.put(data)[0] == digest(data)


def test_an_upload_whose_parts_were_swept_is_begun_again(blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    data, real, swept = os.urandom(6 << 20), blobs._call, []

    def sweeping(operation: str, name: str, **values: Any) -> Any:
        if operation == "upload_part" and not swept:
            swept.append(blobs.sweep(0.0))
            raise ClientError({"Error": {"Code": "NoSuchUpload"}}, operation)  # the stand-in says 500 instead
        return real(operation, name, **values)

    monkeypatch.setattr(blobs, "_call", sweeping)
    assert blobs.put(data)[0] == digest(data)
    assert (swept, blobs.verify(digest(data))) == ([1], "ok")


def test_an_object_that_is_there_is_kept_if_right_and_replaced_if_wrong(
    blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, real = [], blobs._call
    monkeypatch.setattr(
        blobs, "_call", lambda op, name, **values: said.append((op, values)) or real(op, name, **values)
    )
    name, _ = blobs.put(b"bytes")
    assert [values.get("IfNoneMatch") for op, values in said if op == "put_object"] == ["*"]
    first = blobs._head(name)
    blobs.put(b"bytes")
    assert first is not None
    assert blobs._head(name)["LastModified"] == first["LastModified"]  # type: ignore[index]
    blobs.write_object(f"blobs/{name[:2]}/{name}", b"bytez")
    assert blobs.verify(name) == "corrupt"
    blobs.put(b"bytes")
    assert blobs.verify(name) == "ok"


def test_a_store_without_conditional_writes_is_written_without(blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    real = blobs._call

    def old(operation: str, name: str, **values: Any) -> Any:
        if "IfNoneMatch" in values:
            raise ClientError({"Error": {"Code": "NotImplemented"}}, operation)
        return real(operation, name, **values)

    monkeypatch.setattr(blobs, "_call", old)
    assert blobs.verify(blobs.put(b"bytes")[0]) == "ok"


def test_a_store_that_keeps_other_bytes_is_found_out(blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    real = blobs._call

    def short(operation: str, name: str, **values: Any) -> Any:
        if operation == "put_object":
            values = {"Body": values["Body"][:-1]}
        return real(operation, name, **values)

    monkeypatch.setattr(blobs, "_call", short)
    with pytest.raises(StorageError, match="the store kept other bytes than were sent"):
        blobs.put(b"bytes")
    assert list(blobs.digests()) == []


def test_an_object_whose_bytes_are_wrong_is_never_handed_out(blobs: S3Blobs) -> None:
    name, _ = blobs.put(b"bytes")
    blobs.write_object(f"blobs/{name[:2]}/{name}", b"bytez")
    blobs.copies.drop(name)
    for read in (blobs.path, blobs.open, lambda name: b"".join(blobs.stream(name))):
        with pytest.raises(FileRefused) as caught:
            read(name)
        assert caught.value.code == "digest-mismatch"
    assert blobs.copies.path(name) is None


def test_a_declared_digest_and_links_are_checked_before_anything_is_sent(blobs: S3Blobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for source, declared in ((b"bytes", "0" * 64), (tmp_path / "link", None)):
        with pytest.raises(FileRefused):
            blobs.put(source, declared=declared)
    assert list(blobs.digests()) == []


# -- local copies ----------------------------------------------------------------------------------------------------
def test_local_copies_are_checked_and_bounded(blobs: S3Blobs, tmp_path: Path) -> None:
    blobs.copies = LocalCopies(tmp_path / "small", limit=250, hold=0.0)
    names = [blobs.put(bytes([i]) * 100)[0] for i in range(5)]
    here = [name for name in names if blobs.copies.path(name)]
    assert here == names[-2:]
    assert blobs.path(names[0]).read_bytes() == bytes(100)  # fetched; the least recently used one goes
    assert [name for name in names if (tmp_path / "small" / name[:2] / name).exists()] == [names[0], names[4]]
    path = blobs.path(names[4])
    path.chmod(0o644)
    path.write_bytes(b"tampered")
    assert blobs.path(names[4]).read_bytes() == bytes([4]) * 100  # fetched again


def test_a_copy_that_was_just_handed_out_is_not_deleted(blobs: S3Blobs, tmp_path: Path) -> None:
    blobs.copies = LocalCopies(tmp_path / "small", limit=0, hold=60.0)
    names = [blobs.put(bytes([i]) * 100)[0] for i in range(3)]
    assert all(blobs.path(name).exists() for name in names)
    assert blobs.copies.shrink() == 0


def test_opening_does_not_look_at_every_blob_each_time(place: ServedPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(place, grace=0.0) as store:
        store.add(entry(b"x", "x"))
    looked: list[int] = []
    monkeypatch.setattr(S3Blobs, "sweep", lambda self, grace: looked.append(1) or 0)
    Store(place).close()
    assert looked == []
    Store(place, grace=0.0).close()
    assert looked == [1]
