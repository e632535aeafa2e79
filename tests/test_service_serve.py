"""A server of its own process on loopback: starts fast, is killed and comes back, ends in order; slow and cut bodies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bounded import LONG, next_line
from service_site import CONFIG, PASSWORD, WEIGHTS, adapter

API = "/api/v1"
PROGRAM = """
import sys
from pathlib import Path
from comgrad.service.serve import serve
from comgrad.service.settings import Settings
serve(Settings.from_environment(data=Path(sys.argv[1]), pages=False, preload=False, screen=False, body_seconds=1.5,
                                chunk_idle_seconds=1.5, head_seconds=1.5, min_free_bytes=0), port=0)
"""


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    client: httpx2.Client
    port: int
    secret: str | None
    seconds: float

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(LONG)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    began = time.monotonic()
    log = (folder / "log").open("a")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stderr=subprocess.PIPE, stdout=log, text=True, env=os.environ
    )
    assert process.stderr is not None
    port, secret = 0, None
    try:
        line = next_line(process.stderr)
        found = re.search(r"at http://127\.0\.0\.1:(\d+)$", line.strip())
        assert found, line
        port = int(found[1])
        if not (folder / "known").exists():
            secret = next_line(process.stderr).strip().rpartition(" ")[2]
            (folder / "known").touch()
        os.set_blocking(process.stderr.fileno(), False)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            until = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if client.get("/healthz").status_code == 200:
                        break
                assert time.monotonic() < until
                time.sleep(0.02)
            yield Server(process, client, port, secret, time.monotonic() - began)
    finally:
        process.kill()
        process.wait(LONG)
        process.stderr.close()
        log.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def token(folder: Path) -> str:
    """Made by the first start; the server is killed right after the answer."""
    with serving(folder) as server:
        body = {"secret": server.secret, "handle": "ann", "password": PASSWORD}
        assert server.client.post(f"{API}/first-start", json=body).status_code == 201
        answer = server.client.post(f"{API}/session", json={"handle": "ann", "password": PASSWORD})
        headers = {"X-CSRF-Token": answer.json()["csrf"]}
        made = server.client.post(f"{API}/tokens", json={"name": "t", "scopes": ["read", "write"]}, headers=headers)
        server.kill()
    secret: str = made.json()["secret"]
    return secret


def begin(server: Server, token: str, files: dict[str, bytes], **body: Any) -> str:
    parts = [{"name": n, "size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()]
    server.client.headers["Authorization"] = f"Bearer {token}"
    answer = server.client.post(f"{API}/uploads", json={"parts": parts, **body})
    assert answer.status_code == 201, answer.text
    identity: str = answer.json()["upload"]["id"]
    return identity


def offset(server: Server, identity: str, part: str) -> int:
    return int(server.client.head(f"{API}/uploads/{identity}/parts/{part}").headers["upload-offset"])


def rest(server: Server, identity: str, part: str, data: bytes) -> int:
    at = offset(server, identity, part)
    headers = {"Upload-Offset": str(at), "Content-Type": "application/octet-stream"}
    return server.client.patch(f"{API}/uploads/{identity}/parts/{part}", content=data[at:], headers=headers).status_code


def raw(server: Server, token: str, identity: str, part: str, at: int, body: bytes, length: int) -> socket.socket:
    """The beginning of a request whose body is shorter than it says."""
    head = (
        f"PATCH {API}/uploads/{identity}/parts/{part} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/octet-stream\r\nUpload-Offset: {at}\r\nContent-Length: {length}\r\n\r\n"
    )
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    sock.sendall(head.encode() + body)
    return sock


def test_a_cut_at_every_eighth_and_a_kill_lose_nothing_acknowledged(folder: Path, token: str, zoo: list[Path]) -> None:
    files = adapter(zoo[0])
    data = files[WEIGHTS]
    eighth = len(data) // 8 + 1
    with serving(folder) as server:
        identity = begin(server, token, files, name="through thick and thin", visibility="public")
        for at in range(0, len(data) // 2, eighth):
            sock = raw(server, token, identity, WEIGHTS, at, data[at : at + eighth], len(data) - at)
            until = time.monotonic() + 20
            while offset(server, identity, WEIGHTS) < at + eighth and time.monotonic() < until:
                time.sleep(0.05)
            sock.close()
            time.sleep(0.1)
            assert offset(server, identity, WEIGHTS) == at + eighth
        acknowledged = offset(server, identity, WEIGHTS)
        assert rest(server, identity, CONFIG, files[CONFIG]) == 204
        sock = raw(server, token, identity, WEIGHTS, acknowledged, data[acknowledged : acknowledged + 50], 1000)
        server.kill()
        sock.close()
    with serving(folder) as server:
        server.client.headers["Authorization"] = f"Bearer {token}"
        assert offset(server, identity, WEIGHTS) >= acknowledged
        assert offset(server, identity, CONFIG) == len(files[CONFIG])
        for name, part in files.items():
            if offset(server, identity, name) < len(part):
                assert rest(server, identity, name, part) == 204
        answer = server.client.post(f"{API}/uploads/{identity}/complete")
        assert answer.status_code in (200, 201, 202)
        server.kill()  # with the job noted
    with serving(folder) as server:
        server.client.headers["Authorization"] = f"Bearer {token}"
        job = answer.json()["job"]["id"]
        found = server.client.get(f"{API}/jobs/{job}?wait=60").json()["job"]
        if found["state"] in ("queued", "running"):  # a very busy machine
            found = server.client.get(f"{API}/jobs/{job}?wait=60").json()["job"]
        assert found["state"] == "done", found
        seen = server.client.get(f"{API}/names/ann/through-thick-and-thin")
        assert seen.status_code == 200
        path = f"{API}/vectors/{seen.json()['vector']['id']}/files/vector.safetensors"
        body = server.client.get(path)
        assert hashlib.sha256(body.content).hexdigest() == seen.json()["vector"]["digest"]
        assert list((folder / "service" / "uploads").iterdir()) == []


def test_slow_bodies_are_cut_off_and_the_service_stays(folder: Path, token: str) -> None:
    with serving(folder) as server:
        identity = begin(server, token, {"vector.safetensors": b"x" * 1000})
        slow = raw(server, token, identity, "vector.safetensors", 0, b"x" * 10, 1000)
        head = (
            f"POST {API}/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
        )
        drip = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        drip.sendall(head.encode())
        begun = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        begun.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Never-Whole: ")
        assert server.client.get("/healthz").status_code == 200
        assert b" 408 " in slow.recv(4096).split(b"\r\n")[0] + b" "
        assert b" 408 " in drip.recv(4096).split(b"\r\n")[0] + b" "
        assert b" 408 " in begun.recv(4096).split(b"\r\n")[0] + b" "
        for sock in (slow, drip, begun):
            sock.close()
        assert offset(server, identity, "vector.safetensors") == 10


def test_the_end_is_in_order_and_the_log_is_json(folder: Path, token: str) -> None:
    with serving(folder) as server:
        server.client.get(f"{API}/vectors", headers={"Authorization": f"Bearer {token}"})
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) in (0, -signal.SIGTERM)
        assert server.process.stderr is not None
        lines = [line for line in (server.process.stderr.read() or "").splitlines() if line.startswith("{")]
        assert lines
        assert any(json.loads(line).get("route") == f"{API}/vectors" for line in lines)
        assert token not in "".join(lines)
