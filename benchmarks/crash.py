"""Kill -9 a bulk add of real adapters at random points, many times, and check what is left.

    python benchmarks/crash.py --rounds 20 --kills 20
    python benchmarks/crash.py --rounds 3 --kills 20 --served    # on a real PostgreSQL and an S3 stand-in

Each round has a fresh registry. A child process adds real adapters (the starter zoo, with varied metadata) and removes
every fifth one again; it writes a line for each thing it acknowledges. The parent kills it after a random delay, reads
the lines, looks at the folder as it is, opens the registry again and checks: no half file, no row without its blob,
every digest right, nothing acknowledged lost, no temporary file and no orphan left. Exit code 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from comgrad.registry.card import Card
from comgrad.registry.models import Entry, Facts
from comgrad.registry.store import Store
from comgrad.types import BaseRef

if TYPE_CHECKING:
    from comgrad.registry.served import ServedPlace


@dataclass
class Acknowledged:
    """What the children said, in order: digest → what is promised about it."""

    added: set[str] = field(default_factory=set)
    removing: set[str] = field(default_factory=set)  # a removal began: it may or may not have happened
    removed: set[str] = field(default_factory=set)


def zoo() -> list[Path]:
    """The starter zoo's adapters."""
    root = Path(str(files("comgrad.starter") / "zoo"))
    return sorted(root.glob("*/adapter_model.safetensors"))


def variant(raw: bytes, number: int) -> bytes:
    """The same safetensors file with another metadata entry, so that it has another digest."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = {**header.get("__metadata__", {}), "variant": str(number)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def entries(adapters: list[Path], first: int) -> Iterator[Entry]:
    """Real adapters without end: the zoo, then the zoo with other metadata, and so on."""
    number = first
    while True:
        path = adapters[number % len(adapters)]
        card = Card.from_file(path.with_name("task_card.json"))
        blob = variant(path.read_bytes(), number // len(adapters))
        facts = Facts(BaseRef(card.base_model), "lowrank", 8, 1.0)
        yield Entry(blob, card, facts, name=f"{card.name} variant {number // len(adapters)}")
        number += 1


@dataclass
class Folder:
    """A registry in a folder."""

    path: Path

    def open(self, **options: float) -> Store:
        """The store, as a new process would open it."""
        return Store(self.path, **options)

    def half(self) -> list[str]:
        """Blobs, as the kill left them, whose bytes do not hash to their name."""
        return half_files(self.path)

    def left(self) -> list[str]:
        """What opening should have collected, and a damaged database."""
        left = [f"temporary file left {path.name}" for path in (self.path / "blobs" / "tmp").iterdir()]
        with sqlite3.connect(self.path / "catalogue.sqlite") as database:
            verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
        database.close()
        return left + ([] if verdict == "ok" else [f"database: {verdict}"])


@dataclass
class Served:
    """A registry on PostgreSQL and an object store."""

    database: str
    blobs: str
    home: Path

    def _place(self) -> ServedPlace:
        from comgrad.registry.served import ServedPlace

        return ServedPlace(self.database, self.blobs, self.home)

    def open(self, **options: float) -> Store:
        """The store, as a new process would open it."""
        return Store(self._place(), **options)

    def half(self) -> list[str]:
        """Objects, as the kill left them, whose bytes do not hash to their name."""
        blobs = self._place().blobs
        found = [f"half object {digest}" for digest in blobs.digests() if blobs.verify(digest) != "ok"]
        blobs.close()
        return found

    def left(self) -> list[str]:
        """Unfinished uploads and temporary files that opening should have collected."""
        place = self._place()
        left = [f"temporary file left {path.name}" for path in place.blobs.copies.files.temp.iterdir()]
        unfinished = place.blobs.sweep(0.0)
        place.close()
        return left + ([f"unfinished uploads left {unfinished}"] if unfinished else [])


@contextlib.contextmanager
def places(served: bool) -> Iterator[Callable[[Path], Folder | Served]]:
    """Makes new registries, below a folder each; with `served`, the servers run meanwhile."""
    if not served:
        yield lambda folder: Folder(folder / "registry")
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import stand_ins

    servers = stand_ins.servers()
    os.environ.update(servers.environment)
    yield lambda folder: Served(
        servers.postgres.new_database(servers.template()), stand_ins.new_prefix(), folder / "home"
    )


def child(where: Folder | Served, adapters: list[Path], first: int, out: int) -> None:
    """Add and remove until killed; one line for each acknowledgement."""
    store = where.open()
    os.write(out, b"ready\n")
    for number, result in enumerate(store.add_many(entries(adapters, first)), start=first):
        assert result.record is not None, result.error
        digest = result.record.digest
        os.write(out, f"added {digest}\n".encode())
        if number % 5 == 4:
            os.write(out, f"removing {digest}\n".encode())
            store.remove(result.record.id, "crash test")
            os.write(out, f"removed {digest}\n".encode())


def killed_run(where: Folder | Served, adapters: list[Path], first: int, delay: float) -> list[str]:
    """Start a child, kill it with SIGKILL `delay` seconds after it is ready; the whole lines it wrote."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            child(where, adapters, first, writer)
        except BaseException as error:  # noqa: BLE001 - a forked child must not run the parent's handlers
            os.write(writer, f"error {error!r}\n".encode())
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as lines:
        said = [lines.readline()]
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said += lines.readlines()
    return [line.decode().strip() for line in said if line.endswith(b"\n")]


def take(lines: list[str], known: Acknowledged) -> list[str]:
    """Add the lines to what is known; complaints of the child itself."""
    for line in lines:
        word, _, digest = line.partition(" ")
        if word in ("added", "removing", "removed"):
            getattr(known, word).add(digest)
    return [line for line in lines if line.startswith("error")]


def half_files(folder: Path) -> list[str]:
    """Blobs, in the folder as the kill left it, whose bytes do not hash to their name."""
    blobs = [path for path in (folder / "blobs").glob("[0-9a-f][0-9a-f]/*") if path.is_file()]
    return [f"half file {p.name}" for p in blobs if hashlib.sha256(p.read_bytes()).hexdigest() != p.name]


def check(where: Path | Folder | Served, known: Acknowledged) -> tuple[list[str], int, int]:
    """Everything that is wrong after a kill, and how many orphans and temporary files opening collected."""
    place = Folder(where) if isinstance(where, Path) else where
    problems = place.half()
    with place.open(grace=0.0) as store:
        opening = store.opening
        problems += [f"row without a blob {identity}" for identity in opening.damaged]
        audit = store.audit()
        problems += [f"damaged {identity}" for identity in (*audit.damaged, *audit.missing)]
        problems += [f"orphan left {digest}" for digest in audit.orphans]
        rows = {row.digest: row.state for row in store.list(include_removed=True)}
    problems += [f"acknowledged but lost {d}" for d in known.added - known.removing if rows.get(d) != "active"]
    problems += [f"removing, and now unknown {d}" for d in known.removing if d not in rows]
    problems += [f"removal lost {d}" for d in known.removed if rows.get(d) != "removed"]
    return problems + place.left(), opening.orphans_deleted, opening.temporary_deleted


def one_round(where: Folder | Served, kills: int, longest: float, rng: random.Random) -> dict[str, object]:
    """One registry, killed `kills` times."""
    adapters, known = zoo(), Acknowledged()
    problems: list[str] = []
    orphans = temporary = 0
    for _ in range(kills):
        lines = killed_run(where, adapters, len(known.added), rng.uniform(0.0, longest))
        problems += take(lines, known)
        wrong, more_orphans, more_temporary = check(where, known)
        problems += wrong
        orphans, temporary = orphans + more_orphans, temporary + more_temporary
    return {
        "kills": kills,
        "acknowledged": len(known.added),
        "removed": len(known.removed),
        "orphans": orphans,
        "temporary": temporary,
        "problems": problems,
    }


def main() -> int:
    """Run the rounds and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=0.25, help="longest delay before a kill, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--served", action="store_true", help="on PostgreSQL and an S3 stand-in, started for this")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = parser.parse_args()
    rng, started = random.Random(options.seed), time.perf_counter()
    rounds = []
    with places(options.served) as new:
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                rounds.append(one_round(new(Path(folder)), options.kills, options.longest, rng))
            if not options.json:
                print(f"round {number + 1}: {rounds[-1]}", flush=True)
    total = {key: sum(r[key] for r in rounds) for key in ("kills", "acknowledged", "removed", "orphans", "temporary")}  # type: ignore[misc]
    problems = [problem for found in rounds for problem in found["problems"]]  # type: ignore[attr-defined]
    summary = {"rounds": len(rounds), **total, "problems": problems, "seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps(summary) if options.json else f"summary: {summary}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
