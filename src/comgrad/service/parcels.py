"""What an upload is made of: its named parts, what is said of it, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
            "vector": row.vector_id,
            "error": row.error,
            "created_at": row.created_at.isoformat(),
            "expires_at": row.expires_at.isoformat(),
        }
