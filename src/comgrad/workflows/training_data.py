"""The examples of a task, divided into those to train on and those to look at."""

from __future__ import annotations

import random
from dataclasses import dataclass

from comgrad.describe.task import Example, Task
from comgrad.errors import ComgradError
from comgrad.finetune.workfolder import digest_of

HELD_BACK = 0.2  # of the training examples, where there is no test split
MOST_HELD_BACK = 1000


@dataclass(frozen=True)
class Data:
    """Examples to train on and, with no text in common, to look at.

    Args:
        where: what the latter are.
        left_out: training examples that were dropped because their text is among the latter.
    """

    train: tuple[Example, ...]
    look: tuple[Example, ...]
    where: str
    left_out: int = 0

    def digest(self, task: Task) -> str:
        """SHA-256 of everything about the task that training sees."""
        rows = [[e.text, e.label, i] for i, part in enumerate((self.train, self.look)) for e in part]
        return digest_of(
            {"description": task.description, "labels": task.label_names, "prompts": task.label_prompts, "rows": rows}
        )


def divided(task: Task, *, seed: int = 0, limit: int | None = None) -> Data:
    """The examples to train on, and those to look at: the test split, or a fifth held back from every label.

    A text to look at is never trained on: training examples whose text is in the test split are left out, and texts
    that occur twice are held back together. What is held back depends on the task alone, so that runs with
    different seeds are looked at alike.

    Raises:
        ComgradError: no examples, fewer than two labels to train on, a limit out of range.
    """
    train = task.split("train")
    look = tuple(e for e in task.examples if e.split == "test")
    where = "test"
    if not look:
        train, look = _held_back(train)
        where = "held back from train"
    seen = {e.text for e in look}
    own = tuple(e for e in train if e.text not in seen)
    left_out, train = len(train) - len(own), own
    if limit is not None:
        if limit < 1:
            raise ComgradError(
                f"--limit-examples {limit}", "training needs examples", "give a positive number", code="bad-options"
            )
        train = tuple(random.Random(seed).sample(train, min(limit, len(train))))
    present = {e.label for e in train}
    if len(present) < 2:
        only = f"only the label '{task.label_names[min(present)]}'" if present else "no label"
        raise ComgradError(
            f"task '{task.name}' with {only} among {len(train)} training examples",
            "there is nothing to tell apart",
            "add examples of other labels" if limit is None else "raise --limit-examples, or change --seed",
            code="one-label",
        )
    if not look:
        raise ComgradError(
            f"task '{task.name}' with {len(train)} training examples and no test split",
            "no label has a text to spare for the measurement",
            'add examples with "split": "test"',
            code="nothing-to-measure",
        )
    return Data(train, look, where, left_out)


def _held_back(train: tuple[Example, ...]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    owner: dict[str, int] = {}
    for e in train:
        owner.setdefault(e.text, e.label)
    texts: dict[int, list[str]] = {}
    for text in sorted(owner):
        texts.setdefault(owner[text], []).append(text)
    share = min(HELD_BACK, MOST_HELD_BACK / len(owner))
    taken: set[str] = set()
    for label, found in sorted(texts.items()):
        random.Random(label).shuffle(found)
        taken |= set(found[: max(int(len(found) * share), 1 if len(found) > 1 else 0)])
    return tuple(e for e in train if e.text not in taken), tuple(e for e in train if e.text in taken)
