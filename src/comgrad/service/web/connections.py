"""Connections that are slow on purpose: how long the beginning of a request may take, an answer may be left unread, and
how many connections one address may hold. The bodies of requests have their own clocks (`guard`, `receiving`)."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from comgrad.service.settings import Settings
from comgrad.service.web.limits import network

_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
    b"content-length: 40\r\n\r\nthe request came too slowly; send it all"
)


class Bounds:
    """The bounds of one site, and how many connections each address has open; one thread touches them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.held: Counter[str] = Counter()
        self._proxies = [ipaddress.ip_network(p) for p in settings.trusted_proxies]

    def counted(self, client: tuple[str, int] | None) -> str | None:
        """What a connection counts under: nothing where a proxy of ours brings everybody's."""
        try:
            address = ipaddress.ip_address(client[0]) if client else None
        except ValueError:
            address = None
        if address is None or any(address in p for p in self._proxies):
            return None
        return network(str(address))


class Bounded(H11Protocol):
    """The web server's HTTP/1.1 protocol with the bounds of a site, which `bounded` gives it."""

    bounds: Bounds
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _of: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._of = self.bounds.counted(self.client)
        if self._of is not None:
            self.bounds.held[self._of] += 1
            if self.bounds.held[self._of] > self.bounds.settings.connections_per_address:
                transport.abort()  # its other connections are answered; saying so here would cost what it saves
                return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        self._is_read()
        if self._of is not None:
            self.bounds.held[self._of] -= 1
            if self.bounds.held[self._of] <= 0:
                del self.bounds.held[self._of]
            self._of = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._unread is None:
            self._watch_the_rest()
        if self.conn.trailing_data[0]:  # the beginning of the next request came with the last one
            self._watch()

    def _watch(self) -> None:
        """Start the clock when a request begins, and stop it when its headers are whole. What is still sent after
        the answer, the rest of a body that nobody reads, runs under the same clock."""
        if self._answering():
            self._in_time()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.bounds.settings.head_seconds, self._too_late)

    def _answering(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _too_late(self) -> None:
        self._late = None
        if self._answering():
            return  # a request came in whole with the answer to the one before
        first: Any = self.cycle  # None before the first request, which the library does not say
        if first is None and self.conn.trailing_data[0] and not self.transport.is_closing():
            self.transport.write(_LATE)
        self._unset_keepalive_if_required()
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._is_read()  # the clock of an earlier answer's end
        self._unread = self.loop.call_later(self.bounds.settings.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_read()
        if not self._answering() or self.transport.is_closing():  # nothing more is written: it says no more either
            self._watch_the_rest()

    def _watch_the_rest(self) -> None:
        """Start the clock of what is left of an answer: too little for the transport to complain about."""
        if self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(self.bounds.settings.unread_seconds, self._still_unread, self.cycle)

    def _still_unread(self, cycle: RequestResponseCycle) -> None:
        self._unread = None
        if self.cycle is not cycle:  # another answer came after it
            if not self._answering():
                self._watch_the_rest()
        elif self.transport.get_write_buffer_size():
            self.transport.abort()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def bounded(settings: Settings) -> type[Bounded]:
    """The protocol with the bounds of these settings, for the web server's configuration."""
    return type("Bounded", (Bounded,), {"bounds": Bounds(settings)})
