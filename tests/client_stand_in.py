"""A service that misbehaves on purpose: the protocol in small, with cuts, refusals and lies put in by the test."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

import uvicorn

TOKEN = "cgt_" + "t" * 43
Send = Callable[[dict[str, Any]], Awaitable[None]]


@contextlib.contextmanager
def running(app: Any, *, lifespan: str = "off") -> Iterator[str]:
    """The app behind a real socket on this machine; its address."""
    held = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", access_log=False, lifespan=lifespan, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        held.close()
        assert not thread.is_alive()


@dataclass
class Fault:
    """What happens to the next request whose method and path match.

    Args:
        after: bytes of the answer's or request's body before the connection is cut; None for no cut.
        status, headers, body: the answer given instead.
    """

    method: str = ""
    path: str = ""
    after: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    times: int = 1


@dataclass(repr=False)
class StandIn:
    """Vectors by `owner/name`, uploads, and a queue of faults. `log` holds (method, path, headers) of each request."""

    vectors: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    log: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    lie: Callable[[str, bytes], bytes] = field(default=lambda _name, data: data)
    chunk: int = 64
    sent: int = 0
    sign_out: int = 204
    revoked: bool = False
    cookie: str = "comgrad_session"

    def share(self, name: str, description: str, files: dict[str, bytes]) -> str:
        """Put a vector in; its id."""
        digest = hashlib.sha256(files["vector.safetensors"]).hexdigest()
        identity = f"tv-{digest[:16]}"
        owner, _, own = name.partition("/")
        self.vectors[name] = {
            "id": identity, "owner": owner, "name": own, "full_name": name, "description": description, "digest": digest,
        }  # fmt: skip
        self.files[identity] = files
        return identity

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        assert scope["type"] == "http"
        method, path = scope["method"], scope["raw_path"].decode()
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.log.append((method, path, headers))
        fault = next((f for f in self.faults if f.times and f.method in ("", method) and f.path in path), None)
        if fault is not None:
            fault.times -= 1
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if fault is not None and fault.status is not None:
            await _answer(send, fault.status, fault.headers, fault.body)
            return
        if fault is not None and method != "GET":
            body, lost = body[: fault.after], True
        else:
            lost = False
        status, out, data = self.answer(method, path, headers, body, parse_qs(scope["query_string"].decode()))
        if lost:  # done, in part or wholly, and the answer never arrives
            await _cut(send, status, 10, b"")
        elif fault is not None and fault.after is not None:
            await _cut(send, status, len(data), data[: fault.after], out)
        else:
            await _answer(send, status, out, data if method != "HEAD" else b"")

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes, _query: dict[str, list[str]]
    ) -> tuple[int, dict[str, str], bytes]:
        parts = [unquote(p) for p in path.removeprefix("/api/v1/").split("/")]
        by_cookie = headers.get("cookie") == f"{self.cookie}=s3cret"
        signed_in = by_cookie or (not self.revoked and headers.get("authorization") == f"Bearer {TOKEN}")
        match method, parts:
            case "GET", ["service"]:
                return _json({"name": "stand-in", "limits": {"chunk_bytes": self.chunk}})
            case "POST", ["session"]:
                asked = json.loads(body)
                if asked != {"handle": "ada", "password": "right"}:
                    return _refused(
                        401, "sign-in", "the name and the password", "they do not belong together", "try again"
                    )
                return 200, {"Set-Cookie": f"{self.cookie}=s3cret; HttpOnly; Path=/"}, b'{"csrf": "c", "account": {}}'
            case "GET", ["session"] if signed_in and not self.revoked:
                return _json({"account": {"handle": "ada"}})
            case "DELETE", ["session"] if signed_in:
                self.revoked = self.sign_out == 204 and "authorization" in headers
                return self.sign_out, {}, b""
            case "POST", ["tokens"] if signed_in and headers.get("x-csrf-token") == "c":
                return _json({"token": {"id": "tk-1", "expires_at": "2030"}, "secret": TOKEN})
            case "GET", ["names", owner, name] if f"{owner}/{name}" in self.vectors:
                return _json({"vector": self.vectors[f"{owner}/{name}"]})
            case "GET", ["vectors", identity] if identity in self.files:
                return _json({"vector": next(v for v in self.vectors.values() if v["id"] == identity)})
            case "GET", ["vectors", identity, "files"]:
                return _json({"items": [_info(n, d) for n, d in self.files[identity].items()]})
            case "GET", ["vectors", identity, "files", name]:
                return self._file(name, self.files[identity][name], headers)
            case "POST", ["search"]:
                return _json({"items": list(self.vectors.values())})
            case "POST", ["suggestions"]:
                chosen = next(iter(self.files.values()))
                listed = [_info(n, d) for n, d in chosen.items() if n != "vector.safetensors"]
                return _json({"id": "sg-1", "abstained": False, "sources": [], "files": listed})
            case "GET", ["suggestions", _, "files", name]:
                return self._file(name, next(iter(self.files.values()))[name], headers)
            case _ if not signed_in and parts[0] not in ("names", "vectors"):
                return _refused(401, "sign-in-needed", "a request by nobody", "it needs an account", "sign in")
            case "POST", ["uploads"]:
                identity = f"up-{len(self.uploads) + 1}"
                self.uploads[identity] = {**json.loads(body), "id": identity, "state": "open", "bytes": {}}
                return _json({"upload": self._upload(identity)})
            case "GET", ["uploads", identity] if identity in self.uploads:
                return _json({"upload": self._upload(identity)})
            case "HEAD" | "PATCH", ["uploads", identity, "parts", name] if identity in self.uploads:
                held = self.uploads[identity]["bytes"]
                have = held.get(name, b"")
                if method == "PATCH":
                    if int(headers["upload-offset"]) != len(have):
                        return _refused(409, "offset", "the offset", f"{len(have)} bytes are here", "ask for it")
                    held[name] = have = have + body
                    self.sent += len(body)
                return 204, {"Upload-Offset": str(len(have))}, b""
            case "POST", ["uploads", identity, "complete"]:
                held = self.uploads[identity]
                for p in held["parts"]:
                    if hashlib.sha256(held["bytes"].get(p["name"], b"")).hexdigest() != p["sha256"]:
                        return _refused(422, "digest-mismatch", f"'{p['name']}'", "its bytes differ", "send it again")
                held["state"] = "done"
                return _json({"upload": self._upload(identity), "job": {"id": "jb-1", "state": "running"}})
            case "GET", ["jobs", "jb-1"]:
                held = list(self.uploads.values())[-1]
                result = {
                    "vector": "tv-1",
                    "name": f"ada/{held['name']}",
                    "digest": "d",
                    "status": "added",
                    "warnings": [],
                }
                return _json({"job": {"id": "jb-1", "state": "done", "result": result}})
        return _refused(404, "not-found", f"'{path}'", "there is nothing there that you may read", "check the spelling")

    def _upload(self, identity: str) -> dict[str, Any]:
        held = self.uploads[identity]
        parts = [{**p, "received": len(held["bytes"].get(p["name"], b""))} for p in held["parts"]]
        return {"id": identity, "state": held["state"], "parts": parts}

    def _file(self, name: str, data: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        shown, size = self.lie(name, data), len(data)
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        if "range" in headers and headers.get("if-range", tag) == tag:
            start = int(headers["range"].removeprefix("bytes=").rstrip("-"))
            return 206, {"Content-Range": f"bytes {start}-{size - 1}/{size}", "ETag": tag}, shown[start:]
        return 200, {"ETag": tag}, shown


def _info(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _refused(status: int, code: str, given: str, why: str, remedy: str) -> tuple[int, dict[str, str], bytes]:
    error = {"code": code, "given": given, "why": why, "remedy": remedy}
    return status, {}, json.dumps({"error": error}).encode()


async def _answer(send: Send, status: int, headers: dict[str, str], data: bytes) -> None:
    lines = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    if "content-length" not in {k.lower() for k in headers} and status != 204:
        lines.append((b"content-length", str(len(data)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": data})


async def _cut(send: Send, status: int, promised: int, data: bytes, headers: dict[str, str] | None = None) -> None:
    lines = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
    length = [(b"content-length", str(promised).encode())]
    await send({"type": "http.response.start", "status": 200 if status == 204 else status, "headers": lines + length})
    await send({"type": "http.response.body", "body": data, "more_body": True})
    raise ConnectionError("cut on purpose")
