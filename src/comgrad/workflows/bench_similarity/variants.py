"""Further vectors of the zoo's tasks, each trained as the zoo's were but for one thing: the hard cases of identification.

| kind | what is other than in the zoo |
|---|---|
| `same-recipe` | nothing but the order of the data (the control) |
| `rank-4`, `rank-16` | the rank, at the same α/r |
| `learning-rate-tenth` | a tenth of the learning rate |
| `data-tenth` | a tenth of the training examples, for as many steps |
| `attention-linear` | the same attention weights trained themselves, with that recipe's own loop: a dense vector |
| `other-subsample` | texts of the same source that the zoo's training never saw: the task's test split |
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from comgrad.describe.task import Example
from comgrad.errors import ComgradError, NotFound
from comgrad.evaluate.digests import digest_of
from comgrad.finetune.recipes import recipe_named
from comgrad.weights.storage import atomic_directory, atomic_write_bytes
from comgrad.workflows.bench.corpus import Corpus, Item, file_digest, open_corpus
from comgrad.workflows.training import TrainRequest, train
from comgrad.workflows.training_start import A_SEED, CARD_FILE

KINDS: dict[str, dict[str, Any]] = {
    "same-recipe": {},
    "rank-4": {"rank": 4},
    "rank-16": {"rank": 16},
    "learning-rate-tenth": {"rate": 0.1},
    "data-tenth": {"data": 0.1},
    "attention-linear": {"recipe": "attention-linear"},
    "other-subsample": {"swap": True},
}
MADE = ".made"  # beside the kinds: what each was made from
LOOKED_AT = 100  # examples for the losses on the card; no figure of the study uses them


@dataclass(frozen=True)
class VariantsRequest:
    """What to train.

    Args:
        variants: where to write `<kind>/<task id>/`.
        data: folder with tasks/, zoo/ and perhaps zoo_seeds/; default: what is shipped.
        tasks: default: those with second runs.
        kinds: of `KINDS`.
        steps: of every training; default: what the zoo's card says.
        seed: of the order of the data; not the zoo's, or the control would be the zoo's own vector.
    """

    variants: Path
    data: Path | None = None
    tasks: tuple[str, ...] = ()
    kinds: tuple[str, ...] = tuple(KINDS)
    steps: int | None = None
    seed: int = 1


def make_variants(
    request: VariantsRequest, progress: Callable[[int, int], None] = lambda _d, _t: None
) -> list[dict[str, Any]]:
    """Train what is missing; stopped at any time, the same request goes on from the last checkpoint.

    Args:
        progress: called after every vector with (done, all).

    Returns:
        kind, task and path of every vector, and its losses where it was trained now.

    Raises:
        ComgradError: an unknown kind or task, a folder with a vector that was made otherwise, or as `training.train`.
    """
    corpus = open_corpus(request.data)
    wanted = [(kind, item) for item in _items(request, corpus) for kind in _kinds(request)]
    out = []
    for done, (kind, item) in enumerate(wanted, 1):
        out.append({"kind": kind, "task": item.id} | _one(request, corpus, kind, item))
        progress(done, len(wanted))
    return out


def _kinds(request: VariantsRequest) -> tuple[str, ...]:
    for kind in request.kinds:
        if kind not in KINDS:
            raise ComgradError(
                f"the kind '{kind}'",
                "there is none of that name",
                f"use some of: {', '.join(KINDS)}",
                code="bad-options",
            )
    return request.kinds


def _items(request: VariantsRequest, corpus: Corpus) -> list[Item]:
    names = request.tasks or sorted({t for runs in corpus.second_runs.values() for t in runs})
    if not names:
        raise NotFound("tasks to train", "the data has no second runs to take them from", "name some with --tasks")
    found = [corpus.get(name) for name in names]
    for item in found:
        if item.adapter is None:
            raise NotFound(f"an adapter of the task '{item.id}'", "its recipe is not known", "choose other tasks")
    return found


def _one(request: VariantsRequest, corpus: Corpus, kind: str, item: Item) -> dict[str, Any]:
    out = request.variants / kind / item.id
    asked = training_of(request, corpus, kind, item)
    key = digest_of([KINDS[kind], item.digest, file_digest(item.adapter).hex(), *_plain(asked)])
    note = request.variants / MADE / f"{kind}--{item.id}.json"
    known = json.loads(note.read_bytes()) if note.is_file() else None
    if known is not None and known["key"] != key:
        raise ComgradError(
            f"'{out}'",
            "it was made from other data or with another recipe",
            "remove the folder with the variants, or choose another",
            code="made-otherwise",
        )
    if (out / CARD_FILE).is_file():
        return {"path": str(out)}
    for folder in (out.parent, note.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if known is None:
        atomic_write_bytes(note, (json.dumps({"key": key}) + "\n").encode())
    done = train(replace(asked, task_dir=_task_folder(request, kind, item)), out)
    return {"path": str(out), "loss_before": done.loss_before, "loss_after": done.loss_after, "seconds": done.seconds}


def training_of(request: VariantsRequest, corpus: Corpus, kind: str, item: Item) -> TrainRequest:
    """The zoo's own training of the task, but for what the kind changes; the task's folder is filled in later.

    Raises:
        ComgradError: (`recipe-unknown`) the zoo's card does not say how the vector was trained, or says another A seed.
    """
    change, zoo = KINDS[kind], _recipe_of_zoo(item)
    recipe = recipe_named(change.get("recipe", "lora"))
    steps = request.steps or int(zoo["steps"])
    asked = TrainRequest(
        task_dir=Path(), recipe=recipe.name, base=corpus.base.name, steps=steps, seed=request.seed, gradient=False
    )
    asked = replace(asked, batch_size=int(zoo["batch_size"]))
    if recipe.kind == "dense":
        return replace(asked, warmup_steps=min(recipe.spec.warmup_steps, max(0, steps - 1)))
    train_examples = sum(e.split == "train" for e in item.task.examples)
    limit = max(2 * len(item.label_names), round(change["data"] * train_examples)) if "data" in change else None
    return replace(
        asked,
        learning_rate=float(zoo["learning_rate"]) * change.get("rate", 1.0),
        rank=int(change.get("rank", zoo["rank"])),
        limit_examples=None if limit is None else min(limit, train_examples),
    )


def _recipe_of_zoo(item: Item) -> dict[str, Any]:
    assert item.adapter is not None
    card = item.adapter / CARD_FILE
    found = json.loads(card.read_bytes()).get("training") if card.is_file() else None
    missing = [k for k in ("steps", "batch_size", "learning_rate", "rank") if k not in (found or {})]
    if found is None or missing or found.get("a_seed", A_SEED) != A_SEED:
        raise ComgradError(
            f"the card of '{item.id}'",
            f"it does not say its {', '.join(missing)}" if missing else "its A factors started from another seed",
            "choose tasks whose vectors were trained by this program's recipe",
            code="recipe-unknown",
        )
    return dict(found)


def _plain(asked: TrainRequest) -> list[Any]:
    parts = asdict(asked)
    return [[k, str(v)] for k, v in sorted(parts.items()) if k != "task_dir"]


# -- the task as a training sees it ------------------------------------------------------------------------------------
def _task_folder(request: VariantsRequest, kind: str, item: Item) -> Path:
    swap = bool(KINDS[kind].get("swap"))
    parts = swapped(item.task.examples) if swap else as_given(item.task.examples)
    name = f"{item.id}-{'swapped-' if swap else ''}{item.digest[:16]}"
    folder = request.variants / MADE / "tasks" / name
    if not folder.is_dir():
        card = {
            "name": item.name,
            "description": item.description,
            "label_names": list(item.label_names),
            "label_prompts": list(item.label_prompts),
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(folder, replace=True) as there:
            atomic_write_bytes(there / CARD_FILE, json.dumps(card, ensure_ascii=False, indent=1).encode())
            rows = [json.dumps({"text": e.text, "label": e.label, "split": e.split}, ensure_ascii=False) for e in parts]
            atomic_write_bytes(there / "examples.jsonl", "".join(r + "\n" for r in rows).encode())
    return folder


def as_given(examples: tuple[Example, ...]) -> list[Example]:
    """The training split, and some of the test split to look at."""
    held = [e for e in examples if e.split == "test"]
    own = [e for e in examples if e.split == "train"]
    return own + random.Random(0).sample(held, min(LOOKED_AT, len(held)))


def swapped(examples: tuple[Example, ...]) -> list[Example]:
    """The test split to train on, without texts that are in the training split, and some of that to look at."""
    own = [e for e in examples if e.split == "train"]
    texts = {e.text for e in own}
    fresh = [replace(e, split="train") for e in examples if e.split == "test" and e.text not in texts]
    looked = random.Random(0).sample(own, min(LOOKED_AT, len(own)))
    return fresh + [replace(e, split="test") for e in looked]
