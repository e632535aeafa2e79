"""Journey: full checkpoints in and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comgrad.vectors.checkpoints import apply as apply_vector
from comgrad.vectors.checkpoints import extract as extract_vector
from comgrad.weights.storage import check_free
from comgrad.workflows.resolve import open_vector

Progress = Callable[[int, int], None] | None


def counted(progress: Progress) -> Callable[[int, int, str], None] | None:
    """A (done, total) callback as one that is also told the tensor's name."""
    return None if progress is None else lambda done, total, _name: progress(done, total)


@dataclass(frozen=True)
class Written:
    """A folder written by `extract` or `apply`."""

    path: str
    tensors: int
    noise_floor: dict[str, float] | None
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def apply(vector: str, base: str, out: Path, *, scale: float = 1.0, progress: Progress = None) -> Written:
    """Write base + scale·τ as a full checkpoint. Raises ComgradError; nothing is written then."""
    check_free(out)
    done = apply_vector(open_vector(vector), base, out, scale=scale, progress=counted(progress))
    return Written(str(done.path), done.changed, None, list(done.warnings))


def extract(base: str, finetuned: str, out: Path, *, progress: Progress = None) -> Written:
    """Write the dense task vector of two full checkpoints with its noise floor. Raises ComgradError."""
    check_free(out)
    done = extract_vector(base, finetuned, out, progress=counted(progress))
    return Written(str(done.path), done.tensors, done.noise_floor, list(done.warnings))
