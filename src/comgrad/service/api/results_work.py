"""What the API sends of uploads and jobs. See `results`."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from datetime import datetime
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, create_model

from comgrad.explain.explanation import Explanation
from comgrad.service.api.answers import Words
from comgrad.service.api.results import Digest, Figure, Sent


class Part(Sent):
    """One file of an upload, and how many of its bytes are here."""

    name: str
    size: int
    sha256: Digest
    received: int


class Upload(Sent):
    """An upload; `vector` and `error` say what came of it."""

    id: str
    purpose: Literal["share", "explain"]
    state: Literal["open", "checking", "done", "refused", "cancelled"]
    parts: list[Part]
    job: str | None
    vector: str | None
    error: Words | None
    created_at: datetime
    expires_at: datetime


class OneUpload(Sent):
    """An upload."""

    upload: Upload


class Uploads(Sent):
    """Uploads, newest first."""

    items: list[Upload]


class Step(Sent):
    """A step of a job."""

    name: str
    state: Literal["waiting", "running", "done", "failed"]


class JobState(Sent):
    """How far a job is; `done` of `total` count within the running step."""

    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed"]
    step: str
    steps: list[Step]
    done: int
    total: int
    error: Words | None
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Shared(Sent):
    """What came of an upload that shares; the last three are missing of one whose worker died at the very end."""

    vector: str
    status: Literal["added", "exists"]
    name: str = ""
    digest: Digest = "0" * 64
    warnings: list[str] = Field(default_factory=list)


def _sent(kind: Any) -> Any:
    """A dataclass as the model of what `asdict` makes of it, its figures null where they have no value."""
    inside = get_args(kind)
    if kind is float:
        return Figure
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        known: dict[str, Any] = {f.name: (_sent(hints[f.name]), ...) for f in fields(kind)}
        name = kind.__name__ if kind is Explanation else f"Explained{kind.__name__}"
        made = _MADE.get(name) or create_model(
            name, __base__=Sent, __doc__=(kind.__doc__ or "").split("\n")[0], **known
        )
        return _MADE.setdefault(name, made)
    if get_origin(kind) is tuple:
        if inside[-1] is Ellipsis:
            return list[_sent(inside[0])]  # type: ignore[misc]
        return tuple[tuple(_sent(i) for i in inside)]  # type: ignore[misc]
    if get_origin(kind) in (UnionType, Union):
        return Union[tuple(_sent(i) for i in inside)]  # noqa: UP007 - made of values
    return kind


_MADE: dict[str, type[BaseModel]] = {}


class Explained(Sent):
    """What came of an upload that is to be explained; `report` is a page, in the answer to its completion only."""

    explanation: _sent(Explanation)  # type: ignore[valid-type]
    report: str = ""


class Job(JobState):
    """A job with its result."""

    result: Shared | Explained | None


class OneJob(Sent):
    """A job."""

    job: Job


class Jobs(Sent):
    """Jobs, newest first, without their results."""

    items: list[JobState]


class Completed(OneUpload, OneJob):
    """An upload that was handed over, and its job."""
