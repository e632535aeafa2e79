"""Cards: the shipped ones parse, the round trip is the identity, and bad ones are refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import ComgradError, FileRefused, NotFound
from comgrad.registry import cardfile
from comgrad.registry.card import MAX_EXTRA_BYTES, Card, Parent, Training
from comgrad.registry.names import name_key

STARTER = Path(str(files("comgrad.starter")))


def test_every_shipped_card_parses_and_loses_nothing() -> None:
    paths = sorted(STARTER.glob("*/*/task_card.json"))
    assert len(paths) == 41  # 38 adapters and 3 held-out tasks
    cards = [Card.from_file(path) for path in paths]
    for path, card in zip(paths, cards, strict=True):
        raw = json.loads(path.read_text())
        assert card.extra == {}
        for key, value in raw.items():
            if key not in ("schema", "training"):
                assert card.model_dump(mode="json")[key] == value, key
        if "training" in raw:
            assert card.training is not None
            assert card.training.model_dump(exclude_none=True) == raw["training"]
    assert len({name_key(card.name) for card in cards}) == 41


def test_reading_cards_loads_no_torch() -> None:
    code = "import sys, comgrad.registry.card, comgrad.registry.store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


printable = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs")), max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63) + 1, 2**63 - 1)
scalars = st.none() | st.booleans() | numbers | printable
json_values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(printable, v, max_size=3), max_leaves=6
)
labels = st.lists(printable, max_size=4).map(tuple)


@settings(deadline=None)
@given(
    description=printable,
    label_names=labels,
    family=printable,
    pair=st.none() | st.booleans(),
    metrics=st.dictionaries(printable, scalars, max_size=3),
    seeds=st.dictionaries(printable, st.integers(-100, 100), max_size=3),
    extra=st.dictionaries(printable, json_values, max_size=3),
    rank=st.none() | st.integers(0, 512),
    coefficient=st.none() | st.floats(-2, 2),
)
def test_to_dict_and_from_dict_are_inverse(rank: int | None, coefficient: float | None, **fields: Any) -> None:
    parents = (Parent(id="tv-1", role="merge", coefficient=coefficient),)
    card = Card(name="a name", training=Training(rank=rank), parents=parents, **fields)
    assert Card.from_dict(card.to_dict()) == card
    assert Card.from_dict(json.loads(card.to_json())) == card


def test_unknown_keys_go_to_extra_and_come_back() -> None:
    card = Card.from_dict({"schema": 1, "mood": [1, {"a": None}], "extra": {"old": True}})
    assert card.extra == {"old": True, "mood": [1, {"a": None}]}
    assert Card.from_dict(card.to_dict()) == card


def test_training_keeps_unknown_scalars() -> None:
    card = Card.from_dict({"training": {"rank": 4, "warmup": 0.1, "scheduler": "cosine"}})
    assert card.training is not None
    assert card.to_dict()["training"] == {"rank": 4, "warmup": 0.1, "scheduler": "cosine"}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"description": 3}, "'description': Input should be a valid string"),
        ({"description": "x" * 20_001}, "at most 20000 characters"),
        ({"description": "a\x1b[2Jb"}, r"'description': the text has the character U\+001B"),
        ({"description": "a\u202eb"}, r"the character U\+202E"),
        ({"notes": "a\x00"}, r"'notes': .*U\+0000"),
        ({"label_names": ["ok", "a\u2067b"]}, r"'label_names': .*U\+2067"),
        ({"label_names": ["a", "b"], "label_prompts": ["a"]}, "2 label names but 1 label prompts"),
        ({"label_names": "ab"}, "'label_names': Input should be a valid tuple"),
        ({"pair": "yes"}, "'pair'"),
        ({"metrics": {"accuracy": float("nan")}}, "metrics"),
        ({"metrics": {"accuracy": float("inf")}}, "metrics"),
        ({"metrics": {"accuracy": [1]}}, "metrics"),
        ({"mood": float("nan")}, "NaN and infinity are not allowed"),
        ({"mood": "x" * MAX_EXTRA_BYTES}, "16384 are allowed"),
        ({"mood": deep(5_000)}, "nested deeper"),
        ({"mood": {"a\x07": 1}}, r"U\+0007"),
        ({"mood": 2**80}, "does not fit 64 bits"),
        ({"extra": [1]}, "'extra': Input should be a valid dictionary"),
        ({"training": {"mood": [1]}}, "holds a list; only plain values are kept"),
        ({"training": {"mood": "a\x1b"}}, r"U\+001B"),
        ({"training": {"rank": -1}}, "training.rank"),
        ({"training": {"loss_after": float("nan")}}, "training.loss_after"),
        ({"parents": [{"id": "tv-1"}]}, "parents.0.role"),
        ({"parents": [{"id": "tv-1", "role": "merge", "x": 1}]}, "parents.0.x"),
        ({"schema": "1"}, "its schema is '1', not a number"),
        ({"schema": True}, "its schema is True, not a number"),
        ({"schema": -1}, "its schema is -1, not a number"),
    ],
)
def test_refused_cards(data: dict[str, Any], why: str) -> None:
    with pytest.raises(FileRefused, match=why) as caught:
        Card.from_dict(data)
    assert caught.value.code == "card-refused"


def test_a_newer_card_is_refused() -> None:
    with pytest.raises(FileRefused, match="its schema is 2 and this comgrad knows schemas up to 1; update") as caught:
        Card.from_dict({"schema": 2})
    assert caught.value.code == "card-newer"


def test_a_bad_name_is_refused_by_its_own_reason() -> None:
    with pytest.raises(ComgradError, match="invisible") as caught:
        Card.from_dict({"name": "a\u202eb"})
    assert caught.value.code == "name-refused"


def test_line_ends_and_paragraphs_are_kept() -> None:
    assert Card.make(description="one\r\ntwo\n\tthree").description == "one\ntwo\n\tthree"


def test_cards_without_a_schema_number_are_brought_up_to_date() -> None:
    card = Card.from_dict({"description": "d", "license": "MIT"})
    assert (card.schema_version, card.licence, card.extra) == (1, "MIT", {})
    assert Card.from_dict({"schema": 1, "license": "MIT"}).extra == {"license": "MIT"}


def test_migrations_run_in_order_from_the_version_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(number: int) -> Any:
        return lambda data: {**data, "path": [*data.get("path", []), number]}

    monkeypatch.setattr(cardfile, "MIGRATIONS", [step(0), step(1), step(2)])
    assert cardfile.upgraded({"schema": 1}, 3, "x") == {"schema": 3, "path": [1, 2]}
    assert cardfile.upgraded({}, 3, "x") == {"schema": 3, "path": [0, 1, 2]}
    assert cardfile.upgraded({"schema": 3}, 3, "x") == {"schema": 3}


def test_a_card_does_not_change() -> None:
    card = Card.make(name="one", description="d")
    with pytest.raises(ValueError, match="frozen"):
        card.name = "two"
    assert card.replaced(name="two") == Card.make(name="two", description="d")
    with pytest.raises(ComgradError, match="invisible"):
        card.replaced(name="t\u202ewo")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b'{"name": "a", "name": "b"}', "a key appears twice"),
        (b'{"extra": {"a": 1, "a": 2}}', "a key appears twice"),
        (b'{"metrics": {"a": NaN}}', "NaN is not a JSON number"),
        (b'{"metrics": {"a": -Infinity}}', "-Infinity is not a JSON number"),
        (b'{"metrics": {"a": 1e999}}', "metrics"),
        (b"[1]", "it is not a JSON object"),
        (b"{", "it is not a JSON card"),
        (b"\x80\x04", "it is not a JSON card"),
        (b"[" * 200_000, "it is nested too deeply"),
        (b'{"mood": ' + b"9" * 5_000 + b"}", "it is not a JSON card"),
        (b" " * 1_048_577, "it is larger than 1048576 bytes"),
    ],
)
def test_refused_files(tmp_path: Path, raw: bytes, why: str) -> None:
    path = tmp_path / "task_card.json"
    path.write_bytes(raw)
    with pytest.raises(FileRefused, match=why) as caught:
        Card.from_file(path)
    assert caught.value.code == "card-refused"


def test_missing_and_linked_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no such file"):
        Card.from_file(tmp_path / "none.json")
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    with pytest.raises(FileRefused, match="it is a symbolic link"):
        Card.from_file(tmp_path / "link.json")
    with pytest.raises(FileRefused, match="it is not a regular file"):
        Card.from_file(tmp_path)
