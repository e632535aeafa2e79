"""Which of the paper's orderings hold here: each is one difference between two recipes, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comgrad.workflows.bench_arithmetic.rows import Row, Spread, by_seed, spread
from comgrad.workflows.bench_arithmetic.suite import read_run

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"


@dataclass(frozen=True)
class Verdict:
    """One ordering of the paper.

    Args:
        difference: better − worse as the paper has it, in the direction in which the paper's claim is positive.
    """

    where: str
    claim: str
    difference: Spread
    verdict: str

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        d = self.difference
        if math.isfinite(d.low):
            what = f"95 % over {d.seeds} seeds" if d.seeds > 1 else "between the quartiles of the steps"
            measured = f"difference {d.mean:+.4g}, {what} [{d.low:.4g}, {d.high:.4g}]"
        else:
            measured = f"difference {d.mean:+.4g}, one seed, so no interval"
        return f"{self.where}: {self.claim}: **{self.verdict}** ({measured})."


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """A verdict for every ordering of the paper whose two sides were measured."""
    found = (_verdict(rows, claim) for claim in read_run("linear_layers_only")["orderings"])
    return [v for v in found if v is not None]


def _verdict(rows: Sequence[Row], claim: dict[str, Any]) -> Verdict | None:
    if claim["measure"].startswith("cost-"):
        return _of_costs(rows, claim)
    better, worse = (by_seed(rows, claim["measure"], claim[k]) for k in ("better", "worse"))
    sign = 1.0 if claim["higher"] else -1.0
    if set(worse) == {-1}:  # one figure for all seeds
        worse = dict.fromkeys(better, worse[-1])
    seeds = sorted(set(better) & set(worse))
    if not seeds:
        return None
    d = spread([sign * (better[s] - worse[s]) for s in seeds])
    return Verdict(claim["where"], claim["claim"], d, decided(d))


def decided(d: Spread) -> str:
    """The interval on one side of 0, or not."""
    return HOLDS if d.low > 0 else FAILS if d.high < 0 else UNDECIDED


def _of_costs(rows: Sequence[Row], claim: dict[str, Any]) -> Verdict | None:
    """One run: relative to the worse, and decided where the quartiles of the steps lie apart."""
    rows = [r for r in rows if r["measure"] == claim["measure"]]
    found = [next((r for r in rows if r["recipe"] == claim[k]), None) for k in ("better", "worse")]
    better, worse = found
    if better is None or worse is None:
        return None
    size = worse["value"]
    mean = (worse["value"] - better["value"]) / size
    d = Spread(mean, (worse["low"] - better["high"]) / size, (worse["high"] - better["low"]) / size, 1)
    return Verdict(claim["where"], f"{claim['claim']} (share of the latter)", d, decided(d))
