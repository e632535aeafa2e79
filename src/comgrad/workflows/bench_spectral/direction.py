"""Does a score find the direction of inclusion? Chosen on the development half of the pairs, tested on the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from comgrad.explain.inclusion import CANDIDATES, scores
from comgrad.weights.strict_json import read_json
from comgrad.workflows.bench.corpus import Corpus
from comgrad.workflows.bench_spectral.measure import Board
from comgrad.workflows.bench_spectral.plan import DEVELOPMENT, TEST, Pair, Request, Study
from comgrad.workflows.bench_spectral.stats import by_group, exact_share, flip_p, over_groups

Row = dict[str, Any]
LABELS = "number of labels"
BASELINE = "a baseline from the card, without weights: the task with more labels is the general one"
CHANCE = 0.05
LEARNT = "both learnt"
GAIN = 0.03  # accuracy an adapter must have gained on its own task to count as learnt


@dataclass(frozen=True)
class Choice:
    """The candidate chosen on the development half, with its sign (1: as the slides have it)."""

    candidate: str
    sign: int


def signed_scores(board: Board, study: Study, labels: dict[str, int]) -> dict[str, list[float]]:
    """Candidate → s(general, contained) for each listed pair; positive is right."""
    out = {}
    for name in CANDIDATES:
        S = scores(board.found, name).numpy()
        out[name] = [float(S[board.place(p.general), board.place(p.contained)]) for p in study.pairs]
    out[LABELS] = [float(np.log(labels[p.general] / labels[p.contained])) for p in study.pairs]
    return out


def accuracy_row(
    name: str, sign: int, half: str, pairs: Sequence[Pair], found: Sequence[float], request: Request
) -> Row:
    """Accuracy of the direction over pairs, and averaged over general tasks. A score of exactly 0 is wrong."""
    right = [float(sign * s > 0) for s in found]
    groups = [p.general for p in pairs]
    share = exact_share(int(sum(right)), len(right))
    e = over_groups(right, groups, draws=request.draws, seed=request.seed)
    means = list(by_group(right, groups).values())
    return {
        "candidate": name, "sign": sign, "half": half, "pairs": share.n, "correct": share.successes,
        "accuracy": share.share, "low": share.low, "high": share.high, "p": share.p, "generals": len(means),
        "macro": e.mean, "macro_low": e.low, "macro_high": e.high, "p_generals": flip_p(means),
    }  # fmt: skip


def direction_rows(
    study: Study, found: dict[str, list[float]], request: Request, learnt: Collection[str] = ()
) -> list[Row]:
    """Every candidate with its own sign on both halves, on all pairs, by kind, and where both tasks are among `learnt`."""
    parts: dict[str, list[int]] = {half: [] for half in (DEVELOPMENT, TEST, "all")}
    for k, p in enumerate(study.pairs):
        for part in (study.halves[p.general], "all", f"all, {p.kind}"):
            parts.setdefault(part, []).append(k)
    parts[LEARNT] = [k for k, p in enumerate(study.pairs) if p.general in learnt and p.contained in learnt]
    return [
        accuracy_row(name, 1, part, [study.pairs[k] for k in at], [values[k] for k in at], request)
        for name, values in found.items()
        for part, at in parts.items()
        if at
    ]


def choose(study: Study, found: dict[str, list[float]], request: Request) -> Choice | None:
    """The candidate and sign of highest development accuracy averaged over general tasks; None without such pairs."""
    at = [k for k, p in enumerate(study.pairs) if study.halves[p.general] == DEVELOPMENT]
    if not at:
        return None
    pairs = [study.pairs[k] for k in at]
    order = [(name, sign) for name in CANDIDATES for sign in (1, -1)]  # of equals the first

    def development(option: tuple[str, int]) -> float:
        name, sign = option
        values = [found[name][k] for k in at]
        return round(float(accuracy_row(name, sign, DEVELOPMENT, pairs, values, request)["macro"]), 12)

    return Choice(*max(order, key=development))


def chosen_rows(study: Study, found: dict[str, list[float]], choice: Choice | None, request: Request) -> list[Row]:
    """The chosen score on both halves; none where a half is empty."""
    if choice is None:
        return []
    out = []
    for half in (DEVELOPMENT, TEST):
        at = [k for k, p in enumerate(study.pairs) if study.halves[p.general] == half]
        if at:
            values = [found[choice.candidate][k] for k in at]
            out.append(accuracy_row(choice.candidate, choice.sign, half, [study.pairs[k] for k in at], values, request))
    return out


def better_than_chance(row: Row) -> bool:
    """Above one half with both p below 0.05: over pairs, and over general tasks."""
    return bool(row["accuracy"] > 0.5 and row["macro"] > 0.5 and row["p"] < CHANCE and row["p_generals"] < CHANCE)


def learnt_tasks(corpus: Corpus) -> frozenset[str]:
    """Tasks whose adapter gained at least 0.03 of accuracy, by the card beside it; without figures a task is not."""
    out = []
    for item in corpus.known:
        assert item.adapter is not None
        card = item.adapter / "task_card.json"
        training = read_json(card).get("training") if card.is_file() else None
        if isinstance(training, dict):
            before, after = training.get("accuracy_before"), training.get("accuracy_after")
            if isinstance(before, int | float) and isinstance(after, int | float) and after - before >= GAIN:
                out.append(item.id)
    return frozenset(out)


def as_dict(choice: Choice | None) -> Row | None:
    return None if choice is None else asdict(choice)
