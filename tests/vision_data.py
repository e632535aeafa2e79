"""A tiny random open_clip model in a folder as the Hub has them, and small images in the layouts that people have."""

from __future__ import annotations

import csv
import gzip
import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

SIDE = 16
CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}


def open_clip() -> Any:
    """The library. torchvision has builds for other builds of torch than the one tests run on, so `./run setup` keeps it
    apart: beside it transformers would load it and fail. Only its compiled operators are missing then; none is used, and
    only their declarations are made, which its Python part asks for when it is imported."""
    apart = str(Path(sys.prefix) / "vision")
    if apart not in sys.path:
        sys.path.append(apart)
    try:
        import open_clip
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import open_clip
    return open_clip


def clip_base(folder: Path, *, seed: int = 0) -> Path:
    """The model's folder."""
    library = open_clip()
    torch.manual_seed(seed)
    cfg = CONFIG["model_cfg"]
    model = library.CLIP(**json.loads(json.dumps(cfg)))
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    return folder


# -- images: the class decides the colour, so that there is something to learn ------------------------------------------
def picture(label: int, index: int, side: int = SIDE) -> np.ndarray:
    """(side, side, 3) bytes: a colour per class under noise of its own."""
    rng = np.random.default_rng([label, index])
    colour = np.array([(40, 40, 200), (200, 40, 40), (40, 200, 40), (200, 200, 40)][label % 4])
    return np.clip(colour + rng.normal(0, 40, (side, side, 3)), 0, 255).astype(np.uint8)


def rows(classes: int, each: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
    """Part, label, index: an image's index is in one part only."""
    for label in range(classes):
        start = 0
        for part, count in each.items():
            for k in range(start, start + count):
                yield part, label, k
            start += count


def splits(folder: Path, names: tuple[str, ...], each: Mapping[str, int], suffix: str = ".png") -> None:
    """The layout with one folder per part and class."""
    for part, label, k in rows(len(names), each):
        there = folder / part / names[label]
        there.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(label, k)).save(there / f"{k:04d}{suffix}")


def _cars(folder: Path, each: Mapping[str, int]) -> None:
    from scipy.io import savemat

    names = ["Maker Model/One 2012", "Maker Model Two 2007"]
    kit = folder / "devkit"
    kit.mkdir(parents=True)
    found: dict[str, list[Any]] = {"train": [], "test": []}
    for part, label, k in rows(2, each):
        (folder / f"cars_{part}").mkdir(exist_ok=True)
        name = f"{label}{k:04d}.jpg"
        Image.fromarray(picture(label, k)).save(folder / f"cars_{part}" / name)
        found[part].append((1, 1, SIDE, SIDE, label + 1, name))
    kind = [(n, "O") for n in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    savemat(kit / "cars_meta.mat", {"class_names": np.array(names, dtype=object)})
    for name, part in (("cars_train_annos", "train"), ("cars_test_annos_withlabels", "test")):
        savemat(
            (kit if part == "train" else folder) / f"{name}.mat", {"annotations": np.array(found[part], dtype=kind)}
        )


def _dtd(folder: Path, each: Mapping[str, int]) -> None:
    root = folder / "dtd"
    (root / "labels").mkdir(parents=True)
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for part, label, k in rows(2, {"val": 2, **each}):
        name = f"{('banded', 'dotted')[label]}/{k:04d}.jpg"
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(label, k)).save(root / "images" / name)
        lists[part].append(name)
    for part, names in lists.items():
        (root / "labels" / f"{part}1.txt").write_text("\n".join(names) + "\n")


def _gtsrb(folder: Path, each: Mapping[str, int]) -> None:
    root, told = folder / "GTSRB", []
    (root / "Final_Test" / "Images").mkdir(parents=True)
    for part, label, k in rows(2, each):
        if part == "train":
            file = root / "Training" / f"{label:05d}" / f"{k:05d}.ppm"
        else:
            file = root / "Final_Test" / "Images" / f"{label}{k:04d}.ppm"
            told.append({"Filename": file.name, "Width": SIDE, "ClassId": label})
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(label, k)).save(file)
    with (folder / "GT-final_test.csv").open("w", newline="") as file:
        out = csv.DictWriter(file, list(told[0]), delimiter=";")
        out.writeheader()
        out.writerows(told)


def _mnist(folder: Path, each: Mapping[str, int]) -> None:
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for part, name in (("train", "train"), ("test", "t10k")):
        chosen = [(label, k) for p, label, k in rows(3, each) if p == part]
        images = np.stack([picture(label, k, 28)[:, :, label % 3] for label, k in chosen])
        data = struct.pack(">IIII", 2051, len(images), 28, 28) + images.tobytes()
        labels = struct.pack(">II", 2049, len(chosen)) + bytes(label for label, _ in chosen)
        if part == "train":
            (raw / f"{name}-images-idx3-ubyte").write_bytes(data)
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(labels)
        else:
            (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(data))
            (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def _resisc(folder: Path, each: Mapping[str, int]) -> None:
    names, lists = ("baseball_diamond", "river"), {"train": [], "val": [], "test": []}
    for part, label, k in rows(2, {"val": 2, **each}):
        file = folder / "NWPU-RESISC45" / names[label] / f"{names[label]}_{k:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(label, k)).save(file)
        lists[part].append(file.name)
    for part, found in lists.items():
        (folder / f"resisc45-{part}.txt").write_text("\n".join(found) + "\n")


def _svhn(folder: Path, each: Mapping[str, int]) -> None:
    from scipy.io import savemat

    folder.mkdir(parents=True)
    for part in ("train", "test"):
        chosen = [(label, k) for p, label, k in rows(2, each) if p == part]
        X = np.stack([picture(label, k, 32) for label, k in chosen], axis=3)
        y = np.array([[10 if label == 0 else label] for label, _ in chosen], dtype=np.uint8)
        savemat(folder / f"{part}_32x32.mat", {"X": X, "y": y})


OWN: Mapping[str, tuple[str, Callable[[Path, Mapping[str, int]], None]]] = {
    "cars": ("stanford_cars", _cars),
    "dtd": ("dtd", _dtd),
    "gtsrb": ("gtsrb", _gtsrb),
    "mnist": ("MNIST", _mnist),
    "resisc45": ("resisc45", _resisc),
    "svhn": ("svhn", _svhn),
}
"""Task → its folder's name, and what writes the layout that its authors give out."""


def eight(root: Path, *, train: int = 30, test: int = 6) -> Path:
    """The eight tasks: six as their authors give them out, two as folders of parts and classes."""
    each = {"train": train, "test": test}
    for name, write in OWN.values():
        write(root / name, each)
    splits(
        root / "EuroSAT_splits", ("AnnualCrop", "River", "SeaLake"), {"train": train, "val": 2, "test": test}, ".jpg"
    )
    splits(root / "sun397", ("a_abbey", "b_baseball_field"), each)
    return root
