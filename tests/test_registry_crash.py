"""Kills, full disks, read-only file systems and many processes at once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bounded import next_line
from comgrad.errors import StorageError
from comgrad.registry.card import Card
from comgrad.registry.models import Entry, Facts
from comgrad.registry.store import Store
from comgrad.types import BaseRef

HERE = Path(__file__).parent
FACTS = Facts(BaseRef("m"), "lowrank", 1, 1.0)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"registry_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def python(*arguments: object) -> Any:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kills_at_random_points_of_a_bulk_add_of_real_adapters() -> None:
    summary = python(HERE.parent / "benchmarks" / "crash.py", "--rounds", 1, "--kills", 10, "--json")
    assert summary["kills"] == 10
    assert summary["acknowledged"] > 20
    assert summary["problems"] == []


def test_a_kill_at_every_system_call_between_blob_and_catalogue() -> None:
    summary = python(HERE / "crash" / "steps.py")
    assert summary["steps"] == summary["killed"] > 100
    assert set(summary["after"]) == {"", "open", "A", "G", "H", "B", "-A", "A again"}  # it died within every operation
    assert summary["problems"] == []


def test_the_step_checks_see_a_row_written_before_its_blob() -> None:
    problems = python(HERE / "crash" / "steps.py", "--row-first")["problems"]
    assert any("row without a blob" in problem for problem in problems)


def test_the_crash_checks_can_fail(tmp_path: Path) -> None:
    crash = load(HERE.parent / "benchmarks" / "crash.py")
    folder, data = tmp_path / "registry", b"x" * 100
    with Store(folder) as store:
        row = store.add(Entry(data, Card.make(name="one"), FACTS)).record
        assert row is not None
        path = store.blob_path(row.id)
    known = crash.Acknowledged(added={row.digest})
    assert crash.check(folder, known)[0] == []
    assert crash.check(folder, crash.Acknowledged(added={"0" * 64}))[0] == ["acknowledged but lost " + "0" * 64]
    assert crash.check(folder, crash.Acknowledged({row.digest}, {row.digest}, {row.digest}))[0] == [
        f"removal lost {row.digest}"
    ]
    path.chmod(0o644)
    path.write_bytes(data[:50])
    assert crash.check(folder, known)[0] == [f"half file {row.digest}", f"damaged {row.id}"]
    path.unlink()
    assert f"row without a blob {row.id}" in crash.check(folder, known)[0]


def test_eight_processes_add_the_same_and_different_vectors_to_a_new_registry(tmp_path: Path) -> None:
    adder = load(HERE / "crash" / "adder.py")
    folder = tmp_path / "registry"
    command = [sys.executable, str(HERE / "crash" / "adder.py"), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(worker)], **pipes) for worker in range(8)]  # type: ignore[call-overload]
    for process in processes:
        assert next_line(process.stdout) == "ready\n"
    for process in processes:  # all of them are loaded; none has opened the registry
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    results = [result for output in outputs for result in json.loads(output)]
    assert len(results) == 8 * (adder.SHARED + adder.OWN + 1)
    added = [digest for status, digest in results if status == "added"]
    assert len(added) == len(set(added)) == adder.SHARED + 8 * adder.OWN + 1  # each digest is added exactly once
    assert sum(status == "exists" for status, _ in results) == 7 * adder.SHARED
    assert sum(status == "refused" for status, _ in results) == 7  # one had the wanted name
    with Store(folder, grace=0.0) as store:
        assert {row.digest for row in store.list()} == set(added) == set(store.blobs.digests())
        assert store.opening.orphans_deleted == 0  # those refused left nothing behind
        assert store.audit().ok


def namespace(script: str, *arguments: object) -> str:
    """Run a shell script as root of its own mount namespace; skip where the system does not allow that."""
    prefix = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    probe = subprocess.run(
        [*prefix, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True, timeout=120
    )
    if probe.returncode:
        pytest.skip("mounting is not permitted")
    done = subprocess.run(
        [*prefix, "sh", "-ec", script, "sh", sys.executable, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_disk_that_fills_up_loses_nothing_acknowledged(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=1m none "$3"; "$1" "$2" "$3/registry"'
    found = json.loads(namespace(script, HERE / "crash" / "fill.py", tmp_path))
    code, message = found.pop("error")
    assert code == "disk-full"
    assert "the disk is full; free some space and try again" in message
    assert found.pop("acknowledged") >= 10
    assert found == {"lost": [], "extra": 0, "ok": True, "left": []}


def filled(folder: Path) -> str:
    with Store(folder) as store:
        row = store.add(Entry(b"bytes", Card.make(name="one", description="the mood of a film"), FACTS)).record
        assert row is not None
        return row.id


READ_ONLY = """
import json, sys
from comgrad.errors import StorageError
from comgrad.registry.card import Card
from comgrad.registry.models import Entry, Facts
from comgrad.registry.store import Store
from comgrad.types import BaseRef
with Store(sys.argv[1]) as store:
    try:
        store.add(Entry(b"more", Card.make(name="two"), Facts(BaseRef("m"), "dense", None, None)))
    except StorageError as error:
        refused = error.code
    again = store.add(Entry(b"bytes", Card.make(name="one"), Facts(BaseRef("m"), "dense", None, None))).status
    found = [store.read_only, [r.name for r in store.list()], len(store.search("mood")), store.audit().ok]
    print(json.dumps([*found, refused, again, store.open_blob("one").read().decode()]))
"""


def test_a_registry_on_a_read_only_file_system_can_be_read(tmp_path: Path) -> None:
    filled(tmp_path / "registry")
    script = 'mount --bind "$3" "$3"; mount -o remount,bind,ro "$3"; "$1" -c "$2" "$3"'
    found = json.loads(namespace(script, READ_ONLY, tmp_path / "registry"))
    assert found == [True, ["one"], 1, True, "read-only", "exists", "bytes"]


def test_a_registry_left_by_a_killed_process_can_be_read_on_a_read_only_file_system(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); import test_registry_crash as t; "
        "s = t.Store(sys.argv[1]); "
        "s.add(t.Entry(b'bytes', t.Card.make(name='one', description='mood'), t.FACTS)); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(HERE)], check=True, timeout=60)
    assert (folder / "catalogue.sqlite-wal").stat().st_size > 0  # the row is only in the log
    script = 'mount --bind "$3" "$3"; mount -o remount,bind,ro "$3"; "$1" -c "$2" "$3"'
    found = json.loads(namespace(script, READ_ONLY, folder))
    assert found == [True, ["one"], 1, True, "read-only", "exists", "bytes"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "registry"):
        with pytest.raises(StorageError, match="not a folder") as caught:
            Store(path)
        assert caught.value.code == "not-a-folder"
    if Path("/sys/kernel").is_dir():
        with pytest.raises(StorageError, match=r"the registry '/sys/kernel/registry'; .*; (choose|change)"):
            Store("/sys/kernel/registry")


def test_a_forked_process_may_use_the_parents_store(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); import test_registry_crash as t\n"
        "s = t.Store(sys.argv[1])\n"
        "s.add(t.Entry(b'before', t.Card.make(name='before'), t.FACTS))\n"
        "pid = os.fork()\n"
        "n = 'child' if pid == 0 else 'parent'\n"
        "for i in range(20): s.add(t.Entry(f'{n} {i}'.encode(), t.Card.make(name=f'{n} {i}'), t.FACTS))\n"
        "os._exit(0) if pid == 0 else None\n"
        "print(os.waitpid(pid, 0)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r"), str(HERE)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "0\n"
    with Store(tmp_path / "r") as store:
        assert len(store.list()) == 41
        assert store.audit().ok


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    identity = filled(tmp_path)
    with Store(tmp_path) as store:
        assert store.get(identity).digest == hashlib.sha256(store.blob_path(identity).read_bytes()).hexdigest()
