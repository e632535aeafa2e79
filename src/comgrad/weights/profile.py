"""The strict safetensors profile: every limit, and every code with which a file can be refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from comgrad.errors import FileRefused

MAX_HEADER: Final = 8 * 2**20
HEADER_FLOOR: Final = 64 * 2**10  # a header this long is accepted in a file of any size
HEADER_SHARE: Final = 100  # above the floor a header may be one hundredth of its file
MAX_TENSORS: Final = 20_000
MAX_RANK: Final = 8
MAX_METADATA: Final = 64 * 2**10
MAX_PADDING: Final = 63  # spaces after the header: enough to align the data to 64 bytes
NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,256}", re.ASCII)
BLOCK: Final = 4 * 2**20  # bytes of tensor data in memory at once while values are checked

ITEM_SIZE: Final[dict[str, int]] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})

REFUSALS: Final[dict[str, str]] = {
    # the file itself
    "symlink": "it is a symbolic link, and no Hugging Face cache link into its own repository",
    "hard-link": "it has several hard links and comes from a stranger",
    "not-a-file": "it is a folder, pipe, socket or device",
    "unreadable": "the operating system does not let us read it",
    "changed-while-reading": "it changed between its check and its use",
    # another format under this name
    "pickle": "it is a Python pickle, and loading one can run code",
    "zip": "it is a zip archive (PyTorch's own format is one, with a pickle inside)",
    "archive": "it is a compressed or archived file",
    "html": "it is a web page, usually a saved error or login page",
    "lfs-pointer": "it is a Git LFS pointer and not the file itself",
    "other-format": "it is in another weight format",
    "polyglot": "it is a zip archive as well",
    # the header's frame
    "too-short": "it is too short to hold a header",
    "header-too-large": "its header is over 8 MB, or over 64 KB and over 1 % of the file",
    "header-past-end": "its header would be longer than the file",
    "header-start": "its header does not start with '{'",
    "header-padding": "more than 63 spaces, or something else than spaces, follow its header",
    # the header's text
    "header-encoding": "its header is not UTF-8",
    "header-json": "its header is not one JSON object",
    "header-depth": "its header is nested too deeply",
    "duplicate-key": "it gives one key twice",
    "unknown-field": "a tensor has a field that the format lacks, or lacks one that it has",
    # its contents
    "no-tensors": "it holds no tensor",
    "too-many-tensors": "it holds more than 20,000 tensors",
    "tensor-name": "a tensor's name is not of the form [A-Za-z0-9_.-]{1,256}",
    "dtype": "a tensor has a data type that is not on the allowed list",
    "rank": "a tensor has more than eight dimensions",
    "shape": "a shape is not a list of whole numbers below 2^63",
    "zero-size": "a tensor has no elements",
    "offsets": "a tensor's offsets are not two whole numbers in order",
    "size-mismatch": "a tensor's shape and data type do not give the number of bytes it holds",
    "metadata": "its metadata is not a flat object of texts",
    "metadata-too-large": "its metadata is over 64 KB",
    # the data
    "overlap": "two tensors share bytes",
    "hole": "bytes between two tensors belong to none",
    "truncated": "it ends before its last tensor does",
    "trailing-bytes": "bytes follow its last tensor",
    "not-finite": "it holds a NaN or an infinity",
    "bool-value": "a boolean is neither 0 nor 1",
    "all-zero": "every float in it is zero",
    "denormals": "every float in it is zero or denormal",
    # checkpoints and small JSON files
    "no-weights": "it holds no safetensors weights",
    "index": "the shard index disagrees with its shards, or names files elsewhere",
    "json-too-large": "it is over the limit for its kind of JSON file",
    "json": "it is not one JSON object in UTF-8",
}

_REMEDY: Final[dict[str, str]] = {
    "symlink": "pass the real file",
    "hard-link": "pass a copy of the file",
    "not-a-file": "pass a regular file",
    "unreadable": "check its permissions",
    "changed-while-reading": "wait until nothing writes to it, then try again",
    "pickle": "convert it to safetensors where you trust it",
    "zip": "unpack it, or convert it to safetensors where you trust it",
    "archive": "unpack it first",
    "html": "download the file itself",
    "lfs-pointer": "run 'git lfs pull'",
    "other-format": "convert it to safetensors",
    "truncated": "download it again",
    "too-short": "download it again",
    "header-past-end": "download it again",
    "not-finite": "check the training run: a model with such weights cannot work",
    "all-zero": "train it first, or pass the file that holds the weights",
    "denormals": "check how it was scaled before it was saved",
    "no-weights": "pass a folder with model.safetensors or model.safetensors.index.json",
    "index": "download the checkpoint again",
    "json": "write the file again with its own tool",
    "json-too-large": "pass the right file",
}


def refused(code: str, path: Path | str, detail: str = "", remedy: str = "") -> FileRefused:
    """The error for one refusal: the file, the table's reason with what was found, and what to do."""
    return FileRefused(
        f"'{path}'",
        REFUSALS[code] + (f" ({detail})" if detail else ""),
        remedy or _REMEDY.get(code, "save it again with the safetensors library"),
        code=code,
    )


def shown(text: str, limit: int = 60) -> str:
    """Untrusted text for a message: one line, ASCII, shortened."""
    safe = ascii(text)
    return safe if len(safe) <= limit else safe[: limit - 4] + "...'"
