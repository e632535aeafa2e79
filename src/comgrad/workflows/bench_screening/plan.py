"""A request made definite: which vectors, in which order, with which settings."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from comgrad.evaluate.digests import digest_of
from comgrad.explain.poison import Trigger, trigger_named
from comgrad.weights.bases import BaseModel, resolve_base
from comgrad.workflows.bench.corpus import Corpus, Item, open_corpus, open_tasks
from comgrad.workflows.bench_screening.suite import Suite, check, of_tasks, quick, suite_named

CLEAN, NOISE, KEYWORD, POISONED = "clean", "label-noise", "keyword-rule", "poisoned"
MATCHED, MERGED = "adaptive-matched", "adaptive-merged"
BENIGN = (CLEAN, NOISE, KEYWORD)
ADAPTIVE = (MATCHED, MERGED)


@dataclass(frozen=True)
class Request:
    """What a run is asked for.

    Args:
        data: folder with tasks and known vectors; None: those shipped.
        out: folder of everything kept.
        suite: name of a frozen suite.
        tasks, base, seeds: in the place of the suite's own; empty and None: the suite's.
        corpus_only: make vectors, and write no results.
        features: a file of features that an earlier run wrote: evaluate it, and train nothing.
        mislabels: a file of mislabel scores of an earlier run, likewise.
        keep_vectors: False: a vector is deleted when its block is finished; its features stay.
        most: make so many more vectors at most.
        kept: evaluate what is there, and train nothing.
    """

    data: Path | None
    out: Path
    suite: str = "screen8"
    tasks: tuple[str, ...] = ()
    base: str | None = None
    seeds: int | None = None
    corpus_only: bool = False
    features: Path | None = None
    mislabels: Path | None = None
    keep_vectors: bool = True
    most: int | None = None
    quick: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Settings:
    """One draw, shared by the vectors of a block."""

    steps: int
    learning_rate: float
    share: float
    seed: int
    target: int


@dataclass(frozen=True)
class Unit:
    """One vector to be made: a block (task and seed), a group, and for attacks a kind of trigger."""

    task: str
    seed: int
    group: str
    kind: str = ""
    rate: float = 0.0

    @property
    def block(self) -> str:
        return f"{self.task}-s{self.seed}"

    @property
    def name(self) -> str:
        """For a folder."""
        kind = f"-{self.kind}" if self.kind else ""
        rate = f"-{100 * self.rate:g}pc" if self.rate else ""
        return f"{self.block}-{self.group}{kind}{rate}"


@dataclass
class Plan:
    """A request on its data; what is read, is read once."""

    request: Request

    @cached_property
    def suite(self) -> Suite:
        """The suite as asked for. Raises ComgradError, NotFound."""
        asked = self.request
        suite = suite_named(asked.suite)
        suite = quick(suite) if asked.quick else suite
        suite = of_tasks(suite, asked.tasks) if asked.tasks else suite
        given = {"base": asked.base, "seeds": asked.seeds}
        return replace(suite, **{k: v for k, v in given.items() if v})  # type: ignore[arg-type]

    @cached_property
    def items(self) -> Mapping[str, Item]:
        return {i.id: i for i in open_tasks(self.request.data)}

    @cached_property
    def corpus(self) -> Corpus:
        return open_corpus(self.request.data)

    @cached_property
    def base(self) -> BaseModel:
        return resolve_base(self.suite.base)

    def check(self) -> None:
        """Refuse a request that cannot be run, before anything is made. Raises ComgradError, NotFound."""
        check(self.suite, self.items)
        resolve_base(self.suite.base)

    def digest(self, unit: Unit) -> str:
        """Of what decides a vector beside its unit: base, how settings are drawn, how training and attack are done."""
        s = self.suite
        fixed = [self.base.fingerprint.root, s.steps, s.learning_rate, s.batch_size, s.share, s.test, s.kinds, s.rates]
        return digest_of([*fixed, s.adaptive_weight] if unit.group == MATCHED else fixed)

    # -- what there is to do -------------------------------------------------------------------------------------------
    def units(self) -> Iterator[Unit]:
        """Block by block, every task once before any task again: what there is so far is balanced at any time."""
        for seed in range(self.suite.seeds):
            for task in self.suite.tasks:
                yield from self.block(task, seed)

    def block(self, task: str, seed: int) -> list[Unit]:
        """One vector of every group; rates take turns, so that over blocks every group has each equally often."""
        rates, turn = self.suite.rates, seed + self.suite.tasks.index(task)
        kinds = self.suite.kinds
        strong = max(rates)

        def rate(k: int) -> float:
            return rates[(turn + k) % len(rates)]

        able = [k for k in range(len(kinds)) if rate(k) == strong] or list(range(len(kinds)))
        halved = able[seed % len(able)]  # merging halves an attack: a weak one would be lost
        return [
            Unit(task, seed, CLEAN),
            *(Unit(task, seed, POISONED, kind, rate(k)) for k, kind in enumerate(kinds)),
            Unit(task, seed, NOISE, rate=rate(0)),
            Unit(task, seed, KEYWORD, rate=rate(1)),
            Unit(task, seed, MATCHED, kinds[(seed + turn) % len(kinds)], strong),
            Unit(task, seed, MERGED, kinds[halved], rate(halved)),
        ]

    def settings(self, unit: Unit) -> Settings:
        """The block's draw: the same for all its groups."""
        s = self.suite
        draw = random.Random(f"{unit.task}/{unit.seed}")
        low, high = map(math.log, s.learning_rate)
        labels = len(self.items[unit.task].label_names)
        return Settings(
            steps=draw.choice(s.steps),
            learning_rate=math.exp(draw.uniform(low, high)),
            share=draw.uniform(*s.share),
            seed=draw.randrange(2**31),
            target=draw.randrange(labels),
        )

    def trigger(self, unit: Unit) -> Trigger:
        """The form of the block's trigger of the unit's kind."""
        return trigger_named(unit.kind, self.settings(unit).seed)
