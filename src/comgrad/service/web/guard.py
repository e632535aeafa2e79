"""The first thing a request meets: limits, the client's address, security headers, one log line, figures."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from comgrad.errors import ComgradError
from comgrad.service.errors import Mistake, TooLarge, TooMany, TooSlow, WrongMedia, status_of
from comgrad.service.settings import Settings
from comgrad.service.web.limits import Buckets, kind_of
from comgrad.service.web.metrics import Metrics

log = logging.getLogger("comgrad.service.http")

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'; frame-src 'self'"
)
HEADERS = {
    b"content-security-policy": CSP.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    b"cache-control": b"no-store",
}
MISTAKE = Mistake("the request", "the service made a mistake", "try again, or tell its administrators")
API = "/api/v1"
_FREE = ("/healthz", "/readyz", "/metrics")
_PART = re.compile(rf"{API}/uploads/[^/]+/parts/[^/]+\Z")
_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])


class Guard:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Callable[[], Metrics]) -> None:
        self._app = app
        self._settings = settings
        self._buckets = Buckets(settings)
        self._metrics = metrics
        self._proxies = [ipaddress.ip_network(p) for p in settings.trusted_proxies]
        self._extra = dict(HEADERS)
        if settings.secure:
            self._extra[b"strict-transport-security"] = b"max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        client = scope["comgrad.client"] = self._client(scope, headers)
        told: dict[str, Any] = {"id": secrets.token_hex(8), "status": 0, "sent": 0, "received": 0}

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                told["status"] = message["status"]
                have = {k.lower() for k, _ in message["headers"]}
                extra = [(k, v) for k, v in self._extra.items() if k not in have]
                message = {**message, "headers": [*message["headers"], *extra, (b"x-request-id", told["id"].encode())]}
            elif message["type"] == "http.response.body":
                told["sent"] += len(message.get("body", b""))
            await send(message)

        try:
            try:
                self._check(scope, headers, client)
                await self._app(scope, self._counted(scope, receive, told), guarded)
            except ComgradError as error:
                if told["status"]:
                    raise
                await refuse(error, guarded, scope)
                self._metrics().refused.labels(error.code).inc()
            except ClientDisconnect:
                log.info("the client went away", extra={"request": told["id"]})
            except Exception as error:
                log.error("the service made a mistake", exc_info=error, extra={"request": told["id"]})
                if told["status"]:
                    raise  # half an answer was sent: the connection must break
                await refuse(MISTAKE, guarded, scope)
        finally:
            self._tell(scope, told, client, time.perf_counter() - began)

    # -- before --------------------------------------------------------------------------------------------------
    def _client(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        """The nearest address that is no proxy of ours."""
        found = str((scope.get("client") or ("",))[0])
        if not self._proxies:
            return found
        chain = [x.strip() for x in headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",") if x.strip()]
        while chain and self._is_proxy(found):
            found = chain.pop()
        try:
            return str(ipaddress.ip_address(found))
        except ValueError:
            return str((scope.get("client") or ("",))[0])

    def _is_proxy(self, address: str) -> bool:
        try:
            return any(ipaddress.ip_address(address) in p for p in self._proxies)
        except ValueError:
            return False

    def _check(self, scope: Scope, headers: dict[bytes, bytes], client: str) -> None:
        path, method = scope["path"], scope["method"]
        if path not in _FREE:
            wait = self._buckets.take(kind_of(method, path), client)
            if wait > 0.0:
                raise TooMany("this address", "it asks too often", f"wait {wait:.0f} s", seconds=wait)
        if "\x00" in path or b"%00" in scope.get("query_string", b""):
            raise ComgradError("the address", "it holds a NUL", "leave it out", code="bad-request")
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"", b"identity"):
            raise WrongMedia("a compressed body", "bodies are read as they are", "send it without Content-Encoding")
        length = headers.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > self._room(path)):
            raise TooLarge("the body", f"at most {self._room(path)} bytes are read here", "send less")

    def _room(self, path: str) -> int:
        return self._settings.max_chunk_bytes if _PART.match(path) else self._settings.max_body_bytes

    # -- during --------------------------------------------------------------------------------------------------
    def _counted(self, scope: Scope, receive: Receive, told: dict[str, Any]) -> Receive:
        """The body, counted; a small one must be here in a given time (an upload's chunks have their own clock)."""
        room = self._room(scope["path"])
        streamed = scope["method"] == "PATCH" and _PART.match(scope["path"]) is not None
        until = time.monotonic() + self._settings.body_seconds
        whole = False

        async def limited() -> Message:
            nonlocal whole
            if whole or streamed:
                message = await receive()
            else:
                try:
                    message = await asyncio.wait_for(receive(), max(0.001, until - time.monotonic()))
                except TimeoutError as error:
                    raise TooSlow("the body", "it came too slowly", "send it again") from error
            if message["type"] == "http.request":
                told["received"] += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if told["received"] > room:
                    raise TooLarge("the body", f"at most {room} bytes are read here", "send less")
            return message

        return limited

    # -- after ---------------------------------------------------------------------------------------------------
    def _tell(self, scope: Scope, told: dict[str, Any], client: str, seconds: float) -> None:
        route = _route(scope)
        status = told["status"] or 499
        metrics = self._metrics()
        method = scope["method"] if scope["method"] in _METHODS else "other"  # a client's own words are no label
        metrics.requests.labels(method, route, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        metrics.received.inc(told["received"])
        if scope["path"] in _FREE:
            return
        line = {"request": told["id"], "method": scope["method"], "route": route, "path": scope["path"][:300]}
        figures = {"status": status, "ms": round(1000 * seconds, 1), "client": client, "bytes": told["sent"]}
        log.info("request", extra=line | figures)


def _route(scope: Scope) -> str:
    """The route's template: as many values as there are routes, whatever addresses are asked for."""
    found: str | None = getattr(scope.get("route"), "path", None)
    if found is None:
        return "none"
    inner = scope["path"].startswith(API) and not found.startswith(API)  # a router's own part of the address
    return f"{API}{found}" if inner else found


async def refuse(error: ComgradError, send: Send, scope: Scope) -> None:
    """Answer with an error, before any handler was reached: a page where pages are served, else JSON."""
    headers = [(b"connection", b"close")]
    if isinstance(error, TooMany):
        headers.append((b"retry-after", str(int(error.seconds) + 1).encode()))
    found = None if scope["path"].startswith("/api/") else _page(error, scope)
    status, kind, body = found or (
        status_of(error),
        b"application/json",
        json.dumps({"error": error.as_dict()}).encode(),
    )
    headers += [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _page(error: ComgradError, scope: Scope) -> tuple[int, bytes, bytes] | None:
    """The error as a page: status, type and body; None where no pages are served, or not even that works."""
    show = scope["app"].state.render_error
    try:
        page = None if show is None else show(Request(scope), error, status_of(error))
    except Exception:
        log.exception("the page of an error could not be made")
        page = None
    return None if page is None else (page.status_code, page.headers["content-type"].encode(), bytes(page.body))
