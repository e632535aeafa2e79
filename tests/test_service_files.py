"""The cache of files that are served: what a killed process leaves in it goes at the next start, and nothing else does."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bounded import LONG
from comgrad.service.files import Files
from comgrad.vectors import peft_write
from comgrad.workflows.resolve import read_vector
from service_site import running

STALLED = """
import sys, time
from pathlib import Path
import test_service_files as t
from comgrad.service.files import Files
from comgrad.vectors import peft_write

real = peft_write.write_peft

def stalled(vector, path):
    real(vector, path)
    Path(sys.argv[3]).touch()
    time.sleep(600)

peft_write.write_peft = stalled
Files(None, Path(sys.argv[1]))._write(t.listing(Path(sys.argv[2])), Path(sys.argv[1]) / "tv-killed")
"""


def listing(adapter: Path) -> Any:
    """As much of a listing as is needed to write it: the real vector."""
    return SimpleNamespace(entry=SimpleNamespace(vector=lambda: read_vector(adapter)))


def until(check: Callable[[], bool], seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def half_made(cache: Path) -> list[Path]:
    return [p for p in cache.iterdir() if p.suffix == ".part"]


def killed(cache: Path, adapter: Path, said: Path) -> None:
    """A process that dies, by kill -9, while it makes a folder."""
    command = [sys.executable, "-c", STALLED, str(cache), str(adapter), str(said)]
    process = subprocess.Popen(command, cwd=Path(__file__).parent)
    try:
        until(lambda: said.exists() or process.poll() is not None)
        assert process.poll() is None
        assert Files(None, cache).reclaim() == 0  # type: ignore[arg-type]  # it lives: its folder is its own
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)


def test_what_a_killed_process_left_half_made_goes_and_what_a_live_one_makes_stays(
    tmp_path: Path, zoo: list[Path], monkeypatch: Any
) -> None:
    cache = tmp_path / "peft"
    cache.mkdir()
    killed(cache, zoo[0], tmp_path / "said")
    assert len(half_made(cache)) == 1
    files, other = Files(None, cache), Files(None, cache)  # type: ignore[arg-type]
    inside, over, real = threading.Event(), threading.Event(), peft_write.write_peft

    def slowly(*args: Any) -> None:
        inside.set()
        assert over.wait(LONG)
        real(*args)

    monkeypatch.setattr(peft_write, "write_peft", slowly)
    thread = threading.Thread(target=other._write, args=(listing(zoo[1]), cache / "tv-live"), daemon=True)
    thread.start()
    assert inside.wait(LONG)
    assert files.reclaim() == 0
    assert len(half_made(cache)) == 2
    over.set()
    thread.join(LONG)
    assert not thread.is_alive()
    assert files.reclaim() == 1
    assert [p.name for p in cache.iterdir()] == ["tv-live"]
    assert files.reclaim() == 0


def test_the_service_does_it_at_its_start(tmp_path: Path, zoo: list[Path]) -> None:
    cache = tmp_path / "service" / "peft"
    cache.mkdir(parents=True)
    killed(cache, zoo[0], tmp_path / "said")
    with running(tmp_path, workers="none"):
        until(lambda: not half_made(cache))
