"""Full checkpoints: their difference as a task vector, and a task vector applied to a base; tensor by tensor."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from comgrad.errors import BaseMismatch, ComgradError
from comgrad.types import BaseRef
from comgrad.vectors import container
from comgrad.vectors.application import Application, Applied, Progress, companions
from comgrad.vectors.delta import Delta, Dense
from comgrad.vectors.exact import subtract
from comgrad.vectors.noise import NoiseFloor, measure, total
from comgrad.vectors.pairs import Pair, pair
from comgrad.vectors.task_vector import Deferred, TaskVector
from comgrad.weights.bases import BaseModel, resolve_base
from comgrad.weights.fingerprint import fingerprint
from comgrad.weights.reader import open_checkpoint
from comgrad.weights.writer import atomic_directory, atomic_write_bytes, write_checkpoint

VECTOR_FILE, FACTS_FILE = "vector.safetensors", "facts.json"


@dataclass(frozen=True)
class Extracted:
    """A dense task vector that was written, with the facts for its card.

    Args:
        path: its folder; the vector is `vector.safetensors` in it.
        sha256: digest of that file.
        base: the base, verified.
        tensors: tensors in the vector.
        noise: rounding in the whole vector.
        noise_by_tensor: the same for each tensor.
        pinned: elements kept as values.
        warnings: notes, and the noise warning when there is one.
    """

    path: Path
    sha256: str
    base: BaseRef
    tensors: int
    noise: NoiseFloor
    noise_by_tensor: Mapping[str, NoiseFloor]
    pinned: int
    warnings: tuple[str, ...] = ()

    @property
    def energy(self) -> float:
        """‖τ‖² as stored."""
        return self.noise.energy

    @property
    def noise_floor(self) -> dict[str, float]:
        """`zero_fraction`, `rms`, `floor`, `ratio` of the whole vector."""
        return self.noise.as_dict()


def difference(base: str | Path, finetuned: str | Path) -> TaskVector:
    """The dense task vector of two full checkpoints, read lazily: each delta is formed when it is asked for.

    W = finetuned − base, formed in fp64 and kept in fp32 (fp64 for fp64 weights), with the elements pinned that would
    not come back: `apply(difference(base, ft), base, out)` gives every tensor of `ft` bit for bit in its stored dtype.

    Args:
        base, finetuned: names or paths of checkpoints.

    Raises:
        BaseMismatch, ShapeMismatch, FileRefused: see `pairs.pair`; NotFound.
    """
    model, other = resolve_base(base), resolve_base(finetuned)
    return _vector(_open_pair(model, other), model)


def _open_pair(model: BaseModel, other: BaseModel) -> Pair:
    one = open_checkpoint(model.path)
    try:
        two = open_checkpoint(other.path)
        try:
            return pair(one, two)
        except BaseException:
            two.close()
            raise
    except BaseException:
        one.close()
        raise


def _vector(p: Pair, model: BaseModel, floors: dict[str, NoiseFloor] | None = None) -> TaskVector:
    deferred = Deferred(p.names, partial(_difference, p, floors))
    weakref.finalize(deferred, p.close)
    return TaskVector(BaseRef(model.name, fingerprint(model.path).root), deferred, p.notes)


def _difference(p: Pair, floors: dict[str, NoiseFloor] | None, name: str) -> Dense:
    base, trained = p.base.get(name), p.finetuned.get(name)
    if floors is not None and name not in floors:
        floors[name] = measure(base, trained)
    W, pinned = subtract(base, trained)
    turned = p.transposed(name)
    return Dense(W.T if turned else W, trained.dtype, turned, pinned)


def extract(
    base: str | Path, finetuned: str | Path, out_dir: str | Path, *, progress: Progress | None = None
) -> Extracted:
    """Write the task vector of two full checkpoints, streamed, with its noise floor.

    Args:
        base, finetuned: names or paths of checkpoints.
        out_dir: folder to make: `vector.safetensors` and `facts.json`.
        progress: called after each tensor.

    Raises:
        as `difference`, and StorageError.
    """
    model, other = resolve_base(base), resolve_base(finetuned)
    p = _open_pair(model, other)
    floors: dict[str, NoiseFloor] = {}
    pinned = 0

    def watch(name: str, d: Delta) -> None:
        nonlocal pinned
        pinned += int(d.pinned.index.numel()) if isinstance(d, Dense) and d.pinned is not None else 0
        if progress:
            progress(len(floors), len(p.names), name)

    tau = _vector(p, model, floors)
    with atomic_directory(Path(out_dir)) as folder:
        digest = container.save(tau, folder / VECTOR_FILE, watch=watch)
        noise = total(floors.values())
        warnings = (*tau.warnings, *((noise.warning,) if noise.warning else ()))
        facts = {
            "schema": 1,
            "sha256": digest,
            "base": {"name": tau.base.name, "fingerprint": tau.base.fingerprint},
            "tensors": len(p.names),
            "norm": noise.energy**0.5,
            "pinned": pinned,
            "noise_floor": noise.as_dict(),
            "noise_floor_by_tensor": {name: f.as_dict() for name, f in floors.items()},
            "warnings": list(warnings),
        }
        atomic_write_bytes(folder / FACTS_FILE, json.dumps(facts, indent=1, sort_keys=True).encode())
    return Extracted(Path(out_dir), digest, tau.base, len(p.names), noise, floors, pinned, warnings)


def apply(
    tau: TaskVector,
    base: str | Path,
    out: str | Path,
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 2**30,
    progress: Progress | None = None,
) -> Applied:
    """Write base + scale·τ as a full checkpoint, streamed: memory is a few times the largest tensor.

    Sums are formed in fp64 and rounded once. Untouched tensors are copied byte for byte, with configuration and
    tokenizer files beside them.

    Args:
        tau: the vector.
        base: name or path of the base checkpoint.
        out: folder to make.
        scale: a finite number. At 1, an unchanged dense vector gives its fine-tuned checkpoint bit for bit.
        dtype: dtype of all float tensors; when left out, a vector of two checkpoints gives the fine-tuned one's dtype
            and any other vector keeps the base's.
        max_shard_bytes: most bytes per file.
        progress: called after each tensor.

    Raises:
        BaseMismatch: a verified vector on another base; a tensor that the base lacks or has in another shape.
        StorageError.
    """
    if scale != scale or scale in (float("inf"), float("-inf")):
        raise ComgradError(f"the scale {scale}", "a vector can only be scaled by a finite number", "pass a number")
    model = resolve_base(base)
    with open_checkpoint(model.path, check_finite=False) as checkpoint:
        job = Application(tau, checkpoint, _checked_base(tau, model), scale, dtype)
        plan = job.plan()
        extra = companions(model.path, plan, checkpoint)
        write_checkpoint(
            Path(out),
            plan,
            job.tensors(plan, progress),
            max_shard_bytes=max_shard_bytes,
            metadata={"format": "pt"},
            extra=extra,
        )
        return Applied(Path(out), len(plan), job.changed, job.pinned, tuple(job.warnings))


def _checked_base(tau: TaskVector, model: BaseModel) -> bool:
    """Whether this base is the vector's own, by fingerprint. Raises BaseMismatch when it is another."""
    if tau.base.fingerprint is None:
        return False
    root = fingerprint(model.path).root
    if root != tau.base.fingerprint:
        raise BaseMismatch(
            f"the vector stands on {tau.base.label}, and '{model.name}' is {root[:8]}",
            "a task vector only has a meaning on its own base",
            "pass the base, and the revision, that it was made from",
        )
    return True


__all__ = ["Applied", "Extracted", "Progress", "apply", "difference", "extract"]
