"""A task's gradient at the base: computed from its examples, kept beside the vector, carried in an adapter's folder."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from comgrad.errors import BaseMismatch, ComgradError, FileRefused, NotFound, ShapeMismatch
from comgrad.registry.gradients import GradientEntry, GradientFacts
from comgrad.types import BaseRef
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import BaseModel, resolve_base
from comgrad.weights.layouts import layout_of
from comgrad.weights.storage import atomic_write_bytes
from comgrad.weights.strict_json import read_json

if TYPE_CHECKING:
    from torch import nn

    from comgrad.describe.task import Example, Task
    from comgrad.evaluate.classifier import Bench
    from comgrad.evaluate.tangent import TaskGradient
    from comgrad.registry.store import Store

GRADIENT_FILE = "task_gradient.safetensors"
FACTS_FILE = "task_gradient.json"
MOST_EXAMPLES = 160
RANK = 16
ROLES = frozenset("qkvo")


@dataclass(frozen=True)
class Gradient:
    """A gradient in memory, and how it was made."""

    vector: TaskVector
    facts: GradientFacts


# -- computing ---------------------------------------------------------------------------------------------------------
class GradientMaker:
    """Computes gradients; the base model stays open from one to the next."""

    def __init__(self) -> None:
        self._open: tuple[Path, Bench, nn.Module] | None = None

    def make(self, vector: TaskVector, task: Task, base: BaseModel | None = None) -> Gradient:
        """The gradient of the task's loss at the vector's base, for the matrices that the vector changes and for the
        attention's projections, which other vectors are likely to change; from at most 160 training examples.

        Args:
            base: the vector's base; default: looked for by its name.

        Raises:
            NotFound: the base is not on this machine. BaseMismatch: another base goes by that name here.
            ComgradError: (`no-prompt-head`) the base is no text encoder; (`empty-split`) no training examples.
        """
        from comgrad.evaluate.tangent import compressed_gradient

        examples = chosen(task)
        bench, encoder = self.bench(vector, base)
        names = _names(vector, {n: tuple(p.shape) for n, p in encoder.named_parameters()})
        found = compressed_gradient(bench, task, examples, names=names, rank=RANK, encoder=encoder)
        return described(found, task, examples)

    def bench(self, vector: TaskVector, base: BaseModel | None = None) -> tuple[Bench, nn.Module]:
        """The vector's base, opened as a text encoder. Raises as `make`."""
        from comgrad.evaluate.causal import is_causal
        from comgrad.evaluate.classifier import Bench
        from comgrad.evaluate.images import is_open_clip

        base = base or resolve_base(vector.base.name)
        if self._open is None or self._open[0] != base.path:
            try:
                if is_open_clip(base.path):
                    raise _no_head(base.name, "it is a model of open_clip, whose image tower is trained")
                if is_causal(base.path):
                    raise _no_head(base.name, "it is a causal language model, which answers in words")
                bench = Bench.open(base)
                self._open = (base.path, bench, bench.encoder())
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise _no_head(base.name, f"it cannot be opened as a text encoder ({error})") from error
        _, bench, encoder = self._open
        vector.base.joined(bench.base.ref, what="the vector and the base on this machine")
        return bench, encoder


def _no_head(name: str, why: str) -> ComgradError:
    return ComgradError(
        f"base model '{name}'",
        why,
        "gradients are computed for classifiers with prompts as their head over a text encoder; leave --examples out",
        code="no-prompt-head",
    )


def _names(vector: TaskVector, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    own = {n for n in vector.tensors if len(shapes.get(n, ())) == 2}
    if not own:
        raise ShapeMismatch(
            "the vector's tensors", "none of them is a matrix of the base's text encoder", "name its base with --base"
        )
    layout = layout_of(shapes)
    roles = {n: layout.role(n) for n in shapes} if layout else {}
    attention = {n for n, r in roles.items() if r.kind == "weight" and set(r.roles) <= ROLES and len(shapes[n]) == 2}
    return sorted(own | attention)


def chosen(task: Task) -> list[Example]:
    """At most 160 training examples, always the same ones. Raises ComgradError (`empty-split`, `one-label`)."""
    examples = task.split("train")
    order = np.random.default_rng(0).permutation(len(examples))
    return two_labels([examples[i] for i in order[:MOST_EXAMPLES]])


def two_labels(examples: list[Example]) -> list[Example]:
    """The examples, of at least two labels. Raises ComgradError (`one-label`)."""
    if len({e.label for e in examples}) < 2:
        raise ComgradError(
            f"{len(examples)} examples of one label",
            "what makes them all the same says nothing about the task",
            "give examples of at least two labels",
            code="one-label",
        )
    return examples


def described(found: TaskGradient, task: Task, examples: Sequence[Example]) -> Gradient:
    """A computed gradient with its facts."""
    facts = GradientFacts(
        examples=len(examples),
        loss=found.score.loss,
        accuracy=found.score.accuracy,
        rank=found.rank,
        energy_kept=found.energy_kept,
        prompts=_digest(list(task.label_prompts)),
        base=found.vector.base,
        source=source(task, examples),
    )
    return Gradient(found.vector, facts)


def source(task: Task, examples: Sequence[Example]) -> str:
    """SHA-256 of all that a gradient is computed from, the base apart."""
    return _digest([list(task.label_prompts), [[e.text, e.label] for e in examples]])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()


# -- attaching ---------------------------------------------------------------------------------------------------------
def attach(store: Store, identity: str, gradient: Gradient) -> str:
    """Attach a gradient to a vector; `attached`, `exists` or `replaced`. Raises as `Store.attach_gradient`."""
    with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
        blob = Path(folder) / GRADIENT_FILE
        gradient.vector.save(blob)
        return store.attach_gradient(identity, GradientEntry(blob, gradient.facts)).status


def attach_computed(
    store: Store, identity: str, vector: TaskVector, task: Task, maker: GradientMaker, base: BaseModel | None = None
) -> dict[str, Any]:
    """Compute a task's gradient and attach it; one made of the same examples is there already is kept.

    Returns:
        for JSON output: examples, energy_kept, loss, seconds.

    Raises:
        ComgradError: as `GradientMaker.make` and `attach`.
    """
    began = time.perf_counter()
    known = store.gradients([identity]).get(identity)
    same = known is not None and known.damage is None and known.facts.rank == RANK
    if known is not None and same and known.facts.source == source(task, chosen(task)):
        facts = known.facts
    else:
        gradient = maker.make(vector, task, base)
        attach(store, identity, gradient)
        facts = gradient.facts
    return _item(facts, time.perf_counter() - began)


def attach_file(store: Store, identity: str, vector: TaskVector, folder: Path) -> dict[str, Any] | None:
    """Attach the gradient that a folder carries; None when it carries none. Raises as `read_gradient_file`."""
    began = time.perf_counter()
    gradient = read_gradient_file(folder)
    if gradient is None:
        return None
    vector.base.joined(gradient.vector.base, what="the vector and the gradient beside it")
    _check_shapes(gradient.vector, vector, folder)
    _check_fingerprint(store, gradient.vector.base)
    attach(store, identity, gradient)
    return _item(gradient.facts, time.perf_counter() - began)


def _check_shapes(gradient: TaskVector, vector: TaskVector, folder: Path) -> None:
    """Raises ShapeMismatch where the two have a tensor in different shapes."""
    for name in gradient.tensors.keys() & vector.tensors.keys():
        g, d = gradient.tensors[name], vector.tensors[name]
        if (g.shape, g.transposed) != (d.shape, d.transposed):
            raise ShapeMismatch(
                f"'{folder / GRADIENT_FILE}' with '{name}' of shape {tuple(g.shape)}",
                f"the vector beside it has that tensor with shape {tuple(d.shape)}",
                "compute the gradient again with --examples",
            )


def _check_fingerprint(store: Store, base: BaseRef) -> None:
    """Raises BaseMismatch where the registry knows that base's name by another fingerprint only."""
    seen = {r.facts.base.fingerprint for r in store.list() if r.facts.base.name == base.name}
    seen |= {g.facts.base.fingerprint for g in store.gradients().values() if g.facts.base.name == base.name}
    seen.discard(None)
    if base.fingerprint and seen and base.fingerprint not in seen:
        raise BaseMismatch(
            f"a gradient at the base {base.label}",
            "the registry knows another base of that name",
            "compute it again with --examples and the base at hand",
        )


def _item(facts: GradientFacts, seconds: float) -> dict[str, Any]:
    return {
        "examples": facts.examples,
        "energy_kept": facts.energy_kept,
        "loss": facts.loss,
        "seconds": round(seconds, 3),
    }


# -- in a folder -------------------------------------------------------------------------------------------------------
def write_gradient_file(folder: Path, gradient: Gradient) -> Path:
    """Put a gradient beside an adapter: `task_gradient.safetensors`, and `task_gradient.json` with its facts."""
    digest = gradient.vector.save(folder / GRADIENT_FILE)
    facts = {"schema": 1, "digest": digest, **gradient.facts.as_dict()}
    atomic_write_bytes(folder / FACTS_FILE, json.dumps(facts, indent=1).encode() + b"\n")
    return folder / GRADIENT_FILE


def read_gradient_file(folder: Path) -> Gradient | None:
    """The gradient that a folder carries; None when it carries none.

    Raises:
        FileRefused: the file breaks the strict profile, is not the one its facts describe, or is empty of energy.
        NotFound: its facts are missing. BaseMismatch: the facts name another base.
    """
    path, facts_path = folder / GRADIENT_FILE, folder / FACTS_FILE
    if not path.exists():
        return None
    if not facts_path.exists():
        raise NotFound(f"'{facts_path}'", f"a {GRADIENT_FILE} is described by it", "write both with comgrad")
    data = read_json(facts_path)
    vector = TaskVector.load(path)  # strict: layout, dtypes, and every number finite
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if data.get("digest") != digest:
        raise FileRefused(
            f"'{path}'",
            f"its bytes are not those that {FACTS_FILE} describes",
            "write both again",
            code="digest-mismatch",
        )
    facts = GradientFacts.from_dict(data)
    vector.base.joined(facts.base, what="a gradient and its facts")
    size = vector.norm()
    if not 0.0 < size < math.inf:
        raise FileRefused(f"'{path}'", f"its norm is {size}", "compute it again", code="all-zero")
    return Gradient(vector, facts)
