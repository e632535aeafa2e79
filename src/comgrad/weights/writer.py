"""Canonical safetensors bytes, written atomically and tensor by tensor: the same content gives the same file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from comgrad.errors import FileRefused, ShapeMismatch
from comgrad.weights import profile
from comgrad.weights.profile import shown
from comgrad.weights.reader import INDEX_FILE
from comgrad.weights.storage import atomic_directory, atomic_file, atomic_write_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_DTYPES: dict[str, str] = {  # torch's name → the format's
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class TensorPlan:
    """What will be written under one name: `dtype` in the format's words (`F32`, `BF16`, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * profile.ITEM_SIZE[self.dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """The format's word for a torch dtype. Raises FileRefused (`dtype`)."""
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise _unwritable("dtype", f"a tensor of dtype {name}", "cast it to float32 first")
    return _DTYPES[name]


def plan_of(tensors: Mapping[str, Tensor]) -> list[TensorPlan]:
    """The plan for tensors that are in memory."""
    return [TensorPlan(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()]


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
    *,
    plan: Sequence[TensorPlan] | None = None,
) -> str:
    """Write one safetensors file atomically; returns the SHA-256 of its bytes.

    Canonical: tensors in the order of their names, compact JSON with sorted keys, spaces up to a multiple of 8.

    Args:
        path: where to.
        tensors: name → tensor; or, with `plan`, (name, tensor) pairs **in the order of their names**, taken one by
            one so that a file larger than memory can be written.
        metadata: texts for the header.
        plan: what `tensors` will yield. Needed unless `tensors` is a mapping.

    Raises:
        ShapeMismatch: the pairs do not follow the plan. FileRefused: our own strict reader would refuse the file.
        StorageError: disk full, read-only, no permission; nothing is left behind.
    """
    if plan is None:
        pairs = dict(tensors)
        plan, tensors = plan_of(pairs), pairs
    if isinstance(tensors, Mapping):
        held = tensors
        tensors = ((p.name, held[p.name]) for p in sorted(plan, key=lambda p: p.name))
    return _write(Path(path), sorted(plan, key=lambda p: p.name), iter(tensors), metadata or {})


def write_checkpoint(
    folder: Path,
    plan: Sequence[TensorPlan],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    max_shard_bytes: int = 5 * 2**30,
    metadata: Mapping[str, str] | None = None,
    extra: Mapping[str, bytes] | None = None,
    replace: bool = False,
) -> None:
    """Write a checkpoint folder atomically: `model.safetensors`, or shards with their index.

    Args:
        folder: where to; must be absent or empty unless `replace`.
        plan: every tensor that will come.
        tensors: (name, tensor) pairs in the order of their names, taken one by one.
        max_shard_bytes: most bytes of tensors per file (one tensor may exceed it alone).
        metadata: texts for every file's header.
        extra: other files of the folder by name (`config.json`, tokenizer).
        replace: allow replacing a folder that has contents.

    Raises:
        as `write_safetensors`, and StorageError (`exists`).
    """
    shards = _shards(sorted(plan, key=lambda p: p.name), max_shard_bytes)
    stream = iter(tensors)
    metadata = dict(metadata or {})
    with atomic_directory(folder, replace=replace) as temporary:
        where: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            one = len(shards) == 1
            name = "model.safetensors" if one else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            last = number == len(shards)
            _write(temporary / name, shard, stream if last else _take(stream, len(shard)), metadata)
            where.update({p.name: name for p in shard})
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(p.nbytes for p in plan)}, "weight_map": where}
            atomic_write_bytes(temporary / INDEX_FILE, json.dumps(index, indent=2, sort_keys=True).encode())
        for name, data in (extra or {}).items():
            (temporary / name).parent.mkdir(exist_ok=True)  # a module's folder: 1_Pooling/config.json
            atomic_write_bytes(temporary / name, data)


def _shards(plan: list[TensorPlan], limit: int) -> list[list[TensorPlan]]:
    shards: list[list[TensorPlan]] = [[]]
    size = 0
    for p in plan:
        if shards[-1] and (size + p.nbytes > limit or len(shards[-1]) == profile.MAX_TENSORS):
            shards.append([])
            size = 0
        shards[-1].append(p)
        size += p.nbytes
    return shards


def _take(stream: Iterator[tuple[str, Tensor]], count: int) -> Iterator[tuple[str, Tensor]]:
    for _ in range(count):
        pair = next(stream, None)
        if pair is None:
            return
        yield pair


def _write(
    path: Path, plan: list[TensorPlan], tensors: Iterator[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> str:
    header = canonical_header(plan, metadata)
    digest = hashlib.sha256(header)
    with atomic_file(path) as out:
        out.write(header)
        for p in plan:
            name, tensor = next(tensors, (None, None))
            if tensor is None or name != p.name:
                raise ShapeMismatch(
                    f"tensor {name!r} where the plan says '{p.name}'",
                    "tensors must come as planned",
                    "sort them by name",
                )
            _write_tensor(out, digest, p, tensor)
        if (left := next(tensors, None)) is not None:
            raise ShapeMismatch(f"tensor '{left[0]}'", "it is not in the plan", "plan every tensor")
    return digest.hexdigest()


def _write_tensor(out: BinaryIO, digest: hashlib._Hash, p: TensorPlan, tensor: Tensor) -> None:
    import torch

    if tuple(tensor.shape) != p.shape or dtype_name(tensor.dtype) != p.dtype:
        raise ShapeMismatch(
            f"tensor '{p.name}' of shape {tuple(tensor.shape)} and dtype {tensor.dtype}",
            f"the plan says {p.shape} and {p.dtype}",
            "write what was planned",
        )
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    step = profile.BLOCK // flat.element_size()
    for at in range(0, flat.numel(), step):
        part = flat[at : at + step]
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            raise _unwritable("not-finite", f"tensor '{p.name}'", "check the computation that made it")
        raw = part.view(torch.uint8).numpy().tobytes()
        digest.update(raw)
        out.write(raw)


def canonical_header(plan: Sequence[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    """Length and header for tensors laid out in the given order, within the strict profile.

    Raises:
        FileRefused: a name, dtype, shape or the metadata that the strict reader would refuse.
    """
    _check_plan(plan, metadata)
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for p in plan:
        entries[p.name] = {"dtype": p.dtype, "shape": list(p.shape), "data_offsets": [at, at + p.nbytes]}
        at += p.nbytes
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    limit = min(profile.MAX_HEADER, max(profile.HEADER_FLOOR, (8 + len(text) + at) // profile.HEADER_SHARE))
    if len(text) > limit:
        raise _unwritable("header-too-large", f"a header of {len(text):,} bytes", "use fewer tensors or shorter names")
    return len(text).to_bytes(8, "little") + text


def _check_plan(plan: Sequence[TensorPlan], metadata: Mapping[str, str]) -> None:
    if not plan:
        raise _unwritable("no-tensors", "an empty set of tensors", "give at least one tensor")
    if len(plan) > profile.MAX_TENSORS:
        raise _unwritable("too-many-tensors", f"{len(plan):,} tensors", "write shards")
    if len({p.name for p in plan}) != len(plan):
        raise _unwritable("duplicate-key", "a plan that names one tensor twice", "name every tensor once")
    for p in plan:
        if not profile.NAME.fullmatch(p.name):
            raise _unwritable("tensor-name", f"tensor name {shown(p.name)}", "rename it")
        if p.dtype not in profile.ITEM_SIZE:
            raise _unwritable("dtype", f"tensor '{p.name}' of dtype {shown(p.dtype)}", "cast it to F32 first")
        if len(p.shape) > profile.MAX_RANK:
            raise _unwritable("rank", f"tensor '{p.name}' of shape {p.shape}", "reshape it")
        if 0 in p.shape:
            raise _unwritable("zero-size", f"tensor '{p.name}' of shape {p.shape}", "leave it out")
    try:
        size = sum(len(k.encode()) + len(v.encode()) for k, v in metadata.items())
    except UnicodeEncodeError:
        raise _unwritable("metadata", "metadata with a lone surrogate", "pass Unicode text") from None
    if size > profile.MAX_METADATA:
        raise _unwritable("metadata-too-large", f"{size:,} bytes of metadata", "put large texts in a file of their own")


def _unwritable(code: str, given: str, remedy: str) -> FileRefused:
    return FileRefused(given, f"the strict reader would refuse the file: {profile.REFUSALS[code]}", remedy, code=code)


__all__ = [
    "TensorPlan",
    "atomic_directory",
    "atomic_write_bytes",
    "canonical_header",
    "dtype_name",
    "plan_of",
    "write_checkpoint",
    "write_safetensors",
]
