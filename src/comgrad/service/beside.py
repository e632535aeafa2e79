"""What runs in the process beside the one that answers. See `apart`.

Nothing that computes is imported before `begin` has said how many threads it may use.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from comgrad.service.process import STEPS, settle
from comgrad.service.settings import Settings

if TYPE_CHECKING:
    from comgrad.registry.models import Record
    from comgrad.service.starting import Question
    from comgrad.service.store.things import ListingRow
    from comgrad.service.warm import Geometry

    Carried = tuple[ListingRow, str, Record, str]  # a listing's row, owner's handle, record and content

_geometry: Geometry | None = None


def begin(settings: Settings) -> None:
    """Before the first question: open the registry, give way to requests, and end when the service does."""
    global _geometry
    settle()
    for asked in (signal.SIGINT, signal.SIGTERM):  # the service answers what it took before it ends, and this with it
        signal.signal(asked, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # not everywhere
        os.nice(STEPS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from comgrad.service import starting  # noqa: F401 - with the next, what questions need: loaded before the first
    from comgrad.service.warm import Geometry, registry_of
    from comgrad.workflows import known, suggesting  # noqa: F401

    _geometry = Geometry(registry_of(settings), settings)
    gc.collect()
    gc.freeze()  # the libraries stay: no collection need walk them


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(0)


def ready() -> None:
    """The first question, which needs nothing but that `begin` is over."""


def made(question: Question, carried: Sequence[Carried], folder: Path) -> None:
    """Make a starting adapter from some listings. Raises as `starting.make`."""
    from comgrad.service.starting import make
    from comgrad.service.vectors import Listing
    from comgrad.workflows.registry import Entry

    assert _geometry is not None
    store = _geometry.registry.store
    listings = [Listing(row, owner, Entry(record, store), "", content) for row, owner, record, content in carried]
    make(question, _geometry.warm(listings, keep=False), folder)
