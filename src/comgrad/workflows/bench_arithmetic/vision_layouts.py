"""Images of a task where people have them: split folders, and the layouts that data sets' authors give out.

A reader takes a folder, and one to unpack arrays into; it finds the images with their classes and parts, or None where the
folder is in another layout. docs/images.md describes the layouts.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.errors import ComgradError
from comgrad.weights.storage import atomic_directory

Found = list[tuple[Path, str, str]]
"""Image's file, its class, `train` or `test`."""
_ENDS = frozenset({".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
_PARTS = {"train": "train", "val": "train", "valid": "train", "validation": "train", "test": "test"}


def splits(folder: Path) -> Found | None:
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


def cars(folder: Path, _cache: Path) -> Found | None:
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


def dtd(folder: Path, _cache: Path) -> Found | None:
    lists = {
        folder / "labels" / f"{n}1.txt": part for n, part in (("train", "train"), ("val", "train"), ("test", "test"))
    }
    if not all(p.is_file() for p in lists):
        return None
    return [(folder / "images" / x, x.split("/")[0], part) for p, part in lists.items() for x in _lines(p)]


def gtsrb(folder: Path, _cache: Path) -> Found | None:
    table = next((t for t in (folder / "GT-final_test.csv", folder.parent / "GT-final_test.csv") if t.is_file()), None)
    train = next((t for t in (folder / "Training", folder / "Final_Training" / "Images") if t.is_dir()), None)
    if table is None or train is None:
        return None
    rows = csv.DictReader(io.StringIO(table.read_text("utf-8")), delimiter=";")
    test = [(folder / "Final_Test" / "Images" / r["Filename"], str(int(r["ClassId"])), "test") for r in rows]
    return [(f, str(int(c)), "train") for f, c in _classes(train)] + test


def resisc(folder: Path, _cache: Path) -> Found | None:
    lists = {}
    for name, part in (("train", "train"), ("val", "train"), ("test", "test")):
        places = [p / f"resisc45-{name}.txt" for p in (folder, folder.parent)]
        lists[next((p for p in places if p.is_file()), places[0])] = part
    if not all(p.is_file() for p in lists):
        return None
    names = [(x.rpartition("/")[2], part) for p, part in lists.items() for x in _lines(p)]
    found = [(folder / (c := re.sub(r"_\d+\.[a-z]+$", "", x)) / x, c, part) for x, part in names]
    return found if found and found[0][0].parent.is_dir() else None


def mnist(folder: Path, cache: Path) -> Found | None:
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


def svhn(folder: Path, cache: Path) -> Found | None:
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
    found = splits(cache)
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
