"""The map of thousands: the oldest vectors are laid out by their exact distances, all others among these by their sketches.

Nothing here is computed by a request: it waits a while for what the background makes, and shows what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLong
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.errors import ComgradError, StorageError
from comgrad.service.errors import Busy
from comgrad.service.nearness import Nearness, is_copy
from comgrad.service.scope import Group, Matrix
from comgrad.service.settings import Settings
from comgrad.service.vectors import Listing
from comgrad.service.warm import Geometry
from comgrad.weights.derived import read_arrays, write_arrays

FEWEST = 3  # points of a map
PATIENCE = 20.0  # seconds that a question waits for a first map
BRIEF = 2.0  # and for points that are not on it yet
WAITING = 16  # questions that wait at one time
BATCH = 256  # vectors that are placed before others get their turn
WORDS = 240  # characters of a description
ANSWERS = 4
KEPT = 8  # maps on disk
LONG = 600.0  # seconds that the background waits for its turn to sketch
VERSION = 1  # of a map on disk
_KEPT = ("positions", "clusters", "figures", "rows", "mean")
Answer = dict[str, Any]


@dataclass(frozen=True)
class Plane:
    """The finished map of some landmarks, and what was placed on it: id → x, y, cluster; None where a vector is lost."""

    positions: np.ndarray[Any, np.dtype[np.float64]]
    clusters: np.ndarray[Any, np.dtype[np.int64]]
    stress: float
    silhouette: float
    rows: Matrix  # the landmarks' centred sketches; of one that has none, 0
    mean: Matrix
    placed: dict[str, tuple[float, float, int] | None] = field(default_factory=dict)


class Planes:
    """Maps of groups that are larger than what is weighed together."""

    def __init__(self, geometry: Geometry, nearness: Nearness, settings: Settings) -> None:
        self._geometry = geometry
        self._nearness = nearness
        self._settings = settings
        self._planes: OrderedDict[str, Plane] = OrderedDict()
        self._coming: dict[str, Future[None]] = {}
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._waiting = threading.Semaphore(WAITING)
        self._lock = threading.Lock()

    def map(self, group: Group) -> Answer:
        """The map of a group, as far as it is made. Raises ComgradError, Busy: nothing of it is there yet."""
        with self._lock:
            known = self._answers.get(group.digest)
        if known is not None:
            return known
        landmarks, others = self._chosen(group)
        key, found = _key(landmarks), self._plane(_key(landmarks))
        if found is None or any(x.id not in found.placed for x in others):
            coming = self._asked(key, landmarks, others, self._geometry.later)
            try:
                self._wait(coming, PATIENCE if found is None else BRIEF)
            except ComgradError:
                if found is None:
                    raise
            found = self._plane(key)
        if found is None:
            raise Busy("the map", "thousands of vectors are being laid out", "ask again in a few minutes")
        return self._noted(group, _answer(group, found, landmarks, others))

    def prepare(self, group: Group) -> None:
        """Make the map of a group now. Raises ComgradError."""
        landmarks, others = self._chosen(group)
        self._asked(_key(landmarks), landmarks, others, lambda task: task()).result()

    def _wait(self, coming: Future[None], patience: float) -> None:
        """Until it is made, or not any more: each who waits holds a thread that other requests need."""
        if self._waiting.acquire(blocking=False):
            try:
                with contextlib.suppress(TooLong):
                    coming.result(timeout=patience)
            finally:
                self._waiting.release()

    def _chosen(self, group: Group) -> tuple[Group, list[Listing]]:
        """The oldest that are no copies, as many as are weighed together; and the newest of the others."""
        whole, most = self._settings.whole_scope, self._settings.map_points
        first: list[Listing] = []
        for x in group:
            if not is_copy(x, group):
                first.append(x)
                if len(first) == whole:
                    break
        landmarks = Group(first if len(first) >= FEWEST else group[:whole])
        others = [x for x in group if x.id not in landmarks.ids]
        return landmarks, others[max(0, len(others) - (most - len(landmarks))) :]

    # -- making --------------------------------------------------------------------------------------------------
    def _plane(self, key: str) -> Plane | None:
        with self._lock:
            found = self._planes.get(key)
            if found is not None:
                self._planes.move_to_end(key)
            return found

    def _asked(
        self, key: str, landmarks: Group, others: Sequence[Listing], run: Callable[[Callable[[], None]], object]
    ) -> Future[None]:
        """Have it made, once at a time."""
        with self._lock:
            coming = self._coming.get(key)
            if coming is not None:
                return coming
            made: Future[None] = Future()
            self._coming[key] = made

        def make() -> None:
            try:
                self._fill(key, landmarks, others)
            except BaseException as error:
                made.set_exception(_outward(error))
                if not isinstance(error, ComgradError):
                    raise  # it is logged there
            else:
                made.set_result(None)
            finally:
                with self._lock:
                    self._coming.pop(key, None)

        run(make)
        return made

    def _fill(self, key: str, landmarks: Group, others: Sequence[Listing]) -> None:
        from comgrad.atlas.placing import centred, place

        plane = self._plane(key) or self._begun(key, landmarks)
        missing = [x for x in others if x.id not in plane.placed]
        for at in range(0, len(missing), BATCH):
            batch = missing[at : at + BATCH]
            rows, there = self._nearness.sketched(batch)
            xy, nearest = place(centred(rows, plane.mean) @ plane.rows.T, plane.positions)
            for x, (a, b), n, known in zip(batch, xy, nearest, there, strict=True):
                plane.placed[x.id] = (float(a), float(b), int(plane.clusters[n])) if known else None
        if len(plane.placed) > 2 * self._settings.map_points:
            live = {x.id for x in others}
            for gone in [i for i in plane.placed if i not in live]:
                plane.placed.pop(gone, None)

    def _begun(self, key: str, landmarks: Group) -> Plane:
        """The map of the landmarks alone: as it was kept, or made now."""
        file = self._geometry.registry.store.cache_dir / f"plane-{_made_of(key)}.npz"
        made = _read(file, len(landmarks))
        if made is None:
            made = self._laid_out(landmarks)
            _write(file, made)
        with self._lock:
            self._planes[key] = made
            while len(self._planes) > self._settings.warm_scopes:
                self._planes.popitem(last=False)
        return made

    def _laid_out(self, landmarks: Group) -> Plane:
        """By exact distances."""
        from comgrad.atlas.layout import lay_out
        from comgrad.atlas.placing import centred

        atlas = self._geometry.warm(landmarks).atlas
        layout = lay_out(atlas.centred_cosine())
        rows, there = self._nearness.sketched(landmarks, LONG)
        weights = np.where(there, atlas.groups.weights(but=[d.index for d in atlas.blends]), 0.0)
        mean = (weights / (weights.sum() or 1.0)).astype(np.float32) @ rows
        known = np.where(there[:, None], centred(rows, mean), 0.0).astype(np.float32)
        return Plane(layout.positions, layout.clusters, layout.stress, layout.silhouette, known, mean)

    def _noted(self, group: Group, answer: Answer) -> Answer:
        if not answer["waiting"]:
            with self._lock:
                self._answers[group.digest] = answer
                while len(self._answers) > ANSWERS:
                    self._answers.popitem(last=False)
        return answer


def _read(file: Path, landmarks: int) -> Plane | None:
    """A map that was kept; None where there is none of use."""
    data = read_arrays(file)
    if data is None or set(data) != set(_KEPT) or len(data["positions"]) != landmarks:
        return None
    stress, silhouette = (float(x) for x in data["figures"])
    return Plane(data["positions"], data["clusters"], stress, silhouette, data["rows"], data["mean"])


def _write(file: Path, made: Plane) -> None:
    """Keep it, and of older ones a few: derived data, that cost time only."""
    figures = np.array([made.stress, made.silhouette])
    values: tuple[np.ndarray[Any, Any], ...] = (made.positions, made.clusters, figures, made.rows, made.mean)
    with contextlib.suppress(OSError, StorageError):
        write_arrays(file, **dict(zip(_KEPT, values, strict=True)))
        for old in sorted(file.parent.glob("plane-*.npz"), key=lambda f: -f.stat().st_mtime)[KEPT:]:
            old.unlink(missing_ok=True)


def _made_of(key: str) -> str:
    """32 hex digits of all that a map on disk depends on: its landmarks, their sketches, and how it is kept."""
    from comgrad.geometry.sketch import identity

    return hashlib.sha256(f"{VERSION} {key} {identity()}".encode()).hexdigest()[:32]


def _answer(group: Group, plane: Plane, landmarks: Group, others: Sequence[Listing]) -> Answer:
    """The landmarks first, then what is placed, oldest first."""
    points = [
        _point(x, float(a), float(b), int(c))
        for x, (a, b), c in zip(landmarks, plane.positions, plane.clusters, strict=True)
    ]
    waiting = 0
    for x in others:
        at = plane.placed.get(x.id)
        if at is not None:
            points.append(_point(x, *at))
        elif x.id not in plane.placed:
            waiting += 1
    clusters: list[list[str]] = [[] for _ in range(int(plane.clusters.max()) + 1)]
    for p in points:
        clusters[p["cluster"]].append(p["id"])
    return {
        "points": points,
        "clusters": [{"cluster": c, "ids": ids} for c, ids in enumerate(clusters)],
        "stress": plane.stress,
        "silhouette": plane.silhouette,
        "exact": len(landmarks),
        "waiting": waiting,
        "left_out": len(group) - len(points) - waiting,
        "version": group.digest[:16],
    }


def _point(x: Listing, a: float, b: float, cluster: int) -> Answer:
    words = x.description
    return {
        "id": x.id,
        "name": x.full_name,
        "family": x.family,
        "x": round(a, 6),
        "y": round(b, 6),
        "cluster": cluster,
        "description": words if len(words) <= WORDS else f"{words[: WORDS - 1]}…",
    }


def _key(landmarks: Group) -> str:
    """Of the vectors alone: their names and words move no point."""
    return hashlib.sha256(" ".join(x.id for x in landmarks).encode()).hexdigest()


def _outward(error: BaseException) -> BaseException:
    """The service's own mistakes are in its log."""
    if isinstance(error, ComgradError):
        return error
    return Busy("the map", "it could not be laid out", "ask again later")
