"""Turns and memory: a few questions are computed at one time, few wait for theirs, and one question is computed once."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from comgrad.service.errors import Busy

Answer = TypeVar("Answer")
PATIENCE = 20.0  # seconds that a question waits for its turn
WAITING = 64  # questions that wait for theirs: each holds a thread that other requests need
REMEMBERED = 1024


class Turns:
    """Who computes now, and the answers of late.

    Args:
        computing: how many at one time.
    """

    def __init__(self, computing: int) -> None:
        self._turn = threading.Semaphore(computing)
        self._waiting = threading.Semaphore(WAITING + computing)
        self._answers: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._making: dict[tuple[object, ...], Future[Any]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """A turn. Raises Busy: too many wait, or it does not come."""
        if not self._waiting.acquire(blocking=False):
            raise _busy()
        try:
            if not self._turn.acquire(timeout=PATIENCE):
                raise _busy()
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._waiting.release()

    def known(self, key: tuple[object, ...]) -> Any | None:
        """The answer, where it is remembered."""
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
            return self._answers.get(key)

    def put(self, key: tuple[object, ...], answer: Answer) -> Answer:
        """Remember an answer."""
        with self._lock:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            while len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
        return answer

    def remembered(self, key: tuple[object, ...], make: Callable[[], Answer]) -> Answer:
        """An answer from memory, or made by whoever asks first, for all who ask meanwhile. Raises Busy."""
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                known: Answer = self._answers[key]
                return known
            found = self._making.get(key)
            if found is None:
                mine: Future[Answer] = Future()
                self._making[key] = mine
        if found is not None:
            shared: Answer = self._shared(found)
            return shared
        try:
            made = make()
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(made)
            return self.put(key, made)
        finally:
            with self._lock:
                self._making.pop(key, None)

    def _shared(self, found: Future[Answer]) -> Answer:
        if not self._waiting.acquire(blocking=False):
            raise _busy()
        try:
            return found.result(timeout=PATIENCE)
        except TimeoutError as error:
            raise _busy() from error
        finally:
            self._waiting.release()


def _busy() -> Busy:
    return Busy("the question", "too many are being answered", "ask again in a moment")
