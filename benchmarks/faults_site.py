"""A real service of either size in processes of its own, which can be killed: what `faults.py` does its harm to."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from comgrad.service.settings import Settings
from comgrad.service.store import tables, work
from comgrad.service.store.database import Database
from crash import Folder, Served, places

PASSWORD = "five quiet brown foxes"
API = "/api/v1"
PROGRAM = [sys.executable, "-c", "from comgrad.cli.main import main; main()"]
WORKER = [sys.executable, "-m", "comgrad.service.worker"]
SETTINGS = {
    "MAX_CHUNK_BYTES": str(64 * 1024),  # several chunks a part, so that kills come between them
    "READS_PER_MINUTE": "1000000",
    "WRITES_PER_MINUTE": "1000000",
    "MIN_FREE_BYTES": "0",
    "PAGES": "false",
    "PRELOAD": "false",
    "SCREEN": "false",
}


@dataclass
class Program:
    """One process of the service; killed and started again under the same name."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    exits: int = 0  # that nobody asked for

    def start(self) -> None:
        """Start it; its words go to the log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.environment)

    def kill(self, how: int = signal.SIGKILL) -> None:
        """Send a signal and wait for its end."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(180)

    def kept(self) -> None:
        """Start it again when it ended by itself, as systemd would; that is counted."""
        if self.process is not None and self.process.poll() is not None:
            self.exits += 1
            self.start()


@dataclass
class Site:
    """A running service: programs, its address, and its administrator's token."""

    size: str
    folder: Path
    place: Folder | Served
    port: int
    programs: list[Program]
    token: str = ""
    restart_database: Callable[[str, float], None] | None = None
    http: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=120, trust_env=False))

    @property
    def origin(self) -> str:
        """Where the service is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        """The folder that the service keeps its own files in."""
        return self.folder / "home" / "service"

    def answers(self, seconds: float = 600.0) -> None:
        """Wait until the service answers; programs that ended by themselves are started again."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for program in self.programs:
                program.kept()
            with contextlib.suppress(httpx2.TransportError):
                if self.http.get(f"{self.origin}/healthz").status_code == 200:
                    return
            time.sleep(0.05)
        raise SystemExit(f"the service does not answer:\n{self.said()[-3000:]}")

    def said(self) -> str:
        """All that the programs wrote."""
        return "".join(p.log.read_text(errors="replace") for p in self.programs if p.log.exists())

    def call(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """A request of the administrator."""
        headers = {"Authorization": f"Bearer {self.token}"} | more.pop("headers", {})
        return self.http.request(method, f"{self.origin}{API}{path}", headers=headers, **more)

    def begin(self) -> None:
        """Make the administrator and a token."""
        secret = next(w for w in self.said().split() if w.startswith("cgf_"))
        who = {"handle": "ann", "password": PASSWORD}
        made = self.http.post(f"{self.origin}{API}/first-start", json={"secret": secret, **who})
        assert made.status_code == 201, made.text
        session = self.http.post(f"{self.origin}{API}/session", json=who)
        headers = {"X-CSRF-Token": session.json()["csrf"]}
        body = {"name": "faults", "scopes": ["read", "write", "admin"], "days": 1}
        self.token = self.http.post(f"{self.origin}{API}/tokens", json=body, headers=headers).json()["secret"]
        self.http.cookies.clear()

    def stop(self) -> None:
        """End everything in order."""
        for program in self.programs:
            if program.process is not None and program.process.poll() is None:
                program.kill(signal.SIGTERM)

    # -- what the rows say ---------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def rows(self) -> Iterator[Database]:
        """The service's database, beside the running service."""
        url = self.place.database if isinstance(self.place, Served) else None
        database = Database(Settings.checked(data=self.folder / "home", database=url).folder, url)
        try:
            yield database
        finally:
            database.close()

    def idle(self, seconds: float = 600.0) -> list[str]:
        """Wait until no job waits or runs; what is left after that time."""
        until = time.monotonic() + seconds
        with self.rows() as database:
            while True:
                with database.read() as rows:
                    counts = work.counts(rows)
                left = {k: n for k, n in counts.items() if k not in ("done", "failed")}
                if not left or time.monotonic() > until:
                    return [f"jobs that did not end: {left}"] if left else []
                time.sleep(0.2)

    def listed(self) -> tuple[list[Any], set[str], dict[str, int]]:
        """Active listings, ids of the uploads whose files are needed, and how many uploads are in each state."""
        from sqlalchemy import func, select

        u, x = tables.uploads.c, tables.listings.c
        with self.rows() as database, database.read() as rows:
            found = rows.execute(select(x.vector_id, x.name, x.digest).where(x.state == "active")).all()
            states = rows.execute(select(u.state, func.count()).group_by(u.state)).all()
            return list(found), work.live_uploads(rows), {row[0]: int(row[1]) for row in states}


def free_port() -> int:
    """A port that nobody uses just now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(size: str, folder: Path, **settings: str) -> Iterator[Site]:
    """A service over a new registry.

    `small`: one process that serves and works, and a worker beside it, over a folder. `served`: one process that
    serves and two workers, over PostgreSQL and an S3 stand-in, as docs/scale-up.md describes.
    """
    with places(size == "served") as new:
        place: Folder | Served = new(folder)
        if isinstance(place, Folder):
            place = Folder(folder / "home")
        site = Site(size, folder, place, free_port(), [])
        own = {f"COMGRAD_SERVICE_{k}": v for k, v in (SETTINGS | settings).items()}
        environment = {**os.environ, **own, "COMGRAD_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        environment |= {"TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        if isinstance(place, Served):
            environment |= {"COMGRAD_DATABASE": place.database, "COMGRAD_BLOBS": place.blobs}
            site.restart_database = _restarting()
        serve = [*PROGRAM, "serve", "--port", str(site.port)]
        if size == "served":
            serve += ["--workers", "0"]
        names = ["server", "worker"] if size == "small" else ["server", "worker", "second worker"]
        for name in names:
            command = serve if name == "server" else WORKER
            site.programs.append(Program(name, command, environment, folder / f"{name}.log"))
        try:
            for at, program in enumerate(site.programs):
                program.start()
                if at == 0:  # it makes the databases
                    site.answers()
            site.begin()
            yield site
        finally:
            site.http.close()
            site.stop()


def _restarting() -> Callable[[str, float], None]:
    import stand_ins

    server = stand_ins.servers().postgres

    def restart(mode: str, seconds: float) -> None:
        server.stop(mode)
        time.sleep(seconds)
        server.start()

    return restart
