"""Uploads: in chunks, going on at the offset that the service has, also in a later process; then the job's end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from comgrad.client.errors import Remote, Unreachable, not_trusted
from comgrad.client.parcel import Part
from comgrad.client.paths import API
from comgrad.client.wire import Again, Wire
from comgrad.errors import ComgradError, FileRefused
from comgrad.weights.storage import atomic_write_bytes

Progress = Callable[[int, int], None]
Steps = Callable[[str, int, int], None]
CHUNK = 4 << 20
_ID = re.compile(r"[A-Za-z0-9_\-]{1,100}")
_OTHER = frozenset({409})
_WAIT, _LOOK = 20.0, 1.0  # seconds that one question waits; shorter where somebody looks on


class Uploads:
    """Sends parcels.

    Args:
        wire: to the service.
        folder: where open uploads are remembered, so that a killed push goes on.
    """

    def __init__(self, wire: Wire, folder: Path) -> None:
        self._wire = wire
        self._folder = folder

    def send(
        self,
        parts: Sequence[Part],
        request: Mapping[str, Any],
        *,
        chunk: int = CHUNK,
        progress: Progress | None = None,
        steps: Steps | None = None,
    ) -> dict[str, Any]:
        """Send a parcel and wait until the service's job over it is done; the job's result.

        Args:
            request: what the upload is for, without its parts.
            chunk: bytes in one request at most.
            progress: told bytes; steps: told the job's step, the step's number, and how many there are.

        Raises:
            ComgradError: refused, with the service's words; Unreachable. What arrived stays there for the next try.
        """
        body = {**request, "parts": [p.as_dict() for p in parts]}
        note = self._folder / hashlib.sha256(_text({"origin": self._wire.where.origin, **body})).hexdigest()
        upload = self._known(note) or self._begin(body, note)
        identity = _identity(upload.get("id"), "the upload")
        try:
            with self._wire.persistently():  # a service that is restarted meanwhile is waited for
                if upload.get("state") == "open":
                    self._parts(identity, parts, upload, chunk, progress)
                result = self._taken_in(identity, steps)
        except Unreachable:
            raise  # what arrived is there for the next try
        except ComgradError as error:
            if not (isinstance(error, Remote) and error.status >= 500):  # a full disk, say: it may have room tomorrow
                note.unlink(missing_ok=True)
            raise
        note.unlink(missing_ok=True)
        return result

    # -- sessions ------------------------------------------------------------------------------------------------
    def _begin(self, body: Mapping[str, Any], note: Path) -> dict[str, Any]:
        made = inner(self._wire.ask("POST", f"{API}/uploads", body=body).json, "upload")
        identity = _identity(made.get("id"), "the upload")
        note.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(note, _text({"id": identity, "begun": time.time()}))
        return made

    def _known(self, note: Path) -> dict[str, Any] | None:
        """The open upload of the same request, from an earlier process."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ComgradError):
            identity = _identity(json.loads(note.read_bytes())["id"], "the upload")
            found = inner(self._wire.ask("GET", f"{API}/uploads/{identity}").json, "upload")
            if found.get("state") in ("open", "checking", "done") and found.get("id") == identity:
                return found
        return None

    # -- bytes ---------------------------------------------------------------------------------------------------
    def _parts(
        self, upload: str, parts: Sequence[Part], known: Mapping[str, Any], chunk: int, progress: Progress | None
    ) -> None:
        listed = known.get("parts")
        received = {p.get("name"): p.get("received") for p in listed if isinstance(p, dict)} if listed else {}
        total, before = sum(p.size for p in parts), 0
        for part in parts:
            sending = _Sending(self._wire, f"{API}/uploads/{upload}/parts/{part.name}", part, chunk)
            there = received.get(part.name)
            sending.offset = there if isinstance(there, int) and 0 <= there <= part.size else None
            while sending.offset != part.size:
                self._wire.patiently(sending.more)
                if progress:
                    progress(before + (sending.offset or 0), total)
            before += part.size

    # -- the end -------------------------------------------------------------------------------------------------
    def _taken_in(self, upload: str, steps: Steps | None) -> dict[str, Any]:
        wait = _WAIT if steps is None else _LOOK
        answer = self._wire.ask("POST", f"{API}/uploads/{upload}/complete", params={"wait": wait})
        job = inner(answer.json, "job")
        identity = _identity(job.get("id"), "the job")
        while job.get("state") in ("queued", "running"):
            if steps is not None:
                steps(*_step(job))
            job = inner(self._wire.ask("GET", f"{API}/jobs/{identity}", params={"wait": wait}).json, "job")
        if job.get("state") == "done":
            return inner(job, "result")
        raise _failed(job)


def _step(job: Mapping[str, Any]) -> tuple[str, int, int]:
    """The step that a job is at, its number from 0, and how many there are."""
    listed = [s for s in job.get("steps") or [] if isinstance(s, dict)]
    at = next((i for i, s in enumerate(listed) if s.get("state") == "running"), 0)
    name = str(job.get("step") or "waiting")[:40]
    return name, at, len(listed)


class _Sending:
    """A part on its way. `offset` is how much of it has arrived, None when the service must be asked."""

    def __init__(self, wire: Wire, path: str, part: Part, chunk: int) -> None:
        self._wire, self._path, self._part, self._chunk = wire, path, part, chunk
        self.offset: int | None = None

    def more(self) -> None:
        """Send one chunk. Raises Again, ComgradError; the offset is asked for before the next one then."""
        part = self._part
        offset = self._asked() if self.offset is None else self.offset
        self.offset = None
        if offset < part.size:
            data = part.read(offset, min(self._chunk, part.size - offset))
            headers = {"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"}
            with self._wire.open("PATCH", self._path, content=data, headers=headers, also=_OTHER) as answer:
                if answer.status_code == 409:  # a cut connection's chunk is still being written, or arrived after all
                    raise Again(
                        Unreachable("the upload", "another request is writing the same part", "try again later")
                    )
                offset += len(data)
                if answer.headers.get("Upload-Offset") != str(offset):
                    raise Again(
                        Unreachable("the upload", "the service does not confirm what it was sent", "push again")
                    )
            if not data:
                raise FileRefused(f"'{part.name}'", "it became shorter while it was sent", "try again", code="changed")
        self.offset = offset

    def _asked(self) -> int:
        with self._wire.open("HEAD", self._path) as answer:
            text = answer.headers.get("Upload-Offset", "")
        if not (text.isascii() and text.isdigit() and int(text[:19]) <= self._part.size):
            raise not_trusted("the upload", f"the service gives no offset for '{self._part.name}'")
        return int(text)


def _failed(job: Mapping[str, Any]) -> ComgradError:
    error = job.get("error")
    words = error if isinstance(error, Mapping) else {}
    given, why, remedy = (str(words.get(k) or "")[:1000] for k in ("given", "why", "remedy"))
    if not (given and why and remedy):
        return Remote("the upload", "the service did not take it in", "try again later", code="failed")
    return Remote(given, why, remedy, code=str(words.get("code") or "failed")[:60])


def _identity(value: Any, what: str) -> str:
    """An id that goes into a path: the service made it, and it is still checked."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise not_trusted(what, "the service gives it no usable id")
    return value


def inner(answer: Any, key: str) -> dict[str, Any]:
    """The object under a key of an answer. Raises NotTrusted (`no-service`)."""
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, dict):
        raise not_trusted("an answer", f"it holds no '{key}': this is no comgrad service", "no-service")
    return found


def _text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
