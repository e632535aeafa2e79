"""What is kept on disk between runs: finished cells and scores, each in an atomic file that names what it depends on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from comgrad.weights.storage import atomic_write_bytes
from comgrad.workflows.bench.corpus import Corpus, Item
from comgrad.workflows.bench.methods import Method
from comgrad.workflows.bench.plan import Cell, Request
from comgrad.workflows.bench.prepare import key_of

VERSION = 1


@dataclass(frozen=True)
class Keep:
    """The run's folder."""

    request: Request
    corpus: Corpus

    @property
    def root(self) -> Path:
        return self.request.out

    # -- cells ---------------------------------------------------------------------------------------------------------
    def read(self, cell: Cell, method: Method) -> dict[str, Any] | None:
        """A finished cell, unless something it depends on has changed since."""
        found = _read(self._cell_path(cell))
        return found if found is not None and found.get("key") == self._key(cell, method) else None

    def write(self, cell: Cell, method: Method, record: Mapping[str, Any]) -> None:
        """Keep a finished cell."""
        _write(self._cell_path(cell), {**record, "key": self._key(cell, method)})

    def _cell_path(self, cell: Cell) -> Path:
        return self.root / "cells" / cell.task / f"{cell.name}.json"

    def _key(self, cell: Cell, method: Method) -> str:
        item = self.corpus.get(cell.task)
        parts = [str(VERSION), key_of(self.corpus, item, self.request.sizes), self.corpus.digests["tasks"]]
        parts += [json.dumps(cell.as_dict(), sort_keys=True), method.needs]
        parts += [source_digest(name) for name in method.code]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    # -- scores --------------------------------------------------------------------------------------------------------
    def score(self, item: Item, coefficients: Float[np.ndarray, "k"]) -> tuple[Path, tuple[float, float] | None]:
        """Where the test loss and accuracy at these coefficients are kept, and what they are if they are known."""
        h = hashlib.sha256(key_of(self.corpus, item, self.request.sizes).encode())
        h.update(np.ascontiguousarray(coefficients, np.float64).tobytes())
        path = self.root / "scores" / item.id / f"{h.hexdigest()[:32]}.json"
        found = _read(path)
        return path, None if found is None else (float(found["loss"]), float(found["accuracy"]))

    def write_score(self, path: Path, loss: float, accuracy: float) -> None:
        """Keep a score."""
        _write(path, {"loss": loss, "accuracy": accuracy})


@lru_cache(maxsize=64)
def source_digest(module: str) -> str:
    """SHA-256 of a module's source: a kept result goes with the code that made it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, (json.dumps(value) + "\n").encode())
