"""Embeddings remembered on disk by the text's digest, so that a registry's descriptions are encoded once."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path

import numpy as np
from jaxtyping import Float

from comgrad.describe.encoder import TextEncoder
from comgrad.errors import StorageError
from comgrad.weights.writer import atomic_write_bytes


def encode_cached(encoder: TextEncoder, texts: list[str], cache: Path | None) -> Float[np.ndarray, "n d"]:
    """(n, d) embeddings of the texts; only texts not seen before are encoded."""
    if cache is None:
        return encoder.encode(texts)
    file = cache / f"embeddings-{hashlib.sha256(encoder.name.encode()).hexdigest()[:16]}.npz"
    keys = [hashlib.sha256(t.encode()).hexdigest() for t in texts]
    known = _read(file)
    missing = {k: t for k, t in zip(keys, texts, strict=True) if k not in known}
    if missing:
        rows = encoder.encode(list(missing.values()))
        known = {k: v for k, v in known.items() if k in set(keys)} | dict(zip(missing, rows, strict=True))
        with contextlib.suppress(StorageError):  # derived data: a read-only registry still answers
            atomic_write_bytes(file, _packed(known))
    return np.stack([known[k] for k in keys])


def _packed(known: dict[str, Float[np.ndarray, d]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, keys=np.array(list(known)), rows=np.stack(list(known.values())))
    return buffer.getvalue()


def _read(file: Path) -> dict[str, Float[np.ndarray, d]]:
    try:
        with np.load(file, allow_pickle=False) as data:
            return dict(zip(map(str, data["keys"]), data["rows"], strict=True))
    except (OSError, ValueError, KeyError, EOFError):
        return {}
