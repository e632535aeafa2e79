"""A task: what it is called, what it asks for in words, its labels, and (where there are any) its examples.

Examples are texts, or images in files beside the card. What compares examples by their content compares their `text`,
which of an image is the SHA-256 of its file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from comgrad.errors import ComgradError, NotFound
from comgrad.weights.strict_json import read_json

MAX_EXAMPLES_BYTES = 512 * 2**20
MAX_LINE_CHARS = 1_000_000
IMAGE_TEXT = "sha256:"
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Example:
    """One labelled text or image; `label` is an index into the task's `label_names`.

    Args:
        text: of an image `sha256:` and the digest of its file.
        image: the image's file; empty for a text.
    """

    text: str
    label: int
    split: str = "train"
    image: str = ""


@dataclass(frozen=True)
class Task:
    """A classification task with a frozen prompt head: label j is the text `label_prompts[j]`.

    Args:
        templates: of images, texts with one `{}` for a label's prompt; label j is then the mean of their embeddings.
    """

    name: str
    description: str
    label_names: tuple[str, ...]
    label_prompts: tuple[str, ...]
    examples: tuple[Example, ...] = ()
    templates: tuple[str, ...] = ()

    @property
    def of_images(self) -> bool:
        """Whether the examples are images."""
        return bool(self.examples) and bool(self.examples[0].image)

    @property
    def n_labels(self) -> int:
        return len(self.label_names)

    def split(self, name: str) -> tuple[Example, ...]:
        """The examples of one split. Raises ComgradError when it is empty."""
        chosen = tuple(e for e in self.examples if e.split == name)
        if not chosen:
            raise ComgradError(
                f"task '{self.name}' has no examples in split '{name}'",
                "training and testing need at least one",
                f"its splits are {sorted({e.split for e in self.examples})}; add the missing one",
                code="empty-split",
            )
        return chosen


def load_task(folder: Path) -> Task:
    """Read a TASK_DIR: `task_card.json` and `examples.jsonl` or `examples.jsonl.gz`.

    Raises:
        NotFound: no such folder or file.
        ComgradError: a card or an example that breaks the format, with the line it stands on.
    """
    card_path = folder / "task_card.json"
    if not card_path.is_file():
        raise NotFound(
            f"'{folder}' holds no task_card.json",
            "a task directory is described by its card",
            "write one with at least description, label_names and label_prompts",
        )
    card = read_json(card_path)
    names, prompts = _strings(card, "label_names", card_path), _strings(card, "label_prompts", card_path)
    if len(names) != len(prompts) or len(names) < 2:
        raise ComgradError(
            f"'{card_path}' has {len(names)} label_names and {len(prompts)} label_prompts",
            "each of at least two labels needs one prompt",
            "give both lists the same length",
            code="bad-task",
        )
    description = card.get("description")
    if not isinstance(description, str) or not description.strip():
        raise ComgradError(
            f"'{card_path}' has no description", "a task is found by its description", "add one", code="bad-task"
        )
    templates = _templates(card, card_path)
    examples = _examples(folder, len(names))
    return Task(str(card.get("name") or folder.name), description, names, prompts, examples, templates)


def _templates(card: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    if card.get("templates") is None:
        return ()
    found = _strings(card, "templates", path)
    if any(t.count("{}") != 1 for t in found):
        raise ComgradError(
            f"'{path}' key 'templates'", "each needs one {} for a label's prompt", "mend the card", code="bad-task"
        )
    return found


def _examples(folder: Path, n_labels: int) -> tuple[Example, ...]:
    for name in ("examples.jsonl", "examples.jsonl.gz"):
        path = folder / name
        if path.is_file():
            return tuple(_read_examples(path, n_labels))
    return ()


def _read_examples(path: Path, n_labels: int) -> list[Example]:
    opener = gzip.open if path.suffix == ".gz" else open
    out: list[Example] = []
    seen = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            # bounded reads: one line of a small archive can unpack to all of memory
            for i, line in enumerate(iter(partial(lines.readline, MAX_LINE_CHARS + 1), ""), 1):
                seen += len(line)
                if seen > MAX_EXAMPLES_BYTES or len(line) > MAX_LINE_CHARS:
                    raise _bad(
                        path, i, "is larger than a task's examples may be", "split the file or shorten the texts"
                    )
                if line.strip():
                    out.append(_example(_json_object(line, f"{path}:{i}"), path, i, n_labels))
    except (UnicodeDecodeError, OSError, zlib.error, EOFError) as error:
        raise ComgradError(
            f"'{path}'", f"it cannot be read as text ({error})", "write it again as UTF-8", code="bad-task"
        ) from error
    if len({bool(e.image) for e in out}) > 1:
        raise ComgradError(
            f"'{path}'", "some examples are texts and some are images", "make two tasks of it", code="bad-task"
        )
    return out


def _example(row: Mapping[str, Any], path: Path, line: int, n_labels: int) -> Example:
    text, label, split, image = row.get("text"), row.get("label"), row.get("split", "train"), row.get("image", "")
    if image:
        text, image = _image(row, path, line)
    if not isinstance(text, str) or not text.strip():
        raise _bad(path, line, "has no text", "give every example a non-empty 'text', or an 'image'")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < n_labels:
        raise _bad(path, line, f"has label {label!r}", f"labels are indices 0 to {n_labels - 1} into label_names")
    if not isinstance(split, str):
        raise _bad(path, line, f"has split {split!r}", "a split is a word such as train or test")
    return Example(text, label, split, image)


def _image(row: Mapping[str, Any], path: Path, line: int) -> tuple[str, str]:
    """The digest that the row states (it is checked when the image is read), or that of the file; and the file."""
    image, digest = row["image"], row.get("sha256")
    if not isinstance(image, str) or "text" in row:
        raise _bad(
            path, line, "has an image that is no path, or a text beside it", "give 'image' its file's path alone"
        )
    if digest is not None and not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
        raise _bad(path, line, f"has sha256 {digest!r}", "give 64 hexadecimal digits, or leave it out")
    file = path.parent / image
    if not file.is_file():
        raise _bad(path, line, f"names the image '{image}', which is not there", "paths are relative to the card")
    if digest is None:
        with file.open("rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
    return IMAGE_TEXT + digest, str(file)


def _bad(path: Path, line: int, why: str, remedy: str) -> ComgradError:
    return ComgradError(f"'{path}' line {line}", why, remedy, code="bad-task")


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ComgradError(f"'{where}'", f"it is no JSON ({error})", "mend it", code="bad-task") from error
    if not isinstance(value, dict):
        raise ComgradError(f"'{where}'", "it is JSON, but no object", "write {...}", code="bad-task")
    return value


def _strings(card: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    value = card.get(key)
    if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
        raise ComgradError(
            f"'{path}' key '{key}'", "it must be a list of non-empty strings", "mend the card", code="bad-task"
        )
    return tuple(value)
