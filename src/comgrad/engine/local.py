"""The in-process executor: map, and map-sum, over tasks on this machine's cores.

Threads, not processes: the work is BLAS and LAPACK inside torch, which release the interpreter lock, and the vectors
are shared without a copy. Each task runs single-threaded inside and results are taken in the order of the tasks, so
one worker and many give the same bits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Protocol, Self, TypeVar

import torch

from comgrad.engine.cores import cores

T = TypeVar("T")
R = TypeVar("R")


class Addable(Protocol):
    """Anything with `+`."""

    def __add__(self, other: Self, /) -> Self: ...


A = TypeVar("A", bound=Addable)

_guard = threading.Lock()
_inside = 0
_threads_before = 1


@contextmanager
def one_thread_per_task() -> Iterator[None]:
    """torch's own thread pool held at one thread while any map runs; the last one out restores it.

    Two levels of threads fight over the cores, and the order of a threaded reduction would depend on their number.
    """
    global _inside, _threads_before
    with _guard:
        if _inside == 0:
            _threads_before = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _guard:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_threads_before)


def map_ordered(fn: Callable[[T], R], tasks: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """fn(task) for every task, in order, at most `workers` + 1 results ahead of the reader.

    Args:
        workers: threads; None is one per core.
    """
    count = max(1, workers if workers is not None else cores())
    queue = iter(tasks)
    with one_thread_per_task(), ThreadPoolExecutor(count, thread_name_prefix="comgrad") as pool:
        ahead: deque[Future[R]] = deque(pool.submit(fn, t) for t in islice(queue, count + 1))
        try:
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(pool.submit(fn, t) for t in islice(queue, 1))
                yield result
        finally:
            for waiting in ahead:
                waiting.cancel()


def map_sum(fn: Callable[[T], A], tasks: Iterable[T], workers: int | None = None) -> A | None:
    """Σ fn(task), added in the order of the tasks; None for no tasks.

    Serial and parallel give the same bits, because the order of the sum does not depend on who finishes first.
    """
    total: A | None = None
    for part in map_ordered(fn, tasks, workers):
        total = part if total is None else total + part
    return total
