"""Image tasks from the folders that people have: the eight of the task-arithmetic papers, and any of one's own.

Every folder under DATA is a task, in a layout of `vision_layouts`. A file `class_names.json` in it, {"folder or label":
"words"}, names classes otherwise. Labels are in the order of the classes' names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from comgrad.describe.task import IMAGE_TEXT, Example, Task
from comgrad.errors import ComgradError, NotFound
from comgrad.evaluate.digests import digest_of
from comgrad.weights.storage import atomic_write_bytes
from comgrad.weights.strict_json import read_json
from comgrad.workflows.bench_arithmetic.vision_layouts import Found, splits
from comgrad.workflows.bench_arithmetic.vision_sets import DATA_SETS, PHOTO, DataSet

NAMES_FILE = "class_names.json"
_LETTER = re.compile(r"^[a-z][_/](?=.)")


@dataclass(frozen=True)
class ImageItem:
    """A task of images in a folder; what a benchmark asks of a task (`workflows.bench.corpus.Item`).

    Args:
        cache: folder of unpacked arrays and of digests.
    """

    id: str
    folder: Path
    cache: Path
    known: DataSet | None
    family: str = "images"

    @cached_property
    def task(self) -> Task:
        """The task with its images. Raises NotFound, ComgradError for a folder in another layout."""
        found = self._found()
        classes = sorted({c for _, c, _ in found}, key=_natural)
        words = self._words(classes)
        label = {c: i for i, c in enumerate(classes)}
        digests = _digests([p for p, _, _ in found], self.cache / f"{self.id}.json")
        rows = tuple(
            Example(IMAGE_TEXT + d, label[c], part, str(p)) for (p, c, part), d in zip(found, digests, strict=True)
        )
        known = self.known
        description = known.description if known else f"tell apart images of {', '.join(words[:20])}"
        templates = known.templates if known else PHOTO
        return Task(self.id, description, tuple(classes), tuple(words), rows, templates)

    def _found(self) -> Found:
        for folder in (self.folder, *sorted(p for p in self.folder.iterdir() if p.is_dir())):
            found = splits(folder)
            if found is None and self.known is not None and self.known.own is not None:
                found = self.known.own(folder, self.cache / self.id)
            if found is not None:
                break
        else:
            raise NotFound(
                f"images of the task '{self.id}' in '{self.folder}'",
                "it has no folders train and test with a folder for each class"
                + (", nor the layout that its authors give out" if self.known and self.known.own else ""),
                "arrange it as docs/images.md describes",
            )
        for part in ("train", "test"):
            if not any(p == part for _, _, p in found):
                raise ComgradError(
                    f"the task '{self.id}' in '{self.folder}'",
                    f"its part '{part}' has no images",
                    "put a folder for each class with its images there",
                    code="empty-split",
                )
        return sorted(found, key=lambda row: (row[2], row[0].as_posix()))

    def _words(self, classes: Sequence[str]) -> list[str]:
        given: dict[str, Any] = {}
        if (self.folder / NAMES_FILE).is_file():
            given = dict(read_json(self.folder / NAMES_FILE))
        known = (self.known.names if self.known else None) or {}
        lettered = all(_LETTER.match(c) for c in classes)  # as SUN397 sorts its folders
        return [
            str(given.get(c) or known.get(c) or (_LETTER.sub("", c) if lettered else c).replace("_", " "))
            for c in classes
        ]


def open_images(data: Path, cache: Path) -> tuple[ImageItem, ...]:
    """The tasks of a folder, in the order of their ids. Raises NotFound where there is none."""
    if not data.is_dir():
        raise NotFound(f"'{data}'", "there is no such folder", "give the folder that holds one folder per task")
    out: dict[str, ImageItem] = {}
    for folder in sorted(p for p in data.iterdir() if p.is_dir() and not p.name.startswith(".")):
        plain = re.sub("[^a-z0-9]", "", folder.name.lower())
        known = next((d for d in DATA_SETS if plain in d.folders), None)
        identity = known.id if known else folder.name
        if identity in out:
            raise ComgradError(
                f"'{folder}' and '{out[identity].folder}'",
                f"both are taken for the task '{identity}'",
                "move one of them away",
                code="bad-data",
            )
        out[identity] = ImageItem(identity, folder, cache, known)
    if not out:
        raise NotFound(f"'{data}'", "it holds no folders of tasks", "give the folder that holds one folder per task")
    return tuple(out[k] for k in sorted(out))


def _natural(name: str) -> tuple[int, str]:
    """Numbers by size, then words."""
    return (int(name), "") if name.isdecimal() else (10**9, name)


# -- digests -----------------------------------------------------------------------------------------------------------
def _digests(files: Sequence[Path], index: Path) -> list[str]:
    """SHA-256 of every file, kept in `index` for as long as names, sizes and times stay."""
    try:
        state = [[str(f), (s := f.stat()).st_size, s.st_mtime_ns] for f in files]
    except OSError as error:
        raise NotFound(f"the image '{error.filename}'", "a list names it, but it is not there", "add it") from error
    told = digest_of(state)
    if index.is_file():
        kept = read_json(index)
        if kept.get("of") == told:
            return list(kept["sha256"])
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_sha256, files))
    index.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(index, json.dumps({"of": told, "sha256": found}).encode())
    return found


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
