"""Is a quantity of one vector a matter of its task? Its link with the number of labels, and how a second run repeats it."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from comgrad.explain.inclusion import Features, features
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench.corpus import Corpus
from comgrad.workflows.bench_spectral.measure import Board

OWN = ("entropy", "stable_rank", "norm")
FEWEST = 4  # tasks, below which a correlation says nothing


def own_rows(board: Board, corpus: Corpus) -> list[dict[str, Any]]:
    """For each quantity Spearman's ρ with the number of labels over the zoo, and with second runs of the same tasks.

    `repeat_<kind>` is Pearson's r, over the tasks run twice, of the quantity in the first and in the second run.
    """
    labels = np.array([len(i.label_names) for i in corpus.known])
    K = len(board.ids)
    out = []
    second = {kind: _second(corpus, kind) for kind in sorted(corpus.second_runs)}
    for key in OWN:
        own = _mean(board.found, key)[:K]
        row: dict[str, Any] = {"quantity": key, "tasks": K, "least": float(own.min()), "most": float(own.max())}
        row |= {"rho_labels": float("nan"), "p_labels": float("nan")}
        if K >= FEWEST and np.ptp(labels) > 0:
            found = spearmanr(own, labels)
            row |= {"rho_labels": float(found.statistic), "p_labels": float(found.pvalue)}
        for kind, (ids, again) in second.items():
            first = own[[board.place(i) for i in ids]]
            known = len(ids) >= FEWEST
            row[f"repeat_{kind}"] = float(np.corrcoef(first, again[key])[0, 1]) if known else float("nan")
            row[f"tasks_{kind}"] = len(ids)
        out.append(row)
    return out


def _mean(found: Features, key: str) -> Float[np.ndarray, "K"]:
    return np.asarray(found.own[key].nanmean(0).numpy())


def _second(corpus: Corpus, kind: str) -> tuple[list[str], dict[str, Float[np.ndarray, "n"]]]:
    there = {i.id for i in corpus.known}
    ids = [i for i in sorted(corpus.second_runs[kind]) if i in there]
    if not ids:
        return ids, {key: np.zeros(0) for key in OWN}
    found = features([TaskVector.from_peft(corpus.second_runs[kind][i]) for i in ids])
    return ids, {key: _mean(found, key) for key in OWN}
