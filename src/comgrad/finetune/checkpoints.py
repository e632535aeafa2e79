"""Checkpoints of the training loop that can be trusted: sealed with the digests of their files when they are whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from comgrad.errors import FileRefused
from comgrad.weights.storage import atomic_write_bytes, sync_folder

SEAL = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = "model.safetensors"


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is whole, once its bytes are on the disk. Raises StorageError."""
    digests = {}
    for file in _files(checkpoint):
        with file.open("rb") as opened:
            digests[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
            os.fsync(opened.fileno())
    sync_folder(checkpoint)
    atomic_write_bytes(checkpoint / SEAL, json.dumps(digests, indent=1, sort_keys=True).encode())
    sync_folder(checkpoint.parent)


def step_of(checkpoint: Path) -> int:
    """The training step a checkpoint was written after."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def last_whole(folder: Path) -> Path | None:
    """The latest checkpoint whose seal holds; None when there is none. Later ones, cut short or damaged, are removed."""
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    for checkpoint in sorted(found, key=step_of, reverse=True):
        if _is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        digests = json.loads((checkpoint / SEAL).read_bytes())
        return bool(digests == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in _files(checkpoint)})
    except (OSError, ValueError):
        return False


def _files(checkpoint: Path) -> list[Path]:
    return sorted(f for f in checkpoint.iterdir() if f.is_file() and f.name != SEAL)


def load_into(model: nn.Module, checkpoint: Path) -> None:
    """Set the trainable parameters from a checkpoint."""
    with trainable_state_only(model):
        model.load_state_dict(load_file(checkpoint / _WEIGHTS), strict=False)


@contextmanager
def trainable_state_only(model: nn.Module) -> Iterator[None]:
    """Inside the block the model's state is that of its trainable parameters: a checkpoint needs no copy of the base.

    Raises:
        FileRefused: a state is loaded that lacks one of them or has others.
    """
    names = {n for n, p in model.named_parameters() if p.requires_grad}

    def only(_: nn.Module, state: dict[str, Tensor], prefix: str, __: object) -> None:
        for name in [n for n in state if n.removeprefix(prefix) not in names]:
            del state[name]

    def complete(_: nn.Module, keys: object) -> None:
        missing, unexpected = getattr(keys, "missing_keys", []), getattr(keys, "unexpected_keys", [])
        wrong = sorted(names & set(missing)) + sorted(unexpected)
        if wrong:
            raise FileRefused(
                f"a checkpoint that disagrees about '{wrong[0]}'",
                "it is of another set of trainable parameters",
                "remove the work folder and start again",
                code="checkpoint-mismatch",
            )
        missing.clear()

    handles = (
        model.register_state_dict_post_hook(only),  # type: ignore[no-untyped-call]
        model.register_load_state_dict_post_hook(complete),  # type: ignore[no-untyped-call]
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
