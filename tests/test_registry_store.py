"""The store: any history of operations against an in-memory oracle, and what each operation promises."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from comgrad.errors import ComgradError, FileRefused, NameTaken, NotFound, StorageError
from comgrad.registry.card import Card
from comgrad.registry.models import AddResult, Entry, Facts
from comgrad.registry.store import Store
from comgrad.types import BaseRef

FACTS = Facts(BaseRef("mini"), "lowrank", 8, 1.5)
BLOBS = [f"blob {number}".encode() * 20 for number in range(6)]
NAMES = {
    "Mood": 0,
    "MOOD": 0,
    "m00d": 0,
    "Home": 1,
    "home!": 1,
    "Bank account": 2,
    "bank_account": 2,
    "Tense": 3,
}  # → class


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def content(store: Store, key: str) -> bytes:
    with store.open_blob(key) as file:
        return file.read()


class Histories(RuleBasedStateMachine):
    """The oracle knows, for each blob ever added, its name and whether it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "registry"
        self.store = Store(self.folder, grace=0.0)
        self.names: dict[bytes, str] = {}
        self.active: set[bytes] = set()
        self.damaged: set[bytes] = set()

    @rule(data=st.sampled_from(BLOBS), name=st.sampled_from(sorted(NAMES)), restore=st.booleans())
    def add(self, data: bytes, name: str, restore: bool) -> None:
        entry = Entry(data, Card.make(name=name), FACTS)
        taken = {NAMES[known] for known in self.names.values()}
        if data in self.active:
            result = self.store.add(entry, restore=restore)
            assert (result.status, result.repaired) == ("exists", data in self.damaged)
            self.damaged.discard(data)
        elif data in self.names and not restore:
            with pytest.raises(NotFound, match="it was removed"):
                self.store.add(entry)
        elif data not in self.names and NAMES[name] in taken:
            with pytest.raises(NameTaken):
                self.store.add(entry, restore=restore)
        else:
            assert self.store.add(entry, restore=restore).status == "added"
            self.names.setdefault(data, name)
            self.active.add(data)

    @rule(data=st.sampled_from(BLOBS), by_name=st.booleans())
    def remove(self, data: bytes, by_name: bool) -> None:
        key = self.names.get(data, "never added") if by_name else f"tv-{digest(data)[:16]}"
        if data in self.active:
            assert self.store.remove(key, "a reason").state == "removed"
            self.active.discard(data)
            self.damaged.discard(data)
        else:
            with pytest.raises(NotFound):
                self.store.remove(key)

    @rule(data=st.sampled_from(BLOBS), how=st.sampled_from(["delete", "change"]))
    def damage(self, data: bytes, how: str) -> None:
        if data not in self.active:
            return
        path = self.folder / "blobs" / digest(data)[:2] / digest(data)
        path.unlink(missing_ok=True)
        if how == "change":
            path.write_bytes(data[::-1])
        self.damaged.add(data)
        self.audit()

    @rule()
    def audit(self) -> None:
        report = self.store.audit()
        ids = {f"tv-{digest(data)[:16]}" for data in self.damaged}
        assert {*report.damaged, *report.missing} == ids
        assert (report.checked, report.orphans) == (len(self.active), ())

    @rule()
    def leave_rubbish(self) -> None:
        orphan = self.store.blobs.put_bytes(b"nobody's")
        (self.folder / "blobs" / "tmp" / "1-2.part").write_bytes(b"half")
        assert self.store.audit().orphans == (orphan,)
        found = self.store.reconcile(grace=0.0)
        assert (found.orphans_deleted, found.temporary_deleted) == (1, 1)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.folder, grace=0.0)
        assert set(self.store.opening.damaged) == {f"tv-{digest(data)[:16]}" for data in self.damaged}

    @invariant()
    def agrees_with_the_oracle(self) -> None:
        rows = {row.digest: row for row in self.store.list(include_removed=True)}
        assert {d: row.name for d, row in rows.items()} == {digest(data): name for data, name in self.names.items()}
        assert {d for d, row in rows.items() if row.state == "active"} == {digest(data) for data in self.active}
        assert {d for d, row in rows.items() if row.damage and row.state == "active"} == {
            digest(d) for d in self.damaged
        }
        assert set(self.store.blobs.digests()) >= {digest(data) for data in self.active - self.damaged}
        assert set(self.store.blobs.digests()) <= {digest(data) for data in self.active}
        for data in self.active - self.damaged:
            assert content(self.store, self.names[data]) == data

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder.parent)


Histories.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestHistories = Histories.TestCase


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "registry") as found:
        yield found


def entry(data: bytes = b"bytes", name: str = "one", **card: object) -> Entry:
    return Entry(data, Card.make(**card), FACTS, name=name)


def added(result: AddResult) -> str:
    assert result.status == "added"
    assert result.record is not None
    return result.record.id


def whole(folder: Path) -> dict[str, bytes]:
    """Every file of the registry but SQLite's own log."""
    found = [path for path in folder.rglob("*") if path.is_file() and "sqlite" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_the_whole_starter_zoo(store: Store) -> None:
    paths = sorted(Path(str(files("comgrad.starter") / "zoo")).glob("*/adapter_model.safetensors"))
    assert len(paths) == 38
    entries = [Entry(path, Card.from_file(path.with_name("task_card.json")), FACTS) for path in paths]
    assert [result.status for result in store.add_many(entries)] == ["added"] * 38
    assert [result.status for result in store.add_many(entries)] == ["exists"] * 38
    for path, row in zip(paths, store.list(), strict=True):
        assert store.blob_path(row.id).read_bytes() == path.read_bytes()
        assert row.size_bytes == path.stat().st_size
    seen: list[tuple[int, int]] = []
    report = store.audit(lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.checked == 38
    assert seen == [(number, 38) for number in range(1, 39)]
    assert store.search("reflexive pronouns")[0].record.name == "Acceptability: reflexive pronouns"
    assert store.search("bank customer requests")[0].record.card.family == "intent"


def test_the_folder(store: Store) -> None:
    added(store.add(entry()))
    assert {path.name for path in store.path.iterdir()} >= {"blobs", "cache", "catalogue.sqlite", "registry.json"}
    marker = json.loads((store.path / "registry.json").read_text())
    assert (marker["format"], marker["kind"]) == (1, "comgrad registry")
    assert store.cache_dir == store.path / "cache"
    assert store.facts("one") == FACTS


@pytest.mark.parametrize(
    ("bad", "kind", "why"),
    [
        (entry(name="Taken"), NameTaken, "it reads like 'taken', the name of tv-.*; choose another name"),
        (entry(name="tаken"), ComgradError, "mixes Cyrillic and Latin letters"),
        (entry(name=""), ComgradError, "the name ''; it is empty; choose another name"),
        (Entry(b"bytes", Card.make(name="one"), FACTS, digest="0" * 64), FileRefused, "its bytes hash to"),
        (Entry(Path("/nowhere/file"), Card.make(name="one"), FACTS), NotFound, "there is no such file"),
    ],
)
def test_a_refused_add_stores_nothing(store: Store, bad: Entry, kind: type[ComgradError], why: str) -> None:
    added(store.add(entry(b"first", "taken")))
    before = whole(store.path)
    with pytest.raises(kind, match=why):
        store.add(bad)
    assert whole(store.path) == before
    assert len(store.list(include_removed=True)) == 1


def test_add_many_goes_on_after_a_refusal(store: Store) -> None:
    results = list(store.add_many([entry(b"1", "a"), entry(b"2", "A"), entry(b"1", "x"), entry(b"3", "c")]))
    assert [result.status for result in results] == ["added", "refused", "exists", "added"]
    assert isinstance(results[1].error, NameTaken)
    assert results[1].record is None
    assert len(list(store.blobs.digests())) == 2


def test_a_name_taken_meanwhile_leaves_no_blob(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    added(store.add(entry(b"first", "one")))
    monkeypatch.setattr(
        store.catalogue, "check_free", lambda name, digest: None
    )  # as if checked before the other's add
    with pytest.raises(NameTaken):
        store.add(entry(b"second", "one"))
    assert list(store.blobs.digests()) == [digest(b"first")]


def test_a_blob_collected_while_it_is_added_is_stored_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put, puts = store.blobs.put, []

    def collected(source: Path | bytes, *, declared: str | None = None) -> tuple[str, int]:
        found = put(source, declared=declared)
        puts.append(found)
        if len(puts) < 3:
            store.reconcile(grace=0.0)  # another process opens the registry just now
        return found

    monkeypatch.setattr(store.blobs, "put", collected)
    identity = added(store.add(entry()))
    assert len(puts) == 3
    assert content(store, identity) == b"bytes"


def test_removal_deletes_the_blob_and_keeps_the_name(store: Store) -> None:
    identity = added(store.add(entry(description="old")))
    store.remove(identity, "wrong data")
    assert list(store.blobs.digests()) == []
    with pytest.raises(NotFound, match=r"'one' \(tv-.*\); it was removed on .* \(wrong data\)"):
        store.blob_path(identity)
    with pytest.raises(NotFound, match="it was removed"):
        store.remove("one")
    with pytest.raises(NameTaken, match="a name never passes to another vector"):
        store.add(entry(b"other bytes", "ONE"))
    with pytest.raises(NotFound, match="add it with --restore"):
        store.add(entry())
    assert added(store.add(entry(name="another", description="new"), restore=True)) == identity
    row = store.get(identity)
    assert (row.name, row.description) == ("one", "new")
    assert content(store, identity) == b"bytes"


def test_only_a_whole_name_or_id_removes(store: Store) -> None:
    identity = added(store.add(entry(name="long name")))
    assert store.get("long").id == store.get(identity[:8]).id == identity
    for part in ("long", identity[:8]):
        with pytest.raises(NotFound):
            store.remove(part)
    store.remove("LONG NAME")


def test_a_missing_blob_is_reported_and_healed_by_adding_it_again(store: Store) -> None:
    identity = added(store.add(entry()))
    store.blobs.delete(digest(b"bytes"))
    with pytest.raises(StorageError, match=r"the file of 'one' \(tv-.*\); it is missing; add the same file") as caught:
        store.open_blob(identity)
    assert caught.value.code == "blob-missing"
    store.close()
    with Store(store.path) as again:
        assert again.opening.damaged == (identity,)
        assert again.get(identity).damage == "missing"
        result = again.add(entry())
        assert (result.status, result.repaired) == ("exists", True)
        assert again.get(identity).damage is None
        assert content(again, identity) == b"bytes"


def test_corruption_is_found_by_the_audit_and_healed(store: Store) -> None:
    identity = added(store.add(entry()))
    added(store.add(entry(b"other", "two")))
    path = store.blob_path(identity)
    path.chmod(0o644)
    path.write_bytes(b"bytez")
    report = store.audit()
    assert (report.ok, report.checked, report.damaged, report.missing) == (False, 2, (identity,), ())
    assert store.get(identity).damage == "corrupt"
    assert store.reconcile().damaged == (identity,)
    path.write_bytes(b"bytes")  # restored from a backup
    assert store.reconcile().healed == (identity,)
    assert store.audit().ok


def test_a_linked_blob_is_refused(store: Store, tmp_path: Path) -> None:
    identity = added(store.add(entry()))
    os.link(store.blob_path(identity), tmp_path / "second name")
    with pytest.raises(StorageError, match="one of several hard links") as caught:
        store.blob_path(identity)
    assert caught.value.code == "blob-linked"
    assert store.audit().damaged == (identity,)


def test_the_young_are_spared(store: Store) -> None:
    young, old = store.blobs.put_bytes(b"young"), store.blobs.put_bytes(b"old")
    two_hours_ago = time.time() - 7_200
    os.utime(store.blobs.path(old), (two_hours_ago, two_hours_ago))
    assert store.reconcile().orphans_deleted == 1
    assert list(store.blobs.digests()) == [young]


def test_a_registry_of_a_newer_schema_is_refused_untouched(store: Store) -> None:
    added(store.add(entry()))
    store.close()
    with sqlite3.connect(store.path / "catalogue.sqlite") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    orphan = store.blobs.put_bytes(b"of the newer version")
    for read_only in (False, True):
        with pytest.raises(
            StorageError, match=r"its schema '9999' is newer than this comgrad .*; update comgrad"
        ) as caught:
            Store(store.path, read_only=read_only, grace=0.0)
        assert caught.value.code == "registry-newer"
    assert store.blobs.exists(orphan)


def test_a_registry_of_a_newer_format_is_refused(store: Store) -> None:
    store.close()
    (store.path / "registry.json").write_text('{"format": 2}')
    with pytest.raises(StorageError, match="its format 2 is newer") as caught:
        Store(store.path)
    assert caught.value.code == "registry-newer"
    (store.path / "registry.json").write_text("{")
    with pytest.raises(StorageError, match=r"its registry\.json cannot be read"):
        Store(store.path)


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_blobs_survive_the_loss_of_the_catalogue(store: Store, how: str) -> None:
    added(store.add(entry()))
    store.close()
    (store.path / "catalogue.sqlite").unlink()
    if how == "empty":
        (store.path / "catalogue.sqlite").touch()
    with pytest.raises(StorageError, match=r"catalogue\.sqlite is missing or empty.*the blobs were not touched"):
        Store(store.path, grace=0.0)
    assert store.blobs.verify(digest(b"bytes")) == "ok"


def test_a_backup_of_a_closed_registry_is_whole(store: Store, tmp_path: Path) -> None:
    for number in range(20):
        added(store.add(entry(f"{number}".encode(), f"no {number}")))
    rows = store.list()
    store.close()
    shutil.copytree(store.path, tmp_path / "restored")
    with Store(tmp_path / "restored", grace=0.0) as restored:
        assert restored.list() == rows
        report = restored.audit()
        assert (report.ok, report.checked, report.orphans) == (True, 20, ())


def test_read_only_by_wish(store: Store, tmp_path: Path) -> None:
    identity = added(store.add(entry()))
    with Store(store.path, read_only=True) as reader:
        assert [row.id for row in reader.list()] == [identity]
        assert reader.audit().ok
        assert reader.add(entry()).status == "exists"
        for write in (lambda: reader.add(entry(b"x", "x")), lambda: reader.remove("one"), reader.reconcile):
            with pytest.raises(StorageError, match="it is open read-only; choose a folder") as caught:
                write()
            assert caught.value.code == "read-only"
        added(store.add(entry(b"new", "two")))  # a reader sees what a writer commits
        assert len(reader.list()) == 2
    with pytest.raises(NotFound, match="there is no registry in that folder"):
        Store(tmp_path / "nothing", read_only=True)
    assert not (tmp_path / "nothing").exists()
