"""The descriptions a query is asked with: the card's own, and controls that take its meaning away."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from comgrad.workflows.bench.corpus import Corpus, Item

VARIANTS = {
    "given": "the card's description",
    "short": "the task's name, as a user would write it",
    "no-label-words": "the card's description without the words of the label names",
    "shuffled": "the description of a task of another family",
    "random": "random letters, as many as the description has",
    "empty": "nothing",
}


def texts(corpus: Corpus, variant: str, seed: int) -> dict[str, str]:
    """Task's id → the text it is asked with, for every task with examples; a task's text does not depend on which other
    tasks are tested in a run."""
    items = corpus.tested
    if variant == "shuffled":
        return dict(zip((i.id for i in items), shuffled(items, seed), strict=True))
    made: dict[str, Callable[[Item], str]] = {
        "given": lambda item: item.description,
        "short": lambda item: item.name,
        "no-label-words": without_label_words,
        "random": lambda item: random_letters(item, seed),
        "empty": lambda _: "",
    }
    return {item.id: made[variant](item) for item in items}


def without_label_words(item: Item) -> str:
    """The description with every word that occurs in a label's name taken out; whatever its case or plural s."""
    labels = {_stem(w) for name in item.label_names for w in re.findall(r"\w+", name)}
    kept = [w for w in re.split(r"(\w+)", item.description) if not (w.strip() and _stem(w) in labels)]
    return re.sub(r"\s+", " ", "".join(kept)).strip()


def _stem(word: str) -> str:
    low = word.lower()
    return low[:-1] if len(low) > 3 and low.endswith("s") else low


def random_letters(item: Item, seed: int) -> str:
    """Letters drawn at random in words of the description's lengths."""
    key = int.from_bytes(hashlib.sha256(item.id.encode()).digest()[:4], "big")
    rng = np.random.default_rng([seed, key])
    return " ".join("".join(rng.choice(list(string.ascii_lowercase), len(w))) for w in item.description.split())


def shuffled(items: Sequence[Item], seed: int) -> list[str]:
    """Every task's description given to one other task, of another family and source wherever that is possible."""
    cost = np.random.default_rng([seed, 1]).random((len(items), len(items)))
    for i, a in enumerate(items):
        for j, b in enumerate(items):
            cost[i, j] += 10.0 * (a.family == b.family) + 100.0 * (a.source_group == b.source_group) + 1000.0 * (i == j)
    return [items[j].description for j in linear_sum_assignment(cost)[1]]
