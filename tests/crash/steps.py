"""Kill a process with SIGKILL before, in the middle of and after every system call between blob and catalogue.

Run as a program (it forks, so it must have one thread): prints one JSON object. The system calls are counted by
wrapping `os`'s functions and the database driver's commit in the child; the product code has no hook.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import alembic.command  # noqa: F401 - imported before forking, so that each child starts fast
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from comgrad.registry.card import Card
from comgrad.registry.gradients import GradientEntry, GradientFacts
from comgrad.registry.models import AddResult, Entry, Facts
from comgrad.registry.store import Store
from comgrad.types import BaseRef

CALLS = ("open", "write", "fsync", "fchmod", "close", "mkdir", "replace", "unlink")
FACTS = Facts(BaseRef("m"), "lowrank", 2, 1.0)
A = Entry(b"a" * 5_000, Card.make(name="first", description="one"), FACTS)
B = Entry(b"b" * 5_000, Card.make(name="second", description="two"), FACTS)
HOW = GradientFacts(160, 0.6, 0.7, 16, 0.95, "0" * 64, BaseRef("m"))
G, H = (GradientEntry(letter * 3_000, HOW) for letter in (b"g", b"h"))


class Killer:
    """Counts steps and kills this process at the chosen one."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0
        self.write = os.write

    def step(self) -> None:
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.step()
            if call is self.write and self.count == self.at:  # half of the bytes
                self.write(args[0], bytes(args[1])[: len(args[1]) // 2])
            if call is self.write:
                self.step()
            result = call(*args, **kwargs)
            self.step()
            return result

        return wrapped

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self.around(getattr(os, name)))
        SQLiteDialect_pysqlite.do_commit = self.around(SQLiteDialect_pysqlite.do_commit)  # type: ignore[method-assign]


def row_first(store: Store, entry: Entry, name: str, digest: str, restore: bool) -> AddResult:
    """The wrong order, to prove that the checks see it."""
    assert isinstance(entry.blob, bytes)
    with store.catalogue.writing() as rows:
        result = rows.add(name, entry.card, entry.facts, digest, len(entry.blob), restore=restore)
    store.blobs.put(entry.blob)
    return result


def scenario(folder: Path, say: Callable[[str], None]) -> None:
    """Every operation that writes: set up, add, attach a gradient, another, add another, remove both, restore."""
    with Store(folder, grace=0.0) as store:
        say("open")
        first = store.add(A, restore=True)
        say("A")
        assert first.record is not None
        store.attach_gradient(first.record.id, G)
        say("G")
        store.attach_gradient(first.record.id, H)
        say("H")
        store.add(B, restore=True)
        say("B")
        store.remove(first.record.id, "because")
        say("-A")
        store.add(A, restore=True)
        say("A again")
        store.remove("second")
        say("-B")


EXPECTED = {  # after each acknowledgement: the states that first and second may have, the next operation included
    "": ({None, "active"}, {None}),
    "open": ({None, "active"}, {None}),
    "A": ({"active"}, {None}),
    "G": ({"active"}, {None}),
    "H": ({"active"}, {None, "active"}),
    "B": ({"active", "removed"}, {"active"}),
    "-A": ({"active", "removed"}, {"active"}),
    "A again": ({"active"}, {"active", "removed"}),
    "-B": ({"active"}, {"removed"}),
}
GRADIENTS = {  # the same for the gradient of the first
    "": {None},
    "open": {None},
    "A": {None, "g"},
    "G": {"g", "h"},
    "H": {"h"},
    "B": {"h", None},
}


def run(folder: Path, at: int) -> tuple[list[str], int, bool]:
    """The scenario in a child that dies at step `at`: what it acknowledged, steps done, whether it was killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        killer = Killer(at)
        raw = os.write
        killer.install()
        with contextlib.suppress(BaseException):
            scenario(folder, lambda word: raw(writer, f"{word}\n".encode()) and None)
            raw(writer, f"={killer.count}\n".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        said = lines.read().splitlines()
    _, status = os.waitpid(pid, 0)
    count = int(said.pop()[1:]) if said and said[-1].startswith("=") else 0
    return said, count, os.WIFSIGNALED(status)


def check(folder: Path, said: list[str]) -> list[str]:
    """What is wrong after the kill; then the scenario is run again to its end on the same folder."""
    with Store(folder, grace=0.0) as store:
        problems = [f"row without a blob {identity}" for identity in store.opening.damaged]
        problems += [] if store.audit().ok else ["audit"]
        states = {row.name: row.state for row in store.list(include_removed=True)}
        rows = store.gradients()
        active = {row.digest for row in store.list()} | {row.digest for row in rows.values()}
        if set(store.blobs.digests()) != active:
            problems.append("blobs and active rows differ")
        problems += [f"gradient without a blob {identity}" for identity in store.opening.gradients]
        held = [store.gradient(identity) for identity in rows]
        found = next((pair[1].read_text()[0] for pair in held if pair is not None), None)
        if found not in GRADIENTS.get(said[-1] if said else "", {None}):
            problems.append(f"after {said}: gradient {found}")
        if list((folder / "blobs" / "tmp").iterdir()):
            problems.append("temporary file left")
    first, second = EXPECTED[said[-1] if said else ""]
    if states.get("first") not in first or states.get("second") not in second:
        problems.append(f"after {said}: {states}")
    scenario(folder, lambda _: None)
    with Store(folder, grace=0.0) as store:
        if {row.name: row.state for row in store.list(include_removed=True)} != {
            "first": "active",
            "second": "removed",
        }:
            problems.append("the scenario does not end as it should when run again")
        if store.gradients() or len(list(store.blobs.digests())) != 1:
            problems.append("a gradient outlived its vector")
    return problems


def main() -> int:
    """Kill at every step, on a new registry; print how many and what was wrong."""
    stride = 1
    if "--row-first" in sys.argv:
        Store._stored = row_first  # type: ignore[method-assign]
        stride = 2
    problems: list[str] = []
    places: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        _, steps, killed = run(root / "whole", -1)
        assert steps and not killed
        deaths = 0
        for at in range(0, steps, stride):
            folder = root / "registry"
            said, _, killed = run(folder, at)
            deaths += killed
            places[said[-1] if said else ""] = places.get(said[-1] if said else "", 0) + 1
            problems += [f"step {at}: {problem}" for problem in check(folder, said)]
            shutil.rmtree(folder)
    print(json.dumps({"steps": steps, "killed": deaths, "after": places, "problems": problems}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
