"""The catalogue: look-up, names, ids, the schema and its migrations."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

import comgrad.registry
from comgrad.errors import ComgradError, NameTaken, NotFound, StorageError
from comgrad.registry import database
from comgrad.registry.card import Card
from comgrad.registry.catalogue import Catalogue
from comgrad.registry.models import REVISIONS, AddResult, Facts, metadata, vector_id, vectors
from comgrad.types import BaseRef

FACTS = Facts(BaseRef("mini", "f" * 64), "lowrank", 8, 1.5)


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    engine = database.sqlite_engine(tmp_path / "c.sqlite", read_only=False)
    database.upgrade(engine, "it")
    found = Catalogue(engine, "it")
    yield found
    found.close()


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def add(catalogue: Catalogue, name: str, data: str = "", facts: Facts = FACTS, **card: object) -> AddResult:
    with catalogue.writing() as rows:
        return rows.add(name, Card.make(**card), facts, digest(data or name), 10)


def test_a_row_holds_what_was_given(catalogue: Catalogue) -> None:
    before = datetime.now(UTC)
    result = add(catalogue, "One two", "x", description="d", label_names=["a"], metrics={"acc": 0.5})
    row = catalogue.get("One two")
    assert (result.status, result.record) == ("added", row)
    assert row.id == "tv-" + digest("x")[:16] == vector_id(digest("x"))
    assert (row.name, row.description, row.facts, row.size_bytes, row.state) == ("One two", "d", FACTS, 10, "active")
    assert row.card == Card.make(name="One two", description="d", label_names=["a"], metrics={"acc": 0.5})
    assert before <= row.created_at <= datetime.now(UTC)


@pytest.mark.parametrize("key", ["Intent home", "intent-HOME", " intent_home ", "Intent h", "іntеnt home"])
def test_get_by_name_look_alike_and_beginning(catalogue: Catalogue, key: str) -> None:
    add(catalogue, "Intent home")
    add(catalogue, "Intent bank")
    assert catalogue.get(key).name == "Intent home"


def test_get_by_id_and_digest(catalogue: Catalogue) -> None:
    row = add(catalogue, "One").record
    assert row is not None
    for key in (row.id, row.id.upper(), row.id[:8], row.digest, row.digest[:12]):
        assert catalogue.get(key).id == row.id
    with pytest.raises(NotFound):
        catalogue.get(row.id[:8], exact=True)


def test_an_exact_name_wins_over_a_beginning(catalogue: Catalogue) -> None:
    add(catalogue, "home")
    add(catalogue, "home two")
    assert catalogue.get("home").name == "home"


def test_an_ambiguous_beginning_lists_the_candidates(catalogue: Catalogue) -> None:
    add(catalogue, "Intent home")
    add(catalogue, "Intent bank")
    with pytest.raises(NotFound, match=r"'inte'; it is the beginning of several: 'Intent bank' \(tv-") as caught:
        catalogue.get("inte")
    assert caught.value.code == "ambiguous"


@pytest.mark.parametrize(
    "key", ["", "%", "_", "tv-", "tv-%", "x", "'; DROP TABLE vectors; --", "\x1b[31m", "a" * 10_000]
)
def test_odd_keys_find_nothing(catalogue: Catalogue, key: str) -> None:
    add(catalogue, "Intent home")
    add(catalogue, "Intent bank")
    with pytest.raises(NotFound) as caught:
        catalogue.get(key)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert len(catalogue.list()) == 2


def test_close_names_are_suggested(catalogue: Catalogue) -> None:
    for name in ("Acceptability: binding", "Banking intent", "Does the statement make sense"):
        add(catalogue, name)
    with pytest.raises(NotFound, match="did you mean 'Banking intent'"):
        catalogue.get("bankin intnt")
    with pytest.raises(NotFound, match="did you mean 'Does the statement make sense'"):
        catalogue.get("sensible statment")
    with pytest.raises(NotFound, match="see `comgrad list`"):
        catalogue.get("zzzz")


def test_the_same_bytes_exist_whatever_their_name(catalogue: Catalogue) -> None:
    first = add(catalogue, "One", "x")
    again = add(catalogue, "Another name", "x")
    assert (again.status, again.record) == ("exists", first.record)
    assert len(catalogue.list()) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Mood", "it belongs to tv-.*, which has other bytes"),
        ("MOOD", "it reads like 'Mood', the name of tv-"),
        ("mооd", "it reads like 'Mood', the name of tv-|mixes Cyrillic"),
        ("ｍｏｏｄ", "it reads like 'Mood', the name of tv-"),
        ("m00d", "it reads like 'Mood', the name of tv-"),
    ],
)
def test_a_name_and_its_look_alikes_are_taken(catalogue: Catalogue, name: str, why: str) -> None:
    add(catalogue, "Mood", "x")
    with pytest.raises(ComgradError, match=why) as caught:
        add(catalogue, name, "y")
    assert isinstance(caught.value, NameTaken) or caught.value.code == "name-refused"
    assert len(catalogue.list()) == 1


def test_a_removed_name_stays_taken_and_removed_bytes_need_restore(catalogue: Catalogue) -> None:
    row = add(catalogue, "Mood", "x", description="old").record
    assert row is not None
    with catalogue.writing() as rows:
        gone = rows.remove(row.id, "wrong data")
    assert (gone.state, gone.removed_reason, gone.name) == ("removed", "wrong data", "Mood")
    assert catalogue.list() == []
    assert [r.id for r in catalogue.list(include_removed=True)] == [row.id]
    with pytest.raises(NameTaken, match="which was removed; a name never passes to another vector"):
        add(catalogue, "mood", "y")
    with pytest.raises(NotFound, match=r"'Mood' \(tv-.*\); it was removed on .* \(wrong data\)") as caught:
        catalogue.get("mood")
    assert caught.value.code == "removed"
    with pytest.raises(NotFound, match="restore=True") as caught:
        add(catalogue, "Mood", "x")
    assert caught.value.code == "removed"
    with catalogue.writing() as rows:
        back = rows.add("Other", Card.make(description="new"), FACTS, digest("x"), 10, restore=True)
    assert back.status == "added"
    assert back.record is not None
    assert (back.record.id, back.record.name, back.record.description) == (row.id, "Mood", "new")
    assert (back.record.removed_at, back.record.removed_reason, back.record.card.name) == (None, None, "Mood")


def test_two_blobs_with_one_id_are_refused(catalogue: Catalogue) -> None:
    first = "ab" * 32
    second = first[:16] + "0" * 48
    with catalogue.writing() as rows:
        rows.add("one", Card(), FACTS, first, 1)
    with (
        pytest.raises(StorageError, match="its id tv-abababababababab already stands for abab") as caught,
        catalogue.writing() as rows,
    ):
        rows.add("two", Card(), FACTS, second, 1)
    assert caught.value.code == "id-collision"
    assert len(catalogue.list()) == 1


def test_a_transaction_that_fails_leaves_nothing(catalogue: Catalogue) -> None:
    with pytest.raises(RuntimeError), catalogue.writing() as rows:
        rows.add("one", Card(), FACTS, digest("x"), 1)
        raise RuntimeError
    assert catalogue.list() == []


def test_list_filters_and_order(catalogue: Catalogue) -> None:
    add(catalogue, "b")
    add(catalogue, "a", facts=Facts(BaseRef("other"), "dense", None, None))
    assert [r.name for r in catalogue.list()] == ["b", "a"]
    assert [r.name for r in catalogue.list(kind="dense")] == ["a"]
    assert [r.name for r in catalogue.list(base="mini")] == ["b"]


def test_search_ranks_and_forgets_the_removed(catalogue: Catalogue) -> None:
    add(catalogue, "Banking intent", description="requests of customers")
    add(catalogue, "Mood of films", description="is a review about a bank heist good")
    add(catalogue, "Tense", label_names=["past_100%", "present"])
    assert [hit.record.name for hit in catalogue.search("bank")] == ["Banking intent", "Mood of films"]
    assert [hit.record.name for hit in catalogue.search("PRESENT, past!")] == ["Tense"]
    assert catalogue.search("%") == catalogue.search("") == catalogue.search("nothing") == []
    assert len(catalogue.search("bank", limit=1)) == 1
    with catalogue.writing() as rows:
        rows.remove(catalogue.get("Banking intent").id, "")
    assert [hit.record.name for hit in catalogue.search("bank")] == ["Mood of films"]


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1.0])
def test_a_norm_that_is_none_is_refused(norm: float) -> None:
    with pytest.raises(ComgradError, match="a norm is a finite number"):
        Facts(BaseRef("m"), "dense", None, norm)


# -- the schema ------------------------------------------------------------------------------------------------------
def test_the_migrations_make_exactly_the_models(catalogue: Catalogue) -> None:
    with catalogue._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_known_revisions_are_the_migrations_on_disk() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(comgrad.registry.__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    assert tuple(reversed([script.revision for script in scripts.walk_revisions()])) == REVISIONS
    assert scripts.get_heads() == [database.HEAD]


def test_upgrading_twice_changes_nothing(catalogue: Catalogue) -> None:
    add(catalogue, "one")
    database.upgrade(catalogue._engine, "it")
    assert database.revision(catalogue._engine, "it") == database.HEAD
    assert len(catalogue.list()) == 1


def test_the_table_can_be_made_in_postgresql() -> None:
    statement = str(CreateTable(vectors).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    assert "DOUBLE PRECISION" in statement
    assert "UNIQUE (name_key)" in statement


def test_durability_settings(catalogue: Catalogue) -> None:
    with catalogue._engine.connect() as connection:
        found = {
            p: connection.exec_driver_sql(f"PRAGMA {p}").scalar()
            for p in ("journal_mode", "synchronous", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 60_000}


def test_a_locked_database_is_reported(catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    impatient = Catalogue(database.sqlite_engine(tmp_path / "c.sqlite", read_only=False), "the registry")
    with catalogue.writing(), pytest.raises(StorageError, match="the registry; another process held it") as caught:
        add(impatient, "one")
    assert caught.value.code == "locked"
    assert impatient.list() == []
    impatient.close()


def test_a_damaged_database_is_reported(catalogue: Catalogue, tmp_path: Path) -> None:
    for number in range(50):
        add(catalogue, f"name {number}")
    catalogue.close()
    shutil.copy(tmp_path / "c.sqlite", tmp_path / "d.sqlite")
    with (tmp_path / "d.sqlite").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4_096)
        file.write(b"\xff" * (size - 4_096))
    broken = Catalogue(database.sqlite_engine(tmp_path / "d.sqlite", read_only=False), "the registry")
    with pytest.raises(StorageError, match="the registry; its pages are damaged; restore it from a backup") as caught:
        broken.list()
    assert caught.value.code == "database-damaged"
    broken.close()
    (tmp_path / "e.sqlite").write_bytes(b"not a database at all" * 500)
    text = Catalogue(database.sqlite_engine(tmp_path / "e.sqlite", read_only=False), "the registry")
    with pytest.raises(StorageError, match="it is not a SQLite database"):
        text.list()
    text.close()


def test_sqlite_is_new_enough() -> None:
    assert sqlite3.sqlite_version_info >= (3, 22)  # read-only WAL
