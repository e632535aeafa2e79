"""The base fingerprint: which weights a task vector stands on, independent of how they are split into files.

Each tensor is identified by (dtype, shape, SHA-256 of its bytes). The root is a Merkle tree over the tensors in the
order of their names:

    leaf  = SHA-256(0x00 ‖ JSON[name, dtype, shape, sha256])
    node  = SHA-256(0x01 ‖ left ‖ right)          (an odd last node moves up unchanged)
    root  = SHA-256(0x02 ‖ "comgrad-base-1" ‖ number of leaves (8 bytes, big endian) ‖ top node)

Counted are the float tensors. Left out are integer and boolean buffers (`position_ids`, masks), which libraries store
or drop as they like, and an output head with the very bytes of the input embedding (a tied weight stored twice).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from comgrad import config
from comgrad.errors import ComgradError, FileRefused, StorageError
from comgrad.weights import profile
from comgrad.weights.layouts import TIED_HEADS, is_input_embedding
from comgrad.weights.reader import Checkpoint, open_checkpoint, read_json, weight_files
from comgrad.weights.storage import atomic_write_bytes

SCHEMA = 1
_MAX_MANIFEST = 16_000_000
_SETTLED = 2.0  # seconds: a file written to this recently could change again within its time stamp's resolution


@dataclass(frozen=True)
class TensorId:
    """One tensor: the format's dtype, its shape, SHA-256 of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Fingerprint:
    """Merkle root (64 hexadecimal digits) and the tensors it is over."""

    root: str
    tensors: Mapping[str, TensorId]


@dataclass(frozen=True)
class BaseManifest:
    """A base model as others can check it without its weights: name and fingerprint."""

    name: str
    fingerprint: Fingerprint

    def save(self, path: Path) -> None:
        """Write the manifest as JSON, atomically. Raises StorageError."""
        atomic_write_bytes(Path(path), json.dumps(_to_json(self), indent=1, sort_keys=True).encode())

    @classmethod
    def load(cls, path: Path) -> BaseManifest:
        """Read a manifest and check that its root is that of its tensors.

        Raises:
            NotFound; FileRefused (`manifest`, and those of `read_json`).
        """
        return _from_json(read_json(Path(path), _MAX_MANIFEST), path)


def fingerprint(path: str | Path, *, cache: bool = True) -> Fingerprint:
    """The fingerprint of the checkpoint at `path`, from the cache when none of its files has changed.

    Args:
        path: a `.safetensors` file or a checkpoint folder.
        cache: use `<home>/cache/fingerprints`. A cache that cannot be read or written is passed over in silence.

    Raises:
        as `reader.open_checkpoint`.
    """
    path = Path(path)
    entry = _cache_entry(path) if cache else None
    if entry is not None:
        with suppress(ComgradError, OSError):
            return _remembered(entry)
    with open_checkpoint(path) as checkpoint:
        result = fingerprint_of(checkpoint)
    if entry is not None and entry == _cache_entry(path):
        with suppress(StorageError, OSError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            BaseManifest(path.name, result).save(entry)
    return result


_known: dict[Path, tuple[tuple[int, int], Fingerprint]] = {}
_MOST_KNOWN = 64


def _remembered(entry: Path) -> Fingerprint:
    """What a file of the cache says, parsed once as long as the file stays: a service reads the same base all day."""
    found = entry.stat()
    mark = (found.st_mtime_ns, found.st_size)
    known = _known.get(entry)
    if known is not None and known[0] == mark:
        return known[1]
    result = BaseManifest.load(entry).fingerprint
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[entry] = (mark, result)
    return result


def fingerprint_of(checkpoint: Checkpoint) -> Fingerprint:
    """The fingerprint of an open checkpoint; every byte is read."""
    tensors = {
        name: TensorId(entry.dtype, entry.shape, checkpoint.sha256(name))
        for name, entry in checkpoint.entries.items()
        if entry.is_float
    }
    embeddings = {t for name, t in tensors.items() if is_input_embedding(name)}
    for name in TIED_HEADS:
        if tensors.get(name) in embeddings:
            del tensors[name]
    if not tensors:
        raise FileRefused(
            f"'{checkpoint.path}'",
            "it holds no float tensor, so there is no base model in it",
            "pass a base model",
            code="no-weights",
        )
    return Fingerprint(merkle_root(tensors), tensors)


def merkle_root(tensors: Mapping[str, TensorId]) -> str:
    """The root over tensors by name, as defined above, in hexadecimal."""
    level = [
        hashlib.sha256(
            b"\0" + json.dumps([name, t.dtype, list(t.shape), t.sha256], separators=(",", ":")).encode()
        ).digest()
        for name, t in sorted(tensors.items())
    ]
    count = len(level).to_bytes(8, "big")
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [hashlib.sha256(b"\1" + a + b).digest() for a, b in pairs] + odd
    return hashlib.sha256(b"\2comgrad-base-1" + count + b"".join(level)).hexdigest()


def _cache_entry(path: Path) -> Path | None:
    """Where the fingerprint of exactly these files is kept; None when they are too fresh, or cannot be looked at."""
    key: list[tuple[str, int, int, int, int]] = []
    try:
        for file in weight_files(path):
            st = file.stat()
            if time.time() - max(st.st_mtime, st.st_ctime) < _SETTLED:
                return None
            key.append((str(file.resolve()), st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino))
        folder = config.home() / "cache" / "fingerprints"
    except OSError:
        return None
    return folder / (hashlib.sha256(json.dumps([SCHEMA, key]).encode()).hexdigest() + ".json")


def _to_json(manifest: BaseManifest) -> dict[str, object]:
    tensors = {n: [t.dtype, list(t.shape), t.sha256] for n, t in manifest.fingerprint.tensors.items()}
    return {"schema": SCHEMA, "name": manifest.name, "root": manifest.fingerprint.root, "tensors": tensors}


def _from_json(data: Mapping[str, object], path: Path) -> BaseManifest:
    name, root, given = data.get("name"), data.get("root"), data.get("tensors")
    if data.get("schema") != SCHEMA or not isinstance(name, str) or not isinstance(given, dict) or not given:
        raise _no_manifest(path, f"it is no base manifest of schema {SCHEMA}")
    tensors: dict[str, TensorId] = {}
    for tensor, row in given.items():
        match row:
            case [str(dtype), list(shape), str(digest)] if dtype in profile.FLOATS and all(
                type(d) is int and d > 0 for d in shape
            ):
                tensors[tensor] = TensorId(dtype, tuple(shape), digest)
            case _:
                raise _no_manifest(path, f"its row for {profile.shown(tensor)} is malformed")
    if merkle_root(tensors) != root:
        raise _no_manifest(path, "its root is not that of its tensors")
    return BaseManifest(name, Fingerprint(merkle_root(tensors), tensors))


def _no_manifest(path: Path, why: str) -> FileRefused:
    return FileRefused(f"'{path}'", why, "make it again from the base model", code="manifest")
