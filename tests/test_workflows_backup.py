"""Backup and restore: whole, consistent while others write, in both sizes and from one to the other."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stand_ins
from comgrad.cli.main import app
from comgrad.errors import ComgradError, NotFound, StorageError
from comgrad.registry import disk
from comgrad.registry.blobs import FolderBlobs
from comgrad.registry.card import Card
from comgrad.registry.gradients import GradientEntry, GradientFacts
from comgrad.registry.models import Entry, Facts
from comgrad.registry.places import FolderPlace, Place
from comgrad.registry.store import Store
from comgrad.types import BaseRef
from comgrad.workflows.backup import backup, restore

FACTS = Facts(BaseRef("mini", "f" * 64), "lowrank", 8, 1.5)
HOW = GradientFacts(160, 0.6, 0.7, 16, 0.95, "0" * 64, BaseRef("mini", "f" * 64))


def new_place(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if name == "folder":
        return FolderPlace(root)
    if not stand_ins.available():
        pytest.skip("the packages of the larger size are not installed")
    from comgrad.registry.served import ServedPlace

    servers = stand_ins.servers()
    for key, value in servers.environment.items():
        monkeypatch.setenv(key, value)
    return ServedPlace(servers.postgres.new_database(servers.template()), stand_ins.new_prefix(), root)


def fill(store: Store) -> None:
    for number in range(8):
        card = Card.make(name=f"no {number}", description="the mood of a film", metrics={"acc": 0.1 * number})
        store.add(Entry(f"bytes {number}".encode() * 1_000, card, FACTS))
    store.attach_gradient("no 1", GradientEntry(b"gradient", HOW))
    store.attach_gradient("no 2", GradientEntry(b"gradient", HOW))
    store.remove("no 5", "wrong data")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "registry", grace=0.0) as found:
        fill(found)
        yield found


def everything(store: Store) -> object:
    rows = store.list(include_removed=True)
    data = {row.id: store.blob_path(row.id).read_bytes() for row in rows if row.state == "active"}
    return rows, data, store.gradients(), [(h.record, h.score) for h in store.search("mood film 3")]


@pytest.mark.parametrize("target", ["folder", "served"])
@pytest.mark.parametrize("source", ["folder", "served"])
def test_what_is_restored_is_what_was_there(
    source: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(new_place(source, tmp_path / "a", monkeypatch)) as old:
        fill(old)
        made = backup(tmp_path / "backup", store=old)
        before = everything(old)
    assert made.ok
    assert (made.vectors, made.removed, made.gradients, made.blobs, made.checked) == (7, 1, 2, 8, 8)
    assert made.bytes == 7 * 7_000 + 8
    with Store(new_place(target, tmp_path / "b", monkeypatch)) as new:
        back = restore(tmp_path / "backup", store=new)
        assert back.as_dict() | {"path": ""} == made.as_dict() | {"path": ""}
        assert everything(new) == before
        assert new.audit().ok
        with pytest.raises(ComgradError, match="it was removed"):
            new.get("no 5")
        with pytest.raises(ComgradError, match="it has vectors or tombstones, and a backup is never restored over"):
            restore(tmp_path / "backup", store=new)


@pytest.mark.parametrize("size", ["folder", "served"])
def test_a_backup_while_others_write_is_of_one_moment(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_place(size, tmp_path / "registry", monkeypatch)
    with Store(place) as store:
        fill(store)
        going, errors = threading.Event(), []

        def write() -> None:
            number = 100
            try:
                while not going.is_set():
                    card = Card.make(name=f"pair {number}")
                    store.add(Entry(b"first" + bytes([number % 251]) * number, card, FACTS))
                    store.add(
                        Entry(b"second" + bytes([number % 251]) * number, Card.make(name=f"pair {number} b"), FACTS)
                    )
                    store.remove(f"pair {number}", "no longer")
                    number += 1
            except Exception as error:  # noqa: BLE001 - told below, in the test's own thread
                errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            made = [backup(tmp_path / f"backup {i}", store=store) for i in range(2)]
        finally:
            going.set()
            thread.join()
        assert errors == []
    for i, outcome in enumerate(made):
        assert outcome.ok
        with Store(tmp_path / f"restored {i}") as new:
            restore(tmp_path / f"backup {i}", store=new)
            assert new.audit().ok
            assert new.audit().orphans == ()
            numbers = sorted(int(row.name.split()[1]) for row in new.list() if row.name.endswith(" b"))
            assert numbers == list(range(100, 100 + len(numbers)))  # a moment has everything that came before it
            gone = {row.name for row in new.list(include_removed=True) if row.state == "removed"}
            assert {f"pair {n}" for n in numbers[:-1]} <= gone


def test_a_blob_that_vanishes_between_the_rows_and_its_copy_is_no_damage(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, removals = store.blobs.stream, iter(["no 1", "no 3"])

    def late(digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        for name in removals:
            store.remove(name, "meanwhile")
        return real(digest, start, stop)

    monkeypatch.setattr(store.blobs, "stream", late)
    made = backup(tmp_path / "backup", store=store)
    assert (made.ok, made.vectors, made.removed, made.gradients) == (True, 5, 3, 1)


def test_damage_is_carried_along_and_told(store: Store, tmp_path: Path) -> None:
    lost, wrong = store.get("no 3"), store.get("no 4")
    store.blobs.delete(lost.digest)
    path = store.blob_path(wrong.id)
    path.chmod(0o644)
    path.write_bytes(b"other")
    made = backup(tmp_path / "backup", store=store)
    assert (made.ok, set(made.damaged), made.blobs) == (False, {lost.id, wrong.id}, 6)
    with Store(tmp_path / "new") as new:
        back = restore(tmp_path / "backup", store=new)
        assert (back.ok, back.damaged, back.checked) == (False, made.damaged, 6)
        assert {row.id for row in new.list() if row.damage == "missing"} == set(made.damaged)
        assert new.add(Entry(b"bytes 3" * 1_000, Card.make(name="no 3"), FACTS)).repaired


def test_an_interrupted_backup_is_gone_on_with(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, copied = FolderBlobs.put_pieces, []

    def cut(self: FolderBlobs, pieces: Iterator[bytes], *, declared: str | None = None) -> tuple[str, int]:
        if len(copied) == 3:
            raise StorageError("the disk", "it was unplugged", "plug it in")
        copied.append(declared)
        return real(self, pieces, declared=declared)

    with monkeypatch.context() as patch:
        patch.setattr(FolderBlobs, "put_pieces", cut)
        with pytest.raises(StorageError, match="it was unplugged"):
            backup(tmp_path / "backup", store=store)
    with pytest.raises(NotFound, match=r"there is no backup\.json in it; give the folder of a finished backup"):
        restore(tmp_path / "backup", store=store)
    half = FolderBlobs(tmp_path / "backup" / "blobs").path(str(copied[0]))
    half.chmod(0o644)
    half.write_bytes(b"half")  # what a power cut may leave
    made = backup(tmp_path / "backup", store=store)
    assert (made.ok, made.blobs) == (True, 8)
    with pytest.raises(ComgradError, match="it is not empty, and a backup is never written over anything") as caught:
        backup(tmp_path / "backup", store=store)
    assert caught.value.code == "not-empty"


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("backup.json", b"{", r"its backup\.json cannot be read"),
        (
            "backup.json",
            b'{"kind": "x", "format": 1, "schema": "0002", "catalogue_sha256": "", "damaged": []}',
            "is not",
        ),
        ("backup.json", None, "its format '2' or schema '0002' is not known to this comgrad; update comgrad"),
        ("catalogue.jsonl", b"{}\n", r"its catalogue\.jsonl does not hash to what backup\.json says"),
        ("blob", b"tampered", "is missing or not what its name says; use another backup"),
        ("blob", b"", "is missing or not what its name says"),
        ("linked", b"", "is missing or not what its name says"),
    ],
)
def test_a_backup_that_is_not_whole_is_refused(
    store: Store, tmp_path: Path, file: str, change: bytes | None, why: str
) -> None:
    folder = tmp_path / "backup"
    backup(folder, store=store)
    path = folder / file
    if file in ("blob", "linked"):
        path = FolderBlobs(folder / "blobs").path(store.get("no 3").digest)
        path.chmod(0o644)
    if file == "linked":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif change is None:
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    else:
        path.write_bytes(change)
    with Store(tmp_path / "new") as new:
        with pytest.raises(ComgradError, match=why):
            restore(folder, store=new)
        assert new.list(include_removed=True) == []


@pytest.mark.parametrize(
    "change", [{"digest": "../../etc/passwd"}, {"id": "tv-" + "0" * 16}, {"odd": 1}, {"name": None}]
)
def test_rows_that_no_registry_would_hold_are_refused(store: Store, tmp_path: Path, change: dict[str, object]) -> None:
    import hashlib

    folder = tmp_path / "backup"
    backup(folder, store=store)
    lines = [json.loads(line) for line in (folder / "catalogue.jsonl").read_text().splitlines()]
    lines[0]["row"].update(change)
    raw = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    (folder / "catalogue.jsonl").write_bytes(raw)
    manifest = json.loads((folder / "backup.json").read_text())
    manifest["catalogue_sha256"] = hashlib.sha256(raw).hexdigest()
    (folder / "backup.json").write_text(json.dumps(manifest))
    with Store(tmp_path / "new") as new:
        with pytest.raises(ComgradError, match=r"a line of its catalogue is not a row of the schema") as caught:
            restore(folder, store=new)
        assert caught.value.code == "backup-damaged"
        assert new.list(include_removed=True) == []


def test_a_full_disk_is_told_and_the_backup_is_not_finished(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "write_all", full)
    with pytest.raises(StorageError, match="the disk is full") as caught:
        backup(tmp_path / "backup", store=store)
    assert caught.value.code == "disk-full"
    assert not (tmp_path / "backup" / "backup.json").exists()


def test_the_commands(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner()
    monkeypatch.setenv("COMGRAD_HOME", str(store.path))
    done = run.invoke(app, ["backup", "-o", str(tmp_path / "backup"), "--json"])
    assert done.exit_code == 0
    made = json.loads(done.stdout)
    assert (made["ok"], made["vectors"], made["checked"], made["blobs"]) == (True, 7, 8, 8)
    monkeypatch.setenv("COMGRAD_HOME", str(tmp_path / "new"))
    done = run.invoke(app, ["restore", str(tmp_path / "backup")])
    assert done.exit_code == 0
    assert "7 vectors, 1 tombstones, 2 gradients" in done.stdout
    assert "8 of 8 files (0.0 MB) hash to their digest" in done.stdout
    done = run.invoke(app, ["restore", str(tmp_path / "backup")])
    assert isinstance(done.exception, ComgradError)
    assert done.exception.code == "registry-not-empty"
