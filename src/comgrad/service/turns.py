"""Turns and memory: a few questions are computed at one time, few wait for theirs, and one question is computed once."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLong
from typing import Any, TypeVar

from comgrad.service.errors import Busy
from comgrad.service.process import give_way

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
        self._long = ThreadPoolExecutor(computing, "computing", give_way)
        self._brief = threading.Semaphore(computing + 1)
        self._waiting = threading.Semaphore(WAITING + computing)
        self._answers: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._making: dict[tuple[object, ...], Future[Any]] = {}
        self._lock = threading.Lock()

    def compute(self, question: Callable[[], Answer]) -> Answer:
        """The answer to a question about many vectors, computed when its turn comes, by a thread that gives way to those of
        short questions. Raises Busy: too many wait, or the turn does not come."""
        return self.awaited(lambda: self._long.submit(contextvars.copy_context().run, question))

    def awaited(self, submit: Callable[[], Future[Answer]]) -> Answer:
        """The answer to a question that is put to others, who take one after another. Raises as `compute`, and
        BrokenExecutor: they are no more."""
        with self._waits():
            try:
                asked = submit()
            except BrokenExecutor:
                raise
            except RuntimeError as error:  # closed
                raise _stopping() from error
            try:
                with contextlib.suppress(TooLong):
                    return asked.result(timeout=PATIENCE)
                if asked.cancel():
                    raise _busy()
                return asked.result()
            except CancelledError as error:
                raise _stopping() from error

    @contextlib.contextmanager
    def brief(self) -> Iterator[None]:
        """A turn for a question about one or two vectors, which waits for no long one. Raises Busy."""
        with self._waits():
            if not self._brief.acquire(timeout=PATIENCE):
                raise _busy()
            try:
                yield
            finally:
                self._brief.release()

    @contextlib.contextmanager
    def _waits(self) -> Iterator[None]:
        if not self._waiting.acquire(blocking=False):
            raise _busy()
        try:
            yield
        finally:
            self._waiting.release()

    def close(self) -> None:
        """Begin nothing more."""
        self._long.shutdown(wait=False, cancel_futures=True)

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
        with self._waits():
            try:
                return found.result(timeout=PATIENCE)
            except TooLong as error:
                raise _busy() from error


def _stopping() -> Busy:
    return Busy("the question", "the service is stopping", "ask again in a moment")


def _busy() -> Busy:
    return Busy("the question", "too many are being answered", "ask again in a moment")
