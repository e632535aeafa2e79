"""The service under load: `comgrad serve` as a process of its own, an account in it, and what its memory does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

API = "/api/v1"
HANDLE, PASSWORD = "load", "five quiet brown foxes"
UNBOUNDED = {  # one address asks for fifty people here, and one account sends what many would
    "READS_PER_MINUTE": "10000000",
    "WRITES_PER_MINUTE": "10000000",
    "COMPUTED_PER_MINUTE": "10000000",
    "LOGINS_PER_MINUTE": "100000",
    "MAX_OPEN_UPLOADS": "100000",
    "MAX_JOBS": "100000",
    "MAX_VECTORS": "1000000",
    "SCREEN": "false",  # a verdict on each of thousands of adopted vectors is hours of work in the background
}
PROGRAM = "from comgrad.cli.main import main; main()"


@dataclass
class Site:
    """A served folder."""

    process: subprocess.Popen[str]
    address: str
    token: str = ""
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    def pids(self) -> list[int]:
        """The serving process and its workers."""
        return [self.process.pid, *(w.pid for w in self.workers)]

    def client(self) -> httpx2.Client:
        """For single questions."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx2.Client(base_url=self.address, headers=headers, timeout=120.0)


@contextlib.contextmanager
def serving(data: Path, *, workers: int = 0) -> Iterator[Site]:
    """`comgrad serve` over a folder; `workers` processes beside it do the jobs, or its own threads when 0."""
    environment = {**os.environ, **{f"COMGRAD_SERVICE_{k}": v for k, v in UNBOUNDED.items()}}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    log = (data.parent / "serve.log").open("a")
    asked = ["serve", "--data", str(data), "--port", "0", "--show-registry", "--json"]
    asked += ["--workers", "0"] if workers else []
    command = [sys.executable, "-c", PROGRAM, *asked]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    site = Site(process, "")
    try:
        assert process.stdout is not None
        said = _documents(process.stdout)
        site.address = str(next(said)["url"])
        _sign_in(site, data, said)
        worker = [sys.executable, "-m", "comgrad.service.worker"]
        beside = environment | {"COMGRAD_SERVICE_DATA": str(data), "COMGRAD_HOME": str(data)}
        site.workers = [subprocess.Popen(worker, env=beside, stderr=log, text=True) for _ in range(workers)]
        yield site
    finally:
        for p in [process, *site.workers]:
            p.send_signal(signal.SIGTERM)
        for p in [process, *site.workers]:
            p.wait(timeout=120)
        log.close()


def _documents(lines: Any) -> Iterator[dict[str, Any]]:
    """The JSON documents that the program prints one after another."""
    text = ""
    for line in lines:
        text += line
        with contextlib.suppress(ValueError):
            found = json.loads(text)
            text = ""
            yield found
    raise RuntimeError("the service ended; see serve.log")


def _sign_in(site: Site, data: Path, said: Iterator[dict[str, Any]]) -> None:
    """Make the administrator at the first start, and a token."""
    with httpx2.Client(base_url=site.address, timeout=120.0) as client:
        until = time.monotonic() + 600
        while client.get("/readyz").status_code != 200:
            if time.monotonic() > until:
                raise RuntimeError("the service is not ready; see serve.log")
            time.sleep(0.2)
        if client.get(f"{API}/service").json()["first_start"]:
            secret = (data / "first-start-secret").read_text().strip() if (data / "first-start-secret").exists() else ""
            secret = secret or str(next(said)["first_start_secret"])
            body = {"secret": secret, "handle": HANDLE, "password": PASSWORD}
            client.post(f"{API}/first-start", json=body).raise_for_status()
        made = client.post(f"{API}/session", json={"handle": HANDLE, "password": PASSWORD})
        made.raise_for_status()
        body = {"name": f"load {time.time():.0f}", "scopes": ["read", "write"]}
        token = client.post(f"{API}/tokens", json=body, headers={"X-CSRF-Token": made.json()["csrf"]})
        token.raise_for_status()
        site.token = token.json()["secret"]


def jobs_left(site: Site) -> int:
    """How many jobs wait or run."""
    with site.client() as client:
        text = client.get("/metrics").text
    return sum(_figure(text, f'comgrad_jobs{{state="{state}"}}') for state in ("queued", "running"))


def _figure(text: str, name: str) -> int:
    return next((int(float(line.rsplit(" ", 1)[1])) for line in text.splitlines() if line.startswith(name)), 0)


def work_off(site: Site, seconds: float, tell: Any = None) -> float:
    """Wait until no job is left; after how long."""
    began = time.monotonic()
    while (left := jobs_left(site)) > 0:
        if time.monotonic() - began > seconds:
            raise RuntimeError(f"{left} jobs are left after {seconds:.0f} s")
        if tell:
            tell(left)
        time.sleep(1.0)
    return time.monotonic() - began


class Memory:
    """The resident memory of some processes and of those that they started, once a second."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self.samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(1.0):
            self.samples.append((time.monotonic(), sum(map(resident, [p for pid in self._pids for p in family(pid)]))))

    def flat(self, minute: float = 60.0) -> dict[str, float]:
        """MiB in the first and in the last minute (or fifth of a shorter time), and at most."""
        if not self.samples:
            return {}
        first, last = self.samples[0][0], self.samples[-1][0]
        part = min(minute, max(1.0, (last - first) / 5))
        begin = statistics.mean(m for t, m in self.samples if t <= first + part)
        end = statistics.mean(m for t, m in self.samples if t >= last - part)
        return {"first": begin, "last": end, "change": end / begin - 1.0, "most": max(m for _, m in self.samples)}


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    own = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            own += [p for child in (task / "children").read_text().split() for p in family(int(child))]
    return own


def resident(pid: int) -> float:
    """MiB of a process."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0
