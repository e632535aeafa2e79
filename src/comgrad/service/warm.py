"""The geometry of listings, ready for questions: made once by whoever asks first, kept as long as there is room.

What is made in the background is made by one thread that nobody waits for at the end: a service that stops must not hang on
a Gram matrix.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLong
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from comgrad.errors import ComgradError
from comgrad.service.errors import Busy
from comgrad.service.process import give_way
from comgrad.service.settings import Settings
from comgrad.service.vectors import Listing
from comgrad.workflows.registry import Entry, Registry

if TYPE_CHECKING:
    from comgrad.atlas.collection import Collection, Member
    from comgrad.vectors.task_vector import TaskVector
    from comgrad.workflows.known import Known
    from comgrad.workflows.searching import Counted

log = logging.getLogger("comgrad.service")

PATIENCE = 20.0  # seconds that a question waits for geometry that another one makes
NEIGHBOURHOODS = 128  # kept beside the whole scopes: each is small, for the vectors are not in it
HELD_BESIDE = 32 * 2**10  # bytes that a vector takes in memory beside its numbers


@dataclass
class Warm:
    """The geometry of some listings over one base; its parts are made when first asked for."""

    listings: tuple[Listing, ...]
    atlas: Collection
    cache: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: Known | None = None
    _counted: Counted | None = None

    def known(self, encoder: str | None = None) -> Known:
        """What predictions need. Raises ComgradError (`no-descriptions`).

        Args:
            encoder: key of the one that questions are put to; default: that of this machine.
        """
        from comgrad.workflows.known import Known

        with self._lock:
            if self._known is None:
                self._known = Known.of(self.atlas, cache=self.cache, rows=self._embedded(encoder))
                _ = self._known.ridge, self._known.functional, self._known.traits
            return self._known

    def _embedded(self, encoder: str | None) -> dict[str, Any] | None:
        """Description → its row, where every listing has one by the encoder that questions are put to."""
        from comgrad.describe.encoder import key_of, load_encoder

        key = encoder or key_of(load_encoder())
        told = [x for x in self.listings if x.description.strip()]
        if any(x.row.embedding is None or x.row.encoder != key for x in told):
            return None
        return {x.description: np.frombuffer(x.row.embedding or b"", dtype="<f4") for x in told}

    def counted(self) -> Counted:
        """What each listing counts for in rankings."""
        from comgrad.workflows.searching import Counted, count_in

        with self._lock:
            if self._counted is None:
                self._counted = Counted({}, {}, set())
                if len(self.listings) > 1:
                    count_in(self._counted, self.atlas)
            return self._counted

    @property
    def groups(self) -> list[str]:
        """The source group of each member."""
        return [x.card.source_group for x in self.listings]


class Geometry:
    """Warm geometry by the listings it is of, and vectors by their ids."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry = registry
        self._settings = settings
        self._lock = threading.RLock()
        self._whole: OrderedDict[tuple[str, ...], Future[Warm]] = OrderedDict()
        self._parts: OrderedDict[tuple[str, ...], Future[Warm]] = OrderedDict()
        self._vectors: OrderedDict[str, tuple[TaskVector, int]] = OrderedDict()
        self._vector_bytes = 0
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def close(self) -> None:
        """Begin nothing more; what is being made is left to itself."""
        self._over.set()
        self._tasks.put(None)

    # -- warm ----------------------------------------------------------------------------------------------------
    def warm(self, listings: Sequence[Listing], *, keep: bool = True, patience: float = PATIENCE) -> Warm:
        """The geometry of these listings over one base; kept on disk unless it is one of many neighbourhoods.

        Raises:
            ComgradError; Busy: somebody else is making it, and it takes long.
        """
        found, mine = self._claimed(_key(listings), keep)
        return self._fill(found, listings, keep) if mine else _waited(found, patience)

    def lately(self, listings: Sequence[Listing]) -> tuple[Warm, bool]:
        """The geometry of these listings, or meanwhile an older one of most of them and of no others, while theirs is
        made in the background; and whether it is theirs. What may no longer be read is never in it."""
        older = self._older(listings)
        if older is None:
            return self.warm(listings), True
        if not older[1]:
            self.prepare(listings)
        return older

    def soon(self, listings: Sequence[Listing], patience: float) -> tuple[Warm, bool] | None:
        """As `lately`, but never made by who asks: None where nothing is there within the time."""
        if self._older(listings) is not None:
            return self.lately(listings)
        try:
            return _waited(self.prepare(listings), patience), True
        except Busy:
            return None

    def _older(self, listings: Sequence[Listing]) -> tuple[Warm, bool] | None:
        """The geometry itself where it is made, else the newest that is made of most of the listings and of no others;
        and which of the two it is."""
        key = _key(listings)
        wanted = set(key)
        with self._lock:
            whole = self._whole.get(key)
            if whole is not None and _made(whole):
                self._whole.move_to_end(key)
                return whole.result(), True
            for k, f in reversed(self._whole.items()):
                if _made(f) and 10 * len(k) >= 9 * len(key) and wanted.issuperset(k):
                    return f.result(), False
        return None

    def prepare(self, listings: Sequence[Listing]) -> Future[Warm]:
        """Have the geometry made in the background, where it is not there."""
        found, mine = self._claimed(_key(listings), True)
        if mine:
            self.later(lambda: self._fill_quietly(found, listings))
        return found

    def _fill_quietly(self, future: Future[Warm], listings: Sequence[Listing]) -> None:
        with contextlib.suppress(ComgradError):  # whoever asks next meets it
            made = self._fill(future, listings, True)
            made.counted()
            made.known()

    def later(self, task: Callable[[], object]) -> None:
        """Do something in the background, after what waits there; nothing where the service stops."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="warm", daemon=True)
                self._thread.start()
        self._tasks.put(task)

    def _work(self) -> None:
        give_way()
        while (task := self._tasks.get()) is not None and not self._over.is_set():
            try:
                task()
            except Exception:  # its future holds the error; the thread goes on
                log.exception("work in the background failed")

    def _claimed(self, key: tuple[str, ...], keep: bool) -> tuple[Future[Warm], bool]:
        held, room = (self._whole, self._settings.warm_scopes) if keep else (self._parts, NEIGHBOURHOODS)
        with self._lock:
            found = held.get(key)
            if found is not None:
                held.move_to_end(key)
                return found, False
            made: Future[Warm] = Future()
            held[key] = made
            while len(held) > room:
                held.popitem(last=False)
            return made, True

    def _fill(self, future: Future[Warm], listings: Sequence[Listing], keep: bool) -> Warm:
        try:
            made = self._built(listings, keep)
        except BaseException as error:
            with self._lock:
                for held in (self._whole, self._parts):
                    if held.get(_key(listings)) is future:
                        del held[_key(listings)]
            future.set_exception(error)
            raise
        future.set_result(made)
        return made

    def _built(self, listings: Sequence[Listing], keep: bool) -> Warm:
        from comgrad.atlas.collection import Collection

        store, few = self.registry.store, len(listings) <= self._settings.neighbourhood
        gradients = store.gradients([x.id for x in listings] if few else None)
        members = [self._member(x, gradients.get(x.id)) for x in listings]
        folder = self.registry.store.cache_dir
        return Warm(tuple(listings), Collection.build(members, cache=folder if keep else None), folder)

    def _member(self, x: Listing, gradient: Any) -> Member:
        from comgrad.workflows.resolve import member

        return replace(member(x.entry, gradient), load=lambda: self.vector(x.entry), owner=x.owner_id)

    # -- vectors -------------------------------------------------------------------------------------------------
    def vector(self, entry: Entry, *, keep: bool = True) -> TaskVector:
        """A vector from memory, or read, and kept as long as there is room where it may soon be asked for again.
        Raises StorageError."""
        if self._over.is_set():
            raise Busy("the question", "the service is stopping", "ask again in a moment")
        with self._lock:
            found = self._vectors.get(entry.id)
            if found is not None:
                self._vectors.move_to_end(entry.id)
                return found[0]
        tau, size = entry.vector(), entry.record.size_bytes + HELD_BESIDE
        if not keep or size > self._settings.warm_vectors_bytes // 8:
            return tau  # one large checkpoint must not push out everything else
        with self._lock:
            if entry.id not in self._vectors:
                self._vectors[entry.id] = (tau, size)
                self._vector_bytes += size
            while self._vector_bytes > self._settings.warm_vectors_bytes:
                self._vector_bytes -= self._vectors.popitem(last=False)[1][1]
        return tau


def registry_of(settings: Settings) -> Registry:
    """The registry that the settings name: the folder, or with `database` where the environment says."""
    return Registry(settings.data) if settings.database is None else Registry()


def _key(listings: Sequence[Listing]) -> tuple[str, ...]:
    return tuple(x.content for x in listings)


def _made(future: Future[Warm]) -> bool:
    return future.done() and future.exception() is None


def _waited(future: Future[Warm], seconds: float) -> Warm:
    try:
        return future.result(timeout=seconds)
    except TooLong as error:
        raise Busy("the question", "what it needs is being computed", "ask again in a moment") from error
    except ComgradError:
        raise
    except Exception as error:  # the service's own mistake: whoever makes it has logged it
        raise Busy("the question", "what it needs could not be computed", "ask again later") from error
