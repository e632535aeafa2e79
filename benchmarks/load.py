"""The service under load: searches, pages, suggestions and uploads by many clients at once, with thousands of vectors.

    python benchmarks/load.py --out load --vectors 10000 --clients 50 --seconds 300 --page docs/load.md
    python benchmarks/load.py --out load --prepare              # only make the folder that later runs use; may be cut
    python benchmarks/load.py --out load --vectors 300 --clients 8 --seconds 10 --each 4 --only search,mixed
    python benchmarks/load.py --out load --only uploads --send 30 --uploaders 8 --json

OUT/data holds the vectors, real adapters derived from the shipped ones, and is kept for later runs. `comgrad serve` runs
as a process of its own; the clients are this one, over loopback. Every answer is checked. Exit code 1 on any wrong one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from load_data import prepare, upload_files
from load_page import page, table
from load_site import API, Memory, Site, serving, work_off
from load_traffic import MIX, Run, traffic, uploads

ALONE = ("search", "catalogue", "vector", "suggestion")
PHASES = ("mixed", "calm", *ALONE, "uploads")
CALM = 3.0  # times as long as in the mixed phase is thought in the calm one
HOURS = 24 * 3600.0


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where vectors and results are kept")
    parser.add_argument("--vectors", type=int, default=10_000, help="registered vectors (10000)")
    parser.add_argument("--clients", type=int, default=50, help="concurrent clients (50)")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the mixed phase (300)")
    parser.add_argument("--each", type=float, default=30.0, help="seconds of each other reading phase (30)")
    parser.add_argument("--pace", type=float, default=1.0, help="seconds that a client thinks, on average (1.0)")
    parser.add_argument("--warm", type=float, default=20.0, help="seconds before a phase that count for nothing (20)")
    parser.add_argument("--send", type=float, default=60.0, help="seconds of uploads (60)")
    parser.add_argument("--uploaders", type=int, default=8, help="concurrent uploads (8)")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0: threads of the service (0)")
    parser.add_argument("--only", default=",".join(PHASES), help=f"phases, of {','.join(PHASES)}")
    parser.add_argument("--seed", type=int, default=0, help="of what is asked (0)")
    parser.add_argument("--prepare", action="store_true", help="make the vectors and their listings, and stop")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the results as a page")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    asked = parser.parse_args()
    asked.only = [p for p in asked.only.split(",") if p]
    if set(asked.only) - set(PHASES):
        parser.error(f"phases are {', '.join(PHASES)}")
    return asked


def main() -> None:
    """Prepare, serve, ask, tell."""
    asked = options()
    asked.out.mkdir(parents=True, exist_ok=True)
    data = asked.out / "data"
    began = time.monotonic()
    new = prepare(data, asked.vectors, tell=lambda done, all_: _say(f"vectors: {done} of {all_}"))
    shutil.rmtree(data / "service" / "suggestions", ignore_errors=True)  # an earlier run's answers are kept for hours
    with serving(data, workers=asked.workers) as site:
        settled = work_off(site, HOURS, lambda left: _say(f"{left} jobs are left: embedding and relating"))
        _say(f"prepared in {time.monotonic() - began:.0f} s ({new} new vectors, jobs {settled:.0f} s)")
        if asked.prepare:
            return
        vectors = listed(site)
        results = [*reading(site, asked, vectors), *sending(site, asked)]
    told = {
        "rows": [row for part in results for row in part["rows"]],
        "memory": {part["name"]: part["memory"] for part in results},
        "uploads": next((part["uploads"] for part in results if "uploads" in part), None),
        "environment": environment(asked, len(vectors)),
    }
    (asked.out / "load.json").write_text(json.dumps(told, indent=1) + "\n")
    if asked.page:
        asked.page.write_text(page(told))
    print(json.dumps(told, indent=1) if asked.json else table(told))
    sys.exit(1 if any(row["errors"] for row in told["rows"]) else 0)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def listed(site: Site) -> dict[str, str]:
    """Id → name of every vector in the catalogue, that nobody uploaded here."""
    found: dict[str, str] = {}
    with site.client() as client:
        while True:
            params = {"limit": 200, "offset": len(found), "sort": "oldest", "owner": "local"}
            body = client.get(f"{API}/vectors", params=params).json()
            found |= {x["id"]: x["name"] for x in body["items"]}
            if not body["items"] or len(found) >= body["total"]:
                return found


def reading(site: Site, asked: argparse.Namespace, vectors: dict[str, str]) -> list[dict[str, Any]]:
    """The mixed phase at the pace of people, a calmer one, then each kind alone, as fast as the clients can."""
    out = []
    for number, name in enumerate(p for p in PHASES[:-1] if p in asked.only):
        mixed, pace = name == "mixed", {"mixed": asked.pace, "calm": CALM * asked.pace}.get(name, 0.0)
        run = Run(name, asked.clients, pace)
        mix = MIX if pace else {name: 1}
        seconds, warm = (asked.seconds, asked.warm) if mixed else (asked.each, min(asked.warm, asked.each / 3))
        _say(f"{name}: {asked.clients} clients for {seconds:.0f} s")
        seed = 1_000_003 * (asked.seed + 1) + 10_007 * number
        with Memory(site.pids()) as memory:
            asyncio.run(traffic(site.address, run, mix, seconds, vectors, warm=warm, seed=seed))
        out.append({"name": name, "rows": run.rows(), "memory": memory.flat()})
    return out


def sending(site: Site, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Uploads, and what is left of them when they are acknowledged; they are removed again."""
    if "uploads" not in asked.only:
        return []
    most = int(60 * asked.send)
    salt = int(time.time()) % 1_000_000_000
    _say(f"uploads: making at most {most} adapters")
    files = [upload_files(i, seed=salt) for i in range(most)]
    run = Run("uploads", asked.uploaders, 0.0)
    with Memory(site.pids()) as memory:
        began = time.monotonic()
        jobs = asyncio.run(uploads(site.address, site.token, run, asked.send, files))
        sent = time.monotonic() - began
        admitted, vectors = taken_in(site, jobs, run)
        all_in = time.monotonic() - began
        work_off(site, HOURS)
        all_done = time.monotonic() - began
    sizes = [sum(map(len, parts.values())) for parts in files[:10]]
    told = {
        "sent": len(jobs),
        "taken_in": admitted,
        "bytes": sum(sizes) / len(sizes),
        "acknowledged_per_second": len(jobs) / sent,
    }
    told |= {"taken_in_per_second": admitted / all_in, "seconds_sending": sent, "seconds_to_taken_in": all_in}
    told["seconds_to_related"] = all_done
    with site.client() as client:
        for identity in vectors:
            client.delete(f"{API}/vectors/{identity}").raise_for_status()
    return [{"name": "uploads", "rows": run.rows(), "memory": memory.flat(), "uploads": told}]


def taken_in(site: Site, jobs: list[str], run: Run) -> tuple[int, list[str]]:
    """Wait for the jobs; how many took their upload in, and the vectors."""
    done, vectors = 0, []
    with site.client() as client:
        for identity in jobs:
            while True:
                job = client.get(f"{API}/jobs/{identity}", params={"wait": 30}).json()["job"]
                if job["state"] in ("done", "failed"):
                    break
            if job["state"] == "done" and job["result"]["status"] == "added":
                done += 1
                vectors.append(job["result"]["vector"])
            else:
                run.told("upload").errors.append(f"job: {job['state']} {job['error']} {job['result']}"[:300])
    return done, vectors


def environment(asked: argparse.Namespace, vectors: int) -> dict[str, Any]:
    """On what and how it was run."""
    cpu = next((x.split(":", 1)[1].strip() for x in _cpuinfo() if x.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    phases = {"clients": asked.clients, "seconds": asked.seconds, "each": asked.each, "pace": asked.pace}
    phases |= {"workers": asked.workers, "uploaders": asked.uploaders, "warm": asked.warm, "seed": asked.seed}
    python = platform.python_version()
    machine = {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1), "python": python}
    command = " ".join(["python benchmarks/load.py", *_neutral(sys.argv[1:])])
    return {"vectors": vectors, **phases, **machine, "load_before": os.getloadavg()[0], "command": command}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _neutral(arguments: list[str]) -> list[str]:
    """The arguments without this machine's folders."""
    return [Path(a).name if a.startswith("/") else a for a in arguments]


if __name__ == "__main__":
    main()
