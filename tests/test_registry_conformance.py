"""One behaviour in two sizes: every promise of the store, kept by a folder and by PostgreSQL with an object store."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import stand_ins
from bounded import joined, started
from comgrad.errors import ComgradError, FileRefused, NameTaken, NotFound, StorageError
from comgrad.registry import database
from comgrad.registry.card import Card
from comgrad.registry.gradients import GradientEntry, GradientFacts
from comgrad.registry.models import AddResult, Entry, Facts, Hit, Record
from comgrad.registry.places import FolderPlace, Place
from comgrad.registry.store import Store
from comgrad.types import BaseRef
from comgrad.workflows.doctor import doctor

FACTS = Facts(BaseRef("mini"), "lowrank", 8, 1.5)
HOW = GradientFacts(160, 0.6, 0.7, 16, 0.95, "0" * 64, BaseRef("mini", "f" * 64))
SIZES = ["folder", "served"]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def key_of(data: bytes) -> str:
    return f"tv-{digest(data)[:16]}"


# -- the two sizes ---------------------------------------------------------------------------------------------------
@dataclass
class Size:
    """One registry, how to open it again, and how to do to its blobs what only a disaster does."""

    environment: dict[str, str]
    place: Callable[[], Place]

    def open(self, **options: Any) -> Store:
        return Store(self.place(), **options)

    def lose(self, data: bytes) -> None:
        place = self.place()
        if isinstance(place, FolderPlace):
            place.blobs.path(digest(data)).unlink()
        else:
            assert place.blobs.delete(digest(data))
        place.close()

    def overwrite(self, data: bytes, other: bytes, name: str = "") -> None:
        """Put other bytes under the name of a blob."""
        place, name = self.place(), name or digest(data)
        if isinstance(place, FolderPlace):
            path = place.blobs.root / name[:2] / name
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(other)
        else:
            place.blobs.write_object(f"blobs/{name[:2]}/{name}", other)
            place.blobs.copies.drop(name)
        place.close()


def folder_size(root: Path) -> Size:
    return Size({"COMGRAD_HOME": str(root / "registry")}, lambda: FolderPlace(root / "registry"))


def served_size(root: Path) -> Size:
    from comgrad.registry.served import ServedPlace

    servers = stand_ins.servers()
    os.environ.update(servers.environment)
    url, prefix = servers.postgres.new_database(servers.template()), stand_ins.new_prefix()
    home = {"COMGRAD_HOME": str(root), "COMGRAD_DATABASE": url, "COMGRAD_BLOBS": prefix}
    return Size(home, lambda: ServedPlace(url, prefix, root, part=5 << 20))


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets for the object store's client is unset after it."""
    for name in (*stand_ins.KEYS, "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Size:
    found = sized(request.param, tmp_path)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def sized(name: str, root: Path) -> Size:
    if name == "folder":
        return folder_size(root)
    if not stand_ins.available():
        pytest.skip("the packages of the larger size are not installed")
    return served_size(root)


@pytest.fixture
def store(size: Size) -> Iterator[Store]:
    with size.open(grace=0.0) as found:
        yield found


def entry(data: bytes = b"bytes", name: str = "one", **card: object) -> Entry:
    return Entry(data, Card.make(**card), FACTS, name=name)


def added(result: AddResult) -> str:
    assert result.status == "added"
    assert result.record is not None
    return result.record.id


def content(store: Store, key: str) -> bytes:
    with store.open_blob(key) as file:
        return file.read()


# -- any history, on both at once ------------------------------------------------------------------------------------
BLOBS = [f"blob {number}".encode() * 20 for number in range(6)]
NAMES = ["Mood", "MOOD", "m00d", "Home", "home!", "Bank account", "bank_account", "Ténse", "%", "tv-", "mооd", ""]
WORDS = ["the mood of a film", "a customer's request to a bank", "moods and banks", "café 100%", ""]
QUERIES = ["mood", "bank film", "100% café", "req", "film mood bank customer", "%", "zzz"]
KEYS = [*NAMES, "ba", "o", "TV-", "bank\0account", *(key_of(data) for data in BLOBS), *(digest(d)[:9] for d in BLOBS)]


def plain(value: Any) -> Any:
    """What an operation said, without what may differ: instants, and where the registry is."""
    if isinstance(value, Record):
        return (value.id, value.name, value.description, value.facts, value.card, value.state, value.damage,
                value.size_bytes, value.digest, value.removed_reason, value.removed_at is None)  # fmt: skip
    if isinstance(value, Hit):
        return plain(value.record), value.score
    if isinstance(value, AddResult):
        return value.status, plain(value.record), value.repaired
    if isinstance(value, ComgradError):
        return type(value), value.code, re.sub(r"the registry '.*?'", "the registry", str(value))
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [plain(found) for found in value]
    return value


class Twins(RuleBasedStateMachine):
    """The same operations on both sizes: the same answers, refusals and words."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.sizes = [sized(name, self.root / name) for name in SIZES]
        self.stores = [size.open(grace=0.0) for size in self.sizes]

    def both(self, act: Callable[[Store], Any]) -> Any:
        answers = []
        for store in self.stores:
            try:
                answers.append(plain(act(store)))
            except ComgradError as error:
                answers.append(plain(error))
        assert answers[0] == answers[1]
        return answers[0]

    @rule(data=st.sampled_from(BLOBS), name=st.sampled_from(NAMES), text=st.sampled_from(WORDS), restore=st.booleans())
    def add(self, data: bytes, name: str, text: str, restore: bool) -> None:
        card = Card.make(description=text, label_names=text.split()[:2])
        self.both(lambda store: store.add(Entry(data, card, FACTS, name=name), restore=restore))

    @rule(key=st.sampled_from(KEYS), reason=st.sampled_from(["", "wrong\0data"]))
    def remove(self, key: str, reason: str) -> None:
        self.both(lambda store: store.remove(key, reason))

    @rule(key=st.sampled_from(KEYS), data=st.sampled_from(BLOBS))
    def attach(self, key: str, data: bytes) -> None:
        self.both(lambda store: store.attach_gradient(key, GradientEntry(data, HOW)).status)

    @rule(key=st.sampled_from(KEYS), include=st.booleans())
    def get(self, key: str, include: bool) -> None:
        self.both(lambda store: store.get(key, include_removed=include))

    @rule(key=st.sampled_from(KEYS), start=st.integers(0, 150), stop=st.none() | st.integers(0, 150))
    def read(self, key: str, start: int, stop: int | None) -> None:
        self.both(lambda store: b"".join(store.stream_blob(key, start, stop)))
        self.both(lambda store: content(store, key))

    @rule(query=st.sampled_from(QUERIES), limit=st.integers(0, 4))
    def search(self, query: str, limit: int) -> None:
        self.both(lambda store: store.search(query, limit=limit))

    @rule(data=st.sampled_from(BLOBS), change=st.booleans())
    def damage(self, data: bytes, change: bool) -> None:
        if all(store.blobs.exists(digest(data)) for store in self.stores):
            for size in self.sizes:
                size.overwrite(data, data[::-1]) if change else size.lose(data)
        self.both(lambda store: store.audit())

    @rule()
    def leave_rubbish(self) -> None:
        self.both(lambda store: store.blobs.put(b"nobody's"))
        self.both(lambda store: store.audit())

    @rule()
    def reopen(self) -> None:
        for store in self.stores:
            store.close()
        self.stores = [size.open(grace=0.0) for size in self.sizes]
        self.both(lambda store: store.opening)

    @invariant()
    def one_catalogue(self) -> None:
        self.both(lambda store: store.list(include_removed=True))
        self.both(lambda store: sorted(store.blobs.digests()))
        self.both(lambda store: sorted((i, g.digest, g.damage, g.facts.loss) for i, g in store.gradients().items()))

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.root)


Twins.TestCase.settings = settings(
    max_examples=4, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTwins = Twins.TestCase
if not stand_ins.available():
    del TestTwins


# -- each promise, on each size --------------------------------------------------------------------------------------
def test_real_adapters_are_kept_byte_for_byte_and_found(store: Store) -> None:
    paths = sorted(Path(str(files("comgrad.starter") / "zoo")).glob("*/adapter_model.safetensors"))[::3]
    assert len(paths) == 13
    entries = [Entry(path, Card.from_file(path.with_name("task_card.json")), FACTS) for path in paths]
    assert [result.status for result in store.add_many(entries)] == ["added"] * 13
    assert [result.status for result in store.add_many(entries)] == ["exists"] * 13
    for path, row in zip(paths, store.list(), strict=True):
        assert store.blob_path(row.id).read_bytes() == path.read_bytes()
        assert b"".join(store.stream_blob(row.id)) == path.read_bytes()
        assert row.size_bytes == path.stat().st_size
    seen: list[tuple[int, int]] = []
    report = store.audit(lambda done, total: seen.append((done, total)))
    assert (report.ok, report.checked, report.orphans) == (True, 13, ())
    assert seen == [(number, 13) for number in range(1, 14)]
    wanted = store.list()[4]
    assert store.search(wanted.name)[0].record == wanted


@pytest.mark.parametrize(
    ("bad", "kind", "why"),
    [
        (entry(name="Taken"), NameTaken, "it reads like 'taken', the name of tv-.*; choose another name"),
        (entry(name="tаken"), ComgradError, "mixes Cyrillic and Latin letters"),
        (Entry(b"bytes", Card.make(name="one"), FACTS, digest="0" * 64), FileRefused, "its bytes hash to"),
        (Entry(Path("/nowhere/file"), Card.make(name="one"), FACTS), NotFound, "there is no such file"),
    ],
)
def test_a_refused_add_stores_nothing(store: Store, bad: Entry, kind: type[ComgradError], why: str) -> None:
    added(store.add(entry(b"first", "taken")))
    with pytest.raises(kind, match=why):
        store.add(bad)
    assert list(store.blobs.digests()) == [digest(b"first")]
    assert len(store.list(include_removed=True)) == 1


def test_a_removed_name_stays_taken_and_the_bytes_come_back_only_by_restoring(store: Store) -> None:
    identity = added(store.add(entry(description="old")))
    store.attach_gradient(identity, GradientEntry(b"gradient", HOW))
    store.remove(identity, "wrong data")
    assert list(store.blobs.digests()) == []
    assert store.gradients() == {}
    with pytest.raises(NotFound, match=r"'one' \(tv-.*\); it was removed on .* \(wrong data\)"):
        store.open_blob(identity)
    with pytest.raises(NameTaken, match="a name never passes to another vector"):
        store.add(entry(b"other bytes", "ONE"))
    with pytest.raises(NotFound, match="add it with --restore"):
        store.add(entry())
    assert added(store.add(entry(name="another", description="new"), restore=True)) == identity
    assert (store.get(identity).name, store.get(identity).description) == ("one", "new")
    assert content(store, identity) == b"bytes"


@pytest.mark.parametrize("how", ["lost", "changed"])
def test_damage_is_told_marked_and_mended(size: Size, store: Store, how: str) -> None:
    identity = added(store.add(entry()))
    added(store.add(entry(b"other", "two")))
    size.lose(b"bytes") if how == "lost" else size.overwrite(b"bytes", b"bytez")
    report = store.audit()
    assert (report.ok, report.checked) == (False, 2)
    assert (report.missing, report.damaged) == (((identity,), ()) if how == "lost" else ((), (identity,)))
    assert store.get(identity).damage == ("missing" if how == "lost" else "corrupt")
    checks = {check.name: check for check in doctor().checks}
    assert (checks["digests"].ok, identity in checks["digests"].detail) == (False, True)
    assert (checks["registry"].ok, "never-printed" in str(checks)) == (True, False)
    store.close()
    with size.open(grace=0.0) as again:
        assert again.opening.damaged == (identity,)
        result = again.add(entry())
        assert (result.status, result.repaired) == ("exists", True)
        assert content(again, identity) == b"bytes"
        assert again.audit().ok
    assert {check.name: check.ok for check in doctor().checks}["digests"]


def test_a_blob_that_is_gone_is_told_when_read(size: Size, store: Store) -> None:
    identity = added(store.add(entry()))
    size.lose(b"bytes")
    for read in (store.open_blob, store.blob_path, lambda key: b"".join(store.stream_blob(key))):
        with pytest.raises(StorageError, match=r"the file of 'one' \(tv-.*\); it is missing; add the same") as caught:
            read(identity)
        assert caught.value.code == "blob-missing"


def test_orphans_are_collected_and_the_young_spared(size: Size) -> None:
    with size.open() as store:
        orphan, _ = store.blobs.put(b"nobody's")
        assert store.audit().orphans == (orphan,)
        assert store.reconcile(grace=3_600.0).orphans_deleted == 0
        assert store.reconcile(grace=0.0).orphans_deleted == 1
        assert list(store.blobs.digests()) == []
        odd = orphan[:-1] + "G"
        size.overwrite(b"", b"not a blob: its name is no digest", odd)
        assert store.reconcile(grace=0.0).orphans_deleted == 0


def test_ranges(store: Store) -> None:
    data = bytes(range(256)) * 9_000
    identity = added(store.add(entry(data)))
    for local in (True, False):
        for start, stop in [(0, None), (5, None), (0, 1), (7, 2_000_000), (len(data), None), (len(data) + 5, None),
                            (3, 3), (9, 4), (0, 10**9)]:  # fmt: skip
            assert b"".join(store.stream_blob(identity, start, stop)) == data[start:stop]
        if local and not isinstance(store.place, FolderPlace):
            store.blobs.copies.drop(digest(data))  # type: ignore[attr-defined]


def test_beginnings_are_listed_in_one_order(store: Store) -> None:
    for number, name in enumerate(["ab-z", "ab z2", "abé", "abZ3", "ab_a", "ab9"]):
        added(store.add(entry(str(number).encode(), name)))
    with pytest.raises(NotFound) as caught:
        store.get("ab")
    assert re.findall(r"'([^']+)' \(tv", caught.value.why) == ["ab_a", "ab-z", "ab z2", "ab9", "abé"]


# -- many at once ----------------------------------------------------------------------------------------------------
def test_many_stores_add_the_same_and_different_vectors_at_once(size: Size) -> None:
    start, results, errors = threading.Barrier(6), [], []

    def worker(number: int) -> None:
        try:
            with size.open() as store:
                start.wait(timeout=60)
                shared = [entry(f"shared {i}".encode() * 50, f"shared {i}") for i in range(5)]
                own = [entry(f"own {number} {i}".encode(), f"of {number} no {i}") for i in range(3)]
                mine = [
                    *shared[number % 5 :],
                    entry(f"wanted by {number}".encode(), "Wanted"),
                    *own,
                    *shared[: number % 5],
                ]
                results.extend(store.add_many(mine))
        except Exception as error:  # noqa: BLE001 - told below, in the test's own thread
            errors.append(error)
            start.abort()

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(6)]
    started(threads)
    joined(threads)
    assert errors == []
    done = [r.record.digest for r in results if r.status == "added" and r.record]
    assert len(done) == len(set(done)) == 5 + 6 * 3 + 1  # each is added exactly once
    assert sum(r.status == "exists" for r in results) == 5 * 5
    assert [type(r.error) for r in results if r.status == "refused"] == [NameTaken] * 5
    with size.open(grace=0.0) as store:
        assert {row.digest for row in store.list()} == set(done) == set(store.blobs.digests())
        assert (store.opening.orphans_deleted, store.audit().ok) == (0, True)


def test_processes_that_set_a_new_registry_up_at_once_find_one_registry(size: Size, tmp_path: Path) -> None:
    if "COMGRAD_DATABASE" in size.environment:  # one without any table
        os.environ["COMGRAD_DATABASE"] = stand_ins.servers().postgres.new_database()
    code = "from comgrad.registry.places import configured as c; from comgrad.registry.store import Store as S; S(c())"
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(p.communicate(timeout=120)[1], p.returncode) for p in running] == [("", 0)] * 3


def test_a_forked_process_may_use_the_parents_store(store: Store) -> None:
    added(store.add(entry(b"before", "before")))
    pid = os.fork()
    who = "child" if pid == 0 else "parent"
    try:
        for i in range(6):
            added(store.add(entry(f"{who} {i}".encode(), f"{who} {i}")))
    except BaseException:
        if pid == 0:
            os._exit(1)
        raise
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(store.list()) == 13
    assert store.audit().ok


# -- kills -----------------------------------------------------------------------------------------------------------
DIE = """
import os, sys
sys.path.insert(0, sys.argv[2])
from comgrad.registry.places import configured
from comgrad.registry.card import Card
from comgrad.registry.models import Entry, Facts
from comgrad.registry.writer import Writer
from comgrad.registry.store import Store
from comgrad.types import BaseRef
store = Store(configured(), grace=0.0)
facts = Facts(BaseRef("m"), "lowrank", 1, 1.0)
store.add(Entry(b"kept", Card.make(name="kept"), facts))
store.add(Entry(b"removed", Card.make(name="removed"), facts))
def dying(place, name, after):
    real = getattr(place, name)
    def call(*a, **k):
        if not after: os._exit(9)
        real(*a, **k)
        os._exit(9)
    setattr(place, name, call)
point = sys.argv[1]
if point == "before blob": dying(store.blobs, "put", False)
if point == "after blob": dying(store.blobs, "put", True)
if point == "in row": dying(Writer, "add", True)
if point == "in tombstone": dying(Writer, "remove", True)
if point == "after tombstone": dying(store.blobs, "delete", False)
if point == "after deletion": dying(store.blobs, "delete", True)
if "tombstone" in point or "deletion" in point: store.remove("removed")
else: store.add(Entry(b"new", Card.make(name="new"), facts))
"""


@pytest.mark.parametrize(
    ("point", "left", "orphans"),
    [
        ("before blob", ["kept", "removed"], 0),
        ("after blob", ["kept", "removed"], 1),
        ("in row", ["kept", "removed"], 1),
        ("in tombstone", ["kept", "removed"], 0),
        ("after tombstone", ["kept"], 1),
        ("after deletion", ["kept"], 0),
    ],
)
def test_a_kill_at_each_step_leaves_a_whole_registry(size: Size, point: str, left: list[str], orphans: int) -> None:
    died = subprocess.run([sys.executable, "-c", DIE, point, str(Path(__file__).parent)], check=False, timeout=120)
    assert died.returncode == 9
    with size.open(grace=0.0) as store:
        assert [row.name for row in store.list()] == left
        assert (store.opening.damaged, store.opening.orphans_deleted) == ((), orphans)
        assert (store.audit().ok, store.audit().orphans) == (True, ())
        assert store.add(entry(b"new", "new")).status == "added"  # nothing is locked


# -- schema ----------------------------------------------------------------------------------------------------------
def test_a_registry_of_the_first_schema_is_upgraded_on_opening(size: Size) -> None:
    with size.open() as store:
        identity = added(store.add(entry(description="the mood of a film")))
        before = store.get(identity)
        with database.transaction(store._engine, write=True, what="it") as connection:
            connection.exec_driver_sql("DROP TABLE gradients")  # as it was before there were any
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(StorageError, match="older than this comgrad") as caught:
        size.open(read_only=True)
    assert caught.value.code == "registry-older"
    opened: list[Store] = []
    threads = [threading.Thread(target=lambda: opened.append(size.open())) for _ in range(4)]
    started(threads)
    joined(threads)
    assert [database.revision(store._engine, "it") for store in opened] == [database.HEAD] * 4
    assert opened[0].get(identity) == before
    assert opened[1].attach_gradient(identity, GradientEntry(b"g", HOW)).status == "attached"
    for store in opened:
        store.close()


def test_a_registry_of_a_newer_schema_is_refused_untouched(size: Size) -> None:
    with size.open() as store:
        added(store.add(entry()))
        with database.transaction(store._engine, write=True, what="it") as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        orphan, _ = store.blobs.put(b"of the newer version")
    for read_only in (False, True):
        with pytest.raises(StorageError, match=r"its schema '9999' is newer than this comgrad .*; update comgrad"):
            size.open(read_only=read_only, grace=0.0)
    assert size.place().blobs.exists(orphan)


def test_read_only(size: Size) -> None:
    with pytest.raises(NotFound, match="there is no registry in that"):
        if "COMGRAD_DATABASE" in size.environment:
            from comgrad.registry.served import ServedPlace

            new = stand_ins.servers().postgres.new_database()
            Store(ServedPlace(new, stand_ins.new_prefix(), size.place().path), read_only=True)
        else:
            size.open(read_only=True)
    with size.open() as store:
        identity = added(store.add(entry()))
        with size.open(read_only=True) as reader:
            assert [row.id for row in reader.list()] == [identity]
            assert reader.audit().ok
            assert reader.add(entry()).status == "exists"
            for write in (lambda: reader.add(entry(b"x", "x")), lambda: reader.remove("one"), reader.reconcile):
                with pytest.raises(StorageError, match="it is open read-only") as caught:
                    write()
                assert caught.value.code == "read-only"
            added(store.add(entry(b"new", "two")))
            assert len(reader.list()) == 2


def test_instants_are_those_of_the_clock(store: Store) -> None:
    identity = added(store.add(entry()))
    made = store.get(identity).created_at
    gone = store.remove(identity).removed_at
    assert gone is not None
    assert made.utcoffset() == gone.utcoffset() == datetime.now().astimezone().utcoffset() * 0  # type: ignore[operator]
    assert 0 <= (gone - made).total_seconds() < 60
