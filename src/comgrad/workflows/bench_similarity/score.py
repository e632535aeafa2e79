"""The figures: do families cluster, which measure is best, do measures agree, how far do seeds matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from comgrad.explain.grouping import (
    Null,
    above,
    agreement,
    answerable,
    filled,
    linkage_clusters,
    majority_right,
    mantel,
    nearest,
    over_groups,
    ranks,
    shuffled,
    spearman_intervals,
    spectral_clusters,
    voted_right,
)
from comgrad.workflows.bench.score import wilson
from comgrad.workflows.bench_similarity.plan import NEARNESS, ZOO
from comgrad.workflows.bench_similarity.pool import Pools

Row = dict[str, Any]
COLUMNS = ("section", "measure", "pooling", "scope", "kind", "figure", "value", "low", "high", "null", "null_low",
           "null_high", "p", "n")  # fmt: skip
NEIGHBOURS = (1, 5)
HONEST = "knn1-disjoint"
"""The figure by which measures are put in order: decided before any was computed."""
TARGET = 0.9
INTERVAL_DRAWS = 200  # of the intervals of rank correlations, each of which ranks all pairs again


def row(section: str, measure: str, figure: str, value: float, **more: Any) -> Row:
    """A row with all columns."""
    given = {"section": section, "measure": measure, "figure": figure, "value": float(value), **more}
    defaults: Row = {"pooling": "mean", "scope": "all", "kind": ZOO}
    return {c: given.get(c, defaults.get(c)) for c in COLUMNS}


def _against(null: Null) -> Row:
    return {"null": null.mean, "null_low": null.low, "null_high": null.high, "p": null.p}


@dataclass
class Scores:
    """All figures of a study. Draws are those of the request's seed, the same for every measure."""

    pools: Pools
    right: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    """Measure and pooling → (K,) right or wrong by the honest figure, NaN where no neighbour could be right."""
    drawn: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        study = self.pools.study
        self.study, self.labels, self.groups = study, study.families, study.groups
        self.draws, self.seed = study.request.draws, study.request.seed
        self.label_draws = shuffled(self.labels, self.groups, self.draws, self._rng(1))
        away = self.groups[:, None] != self.groups
        self.allowed = {"": ~np.eye(len(self.labels), dtype=bool), "-disjoint": away}
        self.drawn_answerable = {
            end: np.stack([answerable(labels, allowed) for labels in self.label_draws])
            for end, allowed in self.allowed.items()
        }

    def _rng(self, what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, what])

    def rows(self, progress: Callable[[int, int], None] = lambda _d, _t: None) -> list[Row]:
        """All rows."""
        out = list(self._baselines())
        chosen = self.pools.combinations
        for done, (measure, pooling) in enumerate(chosen, 1):
            out += self._families(measure, pooling)
            out += self._clusters(measure, pooling)
            out += self._further(measure, pooling)
            progress(done, len(chosen))
        for measure in NEARNESS:
            out += self._families(measure, "random")
            for scope in list(self.study.scopes)[1:]:
                out += self._families(measure, "mean", scope, only=HONEST)
                out += self._further(measure, "mean", scope)
        return out + list(self._best()) + list(self._agreement())

    # -- families ------------------------------------------------------------------------------------------------------
    def _baselines(self) -> Iterator[Row]:
        for end, allowed in self.allowed.items():
            there = answerable(self.labels, allowed)
            values = np.where(there, majority_right(self.labels, allowed), np.nan)
            low, high = over_groups(values, self.groups, self.draws, self._rng(2))
            n = int(there.sum())
            yield row("families", "", f"majority{end}", _mean(values), low=low, high=high, n=n)

    def _families(self, measure: str, pooling: str, scope: str = "all", only: str = "") -> Iterator[Row]:
        S = self.pools.among_zoo(measure, pooling, scope)
        for end, allowed in self.allowed.items():
            there = answerable(self.labels, allowed)
            for k in NEIGHBOURS:
                figure = f"knn{k}{end}"
                if there.any() and only in ("", figure):
                    near = nearest(S, allowed, k)
                    values = np.where(there, voted_right(near, self.labels[None])[0], np.nan)
                    drawn = _share(voted_right(near, self.label_draws), self.drawn_answerable[end])
                    low, high = over_groups(values, self.groups, self.draws, self._rng(2))
                    if figure == HONEST and scope == "all" and pooling != "random":
                        self.right[measure, pooling], self.drawn[measure, pooling] = values, drawn
                    against = _against(Null.of(_mean(values), drawn))
                    place = {"pooling": pooling, "scope": scope, "n": int(there.sum())}
                    yield row("families", measure, figure, _mean(values), low=low, high=high, **against, **place)

    def _clusters(self, measure: str, pooling: str) -> Iterator[Row]:
        S, k = self.pools.among_zoo(measure, pooling), int(self.labels.max()) + 1
        found = {"linkage": linkage_clusters(S, k), "spectral": spectral_clusters(S, k, seed=self.seed)}
        for name, clusters in found.items():
            real, drawn = agreement(clusters, self.labels[None]), agreement(clusters, self.label_draws)
            for index, one, many in zip(("ari", "nmi"), real, drawn, strict=True):
                null = Null.of(float(one[0]), many)
                yield row("clusters", measure, f"{index}-{name}", null.value, pooling=pooling, **_against(null), n=k)

    # -- the best ------------------------------------------------------------------------------------------------------
    def _best(self) -> Iterator[Row]:
        """The best of all, against the best of all with shuffled labels; and what choosing on other tasks gives."""
        names = list(self.right)
        if not names:
            return
        V = np.stack([self.right[n] for n in names])
        there = ~np.isnan(V[0])
        means = V[:, there].mean(1)
        first = int(means.argmax())
        null = Null.of(float(means[first]), np.stack([self.drawn[n] for n in names]).max(0))
        low, high = over_groups(V[first], self.groups, self.draws, self._rng(2))
        place = {"pooling": names[first][1], "n": int(there.sum())}
        yield row("best", names[first][0], HONEST, means[first], low=low, high=high, **_against(null), **place)
        nested = np.full(V.shape[1], np.nan)
        for g in np.unique(self.groups[there]):
            others, own = there & (self.groups != g), there & (self.groups == g)
            if others.any():
                nested[own] = V[int(V[:, others].mean(1).argmax()), own]
        low, high = over_groups(nested, self.groups, self.draws, self._rng(2))
        yield row("best", "", "chosen-on-others", _mean(nested), low=low, high=high, n=int((~np.isnan(nested)).sum()))
        for name, values in zip(names, V, strict=True):
            gap = V[first] - values
            low, high = over_groups(gap, self.groups, self.draws, self._rng(2))
            yield row("best", name[0], "behind-the-best", _mean(gap), low=low, high=high, pooling=name[1])

    # -- agreement -----------------------------------------------------------------------------------------------------
    def _agreement(self) -> Iterator[Row]:
        """Rank correlations of the pair matrices; `kind` is the other measure."""
        X = np.stack([filled(self.pools.among_zoo(m)) for m in NEARNESS])
        found, p = mantel(X, self.draws, self._rng(3))
        low, high = spearman_intervals(X, self.groups, min(self.draws, INTERVAL_DRAWS), self._rng(4))
        n = X.shape[1] * (X.shape[1] - 1) // 2
        first = [nearest(x, self.allowed[""], 1)[:, 0] for x in X]
        chance = 1.0 / (X.shape[1] - 1)
        for a, one in enumerate(NEARNESS):
            for b, two in enumerate(NEARNESS[:a]):
                more = {"low": low[a, b], "high": high[a, b], "p": p[a, b], "kind": two, "n": n}
                yield row("agreement", one, "spearman", found[a, b], **more)
                same = (first[a] == first[b]).astype(float)
                ends = dict(zip(("low", "high"), over_groups(same, self.groups, self.draws, self._rng(2)), strict=True))
                yield row("agreement", one, "same-nearest", same.mean(), kind=two, n=len(same), null=chance, **ends)

    # -- further vectors -----------------------------------------------------------------------------------------------
    def _further(self, measure: str, pooling: str, scope: str = "all") -> Iterator[Row]:
        S = self.pools.similarity(measure, pooling, scope)
        for kind in self.study.kinds:
            Q, right = S[self.study.rows(kind)], self.study.right(kind)
            place = {"pooling": pooling, "scope": scope, "kind": kind, "n": len(right)}
            r = ranks(Q, right)
            chance = 1.0 / Q.shape[1]
            low, high = wilson(int((r == 1).sum()), len(r))
            yield row("identify", measure, "top1", (r == 1).mean(), low=low, high=high, null=chance, **place)
            low, high = over_groups(1.0 / r, np.arange(len(r)), self.draws, self._rng(5))
            chance = float((1.0 / np.arange(1, Q.shape[1] + 1)).mean())
            yield row("identify", measure, "mrr", (1.0 / r).mean(), low=low, high=high, null=chance, **place)
            yield from self._seeds(measure, Q, right, place)

    def _seeds(self, measure: str, Q: np.ndarray, right: np.ndarray, place: Row) -> Iterator[Row]:
        C = above(Q, right)
        chosen = self._rng(6).integers(len(C), size=(self.draws, len(C)))
        low, high = np.quantile(C[chosen[:, :, None], chosen[:, None, :]].mean((1, 2)), [0.025, 0.975])
        yield row("seeds", measure, "auc", C.mean(), low=low, high=high, null=0.5, **place)
        own = np.take_along_axis(Q, right[:, None], 1)[:, 0]
        wrong = Q.copy()
        np.put_along_axis(wrong, right[:, None], np.nan, 1)
        if place["scope"] != "all":
            return
        for figure, values in (("same-task", own), ("other-task", wrong)):
            known = values[~np.isnan(values)]
            share = {"n": int(known.size)}
            if known.size:
                low, middle, high = np.quantile(known, [0.05, 0.5, 0.95])
                yield row("seeds", measure, figure, middle, low=low, high=high, **{**place, **share})
            if known.size < values.size and figure == "same-task":
                yield row("seeds", measure, "undefined", values.size - known.size, **place)


def _share(right: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Share of right votes for each drawing of labels, over the things that could be right there."""
    out: np.ndarray = (right * there).sum(1) / np.maximum(there.sum(1), 1)
    return out


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
