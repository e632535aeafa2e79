"""Embeddings remembered on disk by the text's digest, so that a registry's descriptions are encoded once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Float

from comgrad.describe.encoder import TextEncoder, key_of
from comgrad.weights.derived import read_arrays, write_arrays

MOST_REMEMBERED = 200_000


def encode_cached(encoder: TextEncoder, texts: list[str], cache: Path | None) -> Float[np.ndarray, "n d"]:
    """(n, d) embeddings of the texts; only texts not seen before are encoded."""
    if cache is None:
        return encoder.encode(texts)
    file = cache / f"embeddings-{key_of(encoder)[:16]}.npz"
    keys = [hashlib.sha256(t.encode()).hexdigest() for t in texts]
    known = _read(file)
    missing = {k: t for k, t in zip(keys, texts, strict=True) if k not in known}
    if missing:
        rows = encoder.encode(list(missing.values()))
        if len(known) > MOST_REMEMBERED:
            known = {k: v for k, v in known.items() if k in set(keys)}
        known = known | dict(zip(missing, rows, strict=True))  # a new one: others may hold the old
        write_arrays(file, keys=np.array(list(known)), rows=np.stack(list(known.values())))
    return np.stack([known[k] for k in keys])


_kept: dict[Path, tuple[tuple[int, int], dict[str, Float[np.ndarray, "d"]]]] = {}  # the last reading of each file


def _read(file: Path) -> dict[str, Float[np.ndarray, "d"]]:
    """What the file remembers; read again only when it changed: a service asks many times a second."""
    try:
        found = file.stat()
    except OSError:
        return {}
    mark = (found.st_mtime_ns, found.st_size)
    if file not in _kept or _kept[file][0] != mark:
        _kept[file] = (mark, _parsed(file))
    return _kept[file][1]


def _parsed(file: Path) -> dict[str, Float[np.ndarray, "d"]]:
    data = read_arrays(file)
    if data is None or set(data) != {"keys", "rows"} or len(data["keys"]) != len(data["rows"]):
        return {}
    return dict(zip(map(str, data["keys"]), data["rows"], strict=True))
