"""The safetensors header, parsed by us: sizes are checked before anything is parsed, and nothing is lenient."""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from comgrad.weights import profile
from comgrad.weights.profile import refused, shown
from comgrad.weights.source import Source
from comgrad.weights.strict_json import DuplicateKeyError, parse_object

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\x1f\x8b", "archive"),
    (b"7z\xbc\xaf\x27\x1c", "archive"),
    (b"Rar!\x1a\x07", "archive"),
    (b"\xfd7zXZ\x00", "archive"),
    (b"BZh", "archive"),
    (b"\x28\xb5\x2f\xfd", "archive"),
    (b"version https://git-lfs", "lfs-pointer"),
    (b"GGUF", "other-format"),
    (b"\x89HDF\r\n\x1a\n", "other-format"),
    (b"\x93NUMPY", "other-format"),
)
_STRUCTURE = {  # most of each byte that a header within the profile can hold outside its metadata
    b"{": profile.MAX_TENSORS + 2,
    b"[": 2 * profile.MAX_TENSORS,
    b":": 4 * profile.MAX_TENSORS + 1,
    b",": (profile.MAX_RANK + 4) * profile.MAX_TENSORS,
}

_REMEMBERED = 64  # headers
_REMEMBERED_LENGTH = 64 * 2**10  # bytes; longer ones are of large files, which take their time anyway
_MAX_DEPTH = 3  # header, tensor, shape
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)  # possessive: linear even where the quote never closes
_BRACKET = re.compile(rb"[\[\]{}]")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header describes it; `begin` and `end` are positions in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def is_float(self) -> bool:
        return self.dtype in profile.FLOATS


@dataclass(frozen=True)
class Header:
    """A header that passed: metadata, entries in the order of their bytes, and where the data begin."""

    metadata: Mapping[str, str]
    entries: Mapping[str, TensorEntry]
    data_begin: int


def read_header(source: Source) -> Header:
    """Check the file's frame and header against the profile, reading no tensor.

    Raises:
        FileRefused: with one of the codes in `profile.REFUSALS`.
    """
    path, size = source.path, source.size
    start = source.read(0, min(size, 64))
    _refuse_magic(start, path)
    if size < 10:
        raise refused("too-short", path, f"{size} bytes")
    length = int.from_bytes(start[:8], "little")
    limit = min(profile.MAX_HEADER, max(profile.HEADER_FLOOR, size // profile.HEADER_SHARE))
    if length > limit:
        raise refused("header-too-large", path, f"{length:,} bytes claimed, {limit:,} allowed in a file of {size:,}")
    if length > size - 8:
        raise refused("header-past-end", path, f"{length:,} bytes claimed, {size - 8:,} there")
    header = _read_before(source.read(8, length), path, size)
    _refuse_zip_tail(source, header.data_begin)
    return header


_before: OrderedDict[tuple[bytes, int], Header] = OrderedDict()  # adapters of one kind have one header, byte for byte
_lock = threading.Lock()


def _read_before(raw: bytes, path: Path, size: int) -> Header:
    """The checked header; of the last few of moderate length it is remembered: it depends on nothing else."""
    key = (raw, size)
    with _lock:
        known = _before.get(key)
        if known is not None:
            _before.move_to_end(key)
            return known
    header = _checked(_parsed(_framed(raw, path), path), path, 8 + len(raw), size)
    if len(raw) <= _REMEMBERED_LENGTH:
        with _lock:
            _before[key] = header
            while len(_before) > _REMEMBERED:
                _before.popitem(last=False)
    return header


def _refuse_magic(start: bytes, path: Path) -> None:
    if start[8:9] == b"{":
        return  # a length of 640 bytes also begins with pickle's magic; here no other reader would get past byte 8
    for magic, code in _MAGIC:
        if start.startswith(magic):
            raise refused(code, path)
    if len(start) > 2 and start[0] == 0x80 and 2 <= start[1] <= 5 and any(start[2:8]):
        raise refused("pickle", path)
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:2].lower() in (b"<!", b"<h", b"<?"):
        raise refused("html", path)


def _framed(raw: bytes, path: Path) -> bytes:
    if raw[:1] != b"{":
        raise refused("header-start", path, f"first byte {raw[:1]!r}")
    body = raw.rstrip(b" ")
    if len(raw) - len(body) > profile.MAX_PADDING:
        raise refused("header-padding", path, f"{len(raw) - len(body):,} spaces")
    if body[-1:] in b"\t\r\n":
        raise refused("header-padding", path, f"last byte {body[-1:]!r}")
    for byte, most in _STRUCTURE.items():
        if body.count(byte) > most + profile.MAX_METADATA:
            raise refused("too-many-tensors", path, f"{body.count(byte):,} times {byte.decode()!r} in the header")
    if _depth(body) > _MAX_DEPTH:
        raise refused("header-depth", path)
    return body


def _depth(body: bytes) -> int:
    """How deeply brackets outside texts are nested: the JSON parser's own limit differs between Python versions."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(_TEXT.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _parsed(body: bytes, path: Path) -> dict[str, Any]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise refused("header-encoding", path, f"byte {e.start}") from None
    try:
        return parse_object(text)
    except DuplicateKeyError as e:
        raise refused("duplicate-key", path, str(e)) from None
    except RecursionError:
        raise refused("header-depth", path) from None
    except ValueError as e:
        raise refused("header-json", path, shown(str(e), 80)) from None


def _checked(parsed: dict[str, Any], path: Path, data_begin: int, size: int) -> Header:
    metadata = _metadata(parsed.pop("__metadata__", {}), path)
    if not parsed:
        raise refused("no-tensors", path)
    if len(parsed) > profile.MAX_TENSORS:
        raise refused("too-many-tensors", path, f"{len(parsed):,}")
    entries = [_entry(name, fields, path, data_begin) for name, fields in parsed.items()]
    entries.sort(key=lambda e: (e.begin, e.end))
    _covers(entries, path, data_begin, size)
    return Header(MappingProxyType(metadata), MappingProxyType({e.name: e for e in entries}), data_begin)


def _metadata(given: object, path: Path) -> dict[str, str]:
    if type(given) is not dict:
        raise refused("metadata", path, "not an object")
    total = 0
    for key, value in given.items():
        if type(value) is not str:
            raise refused("metadata", path, f"{shown(key)} is no text")
        try:
            total += len(key.encode()) + len(value.encode())
        except UnicodeEncodeError:  # a lone surrogate
            raise refused("metadata", path, f"{shown(key)} is not Unicode text") from None
    if total > profile.MAX_METADATA:
        raise refused("metadata-too-large", path, f"{total:,} bytes")
    return dict(given)


def _entry(name: str, fields: object, path: Path, data_begin: int) -> TensorEntry:
    if not profile.NAME.fullmatch(name):
        raise refused("tensor-name", path, shown(name))
    if type(fields) is not dict or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise refused("unknown-field", path, f"tensor '{shown(name)}'")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if type(dtype) is not str or dtype not in profile.ITEM_SIZE:
        raise refused("dtype", path, f"{shown(name)} has {shown(str(dtype))}")
    if type(shape) is not list or not all(type(d) is int and 0 <= d < 2**63 for d in shape):
        raise refused("shape", path, shown(name))
    if len(shape) > profile.MAX_RANK:
        raise refused("rank", path, f"{shown(name)} has {len(shape)} dimensions")
    if 0 in shape:
        raise refused("zero-size", path, shown(name))
    if type(offsets) is not list or len(offsets) != 2 or not all(type(o) is int and 0 <= o < 2**63 for o in offsets):
        raise refused("offsets", path, shown(name))
    begin, end = offsets
    if end < begin:
        raise refused("offsets", path, f"{shown(name)} ends before it begins")
    if math.prod(shape) * profile.ITEM_SIZE[dtype] != end - begin:
        raise refused("size-mismatch", path, f"{shown(name)} of shape {shape} holds {end - begin} bytes")
    return TensorEntry(name, dtype, tuple(shape), data_begin + begin, data_begin + end)


def _covers(entries: list[TensorEntry], path: Path, data_begin: int, size: int) -> None:
    at = data_begin
    for entry in entries:
        if entry.begin < at:
            raise refused("overlap", path, f"at {shown(entry.name)}")
        if entry.begin > at:
            raise refused("hole", path, f"{entry.begin - at:,} bytes before {shown(entry.name)}")
        at = entry.end
    if at > size:
        raise refused("truncated", path, f"{at - size:,} bytes are missing")
    if at < size:
        raise refused("trailing-bytes", path, f"{size - at:,} bytes")


def _refuse_zip_tail(source: Source, data_begin: int) -> None:
    """Zip readers start from the file's end, so an archive can hide inside the last tensor."""
    begin = max(data_begin, source.size - (22 + 2**16))
    tail = source.read(begin, source.size - begin)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        # Readers differ in what they allow after the end record, so what counts is a directory right before it.
        size = int.from_bytes(tail[at + 12 : at + 16], "little")
        directory = begin + at - size
        if size >= 46 and directory >= 0 and source.read(directory, 4) == b"PK\x01\x02":
            raise refused("polyglot", source.path)
        at = tail.rfind(b"PK\x05\x06", 0, at)
