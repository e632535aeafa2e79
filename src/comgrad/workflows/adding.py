"""Journey: add. Header checks → strict read → task vector → blob → catalogue row → neighbours and warnings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comgrad.atlas.collection import Collection
from comgrad.atlas.duplicates import DUPLICATE
from comgrad.errors import BaseMismatch, ComgradError, NotFound, StorageError
from comgrad.registry.card import Card
from comgrad.registry.models import AddResult, Facts
from comgrad.registry.models import Entry as NewEntry
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from comgrad.workflows.gradients import GradientMaker, attach_computed, attach_file
from comgrad.workflows.registry import Registry, by_base
from comgrad.workflows.resolve import member, read_vector

CARD_FILE = "task_card.json"


@dataclass(frozen=True)
class AddRequest:
    """What the user said about what is added; `None` leaves it to the card beside it.

    `task_dir` is a task's folder, or a folder with one for each adapter, under the adapter's folder name or task id.
    """

    describe: str | None = None
    name: str | None = None
    base: str | None = None
    task_dir: Path | None = None
    drop_heads: bool = False
    restore: bool = False
    card: Card | None = None


@dataclass
class Added:
    """What became of one fine-tune."""

    name: str
    status: str
    id: str | None = None
    neighbours: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: dict[str, str] | None = None
    path: str = ""
    gradient: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def add_paths(
    paths: Sequence[Path],
    request: AddRequest,
    *,
    registry: Registry | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Added]:
    """Add every fine-tune under the paths. A refused one does not keep the others out.

    Raises:
        ComgradError: one name or description was given for several fine-tunes.
        NotFound: the folder of examples is not there.
        StorageError: the registry cannot be opened. One that stops taking vectors on the way ends the list.
    """
    results: list[Added] = []
    found: list[Path] = []
    for path in paths:
        try:
            found += fine_tunes(path, request)
        except NotFound as error:
            results.append(_refusal(request.name or path.name, path, error))
    if len(found) > 1 and (request.name or request.describe):
        raise ComgradError(
            f"one name or description for {len(found)} fine-tunes",
            "each needs its own",
            "add them one by one, or put a task_card.json into each folder",
            code="ambiguous-card",
        )
    if request.task_dir is not None and not request.task_dir.is_dir():
        raise NotFound(f"'{request.task_dir}'", "there is no such folder of examples", "check the spelling")
    registry = registry or Registry()
    maker = GradientMaker()
    for done, path in enumerate(found, 1):
        try:
            results.append(add_one(registry, path, request, neighbours=False, maker=maker))
        except ComgradError as error:
            results.append(_refusal(request.name or path.name, path, error))
            if isinstance(error, StorageError):
                break  # the next one would meet the same disk; what was acknowledged is reported
        if progress:
            progress(done, len(found))
    _describe_surroundings(registry, results)
    return results


def _refusal(name: str, path: Path, error: ComgradError) -> Added:
    return Added(name, "refused", error=error.as_dict(), path=str(path))


def fine_tunes(path: Path, request: AddRequest) -> list[Path]:
    """What a path given to `add` means: itself, or the adapter folders directly in it.

    Raises:
        NotFound: nothing at the path, or an empty folder.
    """
    if not path.exists():
        raise NotFound(f"'{path}'", "there is nothing at that path", "check the spelling")
    if request.base is not None or not path.is_dir() or _is_fine_tune(path):
        return [path]
    inside = sorted(p for p in path.iterdir() if p.is_dir() and _is_fine_tune(p))
    if inside:
        return inside
    if not any(path.iterdir()):
        raise NotFound(
            f"'{path}'",
            "the folder is empty",
            "give an adapter's folder, with adapter_config.json and adapter_model.safetensors",
            code="empty-directory",
        )
    return [path]  # the reader says what is missing


def _is_fine_tune(path: Path) -> bool:
    return any((path / n).exists() for n in ("adapter_config.json", "adapter_model.safetensors", "vector.safetensors"))


def add_one(
    registry: Registry,
    path: Path,
    request: AddRequest,
    *,
    neighbours: bool = True,
    maker: GradientMaker | None = None,
) -> Added:
    """Add one fine-tune, and its task's gradient where there are examples or a file of it.

    Args:
        maker: keeps the base model open from one call to the next.

    Raises:
        ComgradError: it is refused; nothing is stored. A gradient that cannot be had is a warning.
    """
    card, task_folder = _card(path, request)
    vector = read_vector(path, base=request.base or _trained_on(path, card), drop_heads=request.drop_heads)
    if request.base is None:  # a base the user named wins
        _check_claimed_base(path, card, vector)
    name = request.name or card.task_id or card.name or path.resolve().name
    result = store_vector(registry, vector, card, name, what=f"'{path}'", restore=request.restore)
    record = result.record
    assert record is not None  # only add_many returns refusals as values
    warnings = list(vector.warnings)
    if result.status == "added":
        warnings += _card_warnings(card, vector)
    elif (card.description and record.description != card.description) or name != record.name:
        warnings.append(f"the same vector is known as '{record.name}'; its name and description were kept")
    added = Added(record.name, result.status, record.id, warnings=warnings, path=str(path))
    _add_gradient(registry, added, vector, request, task_folder, maker or GradientMaker())
    if neighbours:
        _describe_surroundings(registry, [added])
    return added


def store_vector(
    registry: Registry, vector: TaskVector, card: Card, name: str, *, what: str, restore: bool = False,
    before: Callable[[str], object] = len,
) -> AddResult:  # fmt: skip
    """Put a vector that was read and checked into the registry, in canonical bytes, whose SHA-256 `before` is told
    before anything is stored: what it raises ends it.

    Raises:
        ComgradError: (`all-zero`) it is zero; or as `Store.add`. Nothing is stored.
    """
    with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
        blob = Path(folder) / "vector.safetensors"
        digest = vector.save(blob)
        facts = Facts(base=vector.base, kind=vector.kind, rank=vector.rank, norm=vector.norm())
        if facts.norm == 0.0:
            raise ComgradError(
                what, "its task vector is zero: the fine-tune equals its base", "check the file", code="all-zero"
            )
        before(digest)
        return registry.store.add(NewEntry(blob=blob, card=card, facts=facts, name=name), restore=restore)


def _trained_on(path: Path, card: Card) -> str | None:
    """The card's base, for checkpoints whose folder names none. Adapters name theirs in adapter_config.json."""
    return card.base_model or None if not _is_fine_tune(path) else None


def _card(path: Path, request: AddRequest) -> tuple[Card, Path | None]:
    """The card, and the folder of the task's examples.

    The card is the given one, the task folder's where one was named, that beside the weights, the one of the task found
    in a folder of tasks, or empty; the user's words come first.
    """
    given, own = request.task_dir, path if path.is_dir() else path.parent
    one = given if given is not None and (given / CARD_FILE).exists() else None
    places = [own] if one is None else [one, own]
    card = request.card or next((Card.from_file(p / CARD_FILE) for p in places if _has_card(p)), None)
    if one is None and given is not None:
        names = dict.fromkeys(n for n in (path.resolve().name, card.task_id if card else "") if n and "/" not in n)
        one = next((given / n for n in names if _has_card(given / n)), None)
        if card is None and one is not None:
            card = Card.from_file(one / CARD_FILE)
    card = card or Card.from_dict({})
    changes = {"description": request.describe, "name": request.name}
    return card.model_copy(update={k: v for k, v in changes.items() if v is not None}), one


def _has_card(folder: Path) -> bool:
    return (folder / CARD_FILE).exists()


def _add_gradient(
    registry: Registry,
    added: Added,
    vector: TaskVector,
    request: AddRequest,
    task_folder: Path | None,
    maker: GradientMaker,
) -> None:
    """Attach the gradient; the vector stays whatever comes of it."""
    path, store = Path(added.path), registry.store
    assert added.id is not None
    try:
        if task_folder is not None:
            from comgrad.describe.task import load_task

            base = resolve_base(request.base) if request.base is not None else None
            added.gradient = attach_computed(store, added.id, vector, load_task(task_folder), maker, base)
            return
        if request.task_dir is not None:
            added.warnings.append(f"no gradient: '{request.task_dir}' holds no task of that name")
        if path.is_dir():
            added.gradient = attach_file(store, added.id, vector, path)
    except StorageError:
        raise
    except ComgradError as error:
        added.warnings.append(f"no gradient: {error}")


def _check_claimed_base(path: Path, card: Card, vector: TaskVector) -> None:
    """Refuse a card that names another base than the weights' own configuration: one of the two is wrong."""
    claimed, found = (name.rsplit("/", 1)[-1].casefold() for name in (card.base_model, vector.base.name))
    if card.base_model and claimed != found:
        raise BaseMismatch(
            f"'{path}'",
            f"its configuration names the base '{vector.base.name}' and its card names '{card.base_model}'",
            "correct the one that is wrong, or name the base with --base",
            code="base-contradiction",
        )


def _card_warnings(card: Card, vector: TaskVector) -> list[str]:
    out = []
    if not card.description.strip():
        out.append("no description: it cannot be found or used for suggestions; add one with --describe")
    if vector.kind == "lowrank" and (card.training is None or card.training.a_seed is None):
        out.append("the seed of its A factors is unknown: cosines with vectors of another seed mostly measure the seed")
    return out


def _describe_surroundings(registry: Registry, results: list[Added]) -> None:
    """Neighbours and warnings; another vector's damage is no reason to call a stored one refused."""
    try:
        _look_around(registry, results)
    except ComgradError as error:
        for r in results:
            if r.id is not None:
                r.warnings.append(f"its neighbours are not known: {error}")


def _look_around(registry: Registry, results: list[Added]) -> None:
    """Neighbours and near-duplicates of what is in the registry now, one Gram matrix per base."""
    wanted = {r.id for r in results if r.id is not None}
    for entries in by_base(registry.list()):
        if len(entries) < 2 or not wanted & {e.id for e in entries}:
            continue
        atlas = Collection.build([member(e) for e in entries], cache=registry.store.cache_dir)
        place = {identity: i for i, identity in enumerate(atlas.ids)}
        cosine = atlas.cosine()
        for r in results:
            if r.id not in place:
                continue
            i = place[r.id]
            r.neighbours = [{"id": m.id, "name": m.name, "cosine": c} for m, c in atlas.neighbours(i)]
            twins = [atlas.members[j].name for j in range(len(place)) if j != i and cosine[i, j] > DUPLICATE]
            if twins:
                r.warnings.append(f"nearly the same vector as '{twins[0]}': derived from it, or a copy of it")
