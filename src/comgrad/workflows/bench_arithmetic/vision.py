"""Image tasks from the folders that people have: the eight of the task-arithmetic papers, and any of one's own.

Every folder under DATA is a task. It holds the folders `train` and `test` (`val`, `valid` and `validation` count as
training data) with one folder of images for each class; or, for six of the eight, the data set as its authors give it out:

- cars: `cars_train/`, `cars_test/` and the devkit's `cars_train_annos.mat`, `cars_meta.mat`, `cars_test_annos_withlabels.mat`
- dtd: `images/` and `labels/train1.txt`, `val1.txt`, `test1.txt` (its first division)
- gtsrb: `Training/` or `Final_Training/Images/`; `Final_Test/Images/` and `GT-final_test.csv`
- mnist: the four `idx` files, packed or not
- resisc45: one folder for each class and the lists `resisc45-train.txt`, `-val.txt`, `-test.txt`
- svhn: `train_32x32.mat`, `test_32x32.mat`

Arrays are unpacked to PNG files once. A file `class_names.json` in a task's folder, {"folder or label": "words"}, names
classes otherwise. Classes are told apart by labels in the order of their folders' names.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.describe.task import IMAGE_TEXT, Example, Task
from comgrad.errors import ComgradError, NotFound
from comgrad.evaluate.digests import digest_of
from comgrad.weights.storage import atomic_directory, atomic_write_bytes
from comgrad.weights.strict_json import read_json

Found = list[tuple[Path, str, str]]
"""Image's file, its class, `train` or `test`."""
_ENDS = frozenset({".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
_PARTS = {"train": "train", "val": "train", "valid": "train", "validation": "train", "test": "test"}
_LETTER = re.compile(r"^[a-z][_/](?=.)")
NAMES_FILE = "class_names.json"
_PHOTO = ("a photo of a {}.", "a photo of the {}.")


@dataclass(frozen=True)
class DataSet:
    """One of the eight.

    Args:
        folders: names that its folder goes by, in small letters without signs.
        templates: texts with one `{}` for a class, see `describe.task.Task`.
        description: the task in words.
        own: reads the authors' own layout: (a folder, where to unpack) → images, or None where it is not that.
        names: class → words, where the folders' names are none.
    """

    id: str
    folders: tuple[str, ...]
    templates: tuple[str, ...]
    description: str
    own: Callable[[Path, Path], Found | None] | None = None
    names: Mapping[str, str] | None = None


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
        templates = known.templates if known else _PHOTO
        return Task(self.id, description, tuple(classes), tuple(words), rows, templates)

    def _found(self) -> Found:
        for folder in (self.folder, *sorted(p for p in self.folder.iterdir() if p.is_dir())):
            found = _splits(folder)
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


# -- layouts -----------------------------------------------------------------------------------------------------------
def _splits(folder: Path) -> Found | None:
    parts = {p: _PARTS[p.name.lower()] for p in _folders(folder) if p.name.lower() in _PARTS}
    if not {"train", "test"} <= set(parts.values()):
        return None
    found = [(f, c, part) for p, part in parts.items() for f, c in _classes(p)]
    return found or None


def _classes(folder: Path) -> Iterator[tuple[Path, str]]:
    for c in _folders(folder):
        for f in sorted(c.rglob("*")):
            if f.suffix.lower() in _ENDS and f.is_file():
                yield f, c.name


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir())


def _cars(folder: Path, _cache: Path) -> Found | None:
    kit = next((k for k in (folder / "devkit", folder) if (k / "cars_train_annos.mat").is_file()), None)
    if kit is None:
        return None
    tested = _one_of(kit / "cars_test_annos_withlabels.mat", folder / "cars_test_annos_withlabels.mat")
    names = [str(n) for n in _mat(kit / "cars_meta.mat")["class_names"].ravel()]
    out: Found = []
    for annotated, part in ((kit / "cars_train_annos.mat", "train"), (tested, "test")):
        for row in _mat(annotated)["annotations"].ravel():
            name = names[int(row["class"]) - 1].replace("/", " ")
            out.append((folder / f"cars_{part}" / str(row["fname"]), name, part))
    return out


def _dtd(folder: Path, _cache: Path) -> Found | None:
    lists = {
        folder / "labels" / f"{n}1.txt": part for n, part in (("train", "train"), ("val", "train"), ("test", "test"))
    }
    if not all(p.is_file() for p in lists):
        return None
    return [(folder / "images" / x, x.split("/")[0], part) for p, part in lists.items() for x in _lines(p)]


def _gtsrb(folder: Path, _cache: Path) -> Found | None:
    table = next((t for t in (folder / "GT-final_test.csv", folder.parent / "GT-final_test.csv") if t.is_file()), None)
    train = next((t for t in (folder / "Training", folder / "Final_Training" / "Images") if t.is_dir()), None)
    if table is None or train is None:
        return None
    rows = csv.DictReader(io.StringIO(table.read_text("utf-8")), delimiter=";")
    test = [(folder / "Final_Test" / "Images" / r["Filename"], str(int(r["ClassId"])), "test") for r in rows]
    return [(f, str(int(c)), "train") for f, c in _classes(train)] + test


def _resisc(folder: Path, _cache: Path) -> Found | None:
    lists = {}
    for name, part in (("train", "train"), ("val", "train"), ("test", "test")):
        places = [p / f"resisc45-{name}.txt" for p in (folder, folder.parent)]
        lists[next((p for p in places if p.is_file()), places[0])] = part
    if not all(p.is_file() for p in lists):
        return None
    names = [(x.rpartition("/")[2], part) for p, part in lists.items() for x in _lines(p)]
    found = [(folder / (c := re.sub(r"_\d+\.[a-z]+$", "", x)) / x, c, part) for x, part in names]
    return found if found and found[0][0].parent.is_dir() else None


def _mnist(folder: Path, cache: Path) -> Found | None:
    wanted = {"train": "train", "t10k": "test"}
    files = {n: [_packed(folder / f"{n}-{what}-ubyte") for what in ("images-idx3", "labels-idx1")] for n in wanted}
    if any(f is None for pair in files.values() for f in pair):
        return None

    def arrays() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for name, (images, labels) in files.items():
            assert images is not None and labels is not None
            head = np.frombuffer(images[:16], ">u4")
            yield (
                wanted[name],
                np.frombuffer(images, np.uint8, offset=16).reshape(head[1:]),
                np.frombuffer(labels, np.uint8, offset=8),
            )

    return _unpacked(cache, arrays)


def _svhn(folder: Path, cache: Path) -> Found | None:
    files = {part: folder / f"{part}_32x32.mat" for part in ("train", "test")}
    if not all(f.is_file() for f in files.values()):
        return None

    def arrays() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for part, file in files.items():
            found = _mat(file)
            yield part, found["X"].transpose(3, 0, 1, 2), found["y"].ravel() % 10  # the digit 0 is the label 10 there

    return _unpacked(cache, arrays)


def _unpacked(cache: Path, arrays: Callable[[], Iterator[tuple[str, np.ndarray, np.ndarray]]]) -> Found:
    """The arrays as PNG files, one folder per class; written once, whole or not at all."""
    if not cache.is_dir():
        from PIL import Image

        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(cache) as there:
            for part, images, labels in arrays():
                for c in np.unique(labels):
                    (there / part / str(c)).mkdir(parents=True)
                for k, (x, y) in enumerate(zip(images, labels, strict=True)):
                    Image.fromarray(x).save(there / part / str(y) / f"{k:06d}.png")
    found = _splits(cache)
    assert found is not None
    return found


def _packed(path: Path) -> bytes | None:
    """The file, its packed form, or its name with a dot as some tools have it."""
    for p in (path, path.with_name(path.name.replace("-idx", ".idx"))):
        if p.is_file():
            return p.read_bytes()
        if p.with_name(p.name + ".gz").is_file():
            return gzip.decompress(p.with_name(p.name + ".gz").read_bytes())
    return None


def _mat(path: Path) -> Mapping[str, Any]:
    from scipy.io import loadmat

    try:
        found: Mapping[str, Any] = loadmat(path, squeeze_me=True)
    except (OSError, ValueError, NotImplementedError) as error:
        raise ComgradError(f"'{path}'", f"it cannot be read ({error})", "download it again", code="bad-data") from error
    return found


def _one_of(*paths: Path) -> Path:
    return next((p for p in paths if p.is_file()), paths[0])


def _lines(path: Path) -> list[str]:
    return [x.strip() for x in path.read_text("utf-8").splitlines() if x.strip()]


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


# -- the eight ---------------------------------------------------------------------------------------------------------
_SIGNS = (
    *(f"speed limit {n} km/h" for n in (20, 30, 50, 60, 70, 80)), "end of speed limit 80 km/h",
    "speed limit 100 km/h", "speed limit 120 km/h", "no passing", "no passing for trucks", "right of way at the next crossing",
    "priority road", "yield", "stop", "no vehicles", "no trucks", "no entry", "general danger", "dangerous curve to the left",
    "dangerous curve to the right", "double curve", "bumpy road", "slippery road", "road narrows on the right", "road works",
    "traffic lights", "pedestrians", "children crossing", "bicycles crossing", "ice or snow", "wild animals crossing",
    "end of all limits", "turn right ahead", "turn left ahead", "ahead only", "go straight or right", "go straight or left",
    "keep right", "keep left", "roundabout", "end of no passing", "end of no passing for trucks",
)  # fmt: skip
_LAND = {
    "AnnualCrop": "annual crop land", "Forest": "forest", "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road", "Industrial": "industrial buildings or commercial buildings", "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land", "Residential": "residential buildings or homes or apartments",
    "River": "river", "SeaLake": "lake or sea",
}  # fmt: skip
_AERIAL = tuple(
    f"{kind} {what} of {article}{{}}."
    for kind in ("satellite", "aerial")
    for what in ("imagery", "photo", "view")
    for article in ("", "a ", "the ")
)
_CENTRED = tuple(f"a centered satellite photo of {article}{{}}." for article in ("", "a ", "the "))
_TEXTURES = tuple(
    f"a photo of {article} {{}} {what}."
    for article in ("a", "the")
    for what in ("texture", "pattern", "thing", "object")
)
_BOARDS = tuple(f'a {view} photo of a "{{}}" traffic sign.' for view in ("zoomed in", "centered", "close up"))
_NUMBER = ('a photo of the number: "{}".',)
_SIGN_NAMES = {form: words for i, words in enumerate(_SIGNS) for form in (str(i), f"{i:05d}")}
DATA_SETS = (
    DataSet("cars", ("cars", "stanfordcars"), _PHOTO, "tell the make, model and year of a car on a photo", _cars),
    DataSet("dtd", ("dtd",), _TEXTURES, "tell the texture on a photo", _dtd),
    DataSet(
        "eurosat", ("eurosat", "eurosatsplits"), _CENTRED, "tell how land is used from a satellite image", None, _LAND
    ),
    DataSet("gtsrb", ("gtsrb",), _BOARDS, "tell which traffic sign is on a photo", _gtsrb, _SIGN_NAMES),
    DataSet("mnist", ("mnist",), _NUMBER, "read a handwritten digit", _mnist),
    DataSet("resisc45", ("resisc45", "nwpuresisc45"), _AERIAL, "tell the scene on an aerial image", _resisc),
    DataSet("sun397", ("sun397",), _PHOTO, "tell the scene on a photo"),
    DataSet("svhn", ("svhn",), _NUMBER, "read the digit of a house number on a photo", _svhn),
)
