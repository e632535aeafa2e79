"""The eight data sets of the task-arithmetic papers: their folders' names, templates and words, after arXiv 2103.00020."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from comgrad.workflows.bench_arithmetic.vision_layouts import Found, cars, dtd, gtsrb, mnist, resisc, svhn

PHOTO = ("a photo of a {}.", "a photo of the {}.")


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
    DataSet("cars", ("cars", "stanfordcars"), PHOTO, "tell the make, model and year of a car on a photo", cars),
    DataSet("dtd", ("dtd",), _TEXTURES, "tell the texture on a photo", dtd),
    DataSet(
        "eurosat", ("eurosat", "eurosatsplits"), _CENTRED, "tell how land is used from a satellite image", None, _LAND
    ),
    DataSet("gtsrb", ("gtsrb",), _BOARDS, "tell which traffic sign is on a photo", gtsrb, _SIGN_NAMES),
    DataSet("mnist", ("mnist",), _NUMBER, "read a handwritten digit", mnist),
    DataSet("resisc45", ("resisc45", "nwpuresisc45"), _AERIAL, "tell the scene on an aerial image", resisc),
    DataSet("sun397", ("sun397",), PHOTO, "tell the scene on a photo"),
    DataSet("svhn", ("svhn",), _NUMBER, "read the digit of a house number on a photo", svhn),
)
