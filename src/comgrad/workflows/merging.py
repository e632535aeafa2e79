"""Journey: merge, by any method of the table. An adapter, a dense vector or a full checkpoint comes out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comgrad.errors import ComgradError
from comgrad.vectors import delta as _delta
from comgrad.vectors.container import save
from comgrad.vectors.delta import Delta, LowRank
from comgrad.vectors.merge import METHODS, parameters_of
from comgrad.vectors.merge import merge as merge_vectors
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from comgrad.weights.storage import check_free
from comgrad.weights.writer import atomic_directory, atomic_write_bytes
from comgrad.workflows.checkpoints import counted
from comgrad.workflows.lineage import identity
from comgrad.workflows.resolve import VECTOR_FILE, open_vectors


@dataclass(frozen=True)
class MergeRequest:
    """How to merge; `to` asks for a full checkpoint over that base instead of an adapter.

    `parameters` are those of the method (`METHODS[method].parameters`); None stands for the method's default.
    """

    method: str = "sum"
    weights: tuple[float, ...] | None = None
    scale: float = 1.0
    parameters: Mapping[str, float | int | str | None] = field(default_factory=dict)
    rank: int | None = None
    base: str | None = None
    to: str | None = None


@dataclass(frozen=True)
class Merged:
    """What was written.

    Args:
        path: the folder.
        method: the method's name.
        parameters: the method's parameters as used.
        energy_kept: Σσ²(kept)/Σσ² of the recompression, 1 when there was none.
        kind: `lowrank` (a LoRA adapter), `dense` (comgrad's own format), or `checkpoint`.
        rank: largest rank of a low-rank delta.
        warnings: what the user should know.
    """

    path: str
    method: str
    parameters: dict[str, Any]
    energy_kept: float
    kind: str
    rank: int | None
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass
class _Look:
    """What one walk over the merge's tensors shows."""

    tensors: int = 0
    zero: int = 0
    energy: float = 0.0
    rank: int | None = None

    def see(self, _name: str, d: Delta) -> None:
        self.tensors += 1
        energy = _delta.inner(d, d)
        self.zero += energy <= 0.0
        self.energy += energy
        if isinstance(d, LowRank):
            self.rank = max(self.rank or 0, d.rank)

    def warnings(self, method: str) -> list[str]:
        if self.energy <= 0.0:
            return ["the merge is zero: its vectors cancel"]
        if self.zero and "scope" in METHODS[method].parameters:
            return [
                f"{self.zero} of {self.tensors} tensors of the merge are zero; the scope 'tensor' keeps a share of each"
            ]
        return []


def merge_to(
    refs: Sequence[str], out: Path, request: MergeRequest, *, progress: Callable[[int, int], None] | None = None
) -> Merged:
    """Merge and write. Raises ComgradError; nothing is written then."""
    if len(refs) < 2:
        raise ComgradError(f"{len(refs)} vector", "a merge takes at least two", "name another one", code="too-few")
    parameters = parameters_of(request.method, **request.parameters)
    check_free(out)
    vectors = open_vectors(refs, base=request.base)
    merged = merge_vectors(vectors, request.method, request.weights, **parameters) * request.scale
    kept = 1.0
    if request.rank is not None:
        merged, kept = merged.compress(request.rank)
    look = _Look()
    kind, told = _write(
        merged, out, request, _card(refs, vectors, request, parameters, merged.base.name), look, progress
    )
    warnings = look.warnings(request.method) + [
        f"{r}: {w}" for r, v in zip(refs, vectors, strict=True) for w in v.warnings
    ]
    return Merged(str(out), request.method, parameters, kept, kind, look.rank, warnings + told)


def _write(
    merged: TaskVector,
    out: Path,
    request: MergeRequest,
    card: bytes,
    look: _Look,
    progress: Callable[[int, int], None] | None,
) -> tuple[str, list[str]]:
    """Write the merge in the form asked for. Returns the form and what writing warned of."""
    kind = merged.kind
    if request.to is None and kind != "lowrank":
        with atomic_directory(out) as folder:
            save(merged, folder / VECTOR_FILE, watch=look.see)
            atomic_write_bytes(folder / "task_card.json", card)
        return kind, []
    for name in merged.tensors:
        look.see(name, merged.tensors[name])
    if request.to is not None:
        from comgrad.vectors.checkpoints import apply

        done = apply(merged, resolve_base(request.to).path, out, progress=counted(progress))
        return "checkpoint", list(done.warnings)
    from comgrad.vectors.peft_write import write_peft

    write_peft(merged, out, extra_files={"task_card.json": card})
    return kind, []


def _card(
    refs: Sequence[str], vectors: Sequence[TaskVector], request: MergeRequest, parameters: Mapping[str, Any], base: str
) -> bytes:
    """A card that names the parents; their coefficients only where the merge is linear in them."""
    parents = []
    weights = request.weights or (1.0,) * len(refs)
    linear = METHODS[request.method].linear
    share = request.scale / (math.fsum(weights) if request.method == "mean" else 1.0)
    for ref, vector, weight in zip(refs, vectors, weights, strict=True):
        parent: dict[str, Any] = {"id": identity(ref, vector), "role": "merge"}
        parents.append(parent | ({"coefficient": weight * share} if linear else {}))
    notes = f"merged by {request.method}"
    if parameters:
        notes += " (" + ", ".join(f"{k} {v}" for k, v in parameters.items()) + ")"
    if not linear:
        notes += f", weights {', '.join(f'{w:g}' for w in weights)}, scale {request.scale:g}"
    if request.rank:
        notes += f", recompressed to rank {request.rank}"
    card = {"schema": 1, "description": "", "base_model": base, "notes": notes, "parents": parents}
    return (json.dumps(card, ensure_ascii=False, indent=1) + "\n").encode()
