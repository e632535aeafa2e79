"""What a run is asked for, and the cells it consists of: one method on one task in one split with one description."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comgrad.errors import ComgradError
from comgrad.workflows.bench.corpus import Corpus
from comgrad.workflows.bench.fold import SPLITS
from comgrad.workflows.bench.methods import FEW, METHODS, TEXT, TRAINED, Method
from comgrad.workflows.bench.prepare import Sizes
from comgrad.workflows.bench.words import VARIANTS

GIVEN = "given"
VARIED = ("functional", "functional-forced", "ridge", "nearest-scaled", "softmax5-scaled")
GROWN = ("functional", "mean-scaled", "softmax5-scaled", "ours+16")
GROWTH_SEEDS = 3


@dataclass(frozen=True)
class Request:
    """What a run is asked for.

    Args:
        data: the corpus's folder; None: the one shipped.
        out: folder of everything kept.
        tasks: ids to test; empty: all with examples.
        only: ids that the corpus is cut down to; empty: all. Others are neither tested nor known.
        splits: the first is the headline, in which every method runs.
        methods: names; empty: those that take seconds.
        variants: of the description; all methods see the first, those in `VARIED` the others, in the headline split.
        growth: numbers of known vectors; 0 stands for all.
        jobs: processes.
        kept: report what is kept already, and compute no cell.
    """

    data: Path | None
    out: Path
    tasks: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    splits: tuple[str, ...] = tuple(SPLITS)
    methods: tuple[str, ...] = ()
    variants: tuple[str, ...] = tuple(VARIANTS)
    growth: tuple[int, ...] = ()
    sizes: Sizes = Sizes()  # noqa: RUF009 - immutable
    jobs: int = 1
    with_training: bool = False
    with_long: bool = False
    kept: bool = False

    def __post_init__(self) -> None:
        for given, known, what in (
            (self.splits, SPLITS, "split"),
            (self.methods, METHODS, "method"),
            (self.variants, VARIANTS, "description variant"),
        ):
            for name in given:
                if name not in known:
                    raise ComgradError(
                        f"the {what} '{name}'",
                        "there is none of that name",
                        f"use some of: {', '.join(known)}",
                        code="bad-options",
                    )
        if not self.splits or self.sizes.test < 2 or self.sizes.train < 1 or self.jobs < 1:
            raise ComgradError(
                f"{len(self.splits)} splits, {self.sizes.test} test and {self.sizes.train} training examples",
                "a run needs a split, two test examples and a training example",
                "correct the numbers",
                code="bad-options",
            )
        short = [m for m in self.methods if METHODS[m].examples > self.sizes.train]
        if short:
            raise ComgradError(
                f"{self.sizes.train} training examples",
                f"the method '{short[0]}' uses {METHODS[short[0]].examples}",
                "give more with --examples, or leave the method out",
                code="bad-options",
            )

    @property
    def chosen(self) -> tuple[Method, ...]:
        """The methods to run, in the table's order."""
        if self.methods:
            return tuple(m for m in METHODS.values() if m.name in self.methods)
        return tuple(
            m for m in METHODS.values() if (self.with_long or not m.long) and (self.with_training or m.group != TRAINED)
        )


@dataclass(frozen=True)
class Cell:
    """One method on one task.

    Args:
        known: number of known vectors; 0: all.
        draw: seed of the known vectors' choice.
    """

    task: str
    method: str
    split: str
    variant: str = GIVEN
    known: int = 0
    draw: int = 0

    @property
    def name(self) -> str:
        """For a file."""
        grown = f"--{self.known}-{self.draw}" if self.known else ""
        return f"{self.method}--{self.split}--{self.variant}{grown}"

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def cells(request: Request, corpus: Corpus) -> list[Cell]:
    """All cells of a run, task by task."""
    return [c for task in tested(request, corpus) for c in _of_task(task, request, len(corpus.known))]


def tested(request: Request, corpus: Corpus) -> tuple[str, ...]:
    """Ids of the tasks to test. Raises NotFound for one that has no examples."""
    if request.tasks:
        return tuple(corpus.get(t).id for t in request.tasks)
    return tuple(i.id for i in corpus.tested)


def _of_task(task: str, request: Request, known: int) -> Iterator[Cell]:
    """The headline first: where another split leaves out the very same vectors, its cell is done already."""
    headline, *others = request.splits
    chosen = request.chosen
    for method in chosen:
        if not method.splits or headline in method.splits:
            yield Cell(task, method.name, headline)
        if method.name in VARIED:
            yield from (Cell(task, method.name, headline, v) for v in request.variants if v != GIVEN)
        if method.name in GROWN:
            sizes = [n for n in request.growth if 0 < n < known]
            yield from (Cell(task, method.name, headline, GIVEN, n, d) for n in sizes for d in range(GROWTH_SEEDS))
    for split in others:
        for method in chosen:
            if _everywhere(method, request) and (not method.splits or split in method.splits):
                yield Cell(task, method.name, split)


def _everywhere(method: Method, request: Request) -> bool:
    """Whether a method also runs in the other splits: those that read the description, and our own."""
    return (
        bool(request.methods)
        or method.group == TEXT
        or (method.group == FEW and method.name in ("ours+16", "ours+160"))
    )
