"""A vector's gradient: attached, replaced, shared, damaged, collected, and carried over from an older registry."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import event

from bounded import joined, started
from comgrad.errors import ComgradError, FileRefused, NotFound, StorageError
from comgrad.registry import database
from comgrad.registry.card import Card
from comgrad.registry.gradients import GradientEntry, GradientFacts
from comgrad.registry.models import Entry, Facts
from comgrad.registry.store import Store
from comgrad.types import BaseRef

FACTS = Facts(BaseRef("m"), "lowrank", 1, 1.0)
HOW = GradientFacts(160, 0.6, 0.7, 16, 0.95, "0" * 64, BaseRef("m", "f" * 64))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "registry", grace=0.0)


def add(store: Store, name: str) -> str:
    record = store.add(Entry(name.encode() * 10, Card.make(name=name), FACTS)).record
    assert record is not None
    return record.id


def blobs(store: Store) -> int:
    return len(list(store.blobs.digests()))


def held(store: Store, key: str) -> bytes:
    found = store.gradient(key)
    assert found is not None
    return found[1].read_bytes()


def test_attached_replaced_and_attached_again(store: Store) -> None:
    one = add(store, "one")
    assert store.gradient(one) is None
    assert store.attach_gradient("one", GradientEntry(b"first", HOW)).status == "attached"
    assert store.attach_gradient(one, GradientEntry(b"first", HOW)).status == "exists"
    assert (held(store, one), blobs(store)) == (b"first", 2)
    assert store.attach_gradient(one, GradientEntry(b"second", HOW)).status == "replaced"
    assert (held(store, one), blobs(store)) == (b"second", 2)  # the old blob is gone
    record = store.gradients()[one]
    assert store.gradients([one, "tv-none"]) == {one: record} and store.gradients([]) == {}
    assert (record.facts, record.size_bytes, record.vector_id) == (HOW, 6, one)
    assert record.created_at.tzinfo is not None
    with pytest.raises(NotFound, match="no vector of that id"):
        store.attach_gradient("two", GradientEntry(b"x", HOW))


def test_a_gradient_goes_with_its_vector_and_does_not_come_back_with_it(store: Store) -> None:
    one = add(store, "one")
    store.attach_gradient(one, GradientEntry(b"first", HOW))
    store.remove(one)
    assert (blobs(store), store.gradients()) == (0, {})
    with pytest.raises(NotFound, match="removed"):
        store.attach_gradient(one, GradientEntry(b"first", HOW))
    assert blobs(store) == 0
    assert store.add(Entry(b"one" * 10, Card.make(name="one"), FACTS), restore=True).status == "added"
    assert store.gradient(one) is None


def test_two_vectors_may_share_a_blob_and_so_may_a_vector_and_a_gradient(store: Store) -> None:
    one, two = add(store, "one"), add(store, "two")
    for identity in (one, two):
        store.attach_gradient(identity, GradientEntry(b"shared", HOW))
    store.remove(one)
    assert held(store, two) == b"shared"
    store.attach_gradient(two, GradientEntry(b"two" * 10, HOW))  # the bytes of the vector itself
    store.attach_gradient(two, GradientEntry(b"other", HOW))
    assert store.blob_path(two).read_bytes() == b"two" * 10
    three = store.add(Entry(b"other", Card.make(name="three"), FACTS)).record
    assert three is not None
    store.remove(two)
    assert store.blob_path(three.id).read_bytes() == b"other"
    assert store.audit().ok


def test_opening_and_collecting_spare_gradients_however_old(store: Store) -> None:
    one = add(store, "one")
    store.attach_gradient(one, GradientEntry(b"first", HOW))
    assert store.audit().orphans == ()
    found = store.reconcile(grace=0.0)
    assert (found.orphans_deleted, found.gradients) == (0, ())
    assert held(store, one) == b"first"


@pytest.mark.parametrize("how", ["delete", "change"])
def test_damage_is_reported_marked_and_mended_by_attaching_again(store: Store, how: str) -> None:
    one = add(store, "one")
    store.attach_gradient(one, GradientEntry(b"first", HOW))
    path = store.blobs.path(store.gradients()[one].digest)
    path.unlink()
    if how == "change":
        path.write_bytes(b"tsrif")
    report = store.audit()
    assert (report.ok, report.checked, report.damaged, report.missing) == (False, 2, (), ())
    assert report.gradients == (one,)
    assert store.gradients()[one].damage == ("missing" if how == "delete" else "corrupt")
    assert store.get(one).damage is None  # the vector is whole
    assert store.reconcile().gradients == (one,)
    if how == "delete":
        with pytest.raises(StorageError, match=r"the gradient of 'one' .*; it is missing; add the vector with"):
            store.gradient(one)
    assert store.attach_gradient(one, GradientEntry(b"first", HOW)).status == "exists"
    assert (held(store, one), store.gradients()[one].damage, store.audit().ok) == (b"first", None, True)


def test_a_blob_that_comes_back_heals_its_gradient(store: Store) -> None:
    one = add(store, "one")
    store.attach_gradient(one, GradientEntry(b"first", HOW))
    path = store.blobs.path(store.gradients()[one].digest)
    path.unlink()
    assert store.reconcile().gradients == (one,)
    path.write_bytes(b"first")
    assert store.reconcile().gradients == ()
    assert store.gradients()[one].damage is None


def test_a_linked_source_is_refused_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    one = add(store, "one")
    store.attach_gradient(one, GradientEntry(b"first", HOW))
    (tmp_path / "g").write_bytes(b"other")
    (tmp_path / "link").symlink_to(tmp_path / "g")
    with pytest.raises(FileRefused, match="link"):
        store.attach_gradient(one, GradientEntry(tmp_path / "link", HOW))
    assert held(store, one) == b"first"


def test_listing_many_is_one_query(store: Store) -> None:
    for i in range(7):
        store.attach_gradient(add(store, f"vector {i}"), GradientEntry(f"g{i}".encode(), HOW))
    said: list[str] = []
    event.listen(store._engine, "before_cursor_execute", lambda *a: said.append(a[2]))
    assert len(store.gradients()) == 7
    assert len([query for query in said if query.startswith("SELECT")]) == 1


def test_a_registry_of_the_first_schema_is_upgraded_on_opening(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        one = add(store, "one")
    with sqlite3.connect(tmp_path / "catalogue.sqlite") as old:  # as it was before there were gradients
        old.execute("DROP TABLE gradients")
        old.execute("UPDATE alembic_version SET version_num = '0001'")
    old.close()
    with pytest.raises(StorageError, match="older than this comgrad"):
        Store(tmp_path, read_only=True)
    opened: list[Store] = []
    threads = [threading.Thread(target=lambda: opened.append(Store(tmp_path))) for _ in range(4)]
    started(threads)
    joined(threads)
    assert len(opened) == 4  # whoever came first upgraded it
    assert database.revision(opened[0]._engine, "it") == database.HEAD == "0002"
    assert opened[0].get(one).name == "one"
    assert opened[1].attach_gradient(one, GradientEntry(b"g", HOW)).status == "attached"
    for store in opened:
        store.close()


@pytest.mark.parametrize("wrong", [{"examples": 0}, {"rank": 0}, {"loss": float("nan")}, {"energy_kept": -0.1}])
def test_figures_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ComgradError, match="counts are positive and figures finite"):
        GradientFacts.from_dict(HOW.as_dict() | wrong)


def test_facts_survive_a_later_version_and_not_a_gap() -> None:
    assert GradientFacts.from_dict(HOW.as_dict() | {"later": 1}) == HOW
    short = HOW.as_dict()
    del short["loss"]
    with pytest.raises(ComgradError, match="incomplete"):
        GradientFacts.from_dict(short)
