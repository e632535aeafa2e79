"""The attack table on the service names its rows, and mutated uploads are read or refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("fastapi", reason="the extra 'service' is not installed")

ATTACKS = Path(__file__).parent.parent / "attacks"
CONCERN_THE_SERVICE = set(range(1, 51))


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
    for name in ("service_transfers", "service_contents", "service_copies", "service_stores", "service_people"):
        module(name)
    rows = service.ROWS
    assert len(rows) >= 34
    assert len({r.attack for r in rows}) == len(rows)
    covered = set().union(*(numbers(r.numbers) for r in rows))
    assert CONCERN_THE_SERVICE - covered == set()
    assert rows[-1].run.__name__ == "guessing"  # it locks an account: nothing may come after it


def test_the_lock_has_every_package_with_its_hashes_and_pip_refuses_others() -> None:
    module("service")
    said, good = module("service_stores").supply_chain(None)
    assert good, said


def test_a_fuzzer_goes_on_where_it_was_and_repeats_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = module("fuzz")
    monkeypatch.setattr(fuzz, "CHUNK", 40)
    log, told = tmp_path / "log", []
    rows = fuzz.fuzzed(fuzz.run, 100, 5, 1, log, told.append)
    assert sorted(row["size"] for row in rows) == [20, 40, 40]
    assert told[-1] == "100 of 100"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[2] + lines[1][:9])  # a run that was cut off while it wrote
    again = fuzz.fuzzed(fuzz.run, 100, 5, 1, log, told.append)
    assert len(again) == 3
    assert {r["piece"]: r["seen"] for r in again} == {r["piece"]: r["seen"] for r in rows}
    with pytest.raises(ZeroDivisionError):  # what comes out of a reader comes out of the fuzzer
        fuzz.fuzzed(broken, 40, 5, 1, None, told.append)
    assert told[-1] == "piece '5.0' of 40 inputs broke it"


def broken(n: int, seed: str, place: Path) -> object:
    return 1 // 0


def test_mutated_uploads_are_read_or_refused(tmp_path: Path) -> None:
    seen = module("fuzz_upload").run(250, 3, tmp_path)
    assert seen.total() == 250
    assert seen["accepted"] > 10  # the mutations leave some whole, so that both ways are tried
    assert len(seen) > 8
