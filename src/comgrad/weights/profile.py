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
    "symlink": "a symbolic link, other than a Hugging Face cache link into its own repository",
    "hard-link": "a file with several hard links (only when the file is untrusted)",
    "not-a-file": "a directory, pipe, socket or device",
    "unreadable": "the operating system does not let us read it",
    "changed-while-reading": "the file changed between its check and its use",
    # another format under this name
    "pickle": "a Python pickle: loading one can run code",
    "zip": "a zip archive (PyTorch's own format is one, with a pickle inside)",
    "archive": "a compressed or archived file",
    "html": "a web page, usually a saved error or login page",
    "lfs-pointer": "a Git LFS pointer instead of the file",
    "other-format": "another weight format",
    "polyglot": "a safetensors file that is a zip archive as well",
    # the header's frame
    "too-short": "too short to hold a header",
    "header-too-large": "a header over 8 MB, or over 64 KB and over 1 % of the file",
    "header-past-end": "a header longer than the file",
    "header-start": "a header that does not start with '{'",
    "header-padding": "more than 63 spaces, or anything but spaces, after the header",
    # the header's text
    "header-encoding": "a header that is not UTF-8",
    "header-json": "a header that is not one JSON object",
    "header-depth": "a header nested too deeply",
    "duplicate-key": "a key given twice",
    "unknown-field": "a field that the format does not have, or one that is missing",
    # its contents
    "no-tensors": "no tensor",
    "too-many-tensors": "more than 20,000 tensors",
    "tensor-name": "a tensor name outside [A-Za-z0-9_.-]{1,256}",
    "dtype": "a data type outside the allowed list",
    "rank": "more than eight dimensions",
    "shape": "a shape that is not a list of whole numbers below 2^63",
    "zero-size": "a tensor without elements",
    "offsets": "offsets that are not two whole numbers in order",
    "size-mismatch": "shape and data type do not give the number of bytes held",
    "metadata": "metadata that is not a flat object of texts",
    "metadata-too-large": "metadata over 64 KB",
    # the data
    "overlap": "two tensors share bytes",
    "hole": "bytes between tensors that belong to none",
    "truncated": "the data end before the last tensor does",
    "trailing-bytes": "bytes after the last tensor",
    "not-finite": "a NaN or an infinity",
    "bool-value": "a boolean other than 0 and 1",
    "all-zero": "every float is zero",
    "denormals": "every float is zero or denormal",
    # checkpoints and small JSON files
    "no-weights": "a folder without safetensors weights",
    "index": "a shard index that disagrees with its shards or names files elsewhere",
    "json-too-large": "a JSON file over its limit",
    "json": "a file that is not one JSON object in UTF-8 without duplicate keys or NaN",
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
    why = REFUSALS[code]
    return FileRefused(
        f"'{path}'",
        f"it holds or is {why}" + (f" ({detail})" if detail else ""),
        remedy or _REMEDY.get(code, "save it again with the safetensors library"),
        code=code,
    )


def shown(text: str, limit: int = 60) -> str:
    """Untrusted text for a message: one line, ASCII, shortened."""
    safe = ascii(text)
    return safe if len(safe) <= limit else safe[: limit - 4] + "...'"
