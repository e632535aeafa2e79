"""What all tests share: a registry folder of their own, the shipped adapters, no network."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import settings

# New examples on every developer's run; the same ones in continuous integration, where a red run must be repeatable.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("default", deadline=None)  # a busy machine is no failure
settings.load_profile("ci" if os.environ.get("CI") else "default")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: programs under test would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

STARTER = Path(__file__).parents[1] / "src" / "comgrad" / "starter"


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """COMGRAD_HOME of this test, empty."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("COMGRAD_HOME", str(folder))
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The program in this process, with lines on its stdin: exit code, stdout, stderr."""
    from comgrad.cli.main import main

    def call(*arguments: object, lines: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["comgrad", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", StringIO(lines))
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def zoo() -> list[Path]:
    """The folders of the starter zoo's adapters."""
    found = sorted(p for p in (STARTER / "zoo").iterdir() if p.is_dir())
    assert len(found) == 38
    return found


@pytest.fixture(scope="session")
def tasks() -> list[Path]:
    """The folders of the shipped tasks that no adapter of the zoo was trained on."""
    found = sorted(p for p in (STARTER / "tasks").iterdir() if p.is_dir())
    assert len(found) == 3
    return found
