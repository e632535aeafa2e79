"""From what a user writes to a vector: an id, a name, an adapter's folder, a vector's folder, a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from comgrad.atlas.collection import Collection, Member
from comgrad.errors import BaseMismatch, ComgradError, NotFound
from comgrad.registry.gradients import GradientRecord
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.registry import Entry, Registry, by_base

VECTOR_FILE = "vector.safetensors"


def read_vector(path: Path, *, base: str | None = None, drop_heads: bool = False) -> TaskVector:
    """The task vector of a folder or file: a PEFT adapter, comgrad's own format, or a checkpoint with its base.

    Raises:
        NotFound: nothing is there, or nothing that can be read.
        ComgradError: refused by the reader of its kind.
    """
    if (path / "adapter_config.json").exists() or _looks_like_adapter(path):
        from comgrad.vectors.peft import read_peft

        return read_peft(path, base=base, drop_heads=drop_heads)
    own = path / VECTOR_FILE if path.is_dir() else path
    if own.name == VECTOR_FILE and own.exists():
        return TaskVector.load(own)
    if not path.exists():
        raise NotFound(f"'{path}'", "there is nothing at that path", "check the spelling")
    if base is None:
        raise NotFound(
            f"'{path}'",
            "it holds no adapter_config.json, and a full checkpoint has a task vector only against its base",
            "name the base with --base, or give an adapter's folder",
            code="no-adapter",
        )
    return TaskVector.from_checkpoints(base, path)


def _looks_like_adapter(path: Path) -> bool:
    return any((path / n).exists() for n in ("adapter_model.safetensors", "adapter_model.bin"))


def open_vector(ref: str, registry: Registry | None = None, *, base: str | None = None) -> TaskVector:
    """The vector a user means by `ref`: a path when there is one, else a registry id or name."""
    if not ref.strip():
        raise NotFound("an empty name", "it names no vector", "give an id, a name or a path")
    path = Path(ref).expanduser()
    if path.exists():
        return read_vector(path, base=base)
    try:
        return (registry or Registry()).get(ref).vector()
    except NotFound as error:
        if "/" in ref or ref.startswith("."):
            raise NotFound(
                f"'{ref}'", "there is no such path, and no vector of that name", "check the spelling"
            ) from error
        raise


def open_vectors(refs: Sequence[str], *, base: str | None = None) -> list[TaskVector]:
    """Several vectors over one base. Raises BaseMismatch naming the two that differ."""
    found = [open_vector(r, base=base) for r in refs]
    for ref, vector in zip(refs[1:], found[1:], strict=True):
        found[0].base.joined(vector.base, what=f"'{refs[0]}' and '{ref}'")
    return found


def one_base(entries: Sequence[Entry], base: str | None) -> list[Entry]:
    """The entries over one base: the one asked for, or the only one there is.

    Raises:
        ComgradError: none, or several to choose from.
    """
    if not entries:
        where = f" over base '{base}'" if base else ""
        raise ComgradError(
            f"a registry with no vectors{where}",
            "there is nothing to work on",
            "add adapters with: comgrad add PATH",
            code="empty-registry",
        )
    groups = by_base(entries)
    if len(groups) > 1:
        labels = sorted(max((e.record.facts.base for e in g), key=lambda b: b.fingerprint or "").label for g in groups)
        raise BaseMismatch(
            f"a registry with vectors over {len(groups)} bases ({', '.join(labels)})",
            "vectors of different bases cannot be compared or added",
            "choose one with --base: its name, or its whole fingerprint (comgrad show ID)",
            code="several-bases",
        )
    return list(entries)


def collection(registry: Registry, *, base: str | None = None) -> Collection:
    """The registry's vectors over one base with their Gram matrix, from the cache as far as it reaches."""
    entries = one_base(registry.list(base=base), base)
    known = registry.store.gradients()
    return Collection.build([member(e, known.get(e.id)) for e in entries], cache=registry.store.cache_dir)


def member(entry: Entry, gradient: GradientRecord | None = None) -> Member:
    """The entry as a member of a collection, with its task's gradient unless that is damaged. The vector is read once."""
    plain = Member(entry.id, entry.name, entry.description, entry.card.family, cache(entry.vector))
    if gradient is None or gradient.damage is not None:
        return plain
    path = entry.store.blobs.path
    return replace(plain, gradient=lambda: TaskVector.load(path(gradient.digest)), gradient_digest=gradient.digest)
