"""What is computed once per task: its first-order picture on training examples, and test losses of base and own vector."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from comgrad.describe.task import Example
from comgrad.evaluate.tangent import Tangent, tangent
from comgrad.weights.derived import read_arrays, write_arrays
from comgrad.workflows.bench.corpus import Corpus, Item
from comgrad.workflows.bench.model import Model

VERSION = 1
_KEYS = {"z0", "phi", "labels", "loss0", "right0", "loss_own", "right_own"}


@dataclass(frozen=True)
class Sizes:
    """How many examples are looked at, and the seed they are drawn with."""

    test: int = 150
    train: int = 160
    seed: int = 0


LEADING = 7  # classes differentiated for each text, where there are many


@dataclass(frozen=True)
class Prepared:
    """One task's numbers.

    Args:
        tangent: on the training examples, along all known vectors.
        loss0, right0: of every test example at θ₀. loss_own, right_own: with the task's own vector; empty where there
            is none.
    """

    tangent: Tangent
    loss0: Float[np.ndarray, "t"]
    right0: Bool[np.ndarray, "t"]
    loss_own: Float[np.ndarray, "t"]
    right_own: Bool[np.ndarray, "t"]

    @property
    def gap(self) -> float:
        """L(θ₀) − L(θ₀ + τ) on the test examples, nats; NaN without an own vector."""
        return float((self.loss0 - self.loss_own).mean()) if len(self.loss_own) else float("nan")

    @property
    def gap_error(self) -> float:
        """Standard error of the gap."""
        n = len(self.loss_own)
        return float((self.loss0 - self.loss_own).std(ddof=1) / n**0.5) if n > 1 else float("nan")


def chosen(item: Item, split: str, sizes: Sizes) -> tuple[Example, ...]:
    """The examples of a split that are looked at: the first of an order that depends on the seed and the task alone.

    Training examples whose text is among all test texts are passed over.
    """
    examples = item.task.split(split)
    if split == "train":
        tested = {e.text for e in item.task.examples if e.split == "test"}
        examples = tuple(e for e in examples if e.text not in tested) or examples
    key = int.from_bytes(hashlib.sha256(f"{item.id} {split}".encode()).digest()[:4], "big")
    order = np.random.default_rng([sizes.seed, key]).permutation(len(examples))
    most = sizes.train if split == "train" else sizes.test
    return tuple(examples[i] for i in order[:most])


def key_of(corpus: Corpus, item: Item, sizes: Sizes) -> str:
    """Digest of all that a task's numbers depend on."""
    parts = (
        str(VERSION),
        item.digest,
        corpus.digests["vectors"],
        corpus.base.fingerprint.root,
        repr(sizes),
        str(LEADING),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def file_of(folder: Path, corpus: Corpus, item: Item, sizes: Sizes) -> Path:
    """Where a task's numbers are kept."""
    return folder / "tasks" / f"{item.id}-{key_of(corpus, item, sizes)}.npz"


def prepare(model: Model, item: Item, sizes: Sizes, path: Path) -> Prepared:
    """Compute a task's numbers and keep them."""
    there = load(path)
    if there is not None:
        return there
    train, test = chosen(item, "train", sizes), chosen(item, "test", sizes)
    corpus = model.corpus
    found = tangent(model.bench, item.task, train, corpus.vectors, leading=LEADING, fast=True, encoder=model.encoder)
    texts = model.texts(item, test)
    loss0, right0 = model.losses(texts)
    loss_own, right_own = np.zeros(0), np.zeros(0, dtype=bool)
    own = corpus.place(item)
    if own is not None:
        with model.at(np.eye(len(corpus.known))[own]):
            loss_own, right_own = model.losses(texts)
    made = Prepared(found, loss0, right0, loss_own, right_own)
    write_arrays(
        path,
        z0=found.z0,
        phi=found.phi,
        labels=found.labels,
        loss0=loss0,
        right0=right0,
        loss_own=loss_own,
        right_own=right_own,
    )
    return made


def load(path: Path) -> Prepared | None:
    """A task's numbers as kept, or None."""
    data = read_arrays(path)
    if data is None or set(data) != _KEYS:
        return None
    return Prepared(
        Tangent(data["z0"], data["phi"], data["labels"]),
        data["loss0"],
        data["right0"],
        data["loss_own"],
        data["right_own"],
    )


def restricted(found: Tangent, columns: Sequence[int] | Int[np.ndarray, "k"], n: int | None = None) -> Tangent:
    """The first n examples, along some of the vectors."""
    at = np.asarray(columns, dtype=int)
    return Tangent(found.z0[:n], found.phi[:n][:, :, at], found.labels[:n])
