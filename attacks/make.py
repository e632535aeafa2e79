"""Make 43 hostile or odd safetensors files and two valid controls.

    python attacks/make.py FOLDER

`CASES` is the machine-readable table: name, what the file is, the code with which comgrad refuses it (None for a
control), and what the safetensors library 0.8.0 does with it through its numpy loader. Only the standard library is
needed. Large files are written sparsely where their content allows it.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One file: `library` is `accepts` or `rejects`."""

    name: str
    what: str
    code: str | None
    library: str
    write: Write


def entry(name: str, begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32", extra: str = "") -> str:
    """One tensor's JSON, written by hand so that it can be wrong."""
    shape = [(end - begin) // 4] if shape is None else shape
    fields = f'"dtype":{json.dumps(dtype)},"shape":{json.dumps(shape)},"data_offsets":[{begin},{end}]{extra}'
    return f"{json.dumps(name)}:{{{fields}}}"


def floats(*values: float) -> bytes:
    """Little-endian fp32."""
    return struct.pack(f"<{len(values)}f", *values)


DATA = floats(1.0, -2.0, 0.5, 4.0)  # 16 bytes: four floats
META = '"__metadata__":{"format":"pt"}'


def raw(header: bytes | str, data: bytes = DATA, *, length: int | None = None) -> Write:
    """A writer of exactly these bytes; `length` overrides the truth."""
    body = header.encode() if isinstance(header, str) else header
    blob = struct.pack("<Q", len(body) if length is None else length) + body + data
    return lambda path: _put(path, blob)


def only(blob: bytes) -> Write:
    """A writer of a whole file."""
    return lambda path: _put(path, blob)


def tensors(*entries: str, data: bytes = DATA) -> Write:
    """A writer of a header with these entries."""
    return raw("{" + ",".join(entries) + "}", data)


def named(name: str) -> Write:
    """A writer of a good file but for its tensor's name."""
    return tensors(entry(name, 0, 16))


def _put(path: Path, blob: bytes) -> None:
    path.write_bytes(blob)


def _claim_101_mb(path: Path) -> None:
    with path.open("wb") as out:  # 101 MB of hole behind a true claim
        out.write(struct.pack("<Q", 101_000_000) + b"{")
        out.truncate(8 + 101_000_000 + 16)


def _many_empty(path: Path, count: int = 1_200_000) -> None:
    part = '"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    body = ("{" + ",".join(part % i for i in range(count)) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body)


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": [1.0, 2.0]}, protocol=4))


def _zipped(path: Path) -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1.0], protocol=2))
    path.write_bytes(held.getvalue())


def _valid(path: Path, metadata: str = "") -> None:
    body = "{" + (metadata + "," if metadata else "") + entry("a.weight", 0, 16, [2, 2]) + "}"
    body += " " * (-len(body) % 8)
    raw(body)(path)


def _deep(levels: int = 10_000) -> str:
    return '{"a":' + "[" * levels + "]" * levels + "}"


REJECTED = (  # by the library as well
    Case("empty", "no byte at all", "too-short", "rejects", only(b"")),
    Case("seven-bytes", "shorter than the length field", "too-short", "rejects", only(b"\x10\0\0\0\0\0\0")),
    Case("length-u64max", "header length 2^64-1", "header-too-large", "rejects", raw("{}", length=2**64 - 1)),
    Case("length-past-end", "header longer than the file", "header-past-end", "rejects", raw("{}", length=1000)),
    Case("length-101-mb", "header of 101 MB, and a file that long", "header-too-large", "rejects", _claim_101_mb),
    Case(
        "duplicate-name-other-offsets",
        "one tensor name twice, at two places",
        "duplicate-key",
        "rejects",
        tensors(entry("a", 0, 8), entry("a", 8, 16)),
    ),
    Case(
        "duplicate-inner-field",
        "a tensor with two shapes",
        "duplicate-key",
        "rejects",
        tensors(entry("a", 0, 16, extra=',"shape":[2,2]')),
    ),
    Case(
        "duplicate-metadata-object",
        "__metadata__ twice",
        "duplicate-key",
        "rejects",
        tensors(META, '"__metadata__":{"format":"np"}', entry("a", 0, 16)),
    ),
    Case(
        "overlap", "two tensors share four bytes", "overlap", "rejects", tensors(entry("a", 0, 12), entry("b", 8, 16))
    ),
    Case("alias", "two tensors on the same bytes", "overlap", "rejects", tensors(entry("a", 0, 16), entry("b", 0, 16))),
    Case("hole", "four bytes of nobody in the middle", "hole", "rejects", tensors(entry("a", 0, 4), entry("b", 8, 16))),
    Case(
        "trailing-bytes",
        "bytes after the last tensor",
        "trailing-bytes",
        "rejects",
        tensors(entry("a", 0, 16), data=DATA + b"PAYLOAD!"),
    ),
    Case("truncated", "the last tensor is cut", "truncated", "rejects", tensors(entry("a", 0, 16), data=DATA[:9])),
    Case("negative-offset", "data_offsets [-16, 0]", "offsets", "rejects", tensors(entry("a", -16, 0, [4]))),
    Case(
        "float-offset",
        "data_offsets [0, 16.0]",
        "offsets",
        "rejects",
        tensors('"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16.0]}'),
    ),
    Case(
        "shape-overflow",
        "a shape whose product wraps around to 4 in 64 bits",
        "size-mismatch",
        "rejects",
        tensors(entry("a", 0, 16, [2**33, 2**33, 4])),
    ),
    Case(
        "shape-mismatch", "five floats declared, four held", "size-mismatch", "rejects", tensors(entry("a", 0, 16, [5]))
    ),
    Case("unknown-dtype", "dtype F31", "dtype", "rejects", tensors(entry("a", 0, 16, dtype="F31"))),
    Case(
        "trailing-json",
        "a second object after the header's first",
        "header-json",
        "rejects",
        raw("{" + entry("a", 0, 16) + '}{"b":1}'),
    ),
    Case(
        "lone-surrogate",
        r"a tensor named \ud800",
        "tensor-name",
        "rejects",
        tensors('"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'),
    ),
    Case(
        "invalid-utf8",
        "a byte FF in a tensor name",
        "header-encoding",
        "rejects",
        raw(b'{"a\xff":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    ),
    Case(
        "metadata-not-text",
        "a number as metadata",
        "metadata",
        "rejects",
        tensors('"__metadata__":{"rank":8}', entry("a", 0, 16)),
    ),
    Case("json-10000-deep", "10,000 nested lists", "header-depth", "rejects", raw(_deep())),
    Case("pickle", "a pickle under this name", "pickle", "rejects", _pickled),
    Case("zip", "a zip archive under this name, as torch.save writes", "zip", "rejects", _zipped),
    Case(
        "rank-5000",
        "a tensor of 5,000 dimensions",
        "rank",
        "rejects",
        tensors(entry("a", 0, 4, [1] * 5000), data=DATA[:4]),
    ),
)

ACCEPTED = (  # by the library
    Case(
        "duplicate-name-same-offsets",
        "one name twice on the same bytes, F32 and I32: the last wins",
        "duplicate-key",
        "accepts",
        tensors(entry("a", 0, 16), entry("a", 0, 16, dtype="I32")),
    ),
    Case(
        "duplicate-metadata-key",
        "two bases in the metadata",
        "duplicate-key",
        "accepts",
        tensors('"__metadata__":{"base":"gpt2","base":"llama"}', entry("a", 0, 16)),
    ),
    Case(
        "unknown-field",
        "a field that the format does not have",
        "unknown-field",
        "accepts",
        tensors(entry("a", 0, 16, extra=',"loader":"x"')),
    ),
    Case(
        "leading-whitespace",
        "a header that starts with a space",
        "header-start",
        "accepts",
        raw(" {" + entry("a", 0, 16) + "}"),
    ),
    Case(
        "trailing-whitespace",
        "4,096 spaces after the header: legal, but room for a second one",
        "header-padding",
        "accepts",
        raw("{" + entry("a", 0, 16) + "}" + " " * 4096),
    ),
    Case("name-nul", "a NUL in a tensor name", "tensor-name", "accepts", named("a\0b")),
    Case("name-traversal", "a tensor named ../../etc/passwd", "tensor-name", "accepts", named("../../etc/passwd")),
    Case("name-empty", "a tensor without a name", "tensor-name", "accepts", named("")),
    Case("name-html", "a tensor named <script>...", "tensor-name", "accepts", named("<script>alert(1)</script>")),
    Case("name-right-to-left", "a right-to-left override in a name", "tensor-name", "accepts", named("a\u202eb")),
    Case(
        "zero-size-huge-shape",
        "a tensor of shape [0, 2^60]",
        "zero-size",
        "accepts",
        tensors(entry("a", 0, 16), entry("b", 16, 16, [0, 2**60])),
    ),
    Case(
        "zero-size-only",
        "nothing but tensors without elements",
        "zero-size",
        "accepts",
        tensors(entry("a", 0, 0, [0]), entry("b", 0, 0, [0]), data=b""),
    ),
    Case("no-tensors", "metadata alone", "no-tensors", "accepts", tensors(META, data=b"")),
    Case("nan", "one NaN", "not-finite", "accepts", tensors(entry("a", 0, 16), data=floats(1.0, math.nan, 2.0, 3.0))),
    Case(
        "infinity",
        "one infinity",
        "not-finite",
        "accepts",
        tensors(entry("a", 0, 16), data=floats(1.0, 2.0, -math.inf, 3.0)),
    ),
    Case(
        "metadata-5-mb",
        "a metadata value of 5 MB",
        "header-too-large",
        "accepts",
        tensors('"__metadata__":{"note":"' + "x" * 5_000_000 + '"}', entry("a", 0, 16)),
    ),
    Case("header-70-mb", "1.2 million empty tensors: a header of 70 MB", "header-too-large", "accepts", _many_empty),
)

CONTROLS = (
    Case("valid", "one matrix", None, "accepts", _valid),
    Case("valid-with-metadata", "one matrix and metadata", None, "accepts", lambda p: _valid(p, META)),
)

CASES = REJECTED + ACCEPTED + CONTROLS


def make(folder: Path) -> dict[str, Path]:
    """Write every case as `<folder>/<name>.safetensors`; returns name → path."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {case.name: folder / f"{case.name}.safetensors" for case in CASES}
    for case in CASES:
        case.write(paths[case.name])
    return paths


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python attacks/make.py FOLDER")
    print(f"{len(make(Path(sys.argv[1])))} files written to {sys.argv[1]}")
