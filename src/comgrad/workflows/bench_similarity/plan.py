"""What is asked for, and what it is asked of: the zoo's vectors, and further vectors of the same tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from comgrad.errors import ComgradError, NotFound
from comgrad.explain.grouping import Labels, codes
from comgrad.geometry.stack import tensor_names
from comgrad.geometry.table import MEASURES
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.layouts import layout_of
from comgrad.workflows.bench.corpus import ADAPTER_FILES, Corpus, Item, open_corpus
from comgrad.workflows.resolve import VECTOR_FILE, read_vector

ZOO = "zoo"
FEWEST = 4
NEARNESS = tuple(m.name for m in MEASURES.values() if m.higher_is_nearer is not None)
"""Measures by which one pair is nearer than another; the others describe a pair."""


@dataclass(frozen=True)
class Request:
    """What the study is asked for.

    Args:
        data: folder with tasks/, zoo/ and perhaps zoo_seeds/; default: what is shipped.
        out: folder for results and everything kept.
        variants: folder of further vectors, `<kind>/<task id>/` each an adapter or a dense vector.
        only: cut the zoo down to these tasks.
        draws: shuffles, permutations and bootstrap draws of every interval.
        seed: of every draw.
        kept: compute no table; report what the folder has.
        page: where to write the results page, its pictures beside it.
        command: what the page tells the reader to run.
    """

    out: Path
    data: Path | None = None
    variants: Path | None = None
    only: tuple[str, ...] = ()
    draws: int = 1000
    seed: int = 0
    kept: bool = False
    page: Path | None = None
    command: str = "comgrad bench similarity"

    def __post_init__(self) -> None:
        if self.draws < 20:
            raise ComgradError(
                f"{self.draws} draws", "a 95 % range needs at least 20", "ask for more", code="bad-options"
            )


@dataclass(frozen=True)
class Further:
    """One more vector of a task of the zoo."""

    kind: str
    task: str
    path: Path

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what it is read from."""
        h = hashlib.sha256()
        for name in (*ADAPTER_FILES, VECTOR_FILE):
            if (self.path / name).is_file():
                h.update(name.encode() + (self.path / name).read_bytes())
        return h.hexdigest()


@dataclass(frozen=True)
class Study:
    """The zoo and the further vectors, in the order of all tables' rows: zoo first, then by kind and task.

    Args:
        strangers: further vectors of tasks that the zoo lacks, which nothing can identify.
    """

    request: Request
    corpus: Corpus
    further: tuple[Further, ...]
    strangers: int = 0

    @classmethod
    def open(cls, request: Request) -> Study:
        """Raises NotFound, ComgradError (`too-few` vectors)."""
        corpus = open_corpus(request.data)
        corpus = corpus.only(request.only) if request.only else corpus
        if len(corpus.known) < FEWEST:
            raise ComgradError(
                f"{len(corpus.known)} vectors", f"a study needs {FEWEST} at least", "add more", code="too-few"
            )
        found = [Further(k, t, p) for k, runs in corpus.second_runs.items() for t, p in runs.items()]
        if request.variants is not None:
            found += _variants(request.variants)
        ids = {i.id for i in corpus.known}
        kept = sorted((f for f in found if f.task in ids), key=lambda f: (f.kind, f.task))
        # second runs cover the whole zoo; those of tasks that --only leaves out are no strangers
        lost = 0 if request.only else len(found) - len(kept)
        return cls(request, corpus, tuple(kept), lost)

    @property
    def zoo(self) -> tuple[Item, ...]:
        return self.corpus.known

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Of the further vectors."""
        return tuple(dict.fromkeys(f.kind for f in self.further))

    def rows(self, kind: str) -> np.ndarray:
        """Where the tables have the vectors of a kind."""
        K = len(self.zoo)
        return np.arange(K) if kind == ZOO else np.array([K + n for n, f in enumerate(self.further) if f.kind == kind])

    def right(self, kind: str) -> np.ndarray:
        """For each of those rows, the zoo vector of the same task."""
        place = {item.id: k for k, item in enumerate(self.zoo)}
        return np.array([place[f.task] for f in self.further if f.kind == kind])

    @cached_property
    def families(self) -> Labels:
        return codes([i.family or i.id for i in self.zoo])

    @cached_property
    def groups(self) -> Labels:
        """Tasks that share texts have one number."""
        return codes([i.source_group for i in self.zoo])

    @cached_property
    def vectors(self) -> list[TaskVector]:
        """All, read now. Raises ComgradError where two have another base."""
        zoo = self.corpus.vectors
        more = [read_vector(f.path, base=zoo[0].base.name) for f in self.further]
        for f, v in zip(self.further, more, strict=True):
            zoo[0].base.joined(v.base, what=f"the zoo and '{f.path}'")
        return [*zoo, *more]

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """The zoo's tensors; what further vectors change besides is left out."""
        return tensor_names(self.corpus.vectors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all vectors, in order."""
        h = hashlib.sha256(self.corpus.digests["vectors"].encode())
        for f in self.further:
            h.update(f"{f.kind}/{f.task}/{f.digest}".encode())
        return h.hexdigest()

    @cached_property
    def scopes(self) -> dict[str, tuple[int, ...]]:
        """Name → the tensors of it: `all`, each layer, each role."""
        layout = layout_of(self.tensors)
        out: dict[str, list[int]] = {"all": list(range(len(self.tensors)))}
        for t, name in enumerate(self.tensors) if layout is not None else ():
            role = layout.role(name)  # type: ignore[union-attr]
            if role.layer is not None:
                out.setdefault(f"layer {role.layer}", []).append(t)
            out.setdefault(f"role {'+'.join(role.roles)}", []).append(t)
        order = ("all", "layer", "role")
        return {k: tuple(out[k]) for k in sorted(out, key=lambda s: (order.index(s.split()[0]), _natural(s)))}


def _natural(scope: str) -> tuple[int, str]:
    last = scope.split()[-1]
    known = ("q", "k", "v", "o")
    return (int(last), "") if last.isdigit() else (known.index(last) if last in known else len(known), last)


def _variants(folder: Path) -> list[Further]:
    """What `make_variants`, or anybody, left in `<kind>/<task>/`."""
    if not folder.is_dir():
        raise NotFound(f"'{folder}'", "there is no such folder", "check --variants")
    kinds: Sequence[Path] = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [
        Further(kind.name, p.name, p)
        for kind in kinds
        for p in sorted(kind.iterdir())
        if any((p / name).is_file() for name in (ADAPTER_FILES[1], VECTOR_FILE))
    ]
