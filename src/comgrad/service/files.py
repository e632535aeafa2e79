"""What can be downloaded of a vector: its container, and the same as a PEFT folder with a card for people."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comgrad.errors import ComgradError, NotFound, StorageError
from comgrad.registry import disk
from comgrad.registry.store import Store
from comgrad.service.modelcard import model_card
from comgrad.service.vectors import Listing
from comgrad.weights.storage import atomic_directory

if sys.platform != "win32":  # Windows: what a killed process left is left
    import fcntl

MOST = 100_000
CONTAINER = "vector.safetensors"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CARD = "task_card.json"
README = "README.md"
OWN = (CONTAINER, CARD, README)  # what every vector has
MEDIA = {
    CONTAINER: "application/octet-stream",
    WEIGHTS: "application/octet-stream",
    CONFIG: "application/json",
    CARD: "application/json",
    README: "text/markdown; charset=utf-8",
}


@dataclass(frozen=True)
class FileInfo:
    """One file that can be downloaded."""

    name: str
    size: int
    sha256: str
    media_type: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Opened:
    """A file to serve: on disk, or small and in memory."""

    name: str
    size: int
    digest: str
    media_type: str
    path: Path | None = None
    data: bytes = b""


class Files:
    """Files of listed vectors. The PEFT folder of a vector is made once and kept in a cache that may be deleted."""

    def __init__(self, store: Store, cache: Path) -> None:
        self._store = store
        self._cache = cache
        self._locks = [threading.Lock() for _ in range(16)]  # one for all would make every page wait for one vector
        self._none: OrderedDict[str, None] = OrderedDict()  # vectors that an adapter cannot hold: they never change
        self._reclaimed = False

    def of(self, listing: Listing) -> list[FileInfo]:
        """The files of a vector; without the PEFT folder where LoRA cannot hold it. Raises StorageError."""
        return [info(self._opened(listing, name)) for name in self._names(listing)]

    def open(self, listing: Listing, name: str) -> Opened:
        """One of them. Raises NotFound, StorageError."""
        if name not in OWN and name not in self._names(
            listing
        ):  # those need no folder, so a full disk stops none of them
            raise NotFound(f"the file {name[:80]!a}", "this vector has none of that name", "see its list of files")
        return self._opened(listing, name)

    def forget(self, vector_id: str) -> None:
        """Drop what the cache holds of a vector."""
        shutil.rmtree(self._cache / vector_id, ignore_errors=True)

    def reclaim(self) -> int:
        """Delete what killed processes left half-made, once; how many folders. Not while any process makes one: the next
        call does it."""
        if self._reclaimed or not self._cache.is_dir():
            return 0
        with self._making(alone=True) as alone:
            if not alone:
                return 0
            left = [p for p in self._cache.iterdir() if p.name.startswith(".") and p.suffix in (".part", ".old")]
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            self._reclaimed = True
        return len(left)

    @contextlib.contextmanager
    def _making(self, *, alone: bool = False) -> Iterator[bool]:
        """Hold the cache's lock together with all that make folders, or `alone` if none does; whether it is held. It ends
        with its process, however that ends."""
        if sys.platform == "win32":
            yield False
            return
        with disk.storage(f"the folder '{self._cache}'"):
            disk.make_parents(self._cache)
            fd = os.open(self._cache, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
                held = True
            except OSError:  # others make some; or a file system that cannot lock, where nothing is ever taken away
                held = False
            yield held
        finally:
            os.close(fd)

    def _names(self, listing: Listing) -> list[str]:
        return list(OWN) if self._peft(listing) is None else [CONTAINER, WEIGHTS, CONFIG, CARD, README]

    def _opened(self, listing: Listing, name: str) -> Opened:
        if name == CONTAINER:
            path = self._store.blobs.path(listing.digest)
            return Opened(name, path.stat().st_size, listing.digest, MEDIA[name], path)
        if name == CARD:
            return of_bytes(name, listing.card.replaced(name=listing.name).to_json().encode())
        if name == README:
            return of_bytes(name, model_card(listing).encode())
        folder = self._peft(listing)
        assert folder is not None
        return of_path(folder / name)

    def _peft(self, listing: Listing) -> Path | None:
        """The folder with the adapter's two files; None where the vector is no adapter."""
        if listing.entry.kind != "lowrank":
            return None
        folder = self._cache / listing.id
        if listing.id in self._none:
            return None
        if not (folder / f"{WEIGHTS}.sha256").exists():
            with self._locks[hash(listing.id) % len(self._locks)]:
                if not (folder / f"{WEIGHTS}.sha256").exists():
                    try:
                        self._write(listing, folder)
                    except ComgradError as error:
                        if not error.code.startswith("peft-write"):
                            raise
                        self._none[listing.id] = None
                        while len(self._none) > MOST:
                            self._none.popitem(last=False)
                        return None
        return folder

    def _write(self, listing: Listing, folder: Path) -> None:
        """Make the folder. Another process may do the same: both write the same bytes, and each puts a whole folder in
        the place of what is there in one step, so that whoever reads meets one of the two."""
        from comgrad.vectors.peft_write import write_peft

        try:
            with self._making(), atomic_directory(folder, replace=True) as made:
                write_peft(listing.entry.vector(), made / "peft")
                for name in (WEIGHTS, CONFIG):
                    (made / "peft" / name).rename(made / name)
                    digest = hashlib.sha256((made / name).read_bytes()).hexdigest()
                    (made / f"{name}.sha256").write_text(digest, "ascii")
                (made / "peft").rmdir()
        except StorageError:
            if not (folder / f"{WEIGHTS}.sha256").exists():  # else the other one was faster by a hair
                raise


def of_bytes(name: str, data: bytes) -> Opened:
    """A small file from memory."""
    return Opened(name, len(data), hashlib.sha256(data).hexdigest(), MEDIA[name], None, data)


def of_path(path: Path) -> Opened:
    """A file on disk whose digest is beside it. Raises NotFound when it is gone."""
    try:
        digest = Path(f"{path}.sha256").read_text("ascii")
        return Opened(path.name, path.stat().st_size, digest, MEDIA[path.name], path)
    except OSError as error:
        raise NotFound(f"the file {path.name!a}", "it is gone", "ask for it again") from error


def info(opened: Opened) -> FileInfo:
    """A file without its bytes."""
    return FileInfo(opened.name, opened.size, opened.digest, opened.media_type)
