"""Full checkpoints: their difference as a task vector, and a task vector applied to a base; tensor by tensor."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comgrad.errors import BaseMismatch, ComgradError, FileRefused
from comgrad.types import BaseRef
from comgrad.vectors import container
from comgrad.vectors.delta import Delta, Dense
from comgrad.vectors.exact import put_pinned, recombine, subtract
from comgrad.vectors.noise import NoiseFloor, measure, total
from comgrad.vectors.pairs import Pair, copies, pair
from comgrad.vectors.task_vector import Deferred, TaskVector
from comgrad.weights.bases import BaseModel, resolve_base
from comgrad.weights.fingerprint import fingerprint
from comgrad.weights.reader import INDEX_FILE, Checkpoint, open_checkpoint
from comgrad.weights.source import Source
from comgrad.weights.writer import TensorPlan, atomic_directory, atomic_write_bytes, dtype_name, write_checkpoint

Progress = Callable[[int, int, str], None]
"""Called with tensors done, tensors in all, and the name of the one just done."""

VECTOR_FILE, FACTS_FILE = "vector.safetensors", "facts.json"
_COMPANIONS = (".json", ".txt", ".model")  # configuration and tokenizer; never code
_PART = re.compile(r"[0-9]+_[A-Za-z]+")  # the modules of a sentence-transformers model: 1_Pooling
_MAX_COMPANION = 256 * 2**20
_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Applied:
    """A checkpoint that was written.

    Args:
        path: its folder.
        tensors: tensors written.
        changed: tensors that the vector changed.
        pinned: elements set from pinned values.
        warnings: what the user should know.
    """

    path: Path
    tensors: int
    changed: int
    pinned: int
    warnings: tuple[str, ...] = ()


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
        job = _Application(tau, checkpoint, _checked_base(tau, model), scale, dtype)
        plan = job.plan()
        extra = _companions(model.path, plan, checkpoint)
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


class _Application:
    """One vector being applied: what is written under each name, and the counts of it."""

    def __init__(
        self, tau: TaskVector, base: Checkpoint, verified: bool, scale: float, dtype: torch.dtype | None
    ) -> None:
        self.tau, self.base, self.verified, self.scale, self.dtype = tau, base, verified, scale, dtype
        self.changed = self.pinned = 0
        self.warnings: list[str] = []
        if not verified:
            self.warnings.append(f"the vector's base {tau.base.label} was never seen; only shapes were checked")
        self._source = {n: n for n in tau.tensors} | {
            copy: original
            for copy, original in copies(base).items()
            if original in tau.tensors and copy not in tau.tensors
        }
        absent = sorted(set(tau.tensors) - set(base.names))
        if absent:
            raise BaseMismatch(
                f"the vector changes '{absent[0]}'" + (f" and {len(absent) - 1} more" if len(absent) > 1 else ""),
                f"the checkpoint '{base.path}' has no such tensor",
                "pass the base that it was made from",
            )

    def plan(self) -> list[TensorPlan]:
        """dtype and shape of everything that will be written; one walk over the deltas, none kept."""
        stored: dict[str, torch.dtype] = {}
        dense = True
        for name, d in self.tau.tensors.items() if self.dtype is None else ():
            dense = dense and isinstance(d, Dense)
            if not dense:
                break
            stored[name] = d.stored
        plan = []
        for name, entry in self.base.entries.items():
            kind = entry.dtype
            if entry.is_float and self.dtype is not None:
                kind = dtype_name(self.dtype)
            elif dense and self._source.get(name) in stored:
                kind = dtype_name(stored[self._source[name]])
            plan.append(TensorPlan(name, kind, tuple(entry.shape)))
        return sorted(plan, key=lambda t: t.name)

    def tensors(self, plan: list[TensorPlan], progress: Progress | None) -> Iterator[tuple[str, Tensor]]:
        for done, entry in enumerate(plan, 1):
            yield entry.name, self._tensor(entry)
            if progress:
                progress(done, len(plan), entry.name)

    def _tensor(self, entry: TensorPlan) -> Tensor:
        base = self.base.get(entry.name)
        source = self._source.get(entry.name)
        if source is None:
            return base if not base.is_floating_point() else base.to(_TORCH[entry.dtype])
        d = self.tau.tensors[source]
        delta = d.in_base_layout()
        if delta.shape != base.shape:
            raise BaseMismatch(
                f"the vector changes '{entry.name}' as a tensor of shape {tuple(delta.shape)}",
                f"in the checkpoint '{self.base.path}' it has shape {tuple(base.shape)}",
                "pass the base that it was made from",
            )
        if not base.is_floating_point():
            raise FileRefused(
                f"'{entry.name}' is {base.dtype} in '{self.base.path}'",
                "a delta cannot be added to integers",
                "pass the base before quantisation",
                code="integer-tensor",
            )
        out = recombine(base, delta, _TORCH[entry.dtype], self.scale)
        self.changed += 1
        pinned = d.pinned if isinstance(d, Dense) and self.verified and self.scale == 1.0 else None
        if pinned is not None and pinned.value.dtype == out.dtype:
            put_pinned(out, pinned)
            self.pinned += int(pinned.index.numel())
        return out


def _companions(path: Path, plan: list[TensorPlan], base: Checkpoint) -> dict[str, bytes]:
    """Configuration and tokenizer files beside the weights (and one folder down), by an allow-list of endings."""
    folder = path if path.is_dir() else path.parent
    out: dict[str, bytes] = {}
    if not (folder / "config.json").exists():
        return out  # a lone weight file: what lies beside it is not known to belong to it
    parts = [d for d in folder.iterdir() if path.is_dir() and _PART.fullmatch(d.name) and d.is_dir()]
    for file in sorted(f for d in (folder, *parts) for f in d.iterdir()):
        wanted = file.suffix in _COMPANIONS and not file.name.startswith((".", "adapter_")) and file.is_file()
        if not wanted or file.name.endswith(".index.json") or file.name == INDEX_FILE:
            continue
        source = Source(file)
        try:
            if source.size <= _MAX_COMPANION:
                out[file.relative_to(folder).as_posix()] = source.read(0, source.size)
        finally:
            source.close()
    if base.config is not None and "config.json" in out:
        out["config.json"] = _config_for(plan, base, out["config.json"])
    return out


def _config_for(plan: list[TensorPlan], base: Checkpoint, text: bytes) -> bytes:
    """config.json with the dtype that was written, where it names another."""
    before = {e.dtype for e in base.entries.values() if e.is_float}
    after = {t.dtype for t in plan if t.dtype in _TORCH}
    if before == after or len(after) != 1:
        return text
    config: dict[str, Any] = dict(base.config or {})
    name = str(_TORCH[after.pop()]).removeprefix("torch.")
    for key in ("torch_dtype", "dtype"):
        if key in config:
            config[key] = name
    return json.dumps(config, indent=2).encode()
