"""A connection that breaks at every eighth of an upload, and a client that goes on by itself."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import comgrad as cg
from comgrad.client.wire import Patience
from faults_people import variant
from faults_site import Site, running

BLOCK = 4096
EIGHTHS = 8
NUMBER = 10_001  # of an adapter that nobody else pushes


class Cutter:
    """A relay to the service that resets the connection each time another eighth of the bytes towards it has passed.

    Args:
        port: of the service. total: the bytes that are cut into eighths; headers count too.
    """

    def __init__(self, port: int, total: int) -> None:
        self._port = port
        self._marks = [total * k // EIGHTHS for k in range(1, EIGHTHS)]
        self._passed = 0
        self.cut_at: list[int] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._there, args=(near, far), daemon=True).start()
                threading.Thread(target=self._back, args=(far, near), daemon=True).start()

    def _there(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(BLOCK):
                with self._lock:
                    room = self._marks[0] - self._passed if self._marks else len(data)
                    cut = bool(self._marks) and len(data) >= room
                    data = data[:room] if cut else data
                    self._passed += len(data)
                    if cut:
                        self.cut_at.append(self._marks.pop(0))
                far.sendall(data)
                if cut:
                    for end in (near, far):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no end
                    near.close()
                    break
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)  # the way back ends, too, and closes both

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(BLOCK):
                near.sendall(data)
        near.close()
        far.close()


def cuts(size: str, folder: Path) -> dict[str, Any]:
    """Push one adapter through the relay; what the service then gives back must be what a whole push gives."""
    with running(
        size, folder, MAX_CHUNK_BYTES=str(8 << 20)
    ) as site:  # each part in one request, so that cuts are within
        return cut_push(site, folder)


def cut_push(site: Site, folder: Path) -> dict[str, Any]:
    """The push of one adapter, cut seven times."""
    source = variant(NUMBER, folder / "adapter")
    total = sum(p.stat().st_size for p in source.iterdir())
    cutter, problems = Cutter(site.port, total), []
    patience = Patience(attempts=20)
    try:
        with cg.Client(
            f"http://127.0.0.1:{cutter.port}", token=site.token, cache=folder / "cut", patience=patience
        ) as client:
            pushed = client.push(source, name="cut", public=True)
    finally:
        cutter.close()
    with cg.Client(site.origin, token=site.token, cache=folder / "whole") as client:
        pulled = client.pull(pushed.id)
        again = client.push(variant(NUMBER, folder / "again"), name="cut", public=True)
    if again.status != "exists" or again.digest != pushed.digest or pulled.digest != pushed.digest:
        problems.append(f"{pushed.digest} was pushed with cuts, {again.digest} ({again.status}) without")
    if len(cutter.cut_at) != EIGHTHS - 1:
        problems.append(f"only {len(cutter.cut_at)} cuts were made")
    harm = len(cutter.cut_at)
    return {"harm": harm, "acknowledged": 2, "cut_at": cutter.cut_at, "digest": pushed.digest, "problems": problems}
