"""Starting adapters from neighbourhoods, made in a process beside the one that answers.

Such an answer is a thousand short products and decompositions. In a thread each of them lets the interpreter go and waits to
have it again, and whoever asks something short waits with it; a process of its own disturbs nobody while a core is free. It
is started with the first such question, ends with the process that started it, however that ends, and is started anew where
it was killed.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from comgrad.service import beside
from comgrad.service.errors import Busy
from comgrad.service.settings import MiB, Settings
from comgrad.service.starting import Question
from comgrad.service.turns import Turns
from comgrad.service.vectors import Listing

SHARE = (
    4  # a neighbourhood is read in milliseconds, and few questions share vectors: of what may be kept, so small a part
)


class Apart:
    """The process beside this one.

    Args:
        settings: of the service; it opens the same registry.
    """

    def __init__(self, settings: Settings) -> None:
        few = max(MiB, settings.warm_vectors_bytes // SHARE)
        self._settings = settings.model_copy(update={"warm_vectors_bytes": few})
        self._pool: ProcessPoolExecutor | None = None
        self._over = False
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Have it started, with its libraries loaded. Raises Busy: closed."""
        self._opened().submit(beside.ready)

    def make(self, question: Question, listings: Sequence[Listing], folder: Path, turns: Turns) -> None:
        """See `starting.make`. Raises ComgradError, Busy."""
        carried = [(x.row, x.owner, x.entry.record, x.content) for x in listings]
        for _ in range(2):
            pool = self._opened()
            try:
                return turns.awaited(partial(pool.submit, beside.made, question, carried, folder))
            except BrokenProcessPool:  # killed, as by a machine that is short of memory
                self._let_go(pool)
        raise Busy("the suggestion", "the process that makes it was ended from outside", "ask again later")

    def close(self) -> None:
        """Begin nothing more; what is being made is left to itself."""
        self._over = True
        self._let_go(self._pool)

    def _let_go(self, pool: ProcessPoolExecutor | None) -> None:
        with self._lock:
            if self._pool is pool:
                self._pool = None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _opened(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._over:
                raise Busy("the suggestion", "the service is stopping", "ask again in a moment")
            if self._pool is None:
                spawned = multiprocessing.get_context("spawn")  # threads run here: a fork would copy their locks
                self._pool = ProcessPoolExecutor(1, spawned, beside.begin, (self._settings,))
            return self._pool
