"""The results page: Markdown made from the rows, so that no figure and no verdict in it is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from comgrad.explain.inclusion import CANDIDATES
from comgrad.workflows.bench_spectral.direction import BASELINE, CHANCE, GAIN, LABELS, LEARNT, better_than_chance
from comgrad.workflows.bench_spectral.marks import digits_of, image, number, p_value, table
from comgrad.workflows.bench_spectral.plan import DEVELOPMENT, TEST, Study
from comgrad.workflows.bench_spectral.rows import HOLDS, UNDECIDED, Row

HEAD = """# Spectral projection and inclusion

Written by `comgrad bench spectral`; no figure and no verdict here was typed by hand.

One task vector is seen in the singular frame of another: ΔW₁ = U S₁ Vᵀ, and S₂ = diag(UᵀΔW₂V) is the best ΔW₂ does with
those directions, paired as they are. For an arrow A→B the frame is A's, and B is projected. **Explained** is
Σs₂²/‖ΔW₂‖², the share of B the comparison is about; **core** is ‖UᵀΔW₂V‖²/‖ΔW₂‖², the share in any pairing of the
directions; **column** is ‖UᵀΔW₂‖²/‖ΔW₂‖², the share in the column space alone. **L₁** is Σ|s₁ − s₂| with sign, **REC** is
Σ min(|s₁|/Σ|s₁|, |s₂|/Σ|s₂|), **H** the entropy of a normalised spectrum over the logarithm of its rank. All are computed
per tensor and averaged over layers and modules.

Nulls keep the frame: **unrelated** are the zoo's tasks of another family and source, **random** are adapters with real
spectra in random frames. Intervals are 95 % percentile intervals of a bootstrap: over modules for one arrow, over general
tasks for means of several (pairs of one general task share its vector). The entropy and REC of two spectra that share
nothing are far from 0: read them against the nulls. Adapters that start from one A share directions whatever they learn, so
unrelated tasks are the stricter null.
"""


def page(found: Mapping[str, Any], study: Study, images: Mapping[str, str]) -> str:
    """The whole page. `found`: the outcome's fields; `images`: name's end → file beside the page."""
    parts = [
        HEAD,
        _findings(found),
        _list_of(study),
        _slides(found["summary"], images),
        _claims(found["claims"]),
        _nulls(found["nulls"], found["carried"], images),
        _direction(found, images),
        _own(found["own"]),
        _triples(found["triples"]),
        _pairs(found["rows"]),
        _environment(found["environment"]),
    ]
    return "\n".join(p for p in parts if p).rstrip() + "\n"


# -- what it comes to --------------------------------------------------------------------------------------------------
def _findings(found: Mapping[str, Any]) -> str:
    lines = [_of_nulls(found["nulls"], "rec", "REC"), _of_nulls(found["nulls"], "explained", "Explained energy")]
    lines.append(_of_nulls(found["nulls"], "core_explained", "The full core's energy"))
    for measure, name in (("l1", "L₁"), ("rec", "REC")):
        r = found["carried"][measure]
        lines.append(
            f"{name} from A to B correlates at {r:.2f} with {name} from A to random adapters: "
            f"{_mostly(r)} of it is a matter of A alone."
        )
    claims = found["claims"]
    held = sum(c["verdict"] == HOLDS for c in claims)
    undecided = sum(c["verdict"] == UNDECIDED for c in claims)
    lines.append(
        f"Of {len(claims)} statements in the slides' sense, {held} hold here, {undecided} are undecided, and of "
        f"{len(claims) - held - undecided} the reverse holds."
    )
    lines += [_of_direction(found["tested"]), _of_kinds(found["directions"]), _of_own(found["own"])]
    return "## What holds\n\n" + "\n".join(f"- {line}" for line in lines if line) + "\n"


def _of_nulls(rows: Sequence[Row], measure: str, name: str) -> str:
    """One sentence about listed pairs against both nulls, in the frame of the general task."""
    told = []
    for null, words in (("zoo", "that of unrelated tasks"), ("random", "that of random adapters")):
        r = next((r for r in rows if (r["way"], r["measure"], r["null"]) == ("forward", measure, null)), None)
        if r is None:
            return ""
        side = "above" if r["low"] > 0 else "below" if r["high"] < 0 else "not told apart from"
        told.append(f"{side} {words} ({digits_of(r['null_value'])}, difference {_ci(r, 'difference', g=True)})")
    value = next(
        r["pairs"] for r in rows if (r["way"], r["measure"], r["null"]) == ("forward", measure, "zoo")
    )  # fmt: skip
    return f"{name} of a contained task in the frame of its general task, {digits_of(value)}, is {' and '.join(told)}."


def _mostly(r: float) -> str:
    share = r * r
    return "nearly all" if share > 0.9 else "most" if share > 0.5 else "some" if share > 0.1 else "little"


def _of_direction(rows: Sequence[Row]) -> str:
    test = next((r for r in rows if r["half"] == TEST), None)
    if test is None:
        return "The direction of inclusion could not be tested: one half of the pairs is empty here."
    verdict = "better than chance" if better_than_chance(test) else "no better than chance"
    return (
        f"The inclusion score chosen on the development pairs ({_signed(test)}) finds the direction of {test['correct']} "
        f"of {test['pairs']} test pairs, {_share(test)}, p = {p_value(test['p'])}; averaged over {test['generals']} general tasks "
        f"{_ci(test, 'macro')}, p = {p_value(test['p_generals'])}: **{verdict}** by the rule set beforehand."
    )


def _of_kinds(rows: Sequence[Row]) -> str:
    """The clearest of all candidates and kinds, looked at afterwards, with its p multiplied by their number."""
    kinds = [r for r in rows if r["half"].startswith("all, ") and r["candidate"] != LABELS]
    if not kinds:
        return ""
    best = min(kinds, key=lambda r: (r["p_generals"], -abs(r["macro"] - 0.5)))
    corrected = min(1.0, best["p_generals"] * len(kinds))
    verdict = "below" if corrected < CHANCE else "not below"
    return (
        f"Looked at afterwards, by kind of inclusion: of {len(kinds)} combinations of score and kind the clearest is "
        f"`{best['candidate']}` where the general task contains the other's {best['half'].removeprefix('all, ')}: "
        f"{best['correct']} of {best['pairs']} pairs right, {number(best['macro'])} over {best['generals']} general tasks, "
        f"p = {p_value(best['p_generals'])}, times {len(kinds)} {p_value(corrected)}: {verdict} {CHANCE}."
    )


def _of_own(rows: Sequence[Row]) -> str:
    told = [f"{number(r['rho_labels'])} for {r['quantity'].replace('_', ' ')}" for r in rows]
    return f"Spearman's ρ of a vector's own quantities with its number of labels: {', '.join(told)}."


# -- sections ----------------------------------------------------------------------------------------------------------
def _list_of(study: Study) -> str:
    protocol = "\n".join(f"{i}. {line}" for i, line in enumerate(study.protocol, 1))
    counts = {half: sum(study.halves[p.general] == half for p in study.pairs) for half in (DEVELOPMENT, TEST)}
    return (
        f"## The list of pairs\n\n{study.statement} {study.meaning}\n\nHere: {len(study.pairs)} pairs of "
        f"{len({p.general for p in study.pairs})} general tasks ({counts[DEVELOPMENT]} for development, {counts[TEST]} "
        f"for the test) and {len(study.triples)} triples.\n\n{protocol}\n"
    )


def _slides(rows: Sequence[Row], images: Mapping[str, str]) -> str:
    if not rows:
        return ""
    first = [
        [r["arrow"], _ci(r, "l1"), _ci(r, "rec"), number(r["rec_zoo"], 3), number(r["rec_random"], 3), _ci(r, "explained", g=True),
         digits_of(r["explained_random"]), _ci(r, "core_explained", g=True)]
        for r in rows
    ]  # fmt: skip
    second = [
        [r["arrow"], _ci(r, "entropy_1"), _ci(r, "entropy_2")] for r in rows if r["arrow"] in ("G→C", "C→G")
    ]  # fmt: skip
    return (
        f"## The slides' two tables\n\nMeans over {rows[0]['triples']} triples of a general task G (there: summarisation), "
        "a contained task C (named entities) and a control K (the first 10 % of the sentences).\n\n"
        + table(
            ("arrow", "L₁", "REC", "unrelated", "random", "explained", "random", "core"), first
        )
        + "\n"
        + table(("arrow", "H(S₁)", "H(S₂)"), second)
        + image(images, "triples")
    )  # fmt: skip


def _claims(rows: Sequence[Row]) -> str:
    lines = [
        [
            r["claim"],
            r["slides"],
            f"{r['n']} {r['where']}",
            _ci(r, "difference", g=True),
            number(r["as_said"]),
            r["verdict"],
        ]
        for r in rows
    ]
    head = ("statement", "slides", "on", "difference", "share of them as said", "verdict")
    return (
        "## The slides' statements\n\nA difference is the first arrow's value minus the second's; a statement holds "
        "where the whole interval lies on its side of 0, and is undecided where it does not exclude 0.\n\n"
        + table(head, lines)
    )


def _nulls(rows: Sequence[Row], carried: Mapping[str, float], images: Mapping[str, str]) -> str:
    names = {"rec": "REC", "explained": "explained", "core_explained": "core"}
    frame = {"forward": "the general task's", "backward": "the contained task's"}
    against = {"zoo": "unrelated", "random": "random"}
    lines = [
        [frame[r["way"]], names[r["measure"]], against[r["null"]], digits_of(r["pairs"]), digits_of(r["null_value"]),
         _ci(r, "difference", g=True), number(r["above_zoo"])]
        for r in rows
    ]  # fmt: skip
    head = ("frame", "measure", "null", "listed pairs", "null's mean", "difference", "share of unrelated tasks below")
    return (
        "## Listed pairs against their nulls\n\nMeans over general tasks.\n\n"
        + table(head, lines)
        + f"\nCorrelation, over all ordered pairs of the zoo, with the mean over random adapters in the same frame: "
        f"L₁ {number(carried['l1'])}, REC {number(carried['rec'])}.\n" + image(images, "pairs")
    )


def _direction(found: Mapping[str, Any], images: Mapping[str, str]) -> str:
    rows = found["directions"]
    meaning = [[c.name, c.formula, c.why] for c in CANDIDATES.values()] + [[LABELS, "log n_a − log n_b", BASELINE]]
    shown = [
        [r["candidate"], r["half"], f"{r['correct']} of {r['pairs']}", _share(r), p_value(r["p"]), str(r["generals"]),
         _ci(r, "macro"), p_value(r["p_generals"])]
        for r in rows
    ]  # fmt: skip
    head = ("score", "pairs", "right", "share (exact interval)", "p", "general tasks", "mean over them", "p")
    checked = [
        [_signed(r), r["half"], f"{r['correct']} of {r['pairs']}", _share(r), p_value(r["p"]), str(r["generals"]),
         _ci(r, "macro"), p_value(r["p_generals"]), "better" if r["better_than_chance"] else "no better"]
        for r in found["tested"]
    ]  # fmt: skip
    return (
        "## The direction of inclusion\n\nEvery score changes sign with the order of its tasks and is positive where it calls "
        "the first the general one.\n\n" + table(("score", "s(a, b), mean over tensors", "why"), meaning)
        + "\nThe score chosen on the development half:\n\n" + table((*head, "than chance"), checked)
        + image(images, "direction")
        + "\nEvery candidate with its own sign (shares near 0 mean that the opposite sign fits; rows on all pairs, by "
        f"kind and '{LEARNT}', where both adapters gained at least {GAIN} of accuracy on their own task, were not used for "
        "anything):\n\n" + table(head, shown)
    )  # fmt: skip


def _own(rows: Sequence[Row]) -> str:
    kinds = sorted({k.removeprefix("repeat_") for r in rows for k in r if k.startswith("repeat_")})
    lines = [
        [r["quantity"].replace("_", " "), f"{digits_of(r['least'])} to {digits_of(r['most'])}",
         number(r["rho_labels"]), p_value(r["p_labels"]),
         *(f"{number(r[f'repeat_{k}'])} ({r[f'tasks_{k}']} tasks)" for k in kinds)]
        for r in rows
    ]  # fmt: skip
    head = ("quantity", "range", "ρ with number of labels", "p", *(f"r with {k.replace('_', ' ')}" for k in kinds))
    return (
        "## Is it the task?\n\nQuantities of one vector, means over tensors: Spearman's ρ with the number of labels over the "
        "zoo, and the correlation of two runs of the same tasks. A score of direction cannot be better known than the "
        "quantity repeats.\n\n" + table(head, lines)
    )


def _triples(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = [
        [str(r["triple"]), r["arrow"], f"{r['from']} → {r['to']}", _ci(r, "l1"), _ci(r, "rec"), number(r["rec_zoo"], 3),
         _ci(r, "explained", g=True), digits_of(r["core_explained"]), number(r["entropy_1"], 3), number(r["entropy_2"], 3)]
        for r in rows
    ]  # fmt: skip
    head = ("triple", "arrow", "tasks", "L₁", "REC", "unrelated", "explained", "core", "H(S₁)", "H(S₂)")
    return "## Every triple\n\nIntervals over modules.\n\n" + table(head, lines)


def _pairs(rows: Sequence[Row]) -> str:
    forward = [r for r in rows if r["way"] == "forward"]
    back = {(r["general"], r["contained"]): r for r in rows if r["way"] == "backward"}
    lines = []
    for r in forward:
        b = back[r["general"], r["contained"]]
        both = [f"{number(r[m], 3)} / {number(b[m], 3)}" for m in ("l1", "rec")]
        shares = [f"{digits_of(r[m])} / {digits_of(b[m])}" for m in ("explained", "core_explained")]
        entropy = f"{number(r['entropy_1'], 3)} / {number(b['entropy_1'], 3)}"
        lines.append([f"{r['general']} ⊃ {r['contained']}", r["kind"], r["half"], *both, *shares, entropy])
    head = ("pair", "contains its", "half", "L₁", "REC", "explained", "core", "H(S₁)")
    return (
        "## Every pair\n\nEach cell: frame of the general task / frame of the contained one. The reasons are in "
        "`pairs.json` beside the program.\n\n" + table(head, lines)
    )


def _environment(environment: Mapping[str, Any]) -> str:
    lines = [[k, f"`{v}`"] for k, v in environment.items() if k != "command"]
    return (
        f"## Environment\n\n{table(('what', 'value'), lines)}\n## How to repeat it\n\n```\n{environment['command']}\n"
        "```\n\nThe same data and seed give the same rows.\n"
    )


# -- words and numbers -------------------------------------------------------------------------------------------------


def _signed(row: Row) -> str:
    return f"`{row['candidate']}`, {'its own sign' if row['sign'] > 0 else 'the opposite sign'}"


def _share(r: Row) -> str:
    return f"{number(r['accuracy'])} [{number(r['low'])}, {number(r['high'])}]"


def _ci(r: Row, key: str, *, g: bool = False) -> str:
    """Value and interval; the bounds of `difference` are called low and high alone."""
    low, high = (r["low"], r["high"]) if key == "difference" else (r[f"{key}_low"], r[f"{key}_high"])
    show = digits_of if g else (lambda x: number(x, 3))
    return show(r[key]) + (f" [{show(low)}, {show(high)}]" if math.isfinite(low) else "")
