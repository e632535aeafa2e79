"""What an upload is made of: its named parts, what is said of it, and how far it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from comgrad.errors import ComgradError
from comgrad.service.errors import TooLarge
from comgrad.service.store.work import UploadRow

WEIGHTS, CONFIG, CARD, CONTAINER = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "task_card.json",
    "vector.safetensors",
)
GRADIENT, GRADIENT_FACTS = "task_gradient.safetensors", "task_gradient.json"
MOST_BYTES = {CONFIG: 1_000_000, CARD: 1_048_576, GRADIENT_FACTS: 1_000_000}
OPTIONAL = {CARD, GRADIENT, GRADIENT_FACTS}
SETS = ({WEIGHTS, CONFIG}, {CONTAINER})
_SHA = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class NewPart:
    """One file to come."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class NewUpload:
    """What is to be uploaded, and what for.

    Args:
        owner: handle of the account or organisation that shares it; None for the account itself.
        base: the base's name on the hub, where the files do not name it.
        claim: with `explain`, what the adapter is said to do.
    """

    purpose: str
    parts: Sequence[NewPart]
    owner: str | None = None
    name: str = ""
    description: str = ""
    base: str | None = None
    visibility: str = "private"
    tags: Sequence[str] = ()
    card: dict[str, Any] | None = None
    claim: str = ""


@dataclass(frozen=True)
class Upload:
    """An upload session as its owner sees it."""

    row: UploadRow
    received: dict[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its id."""
        return self.row.id

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        row = self.row
        return {
            "id": row.id,
            "purpose": row.purpose,
            "state": row.state,
            "parts": [{**p, "received": self.received.get(p["name"], 0)} for p in row.parts],
            "job": row.job_id,
            "vector": row.vector_id if row.state == "done" else None,
            "error": row.error,
            "created_at": row.created_at.isoformat(),
            "expires_at": row.expires_at.isoformat(),
        }


def check_parts(parts: Sequence[NewPart], most: int) -> None:
    """Refuse parts that are not those of one fine-tune, or too large. Raises ComgradError (`upload-parts`), TooLarge."""
    names = [p.name for p in parts]
    whole = set(names) - OPTIONAL in SETS and len({GRADIENT, GRADIENT_FACTS} & set(names)) != 1
    if len(set(names)) != len(names) or not whole:
        raise ComgradError(
            "the parts of an upload",
            "they are not an adapter's two files, or one vector.safetensors, with a card and a gradient at most",
            f"send {WEIGHTS} and {CONFIG}, or {CONTAINER}",
            code="upload-parts",
        )
    for p in parts:
        limit = min(MOST_BYTES.get(p.name, most), most)
        if not 1 <= p.size <= limit:
            raise TooLarge(f"'{p.name}' of {p.size} bytes", f"a part has 1 to {limit} bytes", "send a smaller one")
        if not _SHA.match(p.sha256):
            raise ComgradError(f"the SHA-256 of '{p.name}'", "it is not 64 small hex digits", "hash the file")
