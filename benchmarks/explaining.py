"""How well do weights tell what a task is? Family and description of left-out vectors, and true against swapped claims.

Each vector of a zoo is left out, alone and then with all vectors of its source, and explained by the others. Beside each
figure: always naming the largest family, and the same with descriptions and families dealt out anew (five times).
Intervals are 95 %: Wilson's for shares, bootstrap over vectors for the mean reciprocal rank.

    python benchmarks/explaining.py [--data DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from comgrad.describe.encoder import load_encoder
from comgrad.explain.evaluation import Retrieval, evaluate, mean_reciprocal_rank
from comgrad.explain.reference import Label
from comgrad.workflows.bench.corpus import open_corpus
from comgrad.workflows.bench.score import wilson
from comgrad.workflows.explain_known import reference_of

TARGET = 3.0  # times the share of the largest family


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="a folder with 'tasks' and 'zoo'; default: the shipped zoo")
    corpus = open_corpus(parser.parse_args().data)
    labels = [Label(i.id, i.name, i.description, i.family, i.source_group) for i in corpus.known]
    rows = load_encoder().encode([x.description for x in labels])
    reference = reference_of(corpus.vectors, labels, rows)
    show({"alone": evaluate(reference), "with its source": evaluate(reference, group=True)})


def show(found: dict[str, Retrieval]) -> None:
    """Print the table."""
    first = next(iter(found.values()))
    out = Table(title=f"{first.vectors} vectors, each left out", box=None, title_justify="left", header_style="bold")
    out.add_column("")
    for name in found:
        out.add_column(name, justify="right")
    for label, figure in ROWS:
        out.add_row(label, *(figure(r) for r in found.values()))
    Console(width=120).print(out)
    for name, r in found.items():
        met = "reached" if r.times_majority >= TARGET else "not reached"
        print(f"Left out {name}: family accuracy of {TARGET:g} times the largest family's share is {met}.")


def share(right: np.ndarray) -> str:
    """A share with Wilson's 95 % interval."""
    low, high = wilson(int(right.sum()), len(right))
    return f"{right.mean():.3f} ({low:.3f} to {high:.3f})"


def reciprocal(rank: np.ndarray) -> str:
    """A mean reciprocal rank with its bootstrap interval."""
    rng = np.random.default_rng(0)
    means = (1.0 / rank)[rng.integers(len(rank), size=(2000, len(rank)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{mean_reciprocal_rank(rank):.3f} ({low:.3f} to {high:.3f})"


def rates(r: Retrieval, which: str) -> str:
    """Shares of the claims called each status."""
    return " / ".join(f"{v:.3f}" for v in r.claim_rates[which].values())


ROWS = (
    ("family, by subspaces", lambda r: share(r.right)),
    ("family, by centred cosine", lambda r: share(r.right_weights)),
    ("family, largest one always", lambda r: f"{r.majority:.3f}"),
    ("family, cards shuffled", lambda r: f"{r.shuffled_right.mean():.3f}"),
    ("by subspaces over largest", lambda r: f"{r.times_majority:.2f} times"),
    ("right against wrong families, AUROC of the vote's strength", lambda r: f"{r.odds_auroc:.3f}"),
    ("description retrieved, mean reciprocal rank, by fit", lambda r: reciprocal(r.rank)),
    ("  cards shuffled", lambda r: f"{mean_reciprocal_rank(r.shuffled_rank):.3f}"),
    ("description retrieved, embedding run backwards", lambda r: reciprocal(r.backwards_rank)),
    ("  cards shuffled", lambda r: f"{mean_reciprocal_rank(r.shuffled_backwards):.3f}"),
    ("true against swapped claims, AUROC", lambda r: f"{r.claim_auroc:.3f}"),
    ("  swapped with another family only", lambda r: f"{r.claim_auroc_far:.3f}"),
    ("true claims: consistent / unexplained / contradictory", lambda r: rates(r, "true")),
    ("another family's: consistent / unexplained / contradictory", lambda r: rates(r, "far")),
    ("residual share, median", lambda r: f"{np.median(r.residual):.4f}"),
)


if __name__ == "__main__":
    main()
