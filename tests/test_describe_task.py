"""Task folders: the shipped ones load, broken ones are refused with the line that breaks them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from comgrad.describe.task import load_task
from comgrad.errors import ComgradError, NotFound

CARD = {"description": "Sort mail.", "label_names": ["a", "b"], "label_prompts": ["It is a.", "It is b."]}


def write(folder: Path, card: object, lines: list[str] | None = None, *, packed: bool = False) -> Path:
    (folder / "task_card.json").write_text(card if isinstance(card, str) else json.dumps(card))
    if lines is not None:
        data = "\n".join(lines).encode()
        name = "examples.jsonl.gz" if packed else "examples.jsonl"
        (folder / name).write_bytes(gzip.compress(data) if packed else data)
    return folder


def test_shipped_tasks_load(tasks: list[Path]) -> None:
    for folder in tasks:
        task = load_task(folder)
        train, test = task.split("train"), task.split("test")
        assert len(train) == 1200
        assert len(test) >= 400
        assert {e.label for e in train} <= set(range(task.n_labels))
        assert not {e.text for e in train} & {e.text for e in test}


@pytest.mark.parametrize("packed", [False, True])
def test_examples_are_read_packed_or_not(tmp_path: Path, packed: bool) -> None:
    lines = ['{"text": "x", "label": 1}', "", '{"text": "y", "label": 0, "split": "test"}']
    task = load_task(write(tmp_path, CARD, lines, packed=packed))
    assert [(e.text, e.label, e.split) for e in task.examples] == [("x", 1, "train"), ("y", 0, "test")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x", "label": 2}', r"line 1; has label 2; labels are indices 0 to 1"),
        ('{"text": "x", "label": true}', r"has label True"),
        ('{"text": "x", "label": "a"}', r"has label 'a'"),
        ('{"text": " ", "label": 0}', r"has no text"),
        ('{"text": "x", "label": 0, "split": 3}', r"has split 3"),
        ('["x", 0]', r"it is JSON, but no object"),
        ("{", r"it is no JSON"),
    ],
)
def test_bad_examples_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ComgradError, match=message):
        load_task(write(tmp_path, CARD, [line]))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({**CARD, "label_prompts": ["one"]}, r"2 label_names and 1 label_prompts"),
        ({**CARD, "label_names": ["a"], "label_prompts": ["x"]}, r"1 label_names"),
        ({**CARD, "label_names": "ab"}, r"key 'label_names'; it must be a list"),
        ({**CARD, "description": " "}, r"has no description"),
        ("[]", r"it is not one JSON object"),
    ],
)
def test_bad_cards_are_refused(tmp_path: Path, card: object, message: str) -> None:
    with pytest.raises(ComgradError, match=message):
        load_task(write(tmp_path, card))


def test_missing_card_and_empty_split(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no task_card.json"):
        load_task(tmp_path)
    task = load_task(write(tmp_path, CARD, ['{"text": "x", "label": 1}']))
    with pytest.raises(ComgradError, match=r"no examples in split 'test'.*its splits are \['train'\]"):
        task.split("test")


def test_broken_archive_is_refused(tmp_path: Path) -> None:
    write(tmp_path, CARD)
    (tmp_path / "examples.jsonl.gz").write_bytes(b"not a gzip file")
    with pytest.raises(ComgradError, match="cannot be read as text"):
        load_task(tmp_path)


def test_a_line_that_unpacks_to_all_of_memory_is_refused_early(tmp_path: Path) -> None:
    write(tmp_path, CARD)
    with gzip.open(tmp_path / "examples.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"a" * 2**20)
    with pytest.raises(ComgradError, match="line 1; is larger than a task's examples may be"):
        load_task(tmp_path)
