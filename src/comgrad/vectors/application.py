"""A task vector being applied to a base checkpoint: what is written under each name, and the files beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comgrad.errors import BaseMismatch, FileRefused
from comgrad.vectors.delta import Dense
from comgrad.vectors.exact import put_pinned, recombine
from comgrad.vectors.pairs import copies
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.reader import INDEX_FILE, Checkpoint
from comgrad.weights.source import Source
from comgrad.weights.writer import TensorPlan, dtype_name

Progress = Callable[[int, int, str], None]
"""Called with tensors done, tensors in all, and the name of the one just done."""

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


class Application:
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


def companions(path: Path, plan: list[TensorPlan], base: Checkpoint) -> dict[str, bytes]:
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
