"""The end of a process that computes: in order where it can be, and in bounded time whatever is still being computed.

A Gram matrix or a suggestion that is being made in some thread cannot be cut short, and Python waits for its threads. What
was acknowledged is durable long before, so a process that is told to stop may leave the rest.
"""

from __future__ import annotations

import logging
import os
import threading

log = logging.getLogger("comgrad.service")
CUT_SHORT = 3  # exit code of a process that left something unfinished


def end_within(seconds: float) -> threading.Timer:
    """End this process after so long at the latest; a process that ends before then is not touched."""

    def cut_short() -> None:
        log.warning("stopped with work unfinished", extra={"seconds": seconds})
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(CUT_SHORT)

    timer = threading.Timer(seconds, cut_short)
    timer.daemon = True
    timer.start()
    return timer
