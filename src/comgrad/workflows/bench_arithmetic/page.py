"""The results page: Markdown made from the rows, so that no figure in it is typed by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from comgrad.vectors.merge import METHODS
from comgrad.workflows.bench_arithmetic.orderings import FAILS, HOLDS, UNDECIDED, verdicts
from comgrad.workflows.bench_arithmetic.plan import Plan
from comgrad.workflows.bench_arithmetic.rows import BASE, Row, Spread, by_seed, spread
from comgrad.workflows.bench_arithmetic.suite import Suite, read_run

HEAD = """# Task arithmetic: which orderings of the linear-layers paper hold

Written by `comgrad bench addition` and `comgrad bench disentanglement`; no figure here was typed by hand.

A vector is trained for every task by every recipe; then vectors are added, subtracted and merged, with one coefficient
chosen on validation data before one look at the test data. Means are over tasks or pairs, then over seeds, with 95 %
t-intervals over seeds. Accuracies are shares of 1. Published figures are those of the paper (CLIP image towers on eight
image tasks, percent): {compared}.
"""
COMPARED = {
    "text": "another model, other data; only their order can be compared",
    "image": "the paper's own tasks; compare with the column of the model that was run, and only where its weights are the\n"
    "pre-trained ones",
}


def page(
    plan: Plan, rows: Sequence[Row], rates: Mapping[str, Any], environment: Mapping[str, Any], images: Mapping[str, str]
) -> str:
    """The whole page. `images`: name's end → file beside the page."""
    paper = read_run("linear_layers_only")
    published = {run["id"]: run["published"] for run in paper["runs"]}
    parts = [
        HEAD.format(compared=COMPARED[plan.suite.kind]),
        _orderings(rows),
        _addition(plan.suite, rows, published["table-1"]),
        _paradigms(plan.suite, rows, published["table-2"]),
        _single(plan.suite, rows, published["figure-3"], images),
        _methods(plan.suite, rows),
        _negation(plan.suite, rows),
        _disentanglement(plan.suite, rows, images),
        _cosines(plan.suite, rows, images),
        _proposition(plan.suite, rows),
        _cost(plan.suite, rows),
        _run(plan, rates, paper),
        _environment(environment),
    ]
    return "\n".join(p for p in parts if p).rstrip() + "\n"


def _orderings(rows: Sequence[Row]) -> str:
    found = verdicts(rows)
    if not found:
        return ""
    words = {HOLDS: "hold", FAILS: "do not hold", UNDECIDED: "are undecided"}
    told = ", ".join(f"{sum(v.verdict == word for v in found)} {said}" for word, said in words.items())
    lines = "\n".join(f"- {v.sentence}" for v in found)
    return (
        f"## The paper's orderings\n\nOf {len(found)} orderings measured here {told}. A difference is the better side "
        "minus the worse as the paper has them; an ordering holds where its whole interval is above 0, does not hold where "
        f"it is below, and is undecided otherwise.\n\n{lines}\n"
    )


def _addition(suite: Suite, rows: Sequence[Row], published: Mapping[str, Any]) -> str:
    paper = {p["recipe"]: p for p in published.values()}
    lines = []
    for recipe in (BASE, *suite.recipes):
        there = [_over(rows, m, recipe) for m in ("addition-absolute", "addition-normalised")]
        if there[0] is not None:
            p = paper.get(recipe)
            models = [_percent(p[m]) if p else "–" for m in ("ViT-B/32", "ViT-B/16", "ViT-L/14")]
            alpha = _over(rows, "addition-alpha", recipe)
            lines.append([recipe, *map(_spread, there), _n(alpha.mean) if alpha else "–", *models])
    if len(lines) < 2:
        return ""
    head = ("recipe", "absolute", "normalised", "α", "paper, B/32", "B/16", "L/14")
    return f"## Table 1: the sum of {len(suite.tasks)} vectors\n\n{_table(head, lines)}{_edges(rows)}"


def _edges(rows: Sequence[Row]) -> str:
    """A coefficient at the end of its grid could be larger still."""
    at = sorted({(r["recipe"], r["method"]) for r in rows if r["measure"] == "addition-alpha-at-edge" and r["value"]})
    told = ", ".join(f"{r} ({m})" for r, m in at)
    return f"\nThe chosen α is the largest of the grid, in some seed, for: {told}.\n" if at else ""


def _paradigms(suite: Suite, rows: Sequence[Row], published: Mapping[str, Any]) -> str:
    lines = []
    for number, p in published.items():
        found = [_over(rows, m, p["recipe"]) for m in ("accuracy", "addition-absolute", "addition-normalised")]
        if p["recipe"] in suite.recipes and all(found):
            said = [f"{p[k]:.2f}" for k in ("single", "absolute", "normalised")]
            lines.append([number, p["recipe"], *map(_spread, found), " / ".join(said)])
    if not lines:
        return ""
    head = (
        "",
        "paradigm",
        "single task",
        "added, absolute",
        "added, normalised",
        "paper (single / absolute / normalised)",
    )
    return f"## Table 2: the four paradigms\n\n{_table(head, lines)}"


def _single(suite: Suite, rows: Sequence[Row], published: Mapping[str, Any], images: Mapping[str, str]) -> str:
    lines = []
    for recipe in (BASE, *suite.recipes):
        whole = _over(rows, "accuracy", recipe)
        if whole is not None:
            each = [_over(rows, "accuracy", recipe, task=t) for t in suite.tasks]
            said = f"{published[recipe]['ViT-B/32']:.2f}" if recipe in published else "–"
            lines.append([recipe, _spread(whole), said, *(_n(e.mean, 3) if e else "–" for e in each)])
    if not lines:
        return ""
    head = ("recipe", "mean", "paper, B/32", *suite.tasks)
    return f"## Figures 3 and 6: single-task test accuracy\n\n{_table(head, lines)}{_image(images, 'single')}"


def _methods(suite: Suite, rows: Sequence[Row]) -> str:
    lines = []
    for method in ("sum", *suite.methods):
        for recipe in suite.method_recipes:
            found = [_over(rows, f"addition-{m}", recipe, method=method) for m in ("absolute", "normalised", "alpha")]
            if all(found):
                alpha, seeds = (_n(found[2].mean), found[0].seeds) if found[0] and found[2] else ("–", 0)
                lines.append([method, recipe, *map(_spread, found[:2]), alpha, str(seeds)])
    if not any(line[0] != "sum" for line in lines):
        return ""
    used = dict.fromkeys(line[0] for line in lines)
    told = "\n".join(f"- *{m}*: {METHODS[m].meaning} ([source]({METHODS[m].source}))" for m in used)
    head = ("method", "recipe", "absolute", "normalised", "α", "seeds")
    return (
        "## Merging methods on the same vectors\n\nThe merge is scaled by one α, chosen as for the sum; methods stand at "
        "their default parameters. Rows of fewer seeds than others are not to be compared by their last digits.\n\n"
        f"{_table(head, lines)}\n{told}\n"
    )


def _negation(suite: Suite, rows: Sequence[Row]) -> str:
    lines = []
    for recipe in suite.recipes:
        keys = ("target-base", "target", "control-base", "control", "satisfied")
        found = [_over(rows, f"negation-{k}", recipe) for k in keys]
        if all(found):
            lines.append([recipe, *map(_spread, found)])
    if not lines:
        return ""
    controls = ", ".join(suite.controls) or "the suite's other tasks"
    head = ("recipe", "target before", "target after", "controls before", "controls after", "constraint met")
    return (
        "## Negation\n\nOne vector is subtracted, with the α of the lowest validation accuracy on its task among those "
        f"that keep 95 % of the base's on every control task ({controls}); then test data.\n\n{_table(head, lines)}"
    )


def _disentanglement(suite: Suite, rows: Sequence[Row], images: Mapping[str, str]) -> str:
    lines = []
    for recipe in suite.recipes:
        found = [_over(rows, f"xi-unit-{d}", recipe) for d in ("disagreement", "kl")]
        if all(found):
            lines.append([recipe, *(_spread(f, 4) for f in found)])
    if not lines:
        return ""
    head = ("recipe", "predictions that differ", "symmetric KL of representations (nats)")
    pairs = "; ".join(" and ".join(p) for p in suite.pairs)
    shown = "".join(
        _image(images, f"xi-{k}-{d}") for k in range(1, len(suite.pairs) + 1) for d in ("disagreement", "kl")
    )
    return (
        "## Figures 4 and 7: disentanglement error\n\nMean of ξ over the unit square of coefficients, on test data; "
        f"lower is more disentangled; the heat maps are of the first seed, and the means in their titles are over their own, "
        f"coarser points. Pairs: {pairs}.\n\n{_table(head, lines)}{shown}"
    )


def _cosines(suite: Suite, rows: Sequence[Row], images: Mapping[str, str]) -> str:
    found = [(r, _over(rows, "cosine", r), _over(rows, "cosine-size", r)) for r in suite.recipes]
    lines = [[r, _spread(a, 4), _spread(b, 4)] for r, a, b in found if a and b]
    if not lines:
        return ""
    table = _table(("recipe", "mean cosine", "mean absolute cosine"), lines)
    return f"## Figure 5: cosines between vectors of different tasks\n\n{table}{_image(images, 'cosine')}"


def _proposition(suite: Suite, rows: Sequence[Row]) -> str:
    lines = []
    for recipe in suite.recipes:
        keys = ("inputs-own", "inputs-other", "interference-loss", "interference-accuracy")
        found = [_over(rows, k, recipe) for k in keys]
        if all(found):
            ranks = [_over(rows, k, recipe) for k in ("association-rho", "association-p")]
            worst = max(
                (r["value"] for r in rows if (r["measure"], r["recipe"]) == ("association-p", recipe)), default=None
            )
            lines.append([recipe, *(_spread(f, 3) for f in found), _spread(ranks[0]), _n(worst, 4)])
    if not lines:
        return ""
    head = ("recipe", "own inputs", "others' inputs", "rise of loss", "fall of accuracy", "Spearman's ρ", "largest p")
    return (
        "## Proposition 1: are other tasks' inputs orthogonal to a vector?\n\nThe size of ΔW·x beside that of a random ΔW "
        "with the same singular values: 1 is random, 0 orthogonal. Interference is what a task's own model loses when "
        "another vector is added; ρ says whether pairs of larger ratio interfere more, p is one-sided by permutation of "
        f"the tasks.\n\n{_table(head, lines)}"
    )


def _cost(suite: Suite, rows: Sequence[Row]) -> str:
    lines = []
    for recipe in suite.recipes:
        found = {r["measure"]: r for r in rows if r["recipe"] == recipe and str(r["measure"]).startswith("cost-")}
        if found:
            s = found["cost-seconds"]
            lines.append(
                [recipe, f"{found['cost-trainable']['value']:,.0f}", f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]",
                 f"{found['cost-speed-up']['value']:.2f}", f"{found['cost-bytes']['value'] / 2**20:.0f}",
                 _n(found["cost-memory-share"]["value"])]
            )  # fmt: skip
    if not lines:
        return ""
    head = ("recipe", "trainable", "seconds per step", "times as fast", "peak MiB", "share of its memory")
    return (
        "## Cost\n\nMedian and quartiles of steps taken in turn in one process of one thread; speed and memory beside "
        f"non-linear fine-tuning.\n\n{_table(head, lines)}"
    )


def _run(plan: Plan, rates: Mapping[str, Any], paper: Mapping[str, Any]) -> str:
    suite = plan.suite
    lines = [
        [t, plan.items[t].family, *(str(len(plan.tasks[t].split(s))) for s in ("train", "validation", "test"))]
        for t in suite.every
    ]
    tasks = _table(("task", "family", "train", "validation", "test"), lines)
    tuned = [
        [
            r,
            f"{f['factor']:.3g}",
            "yes" if f["edge"] else "no",
            ", ".join(f"×{k}: {v:.4f}" for k, v in f["losses"].items()),
        ]
        for r, f in rates.items()
    ]
    rate = _table(("recipe", "factor", "at the edge", "mean validation loss"), tuned)
    leaks = plan.guarded
    return (
        f"## What was run\n\nSuite {suite.name}: {len(suite.tasks)} tasks, then those that learning rates are tuned on "
        f"({len(suite.development)}), then the controls of negation ({len(suite.controls)}); recipes {', '.join(suite.recipes)}; seeds "
        f"{', '.join(map(str, suite.seeds))}; {suite.steps} steps of {suite.batch_size}, {suite.schedule} with "
        f"{suite.warmup_share:.0%} of warm-up. At most {suite.validation} validation and {suite.test} test examples of a "
        f"task are read, {suite.few} for measures of pairs. Texts in two parts of one task: {len(leaks.within)}; in the "
        f"test part of another task: {sum(leaks.dropped.values())}, left out.\n\n{tasks}\nA recipe's own learning rate is "
        f"multiplied by the factor of least validation loss on the development tasks:\n\n{rate}\nThe paper: {paper['source']}.\n"
    )


def _environment(environment: Mapping[str, Any]) -> str:
    lines = [[k, f"`{v}`"] for k, v in environment.items() if k != "command"]
    return (
        f"## Environment\n\n{_table(('what', 'value'), lines)}\n## How to repeat it\n\n```\n{_both(environment['command'])}\n"
        "```\n\nA run that was stopped goes on where it was; the same seeds give the same rows.\n"
    )


def _both(command: str) -> str:
    """The page is of two benchmarks of one folder, whichever wrote it; without `--kept`, which computes nothing."""
    return "\n".join(
        re.sub(r"\bbench (addition|disentanglement)\b", f"bench {name}", command).replace(" --kept", "")
        for name in ("addition", "disentanglement")
    )


# -- words and numbers -------------------------------------------------------------------------------------------------
def _over(rows: Sequence[Row], measure: str, recipe: str, **only: Any) -> Spread | None:
    found = by_seed(rows, measure, recipe, **only)
    return spread(list(found.values())) if found else None


def _image(images: Mapping[str, str], name: str) -> str:
    return f"\n![{name}]({images[name]})\n" if name in images else ""


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    out += [f"| {' | '.join(str(c).replace('|', '/') for c in line)} |" for line in lines]
    return "\n".join(out) + "\n"


def _percent(pair: Sequence[float | None]) -> str:
    return " / ".join("–" if x is None else f"{x:.2f}" for x in pair)


def _n(x: float | None, digits: int = 2) -> str:
    return "–" if x is None or not math.isfinite(x) else f"{x:.{digits}f}"


def _spread(s: Spread | None, digits: int = 3) -> str:
    if s is None:
        return "–"
    low, high = _n(s.low, digits), _n(s.high, digits)
    return _n(s.mean, digits) + (f" [{low}, {high}]" if low != high else "")
