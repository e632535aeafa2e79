"""Waiting that ends: for a line of a pipe, and for threads, whose other side may have died or be silent."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import IO

LONG = 300.0  # seconds; a busy machine is no failure, and a test that never ends tells nothing


def next_line(stream: IO[str] | None, seconds: float = LONG) -> str:
    """The next line; empty when the other side closed it. Fails when none comes."""
    assert stream is not None
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(seconds)
    assert found, f"no line came in {seconds:.0f} s"
    return found[0]


def started(threads: Sequence[threading.Thread]) -> Sequence[threading.Thread]:
    """Start threads that keep no process alive."""
    for thread in threads:
        thread.daemon = True
        thread.start()
    return threads


def joined(threads: Sequence[threading.Thread], seconds: float = LONG) -> None:
    """Wait for threads to end. Fails when one does not."""
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), f"a thread did not end in {seconds:.0f} s"
