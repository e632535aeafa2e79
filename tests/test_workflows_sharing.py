"""What is sent of a folder and of a registry's entry, and where what is fetched is put."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comgrad.client.parcel import Part, parcel
from comgrad.errors import ComgradError, NotFound
from comgrad.workflows.gradients import read_gradient_file
from comgrad.workflows.lineage import identity
from comgrad.workflows.registry import Registry
from comgrad.workflows.sharing import PushRequest, _folder_name, parts_of, push_all


def written(parts: list[Part], folder: Path) -> Path:
    folder.mkdir()
    for p in parts:
        (folder / p.name).write_bytes(p.read(0, p.size))
    return folder


def test_a_folder_and_its_registry_entry_send_the_same_vector_card_and_gradient(
    zoo: list[Path], tmp_path: Path
) -> None:
    entry = Registry().add(zoo[0], name="mine")
    a, b = written(parcel(zoo[0]), tmp_path / "a"), written(parts_of("mine"), tmp_path / "b")
    assert identity(a) == identity(b) == entry.id
    cards = [json.loads((f / "task_card.json").read_text()) for f in (a, b)]
    assert cards[0]["description"] == cards[1]["description"]
    gradients = [read_gradient_file(f) for f in (a, b)]
    assert gradients[0] is not None and gradients[1] is not None
    assert gradients[0].facts == gradients[1].facts
    assert (gradients[0].vector - gradients[1].vector).norm() <= 1e-9 * gradients[0].vector.norm()


def test_gradients_are_left_out_where_asked(zoo: list[Path]) -> None:
    Registry().add(zoo[0], name="mine")
    for parts in (parts_of("mine", gradient=False), parts_of(str(zoo[0]), gradient=False)):
        assert not [p.name for p in parts if "gradient" in p.name]
        assert [p.name for p in parts if p.name.endswith(".safetensors")]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such path, and no vector of that id or name"):
        parts_of("nothing")
    with pytest.raises(ComgradError, match="one name or description for 2"):
        push_all(None, ["a", "b"], PushRequest(name="x"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ref", "name"),
    [("ada/mood", "ada-mood"), ("../../etc", "etc"), ("..", "vector"), ("a\x00b", "a-b"), ("x" * 300, "x" * 100)],
)
def test_a_folder_s_name_stays_where_it_is_put(ref: str, name: str) -> None:
    assert _folder_name(ref) == name
