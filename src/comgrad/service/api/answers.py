"""What the API's description says beside the usual answer: one form for all refusals, parts of files, jobs in time."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Words(BaseModel):
    """A refusal in three parts, under a code that stays."""

    code: str = Field(pattern=r"^[a-z0-9-]+$")
    given: str
    why: str
    remedy: str


class Refusal(BaseModel):
    """The answer to whatever is refused."""

    error: Words


REFUSED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Refusal, "description": "Refused"},
    "503": {"model": Refusal, "description": "Not now: ask again in a moment"},
    "507": {"model": Refusal, "description": "The disk is full: nothing was kept"},
}
FILE: dict[int | str, dict[str, Any]] = {
    206: {"description": "The range that was asked for"},
    304: {"description": "It is the one that the asker has"},
}
PAGE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A page", "content": {"text/html": {"schema": {"type": "string"}}}},
}
