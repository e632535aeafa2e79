"""Journey: full checkpoints in and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comgrad.vectors.checkpoints import Applied
from comgrad.vectors.checkpoints import apply as apply_vector
from comgrad.weights.bases import resolve_base
from comgrad.workflows.resolve import open_vector

Progress = Callable[[int, int], None] | None


@dataclass(frozen=True)
class AppliedReport:
    """A checkpoint written."""

    applied: Applied

    @property
    def path(self) -> str:
        return str(self.applied.path)

    @property
    def tensors(self) -> int:
        return self.applied.tensors

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self.applied.warnings)

    def as_dict(self) -> dict[str, Any]:
        return {"path": self.path, "tensors": self.tensors, "noise_floor": None, "warnings": list(self.warnings)}


def apply(vector: str, base: str, out: Path, *, scale: float = 1.0, progress: Progress = None) -> AppliedReport:
    """Write base + scale·τ as a full checkpoint. Raises ComgradError; nothing is written then."""
    tau = open_vector(vector)
    return AppliedReport(apply_vector(tau, resolve_base(base).path, out, scale=scale, progress=progress))
