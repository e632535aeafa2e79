"""The harm of `benchmarks/faults.py`, a little of each: a kill of each process, cuts, and what the checks notice."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("fastapi", reason="the extra 'service' is not installed")

from comgrad.errors import StorageError
from comgrad.service.errors import Conflict, outward, status_of
from comgrad.weights.storage import storage_error

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    return __import__("faults")


def test_cuts_and_a_kill_lose_nothing(faults: ModuleType, tmp_path: Path) -> None:
    with faults.running("small", tmp_path) as site:
        cut = sys.modules["faults_cut"].cut_push(site, tmp_path)
        assert cut["problems"] == []
        assert len(cut["cut_at"]) == 7
        done = faults.kills(site, 1, random.Random(1), kept={"cut": cut["digest"]}, people=1)
    assert done["problems"] == []
    assert done["acknowledged"] >= 1
    assert done["phases"]["server killed"] == 1


def test_what_a_log_holds_is_not_done_again(faults: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"name": "small cuts", "seed": 0, "harm": 7}\n{"name": "small disk", "seed": 1}\n{"name": "cut o')
    assert faults.done_before(log, 0) == {"small cuts": {"name": "small cuts", "seed": 0, "harm": 7}}
    assert faults.pieces(23) == [10, 10, 3]
    names = [name for name, _ in faults.plan("served", {"kills", "database"}, 20, 5, 0)]
    assert names == ["served kills 1 of 10", "served kills 2 of 10", "served database 1 of 5"]
    assert [name for name, _ in faults.plan("small", {"database"}, 20, 5, 0)] == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StorageError("x", "the database does not answer: /run/secret", "wait", code="unavailable"), 503),
        (StorageError("x", "two transactions", "again", code="conflict"), 503),
        (Conflict("x", "another state", "look"), 409),
        (storage_error(Path("/srv/secret"), OSError(28, "No space left on device")), 507),
        (storage_error(Path("/srv/secret"), OSError(5, "I/O error")), 500),
    ],
)
def test_storage_errors_have_a_status_and_keep_the_servers_paths(error: StorageError, status: int) -> None:
    assert status_of(error) == status
    shown = outward(error)
    assert "secret" not in str(shown)
    assert shown.code == error.code
    assert shown.remedy


@pytest.mark.skipif(os.name != "posix", reason="file systems in memory")
def test_the_ballast_leaves_the_room_that_is_asked_for(faults: ModuleType, tmp_path: Path) -> None:
    disk = sys.modules["faults_disk"]
    free = os.statvfs(tmp_path)
    if os.geteuid() != 0:
        pytest.skip("only root mounts a file system")
    del free
    with disk.small_disk(tmp_path / "disk", 1 << 20) as folder:
        disk.fill(folder / "ballast", 100 << 10)
        left = os.statvfs(folder)
        assert abs(left.f_bavail * left.f_frsize - (100 << 10)) <= 2 * left.f_frsize
