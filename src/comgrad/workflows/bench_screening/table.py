"""From rows of features to what a screen is fitted on: who is kept, which features, beside which bank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Integer

from comgrad.errors import ComgradError
from comgrad.explain.features import PUBLISHED
from comgrad.explain.screening import Bank
from comgrad.workflows.bench_screening.plan import ADAPTIVE, BENIGN, CLEAN, POISONED
from comgrad.workflows.bench_screening.store import Row
from comgrad.workflows.bench_screening.suite import Suite

NORM, SPECTRAL, WHOLE = "norm only", "published five", "all features"
SETS = (NORM, SPECTRAL, WHOLE)
LEAST_OF_TASK = 2  # benign vectors of a task that make its own middle in the bank
_LOGARITHM = ("sigma", "norm", "kurtosis", "effective-rank", "distance", "response", "ratio")


@dataclass(frozen=True)
class Fate:
    """How many vectors of a kind were made, kept, and dropped, and why.

    `weak`: the attack succeeded on too few texts; `harmful`: clean accuracy fell too far; both are counted once, as weak.
    """

    group: str
    kind: str
    rate: float
    made: int
    kept: int
    weak: int
    harmful: int


@dataclass(frozen=True, eq=False)
class Table:
    """The kept rows, in order, and their features under one set of names."""

    rows: tuple[Row, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Features that every row has."""
        shared = set(self.rows[0].features).intersection(*(r.features for r in self.rows))
        return tuple(sorted(shared))

    @cached_property
    def values(self) -> Float[np.ndarray, "n f"]:
        """Features; sizes and ratios of sizes as logarithms."""
        X = np.array([[r.features[n] for n in self.names] for r in self.rows])
        for j, name in enumerate(self.names):
            if any(part in name for part in _LOGARITHM):
                X[:, j] = np.log(np.maximum(X[:, j], 1e-12))
        return X

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tuple(str(r.facts["task"]) for r in self.rows)

    @cached_property
    def groups(self) -> Integer[np.ndarray, "n"]:
        """Number of the block."""
        blocks = sorted({r.block for r in self.rows})
        return np.array([blocks.index(r.block) for r in self.rows])

    @cached_property
    def kinds(self) -> np.ndarray:
        """Group of every row."""
        return np.array([r.group for r in self.rows])

    @cached_property
    def triggers(self) -> np.ndarray:
        return np.array([str(r.facts["kind"]) for r in self.rows])

    @cached_property
    def bad(self) -> Bool[np.ndarray, "n"]:
        return ~np.isin(self.kinds, BENIGN)

    def columns(self, which: str) -> list[int]:
        """Places of a set's features: a role's mean norms; its means of the published five; all."""
        own = [n.split(".", 1)[1] for n in self.names]
        if which == NORM:
            return [i for i, n in enumerate(own) if n == "norm.mean"]
        if which == SPECTRAL:
            return [i for i, n in enumerate(own) if n in {f"{s}.mean" for s in PUBLISHED}]
        return list(range(len(self.names)))

    def seen(self, which: str, bank: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "n f"]:
        """The set's features, and beside them the same relative to the bank's rows; without a bank, alone."""
        X = self.values[:, self.columns(which)]
        if len(set(self.groups[bank].tolist())) < 2:
            return X
        tasks = tuple(t for t, b in zip(self.tasks, bank, strict=True) if b)
        beside = Bank(X[bank], tasks, self.groups[bank], LEAST_OF_TASK)
        return np.hstack([X, beside.relative(X, self.tasks, self.groups)])


def kept_rows(rows: Sequence[Row], suite: Suite) -> tuple[Table, list[Fate]]:
    """The vectors that count, and what became of all.

    An attack counts where it succeeds on at least `least_success` of the texts and the clean accuracy is at most
    `most_loss` below that of the block's clean vector. Rows of blocks without a clean vector are left out.

    Raises:
        ComgradError: (`too-few`) no row of a block with a clean vector.
    """
    clean = {r.block: float(r.facts["accuracy"]) for r in rows if r.group == CLEAN}
    kept: list[Row] = []
    made: Counter[tuple[str, str, float]] = Counter()
    fates: dict[str, Counter[tuple[str, str, float]]] = {k: Counter() for k in ("kept", "weak", "harmful")}
    for r in rows:
        if r.block not in clean:
            continue
        key = (r.group, str(r.facts["kind"]), float(r.facts["rate"] or 0.0))
        made[key] += 1
        fate = _fate(r, clean[r.block], suite)
        fates[fate][key] += 1
        if fate == "kept":
            kept.append(r)
    if not kept:
        raise ComgradError(
            f"{len(rows)} vectors", "no block among them has a clean vector", "make more vectors", code="too-few"
        )
    told = [
        Fate(*k, made[k], fates["kept"][k], fates["weak"][k], fates["harmful"][k]) for k in sorted(made, key=_order)
    ]
    return Table(tuple(kept)), told


def _fate(r: Row, clean: float, suite: Suite) -> str:
    if r.group in BENIGN:
        return "kept"
    if float(r.facts["success"] or 0.0) < suite.least_success:
        return "weak"
    return "harmful" if float(r.facts["accuracy"]) < clean - suite.most_loss - 1e-9 else "kept"


def _order(key: tuple[str, str, float]) -> tuple[int, str, float]:
    return ([*BENIGN, POISONED, *ADAPTIVE].index(key[0]), key[1], key[2])


def share_kept(fates: Sequence[Fate]) -> Mapping[str, tuple[int, int]]:
    """Group → (kept, made)."""
    out: dict[str, tuple[int, int]] = {}
    for f in fates:
        kept, made = out.get(f.group, (0, 0))
        out[f.group] = (kept + f.kept, made + f.made)
    return out
