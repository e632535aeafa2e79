"""One thread for each computation: what runs side by side here are requests and jobs."""

from __future__ import annotations

import os

_NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def one_thread_each() -> None:
    """Let matrix libraries that are loaded later compute on one thread, unless the environment says otherwise.

    A description is embedded in some milliseconds: threads that share it wait for one another longer than that, and
    take the cores from other requests.
    """
    for name in _NAMES:
        os.environ.setdefault(name, "1")
