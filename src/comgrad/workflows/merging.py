"""Journey: merge. Task arithmetic: LoRA in, LoRA out; or a full checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comgrad.errors import ComgradError
from comgrad.vectors.merge import merge as merge_vectors
from comgrad.weights.bases import resolve_base
from comgrad.weights.storage import check_free
from comgrad.weights.writer import atomic_directory, atomic_write_bytes
from comgrad.workflows.checkpoints import counted
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import VECTOR_FILE, open_vectors


@dataclass(frozen=True)
class MergeRequest:
    """How to merge; `to` asks for a full checkpoint over that base instead of an adapter."""

    method: str = "sum"
    weights: tuple[float, ...] | None = None
    scale: float = 1.0
    rank: int | None = None
    base: str | None = None
    to: str | None = None


@dataclass(frozen=True)
class Merged:
    """What was written. `energy_kept` is Σσ²(kept)/Σσ² of the recompression, 1 when there was none."""

    path: str
    method: str
    energy_kept: float
    rank: int | None
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def merge_to(
    refs: Sequence[str], out: Path, request: MergeRequest, *, progress: Callable[[int, int], None] | None = None
) -> Merged:
    """Merge and write. Raises ComgradError; nothing is written then."""
    if len(refs) < 2:
        raise ComgradError(f"{len(refs)} vector", "a merge takes at least two", "name another one", code="too-few")
    check_free(out)
    vectors = open_vectors(refs, base=request.base)
    merged = merge_vectors(vectors, request.method, request.weights) * request.scale
    kept = 1.0
    if request.rank is not None:
        merged, kept = merged.compress(request.rank)
    zero = ["the merge is zero: its vectors cancel"] if merged.norm() == 0.0 else []
    warnings = zero + [f"{r}: {w}" for r, v in zip(refs, vectors, strict=True) for w in v.warnings]
    if request.to is not None:
        from comgrad.vectors.checkpoints import apply

        warnings += apply(merged, resolve_base(request.to).path, out, progress=counted(progress)).warnings
    elif merged.kind == "lowrank":
        from comgrad.vectors.peft_write import write_peft

        write_peft(merged, out, extra_files={"task_card.json": _card(refs, request, merged.base.name)})
    else:
        with atomic_directory(out) as folder:
            merged.save(folder / VECTOR_FILE)
            atomic_write_bytes(folder / "task_card.json", _card(refs, request, merged.base.name))
    return Merged(str(out), request.method, kept, merged.rank, warnings)


def _card(refs: Sequence[str], request: MergeRequest, base: str) -> bytes:
    """A card that names the parents."""
    parents = []
    weights = request.weights or (1.0,) * len(refs)
    share = request.scale / (math.fsum(weights) if request.method == "mean" else 1.0)
    for ref, weight in zip(refs, weights, strict=True):
        path = Path(ref)
        identity = path.resolve().name if path.exists() else Registry().get(ref).id
        parents.append({"id": identity[:200], "role": "merge", "coefficient": weight * share})
    notes = f"merged by {request.method}" + (f", recompressed to rank {request.rank}" if request.rank else "")
    card = {"schema": 1, "description": "", "base_model": base, "notes": notes, "parents": parents}
    return (json.dumps(card, ensure_ascii=False, indent=1) + "\n").encode()
