"""`comgrad explain` on a terminal, for a program, and as a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from comgrad.cli import explain_cmd
from comgrad.errors import ComgradError
from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.registry import Registry

KEYS = {"sources", "residual", "description", "evidence", "verdict", "neighbours", "base", "claim", "layers"}


@pytest.fixture(scope="module")
def program() -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)
    explain_cmd.register(app)
    app.command("other")(lambda: None)  # one command alone would take the program's name
    return app


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, zoo: list[Path]) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    add_paths(zoo[:14], AddRequest(), registry=Registry(folder))
    return folder


def test_a_table_json_and_a_page(
    program: typer.Typer, filled: Path, zoo: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMGRAD_HOME", str(filled))
    runner, out = CliRunner(), tmp_path / "report.html"
    shown = runner.invoke(program, ["explain", str(zoo[14]), "--html", str(out)])
    assert shown.exit_code == 0, shown.output
    for words in (
        "nearest known",
        "made of",
        "nothing known",
        "measured against",
        "What this cannot tell",
        f"wrote {out}",
    ):
        assert words in shown.output
    assert out.read_text().startswith("<!doctype html>")
    asked = runner.invoke(program, ["explain", str(zoo[14]), "--json", "--claim", "Say whether a sentence is rude."])
    data = json.loads(asked.stdout)
    assert set(data) >= KEYS
    assert data["claim"]["text"] == "Say whether a sentence is rude."
    assert {"id", "name", "coefficient"} <= set(data["sources"][0])
    assert data["verdict"] in shown.output or data["verdict"] in ("consistent", "unexplained", "suspicious")


def test_a_known_vector_by_name_and_a_mistake(
    program: typer.Typer, filled: Path, zoo: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMGRAD_HOME", str(filled))
    shown = CliRunner().invoke(program, ["explain", zoo[2].name])
    assert shown.exit_code == 0 and shown.output.startswith(f"{zoo[2].name}: ")
    wrong = CliRunner().invoke(program, ["explain", "nobody"])
    assert isinstance(wrong.exception, ComgradError)
    help_ = CliRunner().invoke(program, ["explain", "--help"]).output
    assert "--html" in help_ and "--claim" in help_ and "--base" in help_
