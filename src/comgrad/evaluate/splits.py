"""Train, validation and test parts of a task, disjoint by content, and a guard that finds texts in more than one of them.

Two texts are one when they are equal after Unicode NFKC, case folding and the collapse of white space. A text belongs to
the test part before the validation part before the training part: what is measured on is never what was learned from.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from comgrad.describe.task import Example, Task
from comgrad.errors import ComgradError

VALIDATION_SHARE = 0.1
MOST_VALIDATION = 5000
SPLITS = ("test", "validation", "train")  # a text stays in the first of these that has it


class LeakFound(ComgradError):
    """A text is in two parts of a task."""

    default_code = "leak-found"


def content(text: str) -> str:
    """SHA-256 of the text after NFKC, case folding and the collapse of white space."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class ThreeWay:
    """The three parts of a task, with no text in common.

    Args:
        dropped: `train in test` → training examples left out because their text is in the test part.
        seed: decides which training texts are held out.
    """

    task: Task
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    dropped: Mapping[str, int]
    seed: int

    def as_task(self) -> Task:
        """The task with these examples, in splits `train`, `validation` and `test`."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return replace(self.task, examples=tuple(replace(e, split=s) for s, p in parts.items() for e in p))

    def for_training(self) -> Task:
        """The task as a training run may see it: the validation part stands where a run looks at its test split."""
        parts = {"train": self.train, "test": self.validation}
        return replace(self.task, examples=tuple(replace(e, split=s) for s, p in parts.items() for e in p))

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.task.name,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "dropped": dict(self.dropped),
            "seed": self.seed,
        }


def three_way(task: Task, seed: int = 0, *, share: float = VALIDATION_SHARE, most: int = MOST_VALIDATION) -> ThreeWay:
    """Hold out `share` of the training examples, at most `most`, as the validation part; the test split stays as it is.

    Training examples whose text is in the test split are left out first. Texts are taken in the order of
    SHA-256(seed, text): the choice depends on the seed and the texts alone, not on their order in the file, and a text
    that two tasks share falls mostly on the same side in both. Examples with one text stay together. Splits of other
    names are not used.

    Raises:
        ComgradError: (`empty-split`) no train or no test examples, or none to hold out; (`one-label`) fewer than two
            labels left to train on; (`bad-options`) a share outside (0, 1).
    """
    if not 0.0 < share < 1.0 or most < 1:
        raise ComgradError(
            f"a validation share of {share} and at most {most}",
            "both parts need examples",
            "give a share between 0 and 1 and a positive cap",
            code="bad-options",
        )
    test = task.split("test")
    there = {content(e.text) for e in test}
    given = [(content(e.text), e) for e in task.split("train")]
    own = [(h, e) for h, e in given if h not in there]
    held = _held_out([h for h, _ in own], seed, max(1, min(int(share * len(own) + 0.5), most)))
    train = tuple(e for h, e in own if h not in held)
    validation = tuple(e for h, e in own if h in held)
    if not validation or not train:
        raise ComgradError(
            f"task '{task.name}' with {len(own)} training texts that are not in its test split",
            "they do not suffice for a training and a validation part",
            "add training examples",
            code="empty-split",
        )
    if len({e.label for e in train}) < 2:
        raise ComgradError(
            f"task '{task.name}' with one label among {len(train)} training examples",
            "there is nothing to tell apart",
            "add examples of other labels",
            code="one-label",
        )
    return ThreeWay(task, train, validation, test, {"train in test": len(given) - len(own)}, seed)


def _held_out(hashes: Sequence[str], seed: int, wanted: int) -> set[str]:
    """Whole groups of equal texts, in a seeded order, up to `wanted` examples."""
    sizes: dict[str, int] = {}
    for h in hashes:
        sizes[h] = sizes.get(h, 0) + 1
    taken: set[str] = set()
    count = 0
    for h in sorted(sizes, key=lambda h: hashlib.sha256(f"{seed}:{h}".encode()).digest()):
        if count + sizes[h] <= wanted:
            taken.add(h)
            count += sizes[h]
        if count == wanted:
            break
    return taken


# -- the guard ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Leak:
    """`examples` of `task`'s split `split` whose text is also in `other`'s split `other_split`; `sample` is one of them."""

    task: str
    split: str
    other: str
    other_split: str
    examples: int
    sample: str

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class LeakReport:
    """What the guard found, and the tasks after it: the same ones, or without the leaking examples.

    Args:
        within: between the parts of one task.
        across: training or validation examples of a task that are test texts of another.
        dropped: examples removed, task → count.
    """

    tasks: tuple[Task, ...]
    within: tuple[Leak, ...]
    across: tuple[Leak, ...]
    dropped: Mapping[str, int]

    @property
    def clean(self) -> bool:
        return not self.within and not self.across

    def as_dict(self) -> dict[str, Any]:
        return {
            "within": [x.as_dict() for x in self.within],
            "across": [x.as_dict() for x in self.across],
            "dropped": dict(self.dropped),
        }


def leak_guard(
    tasks: Sequence[Task],
    *,
    within: Literal["raise", "drop"] = "raise",
    across: Literal["report", "drop"] = "report",
) -> LeakReport:
    """Find texts that are in two parts of a task, or in the test part of one task and the training parts of another.

    Args:
        tasks: with splits `train`, `validation`, `test`, such as `ThreeWay.as_task` gives.
        within: refuse a task with such a text, or drop it from the later part (train before validation before test).
        across: only say so, or drop the text from the other task's training and validation parts.

    Raises:
        LeakFound: with `within="raise"`, the first leak, how many examples it has, and how many more leaks there are.
    """
    hashed = [[(content(e.text), e) for e in task.examples] for task in tasks]
    places = [_places(rows) for rows in hashed]
    inside: list[Leak] = []
    between: list[Leak] = []
    banned: list[set[tuple[str, str]]] = [set() for _ in tasks]  # (split, hash)
    for i, task in enumerate(tasks):
        for later, split in enumerate(SPLITS):
            for earlier in SPLITS[:later]:
                shared = places[i].get(split, set()) & places[i].get(earlier, set())
                if shared:
                    inside.append(_leak(task.name, hashed[i], split, task.name, earlier, shared))
                    if within == "drop":
                        banned[i] |= {(split, h) for h in shared}
        for j, other in enumerate(tasks):
            for split in SPLITS[1:] if i != j else ():
                shared = places[i].get(split, set()) & places[j].get("test", set())
                if shared:
                    between.append(_leak(task.name, hashed[i], split, other.name, "test", shared))
                    if across == "drop":
                        banned[i] |= {(split, h) for h in shared}
    if inside and within == "raise":
        _refuse(inside)
    kept = [
        replace(task, examples=tuple(e for h, e in rows if (e.split, h) not in no))
        for task, rows, no in zip(tasks, hashed, banned, strict=True)
    ]
    dropped = {a.name: len(a.examples) - len(b.examples) for a, b in zip(tasks, kept, strict=True)}
    return LeakReport(tuple(kept), tuple(inside), tuple(between), {k: n for k, n in dropped.items() if n})


def _places(rows: Sequence[tuple[str, Example]]) -> dict[str, set[str]]:
    out: dict[str, set[str]] = {}
    for h, e in rows:
        out.setdefault(e.split, set()).add(h)
    return out


def _leak(
    name: str, rows: Sequence[tuple[str, Example]], split: str, other: str, other_split: str, shared: set[str]
) -> Leak:
    found = [e.text for h, e in rows if e.split == split and h in shared]
    return Leak(name, split, other, other_split, len(found), found[0][:80])


def _refuse(leaks: Sequence[Leak]) -> None:
    first = leaks[0]
    more = f" (and {len(leaks) - 1} more leaks)" if len(leaks) > 1 else ""
    raise LeakFound(
        f"task '{first.task}' with {first.examples} {first.split} examples whose text is in its {first.other_split} "
        f"split, such as {first.sample!r}{more}",
        "a figure measured on texts that were learned from means nothing",
        "drop them (leak_guard with within='drop'), or divide the task with three_way",
    )
