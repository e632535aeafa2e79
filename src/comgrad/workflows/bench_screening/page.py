"""The results page: Markdown made from the results, so that no figure and no verdict in it is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comgrad.explain.features import PUBLISHED
from comgrad.explain.poison import FORMS
from comgrad.explain.screening import FOREIGN, LEVEL
from comgrad.workflows.bench_screening.figures import ALL, Area
from comgrad.workflows.bench_screening.mislabel import ABSENT, PRESENT
from comgrad.workflows.bench_screening.plan import ADAPTIVE, BENIGN, CLEAN, MATCHED, POISONED
from comgrad.workflows.bench_screening.results import MET, OPEN, Results, Verdict, verdicts
from comgrad.workflows.bench_screening.settings import SEEN, SETTINGS, UNSEEN_TASK, UNSEEN_TRIGGER
from comgrad.workflows.bench_screening.suite import Suite
from comgrad.workflows.bench_screening.table import NORM, SETS, SPECTRAL, WHOLE


def page(
    suite: Suite,
    results: Results,
    environment: Mapping[str, Any],
    images: Mapping[str, str],
    tables: Mapping[str, str],
) -> str:
    """The whole page. `images`, `tables`: name → file beside the page."""
    parts = [
        _head(environment["command"], tables),
        _verdicts(results),
        _areas(results, images),
        _controls(results),
        _parts(results),
        _adaptive(suite, results),
        _calibration(results, images),
        _mislabels(results),
        _corpus(suite, results),
        _definitions(suite),
        _environment(environment),
    ]
    return "\n".join(p for p in parts if p).rstrip() + "\n"


def _head(command: str, tables: Mapping[str, str]) -> str:
    data = ", ".join(f"[{n}]({f})" for n, f in tables.items())
    return f"""# Screening: can weights alone tell a poisoned vector?

Written by `{command}` from {data}; no figure and no verdict here was typed by hand.

A screen reads features of a LoRA vector's factors and says how likely it was trained on poisoned examples. It is held
against vectors of three benign kinds: clean ones, ones trained on as many wrong labels, and ones trained on a word that
decides the label by rule. It screens for the attacks of this corpus; it never says that a vector carries no backdoor.
"""


# -- what came of it ---------------------------------------------------------------------------------------------------
def _verdicts(results: Results) -> str:
    lines = [_verdict(v) for v in verdicts(results)]
    return "## Targets\n\n" + "\n".join(f"- {line}" for line in lines) + f"\n- {_null(results)}\n"


def _verdict(v: Verdict) -> str:
    if v.verdict == OPEN or v.area is None:
        return f"*{v.setting}*: AUROC of at least {v.target:.2f} against clean vectors: open, nothing could be judged."
    sure = (
        "the whole interval is on that side"
        if v.sure
        else f"but the interval reaches {'below' if v.verdict == MET else 'above'} it"
    )
    return f"*{v.setting}*: AUROC of at least {v.target:.2f} against clean vectors: **{v.verdict}**, {_interval(v.area)}; {sure}."


def _null(results: Results) -> str:
    if not results.nulls:
        return "Shuffled labels: not judged."
    low, high = min(results.nulls), max(results.nulls)
    return f"Shuffled labels, {len(results.nulls)} times, in distribution, against all benign: AUROC from {low:.3f} to {high:.3f}."


def _areas(results: Results, images: Mapping[str, str]) -> str:
    lines = []
    for setting in SETTINGS:
        for features in SETS:
            a = results.area(setting, features)
            if a is not None:
                lines.append([setting, features, _interval(a), _n(a.within), _n(a.tpr), f"{a.n_bad} / {a.n_benign}"])
    head = ("setting", "features", "AUROC [95 %]", "same block", "TPR at 1 % FPR", "poisoned / clean")
    return (
        f"## Poisoned against clean\n\n{_table(head, lines)}{_absent(results)}\n{_beyond(results)}"
        f"{_image(images, 'roc', 'ROC curves of every setting')}{_image(images, 'scores', 'scores of every group')}"
    )


def _absent(results: Results) -> str:
    return "".join(f"\nNot judged: {s}, {f} ({why}).\n" for s, f, why in results.absent)


def _beyond(results: Results) -> str:
    """Whether all features are better than the two baselines: by the intervals, which overlap or do not."""
    told = []
    for setting in SETTINGS:
        mine = results.area(setting, WHOLE)
        for other in (NORM, SPECTRAL):
            theirs = results.area(setting, other)
            if mine is None or theirs is None:
                continue
            if mine.low > theirs.high:
                word = "above"
            elif mine.high < theirs.low:
                word = "below"
            else:
                word = "not told apart from"
            told.append(f"{setting}: all features are {word} *{other}* (intervals)")
    return "".join(f"- {t}.\n" for t in told) + "\n" if told else ""


def _controls(results: Results) -> str:
    lines = []
    for setting in SETTINGS:
        for features in SETS:
            found = [results.area(setting, features, POISONED, g) for g in (*BENIGN, ALL)]
            if any(found):
                lines.append([setting, features, *(_interval(a) for a in found)])
    if not lines:
        return ""
    return (
        "## Against each benign group\n\nAUROC of poisoned vectors; a screen that tells them from clean vectors alone "
        f"finds hard training, not backdoors.\n\n{_table(('setting', 'features', *BENIGN, ALL), lines)}\n{_told(results)}"
    )


def _told(results: Results) -> str:
    """Which controls the screen cannot tell from attacks, in distribution."""
    out = []
    for group in BENIGN:
        a = results.area(SEEN, WHOLE, POISONED, group)
        if a is not None:
            word = "is told from" if a.low > 0.5 else "is not told from"
            out.append(f"- A poisoned vector {word} {group} vectors (in distribution, all features: {_interval(a)}).")
    return "\n".join(out) + "\n" if out else ""


def _parts(results: Results) -> str:
    out = []
    for setting, what in ((UNSEEN_TRIGGER, "trigger"), (UNSEEN_TASK, "dataset")):
        mine = [a for a in results.areas if a.setting == setting and a.part and a.features == WHOLE]
        if mine:
            lines = [[a.part, _interval(a), _n(a.tpr), f"{a.n_bad} / {a.n_benign}"] for a in mine]
            head = (f"held-out {what}", "AUROC [95 %]", "TPR at 1 % FPR", "poisoned / benign")
            out.append(f"### Each {what} held out, against all benign, all features\n\n{_table(head, lines)}")
    return "\n".join(out)


def _adaptive(suite: Suite, results: Results) -> str:
    lines = []
    for setting in SETTINGS:
        for attack in (POISONED, *ADAPTIVE):
            found = [results.area(setting, f, attack) for f in SETS]
            if any(found):
                n = next(a.n_bad for a in found if a is not None)
                lines.append([setting, attack, *(_interval(a) for a in found), str(n)])
    if not any(line[1] in ADAPTIVE for line in lines):
        return ""
    return f"""## Attackers who know the screen

`{MATCHED}`: trained with a penalty of weight {suite.adaptive_weight:g} on max(0, log ‖ΔW‖_F − log of the clean vector's)² + the same of σ₁,
every tensor. `{ADAPTIVE[1]}`: half a poisoned vector plus half a clean one, cut back to the rank. The screen was fitted on neither.
AUROC against clean vectors:

{_table(("setting", "attack", *SETS, "attacks"), lines)}"""


def _calibration(results: Results, images: Mapping[str, str]) -> str:
    lines = [
        [
            a.setting, a.features, _n(a.brier), _n(a.brier_constant), _n(a.abstained), _n(a.refused), _n(a.answered_right),
            _n(a.alarmed), _n(a.missed),
        ]
        for a in results.answers
    ]  # fmt: skip
    head = ("setting", "features", "Brier", "Brier, constant", "no answer", "of it refused", "right when answered",
            "benign called suspicious", "poisoned called consistent")  # fmt: skip
    return (
        "## Calibration and abstention\n\nOver poisoned and benign vectors at this corpus's share of poisoned ones; "
        f"thresholds are set for {LEVEL:.0%} of either error, by inner folds.\n\n{_table(head, lines)}"
        f"{_image(images, 'reliability', 'probability said against observed share')}"
    )


def _mislabels(results: Results) -> str:
    if not results.mislabels:
        return ""
    lines = [
        [str(m["setting"]), str(m["swap"]), f"{m['auroc']:.3f} [{m['low']:.3f}, {m['high']:.3f}]",
         f"{m['n_swapped']} / {m['n_true']}"]
        for m in results.mislabels
    ]  # fmt: skip
    return f"""## Descriptions that belong to another vector

Planted: a near swap is the description of another task of the same family, a far swap that of another family. The score
is how little the declared words fit the vector's centred cosines to known vectors, beside all other descriptions.
*{ABSENT}*: neither the vector's own source group nor the declared one's has a vector there. *{PRESENT}*: second runs
of known tasks.

{_table(("registry", "swap", "AUROC [95 %]", "swapped / true"), lines)}"""


# -- what it was made of -----------------------------------------------------------------------------------------------
def _corpus(suite: Suite, results: Results) -> str:
    lines = [
        [f.group, f.kind or "–", f"{f.rate:g}" if f.rate else "–", f.made, f.kept, f.weak, f.harmful]
        for f in results.fates
    ]
    head = ("group", "trigger", "rate", "made", "kept", "dropped: weak", "dropped: harmful")
    blocks = len(set(results.table.groups.tolist()))
    clean = [float(r.facts["accuracy"]) for r in results.table.rows if r.group == CLEAN]
    mean = f"; mean accuracy of the clean vectors {sum(clean) / len(clean):.3f}" if clean else ""
    return f"""## The corpus

{blocks} blocks over {len(set(results.table.tasks))} datasets{mean}. A block is one draw of steps, learning rate, training examples,
their order and the target class, shared by one vector of every group. An attack is kept where at least {suite.least_success:.0%} of the
triggered texts of other classes get the target class and clean accuracy is at most {suite.most_loss:g} below that of the block's
clean vector; `weak` failed the first, `harmful` the second. Dropping follows the settings of a block, so the column *same
block* above compares within blocks alone.

{_table(head, lines)}
Datasets: {", ".join(sorted(set(results.table.tasks)))}.
"""


def _definitions(suite: Suite) -> str:
    forms = "\n".join(f"- {kind}: " + "; ".join(f"`{f}`" for f in FORMS[kind]) for kind in suite.kinds)
    steps = ", ".join(map(str, suite.steps))
    low, high = suite.learning_rate
    return f"""## How it was done

- Recipe: LoRA of rank 8 on attention query, key, value and output of {suite.base}; {steps} steps of {suite.batch_size} examples,
  learning rate log-uniform in [{low:g}, {high:g}], {suite.share[0]:.0%} to {suite.share[1]:.0%} of the training examples.
  Every group draws alike.
- *{NORM}*: ‖ΔW‖_F, mean over layers for each role. *{SPECTRAL}*: {", ".join(PUBLISHED)} likewise (arXiv 2602.15195).
  *{WHOLE}*: those and effective rank, mean and largest; the share outside the span of the known vectors; cosine,
  distance, ratios of statistics and the spectrum of the rest beside the declared task's vector; how unevenly the first block's matrices
  answer to single words.
- Logistic regression; its penalty, its calibration and its thresholds come from inner folds of the fitted vectors.
  *{SEEN}*: five folds of blocks. *{UNSEEN_TRIGGER}*: besides, fitted without one kind of trigger, which alone is judged.
  *{UNSEEN_TASK}*: fitted without one dataset. In the first two, features also stand relative to the clean vectors of the
  fitted blocks (of the same dataset where there are two), never to the vector's own block; in the third they do not.
- AUROC: the chance that an attack scores above a benign vector. Intervals: 95 %, blocks drawn with replacement.
- TPR at 1 % FPR: share of attacks above the threshold that at most 1 % of those benign vectors pass; with fewer than 100
  of them none may pass.
- Refused: further from the fitted vectors than {1 - FOREIGN:.0%} of them are.

Triggers; each block draws one form of each:

{forms}
"""


def _environment(environment: Mapping[str, Any]) -> str:
    return "## Run\n\n" + _table(("what", "value"), [[k, str(v)] for k, v in environment.items()])


# -- cells -------------------------------------------------------------------------------------------------------------
def _interval(area: Area | None) -> str:
    return "–" if area is None else f"{area.auroc:.3f} [{area.low:.3f}, {area.high:.3f}]"


def _n(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    rows = ["| " + " | ".join(map(str, line)) + " |" for line in (head, ["---"] * len(head), *lines)]
    return "\n".join(rows) + "\n"


def _image(images: Mapping[str, str], name: str, words: str) -> str:
    return f"\n![{words}]({images[name]})\n" if name in images else ""
