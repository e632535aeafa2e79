"""Slow connections over real sockets: headers that never end, bodies that nobody reads, answers that nobody takes, and
one address with too many connections. Attack row 22."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from comgrad.service.settings import Settings
from comgrad.service.web.connections import bounded

Send = Callable[[dict[str, Any]], Awaitable[None]]
BIG = 64 * 2**20
LONG = 60.0


async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
    """Answers at once, without reading the body: with a word, or with very much."""
    body = b"." * BIG if scope["path"] == "/big" else b"ok"
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    for at in range(0, len(body), 2**20):
        await send({"type": "http.response.body", "body": body[at : at + 2**20], "more_body": at + 2**20 < len(body)})


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[tuple[int, uvicorn.Server]]:
    chosen = Settings(head_seconds=2.0, unread_seconds=2.0, **settings)
    held = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=bounded(chosen),
        log_level="critical",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=30,
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]}, daemon=True)
    thread.start()
    until = time.monotonic() + LONG
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.01)
    try:
        yield held.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(LONG)
        held.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=LONG)


def drip(sock: socket.socket, data: bytes) -> bytes:
    """Send a byte now and then until the other side has enough; what it said."""
    said, until = b"", time.monotonic() + LONG
    sock.settimeout(0.05)
    for at in range(10**6):
        assert time.monotonic() < until, "nobody ended it"
        try:
            sock.sendall(data[at % len(data) : at % len(data) + 1])
        except OSError:
            break
        try:
            got = sock.recv(4096)
            said += got
            if not got:
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return said


def asked(sock: socket.socket, more: bytes = b"") -> bytes:
    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")
    return answered(sock)


def answered(sock: socket.socket) -> bytes:
    said = b""
    while not said.endswith(b"\r\n\r\nok"):
        got = sock.recv(4096)
        assert got, said
        said += got
    return said


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as (found, _):
        yield found


def test_headers_that_never_end_are_ended(port: int) -> None:
    with connect(port) as sock:
        said = drip(sock, b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 10**5)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in said


def test_a_connection_that_says_nothing_is_ended(port: int) -> None:
    with connect(port) as sock:
        assert sock.recv(100) == b""


def test_the_second_request_of_a_connection_has_the_same_clock(port: int) -> None:
    with connect(port) as sock:
        assert asked(sock).startswith(b"HTTP/1.1 200")
        assert drip(sock, b"GET / HTTP/1.1\r\nX: " + b"a" * 10**5) == b""
    with connect(port) as sock:  # its beginning comes with the end of the first
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
        answered(sock)
        assert sock.recv(100) == b""


def test_a_body_that_nobody_reads_has_it_too(port: int) -> None:
    with connect(port) as sock:
        assert asked(sock, b"Content-Length: 1000000\r\n").startswith(b"HTTP/1.1 200")
        assert drip(sock, b"a") == b""


def test_honest_connections_stay_open(port: int) -> None:
    with connect(port) as sock:
        for _ in range(4):
            assert asked(sock).startswith(b"HTTP/1.1 200")
            time.sleep(0.6)  # in all longer than the headers of one request may take
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        for _ in range(3):
            said = b""
            while not said.endswith(b"ok"):
                got = sock.recv(1)
                assert got, said
                said += got


def test_an_answer_that_nobody_takes_is_given_up() -> None:
    with serving() as (port, server), connect(port) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        until = time.monotonic() + LONG
        while not server.server_state.connections:
            assert time.monotonic() < until
            time.sleep(0.01)
        while server.server_state.connections:
            assert time.monotonic() < until, "it still waits for its reader"
            time.sleep(0.05)


class Sink(asyncio.Transport):
    """A transport whose reader takes what the test says: what is left unread, and whether it was given up."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.aborted, self.closing = 0, False, False

    def write(self, data: object) -> None:
        self.left += len(data)  # type: ignore[arg-type]

    def get_write_buffer_size(self) -> int:
        return self.left

    def is_closing(self) -> bool:
        return self.closing or self.aborted

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not met():
            await asyncio.sleep(0.01)


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("end", [b"\r\n", b"Connection: close\r\n\r\n"], ids=["kept", "closed"])
def test_the_rest_of_an_answer_has_a_clock_after_some_of_it_was_taken(end: bytes) -> None:
    async def scenario() -> None:
        config = uvicorn.Config(app, http="h11", lifespan="off", log_level="critical")
        protocol = bounded(Settings(head_seconds=LONG, unread_seconds=0.1))(config, ServerState(), {})
        sink = Sink()
        protocol.connection_made(sink)
        protocol.data_received(REQUEST + end)
        await until(lambda: sink.left > 0 and protocol.cycle.response_complete)
        protocol.pause_writing()  # the answer filled the buffer
        sink.left = 1
        protocol.resume_writing()  # and most of it was taken
        try:
            await until(lambda: sink.aborted)
        finally:
            protocol.connection_lost(None)

    asyncio.run(scenario())


def test_an_answer_that_waits_for_its_reader_has_a_clock_of_its_own() -> None:
    """The clock of an earlier answer's end does not stand in the way of a later one's."""

    async def scenario() -> None:
        config = uvicorn.Config(app, http="h11", lifespan="off", log_level="critical")
        protocol = bounded(Settings(head_seconds=LONG, unread_seconds=0.1))(config, ServerState(), {})
        sink = Sink()
        protocol.connection_made(sink)
        protocol.data_received(REQUEST + b"\r\n")
        await until(lambda: protocol.cycle.response_complete)
        protocol.data_received(REQUEST + b"\r\n")
        protocol.pause_writing()
        try:
            await until(lambda: sink.aborted)
        finally:
            protocol.connection_lost(None)

    asyncio.run(scenario())


def test_one_address_holds_so_many_connections_and_no_more() -> None:
    with serving(connections_per_address=3) as (port, _):
        held = [connect(port) for _ in range(3)]
        for sock in held:
            assert asked(sock).startswith(b"HTTP/1.1 200")
        with connect(port) as fourth, contextlib.suppress(ConnectionError):
            fourth.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert fourth.recv(100) == b""
        held.pop().close()
        until = time.monotonic() + LONG
        while True:  # there is room again
            with contextlib.suppress(OSError, AssertionError), connect(port) as sock:
                assert asked(sock).startswith(b"HTTP/1.1 200")
                break
            assert time.monotonic() < until
            time.sleep(0.05)
        for sock in held:
            sock.close()


def test_a_proxy_of_ours_may_bring_everybody() -> None:
    with serving(connections_per_address=1, trusted_proxies=("127.0.0.0/8",)) as (port, _):
        held = [connect(port) for _ in range(5)]
        for sock in held:
            assert asked(sock).startswith(b"HTTP/1.1 200")
            sock.close()
