"""One process that serves: uvicorn around the application, with JSON logs and a graceful end."""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from comgrad.errors import ComgradError
from comgrad.service.ending import end_within
from comgrad.service.process import settle
from comgrad.service.settings import Settings
from comgrad.service.web.connections import bounded
from comgrad.service.web.logs import set_up

BACKLOG = 2048  # connections that wait to be accepted
SWITCH = 0.0002  # seconds that a computing thread keeps the interpreter while the one that answers waits for it


def serve(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    say: Callable[[str], object] | None = None,
) -> None:
    """Serve until a signal comes; running requests and jobs end first, for as long as the settings say.

    Args:
        port: 0 takes a free one. say: told the address and the first start's secret, once the port is open.

    Raises:
        ComgradError: (`port-taken`) the port cannot be opened. StorageError: nor can the registry.
    """
    settle()  # before anything that computes is imported
    from comgrad.service.app import create_app

    sys.setswitchinterval(SWITCH)
    sock = _bound(host, port)
    set_up()
    app = create_app(settings)
    app.state.service.when_loaded = _spare_what_stays
    here = f"http://{'[' + host + ']' if ':' in host else host}:{sock.getsockname()[1]}"
    tell = say or (lambda text: print(text, file=sys.stderr, flush=True))
    tell(f"serving {settings.data} at {here}")
    secret = app.state.service.first_secret
    if secret is not None:
        tell(f"first start: make the administrator at {here}/first-start with this one-time secret: {secret}")
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        backlog=BACKLOG,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=30,
        limit_concurrency=settings.connections,
        http=bounded(settings),  # over h11: the other parser keeps headers without end until they are over
        h11_max_incomplete_event_size=64 * 1024,
        ws="none",
    )
    _Server(config, settings.stop_seconds).run(sockets=[sock])


def _spare_what_stays() -> None:
    """Listings and libraries stay for the process's life: a whole garbage collection that walks them all stops every
    request for half a second at ten thousand vectors, and finds nothing."""
    gc.collect()
    gc.freeze()


class _Server(uvicorn.Server):
    """Uvicorn's server, that ends in bounded time after a signal."""

    def __init__(self, config: uvicorn.Config, seconds: float) -> None:
        super().__init__(config)
        self._seconds = seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        if not self.should_exit:
            end_within(self._seconds)
        super().handle_exit(sig, frame)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)  # whoever is told the address may connect at once: the server accepts when it is ready
    except (OSError, OverflowError) as error:
        sock.close()
        why = getattr(error, "strerror", None) or str(error)
        raise ComgradError(f"{host}:{port}", why, "choose another --host or --port", code="port-taken") from error
    return sock
