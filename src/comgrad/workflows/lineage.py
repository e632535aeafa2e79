"""Lineage: the ids by which cards name the vectors that others were made from, the same here and on every service."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comgrad.errors import ComgradError, NotFound
from comgrad.registry.card import Card
from comgrad.registry.models import vector_id
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import VECTOR_FILE

if TYPE_CHECKING:
    from comgrad.vectors.task_vector import TaskVector

CARD_FILE = "task_card.json"
MOST = 1000


def identity(ref: str | Path, vector: TaskVector | None = None) -> str:
    """What a card calls the vector that a user means by `ref`: its id, which is made from its bytes.

    A checkpoint, whose task vector would have to be written out for that, goes by its folder's name.

    Args:
        vector: the one at `ref`, where it was read already.

    Raises:
        NotFound: neither a path nor in the registry.
    """
    path = Path(ref).expanduser()
    if not path.exists():
        return Registry().get(str(ref)).id
    own = path / VECTOR_FILE if path.is_dir() else path
    if own.name == VECTOR_FILE and own.is_file():
        with own.open("rb") as file:
            return vector_id(hashlib.file_digest(file, "sha256").hexdigest())
    if vector is None:
        with suppress(ComgradError):
            from comgrad.workflows.resolve import read_vector

            vector = read_vector(path)
    if vector is None or vector.kind != "lowrank":
        return path.resolve().name[:200] or "vector"
    with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
        blob = Path(folder) / VECTOR_FILE
        vector.save(blob)
        return vector_id(hashlib.sha256(blob.read_bytes()).hexdigest())


def parents_of_trained(init: Path, vector: TaskVector | None = None) -> list[dict[str, Any]]:
    """The parents of what was trained from an init: the init, and what its own card names.

    A suggestion is seldom kept, so that its sources would be lost with it: they stay parents, in their own role.
    """
    parents: list[dict[str, Any]] = [{"id": identity(init, vector), "role": "train", "coefficient": 1.0}]
    with suppress(NotFound):
        card = Card.from_file((init if init.is_dir() else init.parent) / CARD_FILE)
        parents += [p.model_dump(mode="json", exclude_none=True) for p in card.parents]
    return parents[:MOST]
