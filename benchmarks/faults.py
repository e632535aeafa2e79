"""Do harm to a real service while real clients share real adapters, and look what is left.

    python benchmarks/faults.py                                  # everything, on both sizes
    python benchmarks/faults.py --size small --only kills --kills 10
    python benchmarks/faults.py --size served --only database,cuts --json
    python benchmarks/faults.py --log faults.jsonl               # an interrupted run goes on with the same command

`small` is `comgrad serve` over a folder, with a worker process beside it; `served` is `comgrad serve` and two workers
over PostgreSQL and an S3 stand-in, started for this. The faults:

    kills     kill -9 of the server or a worker while uploads come and jobs run; the dead one is started again
    cuts      the connection breaks at every eighth of an upload's bytes
    database  PostgreSQL is stopped, as in a crash or in order, and started again (served only)
    disk      the disk fills up at several points of an upload (root only: the disk is a tmpfs)

Clients are `cg.Client` and nothing helps them: they try again and go on by themselves. Afterwards everything that was
acknowledged must be there and download with its digest, every job be over, nothing be twice or half there, and no orphan
be left once the registry is reconciled. Exits with 1 when the list of problems is not empty.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import comgrad as cg
from comgrad.errors import ComgradError
from crash import Acknowledged, check
from faults_cut import cuts
from faults_disk import full_disk
from faults_people import Crowd
from faults_site import Site, running

PEOPLE = 3
ROUND = 10  # kills or restarts of one registry
Figures = dict[str, Any]


def aftermath(site: Site, crowd: Crowd, earlier: Mapping[str, str]) -> list[str]:
    """Everything that is wrong once the dust has settled; the service is stopped by this.

    Args:
        earlier: name → digest of what was acknowledged before.
    """
    problems = crowd.end()
    site.answers()
    problems += site.idle()
    kept = {name: pushed.digest for name, pushed in crowd.kept.items()} | dict(earlier)
    with (
        tempfile.TemporaryDirectory() as folder,
        cg.Client(site.origin, token=site.token, cache=Path(folder)) as client,
    ):
        for name, digest in kept.items():
            try:
                found = client.pull(f"ann/{name}").digest  # every file's SHA-256 is checked
                if found != digest:
                    problems.append(f"{name}: acknowledged as {digest}, and it is {found}")
            except ComgradError as error:
                problems.append(f"{name}: acknowledged and not to be had: {error.code}: {error}")
    listed, live, _ = site.listed()
    names = Counter(row[1] for row in listed)
    problems += [f"listed {n} times: {name}" for name, n in names.items() if n > 1]
    problems += [f"listed and never acknowledged: {name}" for name in names.keys() - kept.keys()]
    site.stop()
    folders = {p.name for p in (site.data / "uploads").iterdir()}
    problems += [f"files of an upload that is over: {name}" for name in folders - live]
    wrong, _, _ = check(site.place, Acknowledged(added=set(kept.values())))
    with site.place.open() as store:
        held = {r.digest for r in store.list()}
    problems += [f"in the registry and listed by nobody: {d}" for d in held - {row[2] for row in listed}]
    return problems + wrong + [f"{p.name} ended {p.exits} times by itself" for p in site.programs if p.exits]


def kills(
    site: Site, many: int, rng: random.Random, *, kept: Mapping[str, str] = MappingProxyType({}), people: int = PEOPLE
) -> Figures:
    """Kill processes at random moments of uploads and jobs; who was killed, and what people were waiting for.

    Args:
        kept: name → digest of what was acknowledged before.
    """
    crowd, phases = Crowd.at(site, people), Counter[str]()
    for number in range(many):
        victim = site.programs[0] if rng.random() < 0.5 else rng.choice(site.programs[1:])
        crowd.wait_for("upload" if number % 2 == 0 else "job")
        time.sleep(rng.uniform(0.0, 0.5))
        waiting = {p.phase for p in crowd.people}
        victim.kill()
        kind = "server" if victim is site.programs[0] else "worker"
        phases.update(f"{kind} killed while {phase}" for phase in waiting & {"upload", "job"})
        phases.update([f"{kind} killed"])
        time.sleep(rng.uniform(0.0, 0.5))
        victim.start()
        site.answers()
    problems = aftermath(site, crowd, kept)
    return {"harm": many, "phases": dict(phases), **figures(crowd), "problems": problems}


def database(site: Site, many: int, rng: random.Random) -> Figures:
    """Stop and start PostgreSQL under load."""
    assert site.restart_database is not None
    crowd, modes = Crowd.at(site, PEOPLE), Counter[str]()
    for number in range(many):
        crowd.wait_for("upload" if number % 2 == 0 else "job")
        time.sleep(rng.uniform(0.0, 1.0))
        mode = rng.choice(("immediate", "fast"))
        site.restart_database(mode, rng.uniform(0.0, 5.0))
        modes[mode] += 1
        kept = len(crowd.kept)
        until = time.monotonic() + 180
        while len(crowd.kept) == kept and time.monotonic() < until:  # it recovers before the next one
            time.sleep(0.1)
    problems = aftermath(site, crowd, {})
    return {"harm": many, "phases": dict(modes), **figures(crowd), "problems": problems}


def figures(crowd: Crowd) -> Figures:
    """What people did."""
    return {
        "acknowledged": len(crowd.kept),
        "files_read": crowd.reader.looked,
        "statuses": {str(k): n for k, n in crowd.reader.statuses.items()},
        "calls_again": dict(crowd.again),
    }


def pieces(many: int) -> list[int]:
    """`many` in rounds, each with a registry of its own."""
    return [min(ROUND, many - at) for at in range(0, many, ROUND)]


def plan(size: str, only: set[str], many: int, restarts: int, seed: int) -> list[tuple[str, Callable[[Path], Figures]]]:
    """Name → what makes its figures in an empty folder."""

    def at_site(work: Callable[[Site, int, random.Random], Figures], n: int, name: str) -> Callable[[Path], Figures]:
        def run(folder: Path) -> Figures:
            with running(size, folder) as site:
                return work(site, n, random.Random(f"{seed} {name}"))

        return run

    out: list[tuple[str, Callable[[Path], Figures]]] = []
    for fault, work, total in (("kills", kills, many), ("database", database, restarts if size == "served" else 0)):
        for at, n in enumerate(pieces(total)):
            out.append((f"{size} {fault} {at + 1} of {n}", at_site(work, n, f"{size} {fault} {at}")))
    out.append((f"{size} cuts", lambda folder: cuts(size, folder)))
    if os.name == "posix" and os.geteuid() == 0:
        out.append((f"{size} disk", lambda folder: full_disk(size, folder)))
    return [(name, run) for name, run in out if not only or name.split()[1] in only]


def done_before(log: Path | None, seed: int) -> dict[str, Figures]:
    """What an earlier run with this log and seed ended."""
    if log is None or not log.exists():
        return {}
    rows = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {row["name"]: row for row in rows if row["seed"] == seed}


def shown(row: Figures) -> str:
    """A row for people."""
    own = ("name", "seed", "problems", "seconds", "harm")
    told = "; ".join(f"{k} {v}" for k, v in row.items() if k not in own)
    lines = [f"{row['name']}: harm done {row['harm']} times in {row['seconds']:.0f} s; {told}"]
    return "\n".join(lines + [f"    PROBLEM {p}" for p in row["problems"]])


def main() -> int:
    """Run as described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "served", "both"), default="both")
    parser.add_argument("--only", default="", help="some of kills,cuts,database,disk; default: all")
    parser.add_argument("--kills", type=int, default=50, help="for each size")
    parser.add_argument("--restarts", type=int, default=10, help="of the database")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="keep what is done in this file, and go on from there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended too
    before, rows = done_before(options.log, options.seed), []
    for size in ("small", "served") if options.size == "both" else (options.size,):
        for name, run in plan(size, only, options.kills, options.restarts, options.seed):
            row = before.get(name)
            if row is None:
                began = time.perf_counter()
                with tempfile.TemporaryDirectory(prefix="comgrad-faults-", ignore_cleanup_errors=True) as folder:
                    made = run(Path(folder))
                row = {"name": name, "seed": options.seed, **made, "seconds": round(time.perf_counter() - began, 1)}
                if options.log is not None:
                    with options.log.open("a") as out:
                        out.write(json.dumps(row) + "\n")
            rows.append(row)
            if not options.json:
                print(shown(row), flush=True)
    problems = [f"{row['name']}: {p}" for row in rows for p in row["problems"]]
    phases = Counter[str]()
    for row in rows:
        phases.update({f"{row['name'].split()[0]} {k}": n for k, n in row.get("phases", {}).items()})
    total = {"harm": sum(r["harm"] for r in rows), "acknowledged": sum(r["acknowledged"] for r in rows)}
    if options.json:
        print(json.dumps({**total, "phases": dict(phases), "problems": problems, "rows": rows}, indent=1))
    else:
        for phase, n in sorted(phases.items()):
            print(f"{n:>5}  {phase}")
        print(f"harm done {total['harm']} times, {total['acknowledged']} pushes acknowledged; problems: {problems}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
