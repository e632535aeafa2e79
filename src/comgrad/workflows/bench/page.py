"""The results page: Markdown made from the rows, so that no figure in it is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from comgrad.workflows.bench import tables
from comgrad.workflows.bench.fold import SPLITS
from comgrad.workflows.bench.methods import METHODS, TEXT
from comgrad.workflows.bench.plan import GIVEN, Request
from comgrad.workflows.bench.score import common, gap_recovered
from comgrad.workflows.bench.score import figures as figures_of
from comgrad.workflows.bench.tables import Group, Row
from comgrad.workflows.bench.targets import targets
from comgrad.workflows.bench.words import VARIANTS

OURS = ("functional", "ours+16", "ours+160")
Environment = dict[str, Any]

HEAD = """# From a description to a better start: DescInit

Written by `comgrad bench descinit`; no figure here was typed by hand.

A task is predicted from its description (and, where a row says so, from a few of its labelled examples) out of the vectors
of other tasks; then the loss on its test examples is measured before any training. **GR** is the gap recovered: the sum of
the falls in loss over the sum of those that the tasks' own adapters reach (tasks whose own gap is below two standard errors
are left out of it). **GR⊥** is what is left of it beyond the scaled mean of all vectors. **Better** is the share of tasks
with a loss no higher than the base's or with an honest abstention, **harmed** the share whose loss rises by more than 1 %;
both with 95 % Wilson intervals. Intervals of GR are from 10,000 bootstrap draws of tasks. An abstention costs nothing and
brings nothing.
"""


def page(rows: Sequence[Row], environment: Environment, request: Request, picture: str) -> str:
    """The whole page."""
    split, seed = request.splits[0], request.sizes.seed
    figures = tables.summary(rows, seed=seed)
    parts = [HEAD, f"![Waterfall]({picture})\n" if picture else ""]
    for pool, title in (("all", "all tasks"), ("held-out", "tasks on which no constant was chosen")):
        parts.append(f"## Headline: {SPLITS[split]} ({title})\n\n{_headline(figures, split, pool)}")
    parts += [_targets(rows, split, seed), _comparisons(rows, split, seed), _calibration(figures, split)]
    parts += [
        f"## {SPLITS[other][0].upper()}{SPLITS[other][1:]}\n\n{_headline(figures, other, 'all')}"
        for other in request.splits[1:]
    ]
    parts += [_variants(rows, figures, split, seed), _growth(rows, split), _families(rows, split)]
    parts += [_methods(figures), _environment(environment)]
    return "\n".join(p for p in parts if p).rstrip() + "\n"


def _headline(figures: Sequence[Row], split: str, pool: str) -> str:
    chosen = [f for f in figures if (f["split"], f["pool"], f["variant"], f["known"]) == (split, pool, GIVEN, 0)]
    if not chosen:
        return "No rows.\n"
    head = (
        "method",
        "needs",
        "tasks",
        "GR",
        "95 %",
        "median",
        "GR⊥",
        "better",
        "harmed",
        "abstains",
        "RLD",
        "ρ strength",
    )
    return _table(head, [_figures(f) for f in chosen])


def _figures(f: Row) -> list[str]:
    name = f["method"]
    return [
        f"**{name}**" if name in OURS else name,
        METHODS[name].needs,
        str(f["tasks"]),
        _n(f["gr"]),
        _interval(f["gr_low"], f["gr_high"]),
        _n(f["gr_median"]),
        _n(f["gr_beyond"]),
        f"{_n(f['improved_or_abstained'])} {_interval(f['improved_low'], f['improved_high'])}",
        f"{_n(f['harmed'])} {_interval(f['harmed_low'], f['harmed_high'])}",
        _n(f["abstained"]),
        _n(f["rld"], 3),
        _n(f["strength_spearman"]),
    ]


def _targets(rows: Sequence[Row], split: str, seed: int) -> str:
    found = targets(rows, split, seed=seed)
    if not found:
        return ""
    lines = [[t.method, t.asked, t.found, str(t.tasks), "met" if t.met else "**missed**"] for t in found]
    met = sum(t.met for t in found)
    head = ("method", "target", "found", "tasks", "")
    return f"## Targets\n\n{met} of {len(found)} met, on the tasks that each row has.\n\n{_table(head, lines)}"


def _calibration(figures: Sequence[Row], split: str) -> str:
    chosen = [
        f
        for f in figures
        if (f["split"], f["pool"], f["variant"], f["known"]) == (split, "all", GIVEN, 0)
        and math.isfinite(f["strength_spearman"])
    ]
    if not chosen:
        return ""
    lines = [[f["method"], _n(f["strength_spearman"]), _n(f["expected_slope"])] for f in chosen]
    head = ("method", "Spearman of strength with the relative gain", "realised on expected gain, slope")
    return (
        "## Calibration\n\nWhether the method's own words foresee what happens. A slope of 1 means that it promises what "
        f"it keeps; below 1 it promises too much.\n\n{_table(head, lines)}"
    )


def _comparisons(rows: Sequence[Row], split: str, seed: int) -> str:
    present = {r["method"] for r in rows if r["split"] == split}
    against = {
        "functional": [m.name for m in METHODS.values() if m.group == TEXT and not m.name.startswith("functional")],
        "ours+16": [m.name for m in METHODS.values() if m.needs == "16 examples"],
        "ours+160": [m.name for m in METHODS.values() if m.needs == "160 examples"],
    }
    lines = []
    for ours, others in against.items():
        chosen = [o for o in others if o in present and o != ours]
        for d in tables.comparisons(rows, ours, chosen, split, seed=seed):
            p = "–" if math.isnan(d["p"]) else f"{d['p']:.4f}"
            lines.append([ours, d["other"], str(d["tasks"]), _n(d["value"]), _interval(d["low"], d["high"]), p])
    if not lines:
        return ""
    head = ("ours", "against", "tasks", "difference in GR", "95 %", "p")
    return f"## Paired comparisons\n\nThe same tasks on both sides, drawn together.\n\n{_table(head, lines)}"


def _variants(rows: Sequence[Row], figures: Sequence[Row], split: str, seed: int) -> str:
    chosen = [f for f in figures if (f["split"], f["pool"], f["known"]) == (split, "all", 0)]
    varied = {f["method"] for f in chosen if f["variant"] != GIVEN}
    if not varied:
        return ""
    lines = []
    for method in (m for m in METHODS if m in varied):
        for variant in VARIANTS:
            lines += [
                [method, variant, _n(f["gr"]), _n(f["improved_or_abstained"]), _n(f["harmed"]), _n(f["abstained"])]
                for f in chosen
                if f["method"] == method and f["variant"] == variant
            ]
    text = _table(("method", "description", "GR", "better", "harmed", "abstains"), lines)
    lifts = [found for m in METHODS if m in varied and (found := tables.lift(rows, m, split, seed=seed))]
    if lifts:
        shown = [[d["method"], str(d["tasks"]), _n(d["value"]), _interval(d["low"], d["high"])] for d in lifts]
        text += "\nDescription lift, GR(given) − GR(shuffled):\n\n" + _table(("method", "tasks", "lift", "95 %"), shown)
    meanings = "\n".join(f"- *{k}*: {v}" for k, v in VARIANTS.items())
    return f"## Descriptions\n\n{meanings}\n\n{text}"


def _growth(rows: Sequence[Row], split: str) -> str:
    grouped = {g: x for g, x in tables.losses(rows).items() if (g.split, g.variant) == (split, GIVEN)}
    lines, numbers = [], set()
    for method in METHODS:
        own = sorted((g for g in grouped if g.method == method), key=lambda g: (g.known or math.inf, g.draw))
        if not any(g.known for g in own):
            continue
        same = dict(zip(own, common([grouped[g] for g in own]), strict=True))
        numbers.add(len(same[own[0]].tasks))
        for size in sorted({g.known for g in own}, key=lambda n: n or math.inf):
            found = [figures_of(same[g], None) for g in own if g.known == size]
            keys = ("gr", "improved_or_abstained", "harmed", "abstained")
            cells = [_n(_mean([float(f[k] or 0.0) for f in found])) for k in keys]
            spread = [float(f["gr"] or 0.0) for f in found]
            shown = _interval(min(spread), max(spread)) if len(found) > 1 else ""
            lines.append([method, str(size or "all"), str(len(found)), cells[0], shown, *cells[1:]])
    if not lines:
        return ""
    head = ("method", "known vectors", "draws", "GR (mean of draws)", "least and most", "better", "harmed", "abstains")
    return (
        f"## Growth\n\nNested random sets of known vectors, in the headline split, on the same "
        f"{' or '.join(map(str, sorted(numbers)))} tasks at every size.\n\n{_table(head, lines)}"
    )


def _families(rows: Sequence[Row], split: str) -> str:
    families = sorted({str(r["family"]) for r in rows})
    lines = []
    for family in families:
        grouped = tables.losses([r for r in rows if r["family"] == family])
        found = [grouped.get(Group(m, split)) for m in ("mean-scaled", *OURS)]
        first = next((f for f in found if f is not None), None)
        if first is not None:
            cells = [_n(gap_recovered(f)) if f is not None else "–" for f in found]
            lines.append([family or "(none)", str(len(first.tasks)), *cells])
    if not lines:
        return ""
    return "## By family\n\nGR in the headline split.\n\n" + _table(("family", "tasks", "mean-scaled", *OURS), lines)


def _methods(figures: Sequence[Row]) -> str:
    used = [m for m in METHODS.values() if any(f["method"] == m.name for f in figures)]
    return "## Methods\n\n" + _table(("method", "needs", "what it is"), [[m.name, m.needs, m.meaning] for m in used])


def _environment(environment: Environment) -> str:
    lines = [[k, f"`{v}`"] for k, v in environment.items() if k != "command"]
    return (
        f"## Environment\n\n{_table(('what', 'value'), lines)}\n## How to repeat it\n\n"
        f"```\n{environment['command']}\n```\n\nA run that was stopped goes on where it was; the same seed gives the same rows.\n"
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    out += [f"| {' | '.join(str(c).replace('|', '/') for c in line)} |" for line in lines]
    return "\n".join(out) + "\n"


def _n(x: float | None, digits: int = 2) -> str:
    return "–" if x is None or not math.isfinite(x) else f"{x:.{digits}f}"


def _interval(low: float, high: float) -> str:
    return f"[{_n(low)}, {_n(high)}]" if math.isfinite(low) and math.isfinite(high) else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
