"""What should the learned embedding h be taught? Each target against the gains it is meant to foresee.

For each known task, left out with its relatives by description (its nearest three), h is fitted on the others and asked
for its similarity to each of them; the figure is Spearman's correlation with the functional similarity (do the same
vectors help both?) and with the first-order gain of the other's vector, averaged over tasks. `none` is the text encoder
itself. Needs a registry whose vectors have gradients (the shipped zoo has).

    python benchmarks/targets.py [--registry DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from comgrad.describe import targets
from comgrad.describe.head import fit_head
from comgrad.evaluate.classifier import Bench
from comgrad.evaluate.input_metric import input_roots, weighted
from comgrad.geometry.gram import gram
from comgrad.predict.functional import RISK
from comgrad.weights.bases import resolve_base
from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.demo import starter
from comgrad.workflows.known import Known
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection

RELATIVES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--registry", type=Path, help="a registry's folder; default: the shipped zoo")
    chosen = parser.parse_args().registry
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(chosen or folder)
        if chosen is None:
            add_paths([starter("zoo")], AddRequest(), registry=registry)
        known = Known.of(collection(registry), cache=registry.store.cache_dir)
        show(known)


def show(known: Known) -> None:
    """Print the table for a collection."""
    at = known.evidence.with_gradient
    evidence = known.evidence.subset(np.flatnonzero(at))
    if len(evidence) < 10:
        raise SystemExit(f"error: {len(evidence)} tasks with gradients; at least 10 are needed")
    vectors = [v for v, has in zip(known.vectors, at, strict=True) if has]
    names = [n for n in vectors[0].tensors if n.endswith(".weight")]
    roots = input_roots(Bench.open(resolve_base(known.traits.base.name)), list(evidence.texts), names)
    inputs = np.asarray(gram([weighted(v, roots) for v in vectors]))
    squares = {
        "none": None,
        "frobenius (the note)": targets.frobenius(evidence.gram),
        "centred": targets.centred(evidence.gram),
        "input-weighted": targets.frobenius(inputs),
        "input-weighted, centred": targets.centred(inputs),
        "functional": targets.functional(evidence.gains, evidence.gram, RISK),
    }
    truth = targets.functional(evidence.gains, evidence.gram, RISK)
    table = Table("target of h", "functional similarity", "first-order gain", title=f"{len(evidence)} tasks")
    for name, square in squares.items():
        rho = np.array([_of_one(evidence.embeddings, square, truth, evidence.gains, i) for i in range(len(evidence))])
        error = rho.std(axis=0, ddof=1) / len(rho) ** 0.5
        table.add_row(name, *(f"{m:.3f} ± {e:.3f}" for m, e in zip(rho.mean(axis=0), error, strict=True)))
    Console().print(table)


def _of_one(
    rows: np.ndarray, square: np.ndarray | None, truth: np.ndarray, gains: np.ndarray, task: int
) -> tuple[float, float]:
    """Spearman of predicted similarity of one left-out task with what it should foresee."""
    near = np.argsort(-rows @ rows[task])[: RELATIVES + 1]
    rest = np.setdiff1d(np.arange(len(rows)), [task])
    fitted_on = np.setdiff1d(rest, near)
    if square is None:
        predicted = rows[rest] @ rows[task]
    else:
        head = fit_head(rows[fitted_on], square[np.ix_(fitted_on, fitted_on)])
        predicted = head.similarity(rows[task][None], rows[rest])[0]
    return float(spearmanr(predicted, truth[task, rest])[0]), float(spearmanr(predicted, gains[task, rest])[0])


if __name__ == "__main__":
    main()
