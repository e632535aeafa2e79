"""The attack table on the service names its rows, and mutated uploads are read or refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("fastapi", reason="the extra 'service' is not installed")

ATTACKS = Path(__file__).parent.parent / "attacks"
CONCERN_THE_SERVICE = {*range(18, 25), *range(26, 49)}


def module(name: str) -> ModuleType:
    if str(ATTACKS) not in sys.path:
        sys.path.insert(0, str(ATTACKS))
    return __import__(name)


def numbers(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("–")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_every_row_of_the_list_that_concerns_the_service_is_in_the_table() -> None:
    service = module("service")
    for name in ("service_transfers", "service_contents", "service_copies", "service_people"):
        module(name)
    rows = service.ROWS
    assert len(rows) >= 29
    assert len({r.attack for r in rows}) == len(rows)
    covered = set().union(*(numbers(r.numbers) for r in rows))
    assert CONCERN_THE_SERVICE - covered == set()
    assert rows[-1].run.__name__ == "guessing"  # it locks an account: nothing may come after it


def test_mutated_uploads_are_read_or_refused(tmp_path: Path) -> None:
    seen = module("fuzz_upload").run(250, 3, tmp_path)
    assert seen.total() == 250
    assert seen["accepted"] > 10  # the mutations leave some whole, so that both ways are tried
    assert len(seen) > 8
