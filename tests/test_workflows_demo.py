"""The main job from nothing, with few steps: everything it promises is there afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from comgrad.errors import NotFound
from comgrad.workflows.demo import held_out_tasks, run_demo, starter
from comgrad.workflows.registry import Registry


def test_the_demo_does_the_whole_job(tmp_path: Path, home: Path) -> None:
    lines: list[str] = []
    result = run_demo(tmp_path / "out", task_id="acceptability-irregular-forms", steps=2, say=lines.append)
    assert result["adapters"] == 38
    assert {"from zero", "from the description", "from the description and 160 examples"} == set(result["curves"])
    for readings in result["curves"].values():
        assert [r["step"] for r in readings] == [0, 1, 2]
    assert result["neighbours_of_same_family"] > 0.6
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "demo.json",
        "map.html",
        "map.png",
        "registry",
        "report.html",
        "start",
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script src" not in page
    assert "intent-banking" in page
    assert f"{result['curves']['from zero'][-1]['loss']:.3f}" in page
    assert len(Registry(tmp_path / "out" / "registry").list()) == 38
    assert not (home / "catalogue.sqlite").exists()  # the user's own registry is not touched
    assert any("centred cosine" in line for line in lines)
    again = run_demo(tmp_path / "out", task_id="acceptability-irregular-forms", steps=1, say=lines.append)
    assert again["curves"]["from zero"][0] == result["curves"]["from zero"][0]


def test_the_held_out_tasks_have_no_adapter_in_the_zoo() -> None:
    zoo = {p.name for p in starter("zoo").iterdir()}
    assert held_out_tasks() == ["abstract-sentence-role", "acceptability-irregular-forms", "banking-intent"]
    assert not zoo & set(held_out_tasks())


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="the demo has no such task; choose one of"):
        run_demo(tmp_path / "out", task_id="nope")
    assert not (tmp_path / "out").exists()
