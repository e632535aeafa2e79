"""Lineage: a vector has one id, wherever it lies and however it is named, and an init's sources are not lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from comgrad.errors import NotFound
from comgrad.workflows.lineage import identity, parents_of_trained
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import open_vector


def test_a_folder_its_container_and_its_registry_entry_have_one_id(zoo: list[Path], tmp_path: Path) -> None:
    entry = Registry().add(zoo[0], name="mine")
    tau = open_vector(str(zoo[0]))
    tau.save(tmp_path / "vector.safetensors")
    assert {identity(zoo[0]), identity(zoo[0], tau), identity(tmp_path), identity("mine"), identity(str(entry.id))} == {
        entry.id
    }
    assert identity(zoo[1]) != entry.id
    with pytest.raises(NotFound):
        identity("nothing")


def test_what_has_no_id_goes_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    assert identity(tmp_path / "checkpoint") == "checkpoint"


def test_an_init_s_sources_stay_parents(zoo: list[Path], tmp_path: Path) -> None:
    init = tmp_path / "start"
    shutil.copytree(zoo[0], init)
    (init / "task_card.json").unlink()
    assert parents_of_trained(init) == [{"id": identity(zoo[0]), "role": "train", "coefficient": 1.0}]
    sources = [{"id": "tv-00", "role": "suggest", "coefficient": 0.5}, {"id": "tv-01", "role": "suggest"}]
    (init / "task_card.json").write_text(json.dumps({"schema": 1, "parents": sources}))
    assert parents_of_trained(init)[1:] == sources
