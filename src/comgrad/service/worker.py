"""A process that only works on jobs: `python -m comgrad.service.worker`, as many as one likes beside the serving ones."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from comgrad.service.ending import end_within
from comgrad.service.process import settle
from comgrad.service.settings import Settings
from comgrad.service.web.logs import set_up


def work(settings: Settings, until: threading.Event | None = None) -> None:
    """Work until the event is set, or a signal comes; running jobs end first."""
    settle()  # before anything that computes is imported
    from comgrad.service.core import Service

    over = until or threading.Event()
    if until is None:

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            if not over.is_set():
                end_within(settings.stop_seconds)
            over.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
    service = Service(settings.model_copy(update={"workers": "threads"}))
    service.start()
    try:
        over.wait()
    finally:
        service.stop()


if __name__ == "__main__":
    set_up()
    work(Settings.from_environment())
