"""The study's figures as rows: one per ordered pair of tasks that is compared, and one per statement of the slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comgrad.workflows.bench_spectral.measure import Board
from comgrad.workflows.bench_spectral.plan import Pair, Request, Study, Triple
from comgrad.workflows.bench_spectral.stats import Estimate, over, over_groups

Row = dict[str, Any]
MEASURES = ("l1", "rec", "explained", "core_explained", "column", "entropy_1", "entropy_2")
NULLED = ("rec", "explained", "core_explained")
HOLDS, FAILS, UNDECIDED = "holds", "the reverse holds", "undecided"


def arrow_row(board: Board, study: Study, a: str, b: str, request: Request) -> Row:
    """b in the frame of a: every measure averaged over layers and modules, its interval over modules, and nulls.

    Nulls keep the frame of a: unrelated tasks of the zoo (another family and source, in no listed pair with a), and
    random adapters. `rec_above_zoo` is the share of the former that lie below.
    """
    row: Row = {"from": a, "to": b}
    for measure in MEASURES:
        found = over(board.modules(measure, a, b), draws=request.draws, seed=request.seed)
        row |= {measure: found.mean, f"{measure}_low": found.low, f"{measure}_high": found.high}
    i, K = board.place(a), len(board.ids)
    others = board.unrelated(a, {(p.general, p.contained) for p in study.pairs})
    for measure in NULLED:
        values = board.mean(measure)
        zoo, drawn = values[i, others], values[i, K:]
        row[f"{measure}_zoo"] = float(zoo.mean()) if len(zoo) else float("nan")
        row[f"{measure}_random"] = float(drawn.mean())
        row[f"{measure}_above_zoo"] = float((zoo < row[measure]).mean()) if len(zoo) else float("nan")
    return row


def pair_rows(board: Board, study: Study, request: Request) -> list[Row]:
    """Two rows per listed pair: `forward` (frame of the general task) and `backward`."""
    out = []
    for p in study.pairs:
        about = {"general": p.general, "contained": p.contained, "kind": p.kind, "half": study.halves[p.general]}
        for way, (a, b) in (("forward", (p.general, p.contained)), ("backward", (p.contained, p.general))):
            out.append({**about, "way": way, **arrow_row(board, study, a, b, request)})
    return out


ARROWS = ("G→C", "G→K", "K→C", "K→G", "C→K", "C→G")  # the order of the slides' table, SUM=G, NER=C, 10 % SENT=K


def triple_rows(board: Board, study: Study, request: Request) -> list[Row]:
    """Six rows per triple, in the order of the slides' table."""
    out = []
    for number, t in enumerate(study.triples, 1):
        task = {"G": t.general, "C": t.contained, "K": t.control}
        about = {"triple": number, **{k: getattr(t, k) for k in ("general", "contained", "control")}}
        for arrow in ARROWS:
            a, b = task[arrow[0]], task[arrow[2]]
            out.append({**about, "arrow": arrow, **arrow_row(board, study, a, b, request)})
    return out


def summary(rows: Sequence[Row], request: Request) -> list[Row]:
    """For each arrow the mean over triples of every measure, general tasks drawn with replacement."""
    out = []
    for arrow in ARROWS:
        chosen = [r for r in rows if r["arrow"] == arrow]
        line: Row = {"arrow": arrow, "triples": len(chosen)}
        for measure in (*MEASURES, *(f"{m}_{null}" for m in NULLED for null in ("zoo", "random"))):
            e = _mean(chosen, lambda r, m=measure: r[m], request)  # type: ignore[misc]
            line |= {measure: e.mean, f"{measure}_low": e.low, f"{measure}_high": e.high}
        out.append(line)
    return out


# -- the slides' statements --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Claim:
    """measure(first) − measure(second) is above 0 (`sign` 1) or below (`sign` −1); arrows between G, C and K."""

    name: str
    measure: str
    first: str
    second: str
    sign: int
    slides: str


CLAIMS = (
    Claim("the general task describes the contained one better than the control (REC)", "rec", "G→C", "G→K", 1, "0.644 > 0.608"),
    Claim("the same by explained energy", "explained", "G→C", "G→K", 1, "not given"),
    Claim("the same by energy of the full core", "core_explained", "G→C", "G→K", 1, "not given"),
    Claim("REC is higher from the general task than back", "rec", "G→C", "C→G", 1, "0.644 > 0.535"),
    Claim("L₁ is lower from the general task than back", "l1", "G→C", "C→G", -1, "0.271 < 0.660"),
    Claim("the general task is the more diffuse, H(S₁)", "entropy_1", "G→C", "C→G", 1, "0.852 > 0.774"),
    Claim("the contained task in the general frame is the less diffuse, H(S₂)", "entropy_2", "G→C", "C→G", -1, "0.839 < 0.867"),
    Claim("explained energy is higher from the general task than back", "explained", "G→C", "C→G", 1, "not given"),
)  # fmt: skip


def claim_rows(triples: Sequence[Row], pairs: Sequence[Row], request: Request) -> list[Row]:
    """Each statement on the triples and, where it needs no control, on all pairs; verdicts from the intervals."""
    named = [{**r, "arrow": {"forward": "G→C", "backward": "C→G"}[r["way"]]} for r in pairs]
    out = []
    for claim in CLAIMS:
        for where, rows in (("triples", triples), ("pairs", named)):
            if where == "pairs" and "K" in claim.first + claim.second:
                continue
            first, second = ([r for r in rows if r["arrow"] == a] for a in (claim.first, claim.second))
            if not first:
                continue
            gaps = [a[claim.measure] - b[claim.measure] for a, b in zip(first, second, strict=True)]
            e = over_groups(gaps, [r["general"] for r in first], draws=request.draws, seed=request.seed)
            out.append(
                {
                    "claim": claim.name, "slides": claim.slides, "where": where, "n": len(gaps),
                    "generals": len({r["general"] for r in first}), "difference": e.mean, "low": e.low, "high": e.high,
                    "as_said": float(np.mean([g * claim.sign > 0 for g in gaps])), "verdict": _verdict(e, claim.sign),
                }
            )  # fmt: skip
    return out


def null_rows(pairs: Sequence[Row], request: Request) -> list[Row]:
    """Whether a listed pair differs from its nulls: mean differences over general tasks, both ways."""
    out = []
    for way in ("forward", "backward"):
        chosen = [r for r in pairs if r["way"] == way]
        for measure in NULLED if chosen else ():
            for null in ("zoo", "random"):
                e = _mean(chosen, lambda r, m=measure, n=null: r[m] - r[f"{m}_{n}"], request)  # type: ignore[misc]
                out.append(
                    {
                        "way": way, "measure": measure, "null": null,
                        "pairs": _mean(chosen, lambda r, m=measure: r[m], request).mean,  # type: ignore[misc]
                        "null_value": _mean(chosen, lambda r, m=measure, n=null: r[f"{m}_{n}"], request).mean,  # type: ignore[misc]
                        "difference": e.mean, "low": e.low, "high": e.high,
                        "above_zoo": float(np.mean([r[f"{measure}_above_zoo"] for r in chosen])),
                    }
                )  # fmt: skip
    return out


def carried(board: Board) -> dict[str, float]:
    """How much of L₁ and REC is a matter of the frame alone.

    For each measure the correlation, over all ordered pairs of different tasks, of its value from a to b with its mean
    from a to random adapters, which share nothing with a.
    """
    K = len(board.ids)
    off = ~np.eye(K, dtype=bool)
    out = {}
    for measure in ("l1", "rec"):
        values = board.mean(measure)
        frame = np.broadcast_to(values[:K, K:].mean(1, keepdims=True), (K, K))
        out[measure] = float(np.corrcoef(values[:K, :K][off], frame[off])[0, 1])
    return out


def _mean(rows: Sequence[Row], value: Callable[[Row], float], request: Request) -> Estimate:
    return over_groups([value(r) for r in rows], [r["general"] for r in rows], draws=request.draws, seed=request.seed)


def _verdict(e: Estimate, sign: int) -> str:
    low, high = (e.low, e.high) if sign > 0 else (-e.high, -e.low)
    return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED


__all__ = [
    "Pair",
    "Row",
    "Triple",
    "arrow_row",
    "carried",
    "claim_rows",
    "null_rows",
    "pair_rows",
    "summary",
    "triple_rows",
]
