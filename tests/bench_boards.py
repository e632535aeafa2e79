"""A benchmark's board of made-up numbers: tasks in groups and families, no model and no files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from comgrad.evaluate.tangent import Tangent
from comgrad.workflows.bench.corpus import Corpus, Item
from comgrad.workflows.bench.fold import Board
from comgrad.workflows.bench.prepare import Prepared


def items(count: int = 24, groups: int = 8, families: int = 4) -> tuple[Item, ...]:
    return tuple(
        Item(
            id=f"task-{i:02d}",
            name=f"Task {i}",
            description=f"words about subject {i} of group {i % groups} with detail {i * 7 % 11}",
            family=f"family-{i % families}",
            source_group=f"group-{i % groups}",
            label_names=("no", "yes"),
            label_prompts=("It is not.", "It is."),
            examples=Path("none"),
            adapter=Path("none"),
        )
        for i in range(count)
    )


def board(seed: int = 0, count: int = 24) -> Board:
    rng = np.random.default_rng(seed)
    corpus = Corpus(items(count))
    hidden = rng.standard_normal((count, 40))
    texts = [i.description for i in corpus.items]
    rows = hidden @ rng.standard_normal((40, 16)) + 0.5 * rng.standard_normal((count, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    prepared = {}
    for i, item in enumerate(corpus.items):
        labels = rng.integers(0, 2, 20)
        along = (2.0 * labels[:, None] - 1.0) * (hidden @ hidden[i] / 400.0) + 0.02 * rng.standard_normal((20, count))
        phi = np.stack([-along, along], axis=1)
        half = rng.standard_normal(20)
        prepared[item.id] = Prepared(
            Tangent(np.stack([-half, half], axis=1), phi, labels),
            np.ones(5),
            np.ones(5, bool),
            np.zeros(5),
            np.ones(5, bool),
        )
    return Board(corpus, hidden @ hidden.T / 40.0, dict(zip(texts, rows, strict=True)), prepared)


def poisoned(whole: Board, bad: list[int]) -> Board:
    """Everything about some tasks is not a number, wherever it stands."""
    gram = whole.gram.copy()
    gram[bad], gram[:, bad] = np.nan, np.nan
    names = {whole.corpus.items[i].id for i in bad}
    texts = {whole.corpus.items[i].description for i in bad}
    prepared = {}
    for name, p in whole.prepared.items():
        phi = p.tangent.phi.copy()
        phi[:, :, bad] = np.nan
        z0 = p.tangent.z0 * (np.nan if name in names else 1.0)
        prepared[name] = Prepared(Tangent(z0, phi, p.tangent.labels), p.loss0, p.right0, p.loss_own, p.right_own)
    rows = {t: e * (np.nan if t in texts else 1.0) for t, e in whole.embeddings.items()}
    return Board(whole.corpus, gram, rows, prepared)
