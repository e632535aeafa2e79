"""Start a real service and attack it: every row of the attack list that concerns it, what is expected, what came.

    python attacks/service.py [--only 18,19] [--json]

The service is `comgrad serve` in a process of its own, on a port of this machine, over an empty folder that is deleted
afterwards. The vectors are those of the starter zoo. Exits with 1 when one attack is not answered as expected.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2

PASSWORD = "five quiet brown foxes"
ZOO = Path(str(files("comgrad.starter"))) / "zoo"
WEIGHTS, CONFIG, CARD, CONTAINER = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "task_card.json",
    "vector.safetensors",
)
LIMITS = {
    "BODY_SECONDS": "3",
    "CHUNK_IDLE_SECONDS": "2",
    "LOGINS_PER_MINUTE": "40",
    "COMPUTED_PER_MINUTE": "600",
    "READS_PER_MINUTE": "20000",
    "WRITES_PER_MINUTE": "20000",
    "MIN_FREE_BYTES": "0",
    "PRELOAD": "false",
}


@dataclass(frozen=True)
class Row:
    """One attack: `run` returns what came and whether that is as expected."""

    numbers: str
    attack: str
    expected: str
    run: Callable[[Site], tuple[str, bool]]


ROWS: list[Row] = []


def row(numbers: str, attack: str, expected: str) -> Callable[[Callable[[Site], tuple[str, bool]]], Any]:
    """Put a function into the table."""

    def keep(run: Callable[[Site], tuple[str, bool]]) -> Callable[[Site], tuple[str, bool]]:
        ROWS.append(Row(numbers, attack, expected, run))
        return run

    return keep


@dataclass
class Site:
    """A running service and three people: ann administers it, bob owns vectors, eve attacks."""

    folder: Path
    origin: str = ""
    process: subprocess.Popen[bytes] | None = None
    tokens: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)
    http: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=120, trust_env=False))
    limits: dict[str, str] = field(default_factory=lambda: dict(LIMITS))

    # -- life ----------------------------------------------------------------------------------------------------
    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def port(self) -> int:
        return int(self.origin.rsplit(":", 1)[1])

    def start(self) -> None:
        """Start the process and wait until it answers; the one-time secret is in its log."""
        environment = {**os.environ, **{f"COMGRAD_SERVICE_{k}": v for k, v in self.limits.items()}}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        command = [sys.executable, "-c", "from comgrad.cli.main import main; main()", "serve", "--port", "0"]
        seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--data", str(self.folder / "data")], stdout=log, stderr=log, env=environment
            )
        until = time.monotonic() + 180
        while True:
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the service did not start:\n{self.log.read_text()[-3000:]}")
            lines = self.log.read_text(errors="replace")[seen:].splitlines()
            found = next((line for line in lines if line.startswith("serving ")), None)
            if found:
                self.origin = found.rsplit(" at ", 1)[1]
                with contextlib.suppress(httpx2.TransportError):
                    if self.http.get(f"{self.origin}/healthz").status_code == 200:
                        return
            time.sleep(0.1)

    def stop(self, how: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(120)

    def people(self) -> None:
        """The first administrator by the one-time secret, two people by invitation, a token for each."""
        secret = next(w for w in self.log.read_text().split() if w.startswith("cgf_"))
        self.secrets.append(secret)
        self.ok("POST", "/api/v1/first-start", json={"secret": secret, "handle": "ann", "password": PASSWORD})
        self.tokens["ann"] = self.token("ann", ["read", "write", "admin"])
        for handle in ("bob", "eve"):
            invited = self.ok("POST", "/api/v1/invitations", who="ann", json={"handle": handle})
            self.secrets.append(invited["secret"])
            body = {"handle": handle, "secret": invited["secret"], "password": PASSWORD}
            self.ok("POST", "/api/v1/accounts/accept", json=body)
            self.tokens[handle] = self.token(handle, ["read", "write"])
        self.secrets += [*self.tokens.values(), PASSWORD]

    def token(self, handle: str, scopes: list[str]) -> str:
        cookie, csrf = self.session(handle)
        headers = {"Cookie": cookie, "X-CSRF-Token": csrf}
        body = {"name": "attack", "scopes": scopes, "days": 1}
        return str(self.ok("POST", "/api/v1/tokens", headers=headers, json=body)["secret"])

    def session(self, handle: str) -> tuple[str, str]:
        """A browser's cookie, and the token of its forms."""
        answer = self.call("POST", "/api/v1/session", json={"handle": handle, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        cookie = answer.headers["set-cookie"].split(";", 1)[0]
        self.secrets.append(cookie.split("=", 1)[1])
        return cookie, str(answer.json()["csrf"])

    # -- requests ------------------------------------------------------------------------------------------------
    def call(self, method: str, path: str, *, who: str | None = None, **more: Any) -> httpx2.Response:
        headers = dict(more.pop("headers", {}))
        if who is not None:
            headers["Authorization"] = f"Bearer {self.tokens[who]}"
        self.http.cookies.clear()
        answer = self.http.request(method, self.origin + path, headers=headers, **more)
        self.http.cookies.clear()
        return answer

    def ok(self, method: str, path: str, **more: Any) -> Any:
        answer = self.call(method, path, **more)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def raw(self, data: bytes, *, seconds: float = 30.0, half_close: bool = False) -> bytes:
        """Bytes on a connection of their own, and all that comes back until it is closed."""
        out = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as s:
            s.sendall(data)
            if half_close:
                return out
            with contextlib.suppress(OSError):
                while piece := s.recv(65536):
                    out += piece
        return out

    def begin(self, parts: dict[str, bytes], *, who: str = "bob", **body: Any) -> httpx2.Response:
        listed = [{"name": n, "size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in parts.items()]
        return self.call("POST", "/api/v1/uploads", who=who, json={"purpose": "share", "parts": listed, **body})

    def send(self, upload: str, name: str, data: bytes, *, who: str = "bob", at: int = 0) -> httpx2.Response:
        headers = {"Upload-Offset": str(at), "Content-Type": "application/octet-stream"}
        return self.call("PATCH", f"/api/v1/uploads/{upload}/parts/{name}", who=who, headers=headers, content=data)

    def share(self, parts: dict[str, bytes], *, who: str = "bob", wait: int = 60, **body: Any) -> httpx2.Response:
        """A whole upload; the answer to its completion, or to the first step that was refused."""
        answer = self.begin(parts, who=who, **body)
        if answer.status_code != 201:
            return answer
        upload = answer.json()["upload"]["id"]
        for name, data in parts.items():
            for at in range(0, len(data), 4 << 20):
                answer = self.send(upload, name, data[at : at + (4 << 20)], who=who, at=at)
                if answer.status_code != 204:
                    return answer
        return self.call("POST", f"/api/v1/uploads/{upload}/complete?wait={wait}", who=who)

    def adapter(self, number: int, **card: Any) -> dict[str, bytes]:
        """The files of an adapter of the starter zoo, with another card where one is given."""
        folder = sorted(p for p in ZOO.iterdir() if p.is_dir())[number]
        parts = {n: (folder / n).read_bytes() for n in (CONFIG, WEIGHTS)}
        own = json.loads((folder / CARD).read_text())
        return {**parts, CARD: json.dumps({**own, **card}).encode()}

    def settled(self, seconds: float = 120.0) -> None:
        """Wait until eve has no job left."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if all(j["state"] in ("done", "failed") for j in self.ok("GET", "/api/v1/jobs", who="eve")["items"]):
                return
            time.sleep(0.5)

    def named(self) -> list[str]:
        """All that the administrator sees in the catalogue."""
        return [x["full_name"] for x in self.ok("GET", "/api/v1/vectors?limit=200", who="ann")["items"]]


def code(answer: httpx2.Response) -> str:
    """Status and the error's code."""
    try:
        return f"{answer.status_code} {answer.json()['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return str(answer.status_code)


@contextlib.contextmanager
def attacked(limits: Mapping[str, str] | None = None) -> Iterator[Site]:
    """A service with three vectors of bob's: two public, one private. `limits` go before the usual ones."""
    with tempfile.TemporaryDirectory(prefix="comgrad-attack-") as folder:
        site = Site(Path(folder), limits={**LIMITS, **(limits or {})})
        site.start()
        try:
            site.people()
            for number, name, visibility in ((0, "open", "public"), (1, "second", "public"), (2, "hidden", "private")):
                answer = site.share(site.adapter(number), name=name, visibility=visibility)
                assert answer.status_code in (200, 201), answer.text
                site.ids[name] = answer.json()["job"]["result"]["vector"]
            yield site
        finally:
            site.http.close()
            if site.process is not None and site.process.poll() is None:
                site.stop()


def main() -> int:
    """Run as described above."""
    sys.path.insert(0, str(Path(__file__).parent))
    for name in ("service_transfers", "service_contents", "service_copies", "service_stores", "service_people"):
        import_module(name)  # each fills the table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="numbers as the table has them: 18,19,40–43")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    out: list[dict[str, Any]] = []
    with attacked() as site:
        for r in ROWS:
            if only and not only & set(r.numbers.split(",")):
                continue
            try:
                got, good = r.run(site)
            except Exception as error:  # noqa: BLE001 - the table says so, and the next attack is still made
                got, good = f"{type(error).__name__}: {error}"[:300], False
            out.append({"numbers": r.numbers, "attack": r.attack, "expected": r.expected, "got": got, "ok": good})
            if not options.json:
                print(f"{'ok ' if good else 'BAD'} {r.numbers:>6}  {r.attack}\n            expected: {r.expected}")
                print(f"            got:      {got}", flush=True)
    bad = [r["numbers"] for r in out if not r["ok"]]
    if options.json:
        print(json.dumps({"rows": out, "failures": bad}, indent=1))
    else:
        print(f"\n{len(out)} attacks, {len(out) - len(bad)} answered as expected" + (f"; BAD: {bad}" if bad else ""))
    return bool(bad)


if __name__ == "__main__":
    sys.modules["service"] = sys.modules["__main__"]
    sys.exit(main())
