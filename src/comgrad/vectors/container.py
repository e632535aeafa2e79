"""comgrad's own file for a task vector: one safetensors file, canonical, so that one vector has one digest.

Schema 1, for each tensor name of the base:

| entry | dtype | when |
|---|---|---|
| `<name>.delta` | F32 or F64 | a dense delta W, output side first |
| `<name>.lora_A`, `<name>.lora_B` | as they were stored | a low-rank delta s·B·A |
| `<name>.scale` | F64 [1] | s, where it is not the metadata's `scale` |
| `<name>.flags` | I64 [2 + k] | transposed, code of the stored dtype, kernel's shape; where not default |
| `<name>.pinned_index`, `<name>.pinned_value` | I64, stored dtype | see `delta.Pinned` |

Metadata: `format`, `comgrad_schema`, `base_name`, `base_fingerprint`, `scale`, `stored` (of dense deltas), `warnings`.
Files of schema 1 stay readable for ever; a change of meaning takes a new number.
"""

from __future__ import annotations

import json
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from comgrad.errors import FileRefused
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, Dense, LowRank, Pinned, working
from comgrad.vectors.task_vector import Deferred, TaskVector
from comgrad.weights.reader import SafetensorsFile, open_strict
from comgrad.weights.writer import TensorPlan, dtype_name, write_safetensors

SCHEMA = "1"
STORED = {32: torch.float32, 64: torch.float64, 16: torch.float16, 17: torch.bfloat16}
_CODE = {dtype: code for code, dtype in STORED.items()}
_IN_MEMORY = 64 * 2**20  # bytes; smaller files are read at once, so that no file stays open
_MAX_WARNINGS = 16 * 2**10  # characters


@dataclass(frozen=True)
class _Defaults:
    """What the metadata says once for the whole file."""

    scale: float
    stored: torch.dtype


def save(tau: TaskVector, path: str | Path, *, watch: Callable[[str, Delta], None] | None = None) -> str:
    """Write a vector, atomically and tensor by tensor; the same vector gives the same bytes.

    Args:
        tau: the vector. A deferred one is walked twice, once to plan and once to write, and is never in memory.
        path: the file.
        watch: called with each name and delta on the first walk.

    Returns:
        SHA-256 of the file, in hexadecimal.

    Raises:
        FileRefused: a name or number that the strict profile does not allow. StorageError.
    """
    sizes: dict[str, dict[str, TensorPlan]] = {}
    scales: Counter[int | float] = Counter()
    stored: Counter[int | float] = Counter()
    for name in tau.tensors:
        d = tau.tensors[name]
        if watch:
            watch(name, d)
        sizes[name] = _plan(name, d)
        if isinstance(d, LowRank):
            scales[d.scale] += 1
        else:
            stored[_CODE[d.stored]] += 1
        del d  # before the next one is made
    defaults = _Defaults(float(_commonest(scales, 1.0)), STORED[int(_commonest(stored, 32))])
    plan: list[TensorPlan] = []
    owner: dict[str, str] = {}
    for name, entries in sizes.items():
        for part in _present(entries, defaults):
            plan.append(part)
            owner[part.name] = name
    plan.sort(key=lambda p: p.name)
    return write_safetensors(Path(path), _stream(tau, plan, owner), _metadata(tau, defaults), plan=plan)


def load(path: str | Path, *, lazy: bool = True) -> TaskVector:
    """Read a vector.

    Args:
        path: the file.
        lazy: leave a file over 64 MB on disk and read each delta when it is asked for.

    Raises:
        NotFound; FileRefused: the strict profile's codes, and `not-a-vector`, `schema`, `vector-layout`.
    """
    path = Path(path)
    file = open_strict(path, refuse_zero=False)
    try:
        defaults = _read_defaults(file)
        groups = _groups(file)
        base = BaseRef(file.metadata.get("base_name", ""), file.metadata.get("base_fingerprint") or None)
        warnings = _read_warnings(file)
        small = path.stat().st_size <= _IN_MEMORY
        tensor = file.get_all().__getitem__ if small else file.get
        read = partial(_read, file, groups, defaults, tensor)
        if small or not lazy:
            tau = TaskVector(base, {name: read(name) for name in groups}, warnings)
            file.close()
            return tau
        deferred = Deferred(tuple(sorted(groups)), read)
        weakref.finalize(deferred, file.close)
        return TaskVector(base, deferred, warnings)
    except BaseException:
        file.close()
        raise


def _commonest(counts: Counter[int | float], default: int | float) -> int | float:
    return min(counts, key=lambda v: (-counts[v], v)) if counts else default


# -- writing -----------------------------------------------------------------------------------------------------------
def _parts(name: str, d: Delta) -> dict[str, Tensor]:
    """Every entry that a delta may need, default or not."""
    shape = (d.weight_shape or ()) if isinstance(d, LowRank) else ()
    flags = torch.tensor([int(d.transposed), _CODE[d.stored], *shape], dtype=torch.int64)
    out: dict[str, Tensor] = {"flags": flags}
    if isinstance(d, LowRank):
        out |= {"lora_A": d.A, "lora_B": d.B, "scale": torch.tensor([d.scale], dtype=torch.float64)}
    else:
        out["delta"] = working(d.W)
        if d.pinned is not None and d.pinned.index.numel():
            out |= {"pinned_index": d.pinned.index, "pinned_value": d.pinned.value}
    return {f"{name}.{part}": t for part, t in out.items()}


@dataclass(frozen=True)
class _SmallPlan(TensorPlan):
    """A plan that remembers the few numbers that decide whether the entry is written at all."""

    numbers: tuple[int | float, ...] = ()


def _plan(name: str, d: Delta) -> dict[str, TensorPlan]:
    out: dict[str, TensorPlan] = {}
    for key, t in _parts(name, d).items():
        small = key.endswith((".flags", ".scale"))
        numbers = tuple(t.tolist()) if small else ()
        out[key.removeprefix(name)] = _SmallPlan(key, dtype_name(t.dtype), tuple(t.shape), numbers)
    return out


def _present(entries: Mapping[str, TensorPlan], defaults: _Defaults) -> Iterator[TensorPlan]:
    """The entries to write: without those that say what the metadata says already."""
    dense = ".delta" in entries
    usual = defaults.stored if dense else _TORCH[entries[".lora_B"].dtype]
    said: dict[str, tuple[int | float, ...]] = {".flags": (0, _CODE[usual]), ".scale": (defaults.scale,)}
    for key, entry in entries.items():
        if not (isinstance(entry, _SmallPlan) and entry.numbers == said.get(key)):
            yield TensorPlan(entry.name, entry.dtype, entry.shape)


_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _stream(tau: TaskVector, plan: Sequence[TensorPlan], owner: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    held: tuple[str, dict[str, Tensor]] = ("", {})
    for entry in plan:
        name = owner[entry.name]
        if held[0] != name:
            held = (name, {})  # let go of the last tensor before the next one is made
            held = (name, _parts(name, tau.tensors[name]))
        yield entry.name, held[1][entry.name]


def _metadata(tau: TaskVector, defaults: _Defaults) -> dict[str, str]:
    out = {
        "format": "pt",
        "comgrad_schema": SCHEMA,
        "base_name": tau.base.name,
        "scale": repr(defaults.scale),
        "stored": dtype_name(defaults.stored),
    }
    if tau.base.fingerprint:
        out["base_fingerprint"] = tau.base.fingerprint
    if tau.warnings:
        kept = list(tau.warnings)
        while len(json.dumps(kept, ensure_ascii=False)) > _MAX_WARNINGS:
            kept.pop()
        out["warnings"] = json.dumps(kept, ensure_ascii=False)
    return out


# -- reading -----------------------------------------------------------------------------------------------------------
def _bad(file: SafetensorsFile, why: str, code: str = "vector-layout") -> FileRefused:
    return FileRefused(f"'{file.path}'", why, "write it again with comgrad", code=code)


def _read_defaults(file: SafetensorsFile) -> _Defaults:
    schema = file.metadata.get("comgrad_schema")
    if schema is None:
        raise FileRefused(
            f"'{file.path}'",
            "it is no task vector in comgrad's format: its metadata has no 'comgrad_schema'",
            "add an adapter's directory, or a full checkpoint with its base",
            code="not-a-vector",
        )
    if schema != SCHEMA:
        raise FileRefused(
            f"'{file.path}' of schema '{schema[:20]}'",
            f"this version reads schema {SCHEMA}",
            "install a newer comgrad",
            code="schema",
        )
    try:
        scale = float(file.metadata.get("scale", "1.0"))
        stored = _TORCH[file.metadata.get("stored", "F32")]
    except (ValueError, KeyError):
        raise _bad(file, "its metadata 'scale' or 'stored' has no meaning") from None
    if not math.isfinite(scale):
        raise _bad(file, "its metadata 'scale' is not finite")
    return _Defaults(scale, stored)


def _read_warnings(file: SafetensorsFile) -> tuple[str, ...]:
    try:
        warnings = json.loads(file.metadata.get("warnings", "[]"))
    except (ValueError, RecursionError):
        warnings = None
    if not isinstance(warnings, list) or not all(isinstance(w, str) for w in warnings):
        raise _bad(file, "its metadata 'warnings' is not a list of texts")
    return tuple(warnings)


_LOW = {"lora_A", "lora_B"}
_PINNED = {"pinned_index", "pinned_value"}


def _groups(file: SafetensorsFile) -> dict[str, set[str]]:
    """Base tensor name → the entries it has; refuses anything that is not a whole delta."""
    groups: dict[str, set[str]] = {}
    for entry in file.names:
        name, _, part = entry.rpartition(".")
        if not name or part not in _LOW | _PINNED | {"delta", "scale", "flags"}:
            raise _bad(file, f"its entry '{entry}' belongs to no delta")
        groups.setdefault(name, set()).add(part)
    for name, parts in groups.items():
        low = parts >= _LOW and not parts & ({"delta"} | _PINNED)
        dense = "delta" in parts and not parts & (_LOW | {"scale"}) and len(parts & _PINNED) != 1
        if not (low or dense):
            raise _bad(file, f"tensor '{name}' has the entries {', '.join(sorted(parts))}, which make no delta")
        _check_entries(file, name, parts)
    return groups


def _check_entries(file: SafetensorsFile, name: str, parts: set[str]) -> None:
    """Dtypes and shapes from the header alone, so that a deferred vector cannot fail later."""
    entries = {part: file.entries[f"{name}.{part}"] for part in parts}
    for part, e in entries.items():
        allowed = {"scale": ("F64",), "flags": ("I64",), "pinned_index": ("I64",), "delta": ("F32", "F64")}
        if e.dtype not in allowed.get(part, tuple(_TORCH)):
            raise _bad(file, f"'{name}.{part}' is of dtype {e.dtype}")
    if "delta" not in parts:
        a, b = entries["lora_A"].shape, entries["lora_B"].shape
        if len(a) != 2 or len(b) != 2 or b[1] != a[0]:
            raise _bad(file, f"the factors of '{name}' have shapes {tuple(b)} and {tuple(a)}")
    if "scale" in parts and tuple(entries["scale"].shape) != (1,):
        raise _bad(file, f"'{name}.scale' is not one number")
    if "flags" in parts and (len(entries["flags"].shape) != 1 or not 2 <= entries["flags"].shape[0] <= 8):
        raise _bad(file, f"'{name}.flags' has the wrong length")
    if "pinned_index" in parts:
        one, two = tuple(entries["pinned_index"].shape), tuple(entries["pinned_value"].shape)
        if one != two or len(one) != 1:
            raise _bad(file, f"the pinned elements of '{name}' do not pair")


def _read(
    file: SafetensorsFile,
    groups: Mapping[str, set[str]],
    defaults: _Defaults,
    tensor: Callable[[str], Tensor],
    name: str,
) -> Delta:
    parts = groups[name]

    def get(part: str) -> Tensor:
        return tensor(f"{name}.{part}")

    flags = get("flags").tolist() if "flags" in parts else None
    if flags is not None and (flags[0] not in (0, 1) or flags[1] not in STORED):
        raise _bad(file, f"'{name}.flags' has no meaning")
    transposed = bool(flags[0]) if flags else False
    if "delta" not in parts:
        A, B = get("lora_A"), get("lora_B")
        shape = tuple(flags[2:]) if flags and len(flags) > 2 else None
        if shape is not None and (shape[0] != B.shape[0] or math.prod(shape[1:]) != A.shape[1] or transposed):
            raise _bad(file, f"the factors of '{name}' do not give a kernel of shape {shape}")
        scale = float(get("scale")) if "scale" in parts else defaults.scale
        return LowRank(B, A, scale, STORED[flags[1]] if flags else B.dtype, transposed, shape)
    W = get("delta")
    if transposed and W.ndim != 2:
        raise _bad(file, f"'{name}' is no matrix and has no transpose")
    stored = STORED[flags[1]] if flags else defaults.stored
    pinned = None
    if "pinned_index" in parts:
        pinned = Pinned(get("pinned_index"), get("pinned_value"))
        if pinned.value.dtype != stored or int(pinned.index.min()) < 0 or int(pinned.index.max()) >= W.numel():
            raise _bad(file, f"the pinned elements of '{name}' lie outside it")
    return Dense(W, stored, transposed, pinned)
