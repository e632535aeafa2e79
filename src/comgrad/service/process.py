"""How a process of the service uses its cores and its memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_ARENAS, _TRIM, _MAPPED = -8, -1, -3  # of mallopt(3)
STEPS = 5  # of priority that long work has less than what somebody waits for
_LIMITS = (
    (_ARENAS, "MALLOC_ARENA_MAX", 2),
    (_TRIM, "MALLOC_TRIM_THRESHOLD_", 128 * 2**20),
    (_MAPPED, "MALLOC_MMAP_THRESHOLD_", 32 * 2**20),
)


def settle() -> None:
    """One thread for each computation, and memory that is used again. What the environment says goes first."""
    one_thread_each()
    reuse_memory()


def one_thread_each() -> None:
    """Let matrix libraries that are loaded later compute on one thread, unless the environment says otherwise.

    What runs side by side here are requests and jobs. A description is embedded in some milliseconds: threads that share
    it wait for one another longer than that, and take the cores from other requests.
    """
    for name in _THREADS:
        os.environ.setdefault(name, "1")


def give_way() -> None:
    """Let the other threads of this process have the cores first: for a thread that works for long. The threads that it
    makes do the same. On Linux alone a thread has a priority of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            mine = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, mine, os.getpriority(os.PRIO_PROCESS, mine) + STEPS)


def reuse_memory() -> None:
    """Let the C library keep freed blocks of some megabytes for the next matrix, and two heaps instead of one for each
    thread: fresh pages cost a third of a Gram matrix's time, and heaps that threads leave behind are memory that grows.
    Only where the C library is glibc."""
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        return
    for option, name, value in _LIMITS:
        if name not in os.environ:
            library.mallopt(option, value)
