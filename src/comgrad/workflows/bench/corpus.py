"""What a benchmark runs on: described tasks with examples, known vectors, and second runs, from a folder or the package."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from comgrad.describe.task import Example, Task, load_task
from comgrad.errors import ComgradError, NotFound
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import BaseModel, resolve_base
from comgrad.weights.strict_json import read_json

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
EXAMPLE_FILES = ("examples.jsonl", "examples.jsonl.gz")


@dataclass(frozen=True)
class Item:
    """One task: its card, its examples where there are any, its trained adapter where there is one.

    Args:
        examples: the file of labelled texts.
        folder: the task directory, where the examples lie in one.
        adapter: the adapter trained on this very task.
    """

    id: str
    name: str
    description: str
    family: str
    source_group: str
    label_names: tuple[str, ...]
    label_prompts: tuple[str, ...]
    examples: Path | None = None
    folder: Path | None = None
    adapter: Path | None = None

    @cached_property
    def task(self) -> Task:
        """The task with its examples, read once.

        Raises:
            NotFound: there are none.
        """
        if self.examples is None:
            raise NotFound(f"examples of the task '{self.id}'", "it has none", "choose another task")
        if self.folder is not None:
            return load_task(self.folder)
        with gzip.open(self.examples, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
        found = tuple(Example(str(r["text"]), int(r["label"]), str(r["split"])) for r in rows)
        return Task(self.name, self.description, self.label_names, self.label_prompts, found)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the task: its card and its examples."""
        h = hashlib.sha256(_words(self.id, self.name, self.description, self.family, self.source_group))
        h.update(_words(*self.label_names, *self.label_prompts))
        if self.examples is not None:
            h.update(self.examples.read_bytes())
        return h.hexdigest()

    def vector(self) -> TaskVector:
        """Its trained vector. Raises NotFound where there is none."""
        if self.adapter is None:
            raise NotFound(f"an adapter of the task '{self.id}'", "it has none", "choose another task")
        return TaskVector.from_peft(self.adapter)


def _words(*parts: str) -> bytes:
    return json.dumps(parts, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Corpus:
    """All tasks in the order of their ids.

    Args:
        second_runs: kind of run → task's id → adapter.
    """

    items: tuple[Item, ...]
    second_runs: dict[str, dict[str, Path]] = field(default_factory=dict)

    @cached_property
    def known(self) -> tuple[Item, ...]:
        """The tasks with a vector; coefficients are in this order."""
        return tuple(i for i in self.items if i.adapter is not None)

    @cached_property
    def tested(self) -> tuple[Item, ...]:
        """The tasks with examples."""
        return tuple(i for i in self.items if i.examples is not None)

    def place(self, item: Item) -> int | None:
        """The task's own vector among the known ones."""
        return self.known.index(item) if item.adapter is not None else None

    def get(self, identity: str) -> Item:
        """The task of that id, with examples. Raises NotFound."""
        for item in self.tested:
            if item.id == identity:
                return item
        raise NotFound(
            f"the task '{identity}'", "no task with examples has that id", f"ids are like '{self.items[0].id}'"
        )

    @cached_property
    def vectors(self) -> list[TaskVector]:
        """The known vectors, read once."""
        return [i.vector() for i in self.known]

    @cached_property
    def base(self) -> BaseModel:
        """The base they all stand on."""
        return resolve_base(self.vectors[0].base.name)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the tasks and of the vectors."""
        tasks, vectors = hashlib.sha256(), hashlib.sha256()
        for item in self.items:
            tasks.update(item.digest.encode())
        for item in self.known:
            vectors.update(item.id.encode() + file_digest(item.adapter))
        for kind, runs in sorted(self.second_runs.items()):
            for name, path in sorted(runs.items()):
                vectors.update(kind.encode() + name.encode() + file_digest(path))
        return {"tasks": tasks.hexdigest(), "vectors": vectors.hexdigest()}

    def only(self, ids: Sequence[str]) -> Corpus:
        """The corpus of some of its tasks. Raises NotFound for an id it has not."""
        have = {i.id for i in self.items}
        for identity in ids:
            if identity not in have:
                raise NotFound(f"the task '{identity}'", "the corpus has no task of that id", "check the spelling")
        return Corpus(tuple(i for i in self.items if i.id in set(ids)), self.second_runs)


def file_digest(adapter: Path | None) -> bytes:
    """SHA-256 of an adapter's two files."""
    h = hashlib.sha256()
    for name in ADAPTER_FILES:
        assert adapter is not None
        h.update((adapter / name).read_bytes())
    return h.digest()


# -- reading -----------------------------------------------------------------------------------------------------------
def open_corpus(data: Path | None) -> Corpus:
    """The corpus in a folder, or the one shipped with the package.

    A folder holds `tasks/index.jsonl` with `tasks/<id>.jsonl.gz`, or task directories `tasks/<id>/`; adapters
    `zoo/<id>/`; and, if there are any, second runs `zoo_seeds/<kind>/<id>/`.

    Raises:
        NotFound: no such folder, or no tasks or adapters in it.
        ComgradError: a task's card that breaks the format.
    """
    root = _root(data)
    if not (root / "tasks").is_dir() or not (root / "zoo").is_dir():
        raise NotFound(
            f"'{root}'", "it has no folders 'tasks' and 'zoo'", "give the folder that holds both with --data"
        )
    items = _items(root)
    seeds = root / "zoo_seeds"
    kinds = sorted(p for p in seeds.iterdir() if p.is_dir()) if seeds.is_dir() else []
    runs = {k.name: {p.name: p for p in sorted(k.iterdir()) if (p / ADAPTER_FILES[0]).is_file()} for k in kinds}
    corpus = Corpus(tuple(sorted(items, key=lambda i: i.id)), runs)
    if not corpus.known or not corpus.tested:
        raise NotFound(
            f"'{root}'",
            f"it holds {len(corpus.known)} adapters and {len(corpus.tested)} tasks with examples",
            "a benchmark needs both",
        )
    return corpus


def open_tasks(data: Path | None) -> tuple[Item, ...]:
    """The tasks with examples in a folder, or those shipped, in the order of their ids; no adapters are needed.

    Raises:
        NotFound: no such folder, or no tasks with examples in it. ComgradError: a task's card that breaks the format.
    """
    root = _root(data)
    if not (root / "tasks").is_dir():
        raise NotFound(f"'{root}'", "it has no folder 'tasks'", "give the folder that holds it with --data")
    found = tuple(sorted((i for i in _items(root) if i.examples is not None), key=lambda i: i.id))
    if not found:
        raise NotFound(f"'{root}'", "none of its tasks has examples", "a benchmark needs some")
    return found


def _root(data: Path | None) -> Path:
    return Path(str(files("comgrad.starter"))) if data is None else data


def _items(root: Path) -> list[Item]:
    index = root / "tasks" / "index.jsonl"
    return _indexed(root, index) if index.is_file() else _directories(root)


def _indexed(root: Path, index: Path) -> list[Item]:
    out = []
    for number, line in enumerate(index.read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                card = json.loads(line)
                file = root / "tasks" / str(card["file"])
            except (ValueError, KeyError, TypeError) as error:
                raise ComgradError(
                    f"'{index}' line {number}", f"it is no task's card ({error})", "mend the index", code="bad-task"
                ) from error
            out.append(_item(card, str(card["task_id"]), root, examples=file if file.is_file() else None))
    return out


def _directories(root: Path) -> list[Item]:
    """Task directories, and adapters whose own card describes a task that has no directory."""
    folders = {p.name: p for p in sorted((root / "tasks").iterdir()) if (p / "task_card.json").is_file()}
    out = []
    for name, folder in folders.items():
        examples = next((folder / f for f in EXAMPLE_FILES if (folder / f).is_file()), None)
        out.append(_item(read_json(folder / "task_card.json"), name, root, examples=examples, folder=folder))
    zoo = sorted((root / "zoo").iterdir()) if (root / "zoo").is_dir() else []
    lone = [p for p in zoo if p.name not in folders and (p / "task_card.json").is_file()]
    return out + [_item(read_json(p / "task_card.json"), p.name, root) for p in lone]


def _item(
    card: dict[str, Any], identity: str, root: Path, *, examples: Path | None = None, folder: Path | None = None
) -> Item:
    adapter = root / "zoo" / identity
    try:
        return Item(
            id=identity,
            name=str(card.get("name") or identity),
            description=str(card["description"]),
            family=str(card.get("family") or ""),
            source_group=str(card.get("source_group") or identity),
            label_names=tuple(map(str, card["label_names"])),
            label_prompts=tuple(map(str, card["label_prompts"])),
            examples=examples,
            folder=folder,
            adapter=adapter if (adapter / ADAPTER_FILES[0]).is_file() else None,
        )
    except (KeyError, TypeError) as error:
        raise ComgradError(
            f"the card of the task '{identity}'", f"it is incomplete ({error})", "mend the card", code="bad-task"
        ) from error
