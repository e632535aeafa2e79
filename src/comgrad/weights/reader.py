"""Reading weights: one safetensors file, or a checkpoint of one or several, checked strictly before first use."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from comgrad.errors import NotFound
from comgrad.weights import profile
from comgrad.weights.header import Header, TensorEntry, read_header
from comgrad.weights.profile import refused, shown
from comgrad.weights.source import Source
from comgrad.weights.strict_json import read_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT_FILES = ("model.safetensors", "open_clip_model.safetensors")
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAPPED = 8 * 2**20  # bytes read before the library's map of a file is let go: mapped pages count as memory
_HELD = 4 * 2**20  # bytes; a file up to this size is read once, after its header passed
_MAX_INDEX = 16_000_000  # bytes; 20,000 names of 256 characters with their shards stay below it


class SafetensorsFile:
    """A safetensors file that passed the strict profile; tensors are read one by one when asked for.

    Made by `open_strict`. Closing it, or leaving it as a context manager, releases the file.
    """

    def __init__(self, source: Source, header: Header) -> None:
        self._source = source
        self._handle: Any = None
        self._lock = threading.Lock()
        self._mapped = 0
        self._all: dict[str, Tensor] = {}
        self.path = source.path
        self.metadata: dict[str, str] = dict(header.metadata)
        self.entries: Mapping[str, TensorEntry] = header.entries

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted."""
        return tuple(sorted(self.entries))

    def entry(self, name: str) -> TensorEntry:
        """What the header says of one tensor. Raises NotFound."""
        try:
            return self.entries[name]
        except KeyError:
            raise NotFound(
                f"tensor '{name}'", f"'{self.path}' holds no tensor of that name", "list the file's names"
            ) from None

    def get(self, name: str) -> Tensor:
        """One tensor in its stored dtype, as a copy that later changes of the file cannot reach.

        Raises:
            NotFound: no tensor of that name.
            FileRefused: `changed-while-reading`.
        """
        self.entry(name)
        with self._lock:  # geometry reads several tensors of one file from several threads
            if self._source.held:
                self._all = self._all or self.get_all()
                self._source.unchanged()
                return self._all[name].clone()
            if self._handle is None:
                from safetensors import safe_open

                self._source.unchanged()
                self._handle = safe_open(self._source.real, framework="pt")
            self._source.unchanged()
            # The library maps the file: without the copy a tensor would change when the file is written to in place.
            tensor: Tensor = self._handle.get_tensor(name).clone()
            self._source.unchanged()
            self._mapped += tensor.nbytes
            if self._mapped > _MAPPED:
                self._handle, self._mapped = None, 0
        return tensor

    def get_all(self) -> dict[str, Tensor]:
        """Every tensor in its stored dtype, from one read of the whole file. Raises FileRefused: `changed-while-reading`."""
        from safetensors.torch import load

        data = self._source.hold()
        self._source.unchanged()
        tensors: dict[str, Tensor] = load(data)
        return tensors

    def sha256(self, name: str) -> str:
        """SHA-256 of a tensor's bytes as stored, in hexadecimal, streamed."""
        entry, digest = self.entry(name), hashlib.sha256()
        for begin in range(entry.begin, entry.end, profile.BLOCK):
            digest.update(self._source.read(begin, min(profile.BLOCK, entry.end - begin)))
        self._source.unchanged()
        return digest.hexdigest()

    def close(self) -> None:
        """Release the file; closing twice is allowed."""
        self._handle, self._all = None, {}
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_strict(
    path: Path, *, refuse_zero: bool = True, check_finite: bool = True, untrusted: bool = False
) -> SafetensorsFile:
    """Open a safetensors file after every check of the strict profile.

    Args:
        path: the file.
        refuse_zero: refuse a file whose floats are all zero (`all-zero`), or all zero or denormal (`denormals`):
            right for vectors and adapters.
        check_finite: stream all values once and refuse NaN, infinity and booleans other than 0 and 1.
        untrusted: refuse a file with several hard links.

    Raises:
        NotFound; FileRefused with a code of `profile.REFUSALS`.
    """
    source = Source(Path(path), untrusted=untrusted)
    try:
        header = read_header(source)
        if check_finite or refuse_zero:
            from comgrad.weights.values import check_values  # numpy: not needed to refuse a header

            if source.size <= _HELD:
                source.hold()
            check_values(source, header.entries.values(), finite=check_finite, refuse_zero=refuse_zero)
        source.unchanged()
    except BaseException:
        source.close()
        raise
    return SafetensorsFile(source, header)


class Checkpoint:
    """The weights of one model: a single file, or shards with their index. Made by `open_checkpoint`."""

    def __init__(self, path: Path, files: Mapping[Path, SafetensorsFile], config: dict[str, Any] | None) -> None:
        self.path = path
        self.config = config
        self._files = files
        self._home = {name: file for file in files.values() for name in file.entries}
        self.entries: Mapping[str, TensorEntry] = MappingProxyType(
            {name: self._home[name].entries[name] for name in sorted(self._home)}
        )
        self.metadata: dict[str, str] = {k: v for file in files.values() for k, v in file.metadata.items()}

    @property
    def files(self) -> list[Path]:
        """The weight files, sorted."""
        return sorted(self._files)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names of all files, sorted."""
        return tuple(self.entries)

    def file_of(self, name: str) -> SafetensorsFile:
        """The open file that holds a tensor. Raises NotFound."""
        try:
            return self._home[name]
        except KeyError:
            raise NotFound(
                f"tensor '{name}'", f"'{self.path}' holds no tensor of that name", "list the checkpoint's names"
            ) from None

    def get(self, name: str) -> Tensor:
        """One tensor in its stored dtype. See `SafetensorsFile.get`."""
        return self.file_of(name).get(name)

    def sha256(self, name: str) -> str:
        """SHA-256 of one tensor's bytes as stored. See `SafetensorsFile.sha256`."""
        return self.file_of(name).sha256(name)

    def close(self) -> None:
        """Release all files."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(
    path: str | Path, *, refuse_zero: bool = False, check_finite: bool = True, untrusted: bool = False
) -> Checkpoint:
    """Open a model's weights: a `.safetensors` file, or a folder that holds one file or shards with an index.

    Args:
        path: the file or folder. `config.json` beside the weights becomes `.config`.
        refuse_zero: as in `open_strict`; off, because a part of a checkpoint may be zero.
        check_finite: as in `open_strict`.
        untrusted: as in `open_strict`.

    Raises:
        NotFound; FileRefused: `no-weights`, `pickle`, `index`, and those of `open_strict`.
    """
    path = Path(path)
    files, index = _weight_files(path)
    config_path = files[0].parent / "config.json"
    config = read_json(config_path) if config_path.exists() else None
    opened: dict[Path, SafetensorsFile] = {}
    try:
        for file in files:
            opened[file] = open_strict(file, refuse_zero=refuse_zero, check_finite=check_finite, untrusted=untrusted)
        if index is not None:
            _check_index(path / INDEX_FILE, index, opened)
        return Checkpoint(path, opened, config)
    except BaseException:
        for done in opened.values():
            done.close()
        raise


def weight_files(path: Path) -> list[Path]:
    """The weight files that `open_checkpoint` would open. Raises as it does."""
    return _weight_files(Path(path))[0]


def _weight_files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files to open, and the index's tensor → file name when there is one."""
    if not path.is_dir():
        return [path], None
    for name in WEIGHT_FILES:
        if (path / name).exists():
            return [path / name], None
    if (path / INDEX_FILE).exists():
        index = _read_index(path / INDEX_FILE)
        return [path / name for name in sorted(set(index.values()))], index
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise refused(
            "pickle", path / pickles[0], remedy="convert it to safetensors (save_pretrained does) where you trust it"
        )
    raise refused("no-weights", path)


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path, _MAX_INDEX).get("weight_map")
    if type(weight_map) is not dict or not weight_map:
        raise refused("index", path, "it has no weight_map")
    for name, file in weight_map.items():
        plain = type(file) is str and profile.NAME.fullmatch(file) and file.endswith(".safetensors")
        if not plain or file.startswith("."):
            raise refused("index", path, f"{shown(name)} is said to be in {shown(str(file))}")
    return weight_map


def _check_index(path: Path, index: Mapping[str, str], opened: Mapping[Path, SafetensorsFile]) -> None:
    for file_path, file in opened.items():
        promised = {name for name, where in index.items() if where == file_path.name}
        if promised != set(file.entries):
            odd = sorted(promised ^ set(file.entries))[0]
            raise refused("index", path, f"it and '{file_path.name}' disagree on {shown(odd)}")


__all__ = [
    "Checkpoint",
    "SafetensorsFile",
    "TensorEntry",
    "open_checkpoint",
    "open_strict",
    "read_json",
    "weight_files",
]
