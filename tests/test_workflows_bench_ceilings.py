"""Ceilings reach what they are told, and the methods that train do train: on shipped tasks, for a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench_boards import board
from comgrad.predict.start import combination, zero_start
from comgrad.workflows.bench import ceilings, training
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.corpus import Corpus, open_corpus
from comgrad.workflows.bench.fold import Board, Fold, fold_of
from comgrad.workflows.bench.methods import METHODS
from comgrad.workflows.bench.model import Model
from comgrad.workflows.bench.prepare import Prepared, Sizes, chosen, prepare

TASKS = ("abstract-sentence-role", "acceptability-irregular-forms")
KNOWN = ("acceptability-binding", "acceptability-ellipsis", "causal-news-sentence", "probe-voice")
SIZES = Sizes(test=24, train=16)


def test_the_projection_finds_a_vector_of_the_span() -> None:
    whole = board()
    query = whole.corpus.items[3]
    f = fold_of(whole, query, "losgo", query.description)
    truth = np.random.default_rng(0).normal(size=len(f.allowed))
    gram = whole.gram.copy()
    gram[3, f.allowed] = gram[f.allowed, 3] = f.evidence.gram @ truth  # as if τ_q were Σ truth_k τ_k
    changed = Board(whole.corpus, gram, whole.embeddings, whole.prepared)
    model: Any = Model(whole.corpus)
    model.corpus.__dict__["vectors"] = [None] * 24  # the projection needs inner products alone
    again = fold_of(changed, query, "losgo", query.description)
    found = ceilings.least_squares(again, Aid(model, query, again, SIZES, "oracle", Path()))
    assert found.coefficients is not None
    off = found.coefficients - truth
    assert off @ f.evidence.gram @ off < 0.02 * (truth @ f.evidence.gram @ truth)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Board, Path]:
    corpus: Corpus = open_corpus(None).only(TASKS + KNOWN)
    model = Model(corpus)
    folder = tmp_path_factory.mktemp("work")
    prepared: dict[str, Prepared] = {i.id: prepare(model, i, SIZES, folder / f"{i.id}.npz") for i in corpus.tested}
    vectors = corpus.vectors
    gram = np.array([[a.inner(b) for b in vectors] for a in vectors])
    rows = np.random.default_rng(0).normal(size=(len(corpus.items), 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    texts = [i.description for i in corpus.items]
    return model, Board(corpus, gram, dict(zip(texts, rows, strict=True)), prepared), folder


def aided(opened: tuple[Model, Board, Path], method: str, task: str = TASKS[1]) -> tuple[Fold, Aid]:
    model, whole, folder = opened
    item = whole.corpus.get(task)
    f = fold_of(whole, item, "losgo", item.description)
    return f, Aid(model, item, f, SIZES, METHODS[method].needs, folder / "trained")


def test_linear_oracle_fits_its_examples(opened: tuple[Model, Board, Path]) -> None:
    f, aid = aided(opened, "oracle-linear")
    found = ceilings.functional_linear(f, aid)
    tangent = aid.all_shots().tangent
    assert found.coefficients is not None
    assert tangent.loss(found.coefficients) < tangent.loss()


def test_trained_coefficients_follow_the_true_gradient(
    opened: tuple[Model, Board, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step on all examples goes against the sign of the finite difference, coefficient by coefficient."""
    f, aid = aided(opened, "oracle-functional")
    item = replace(aid.item)
    examples = chosen(item, "train", SIZES)
    item.__dict__["task"] = replace(aid.item.task, examples=examples)  # the whole split is these sixteen
    aid = replace(aid, item=item)
    monkeypatch.setattr(ceilings, "STEPS", 1)
    start = np.full(len(f.allowed), 0.1)
    moved = ceilings.trained_coefficients(f, aid, start) - start
    shots = aid.all_shots()
    slopes = []
    for k in range(len(start)):
        step = 1e-3 * np.eye(len(start))[k]
        slopes.append((shots.loss(start + step) - shots.loss(start - step)) / 2e-3)
    clear = np.abs(slopes) > 1e-4
    assert clear.any()
    np.testing.assert_array_equal(np.sign(moved[clear]), -np.sign(slopes)[clear])  # Adam's first step has one size
    np.testing.assert_allclose(np.abs(moved), ceilings.RATE * 0.1, rtol=1e-2)


def test_there_is_no_ceiling_without_an_own_vector(opened: tuple[Model, Board, Path]) -> None:
    for method in ("own", "oracle-least-squares", "second-run-same-a"):
        f, aid = aided(opened, method)
        assert METHODS[method].function(f, aid).missing


def test_fine_tuning_on_the_few_examples_learns_them(
    opened: tuple[Model, Board, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STEPS", {16: 3})
    f, aid = aided(opened, "finetune+16")
    found = training.finetuned(f, aid, ours=False)
    assert found.score is not None
    base = float(opened[1].prepared[TASKS[1]].loss0.mean())
    steps = found.note["steps"]
    assert steps in (0, 1, 2, 3)
    assert (found.score[0] == pytest.approx(base, rel=1e-5)) == (steps == 0)
    assert training.finetuned(f, aid, ours=False).score == found.score
    examples = aid.shots().examples
    start = zero_start(opened[0].corpus.vectors[0].base, opened[0].corpus.vectors[0].tensors, 8, scale=2.0).vector
    read = training._readings(aid, start, examples[:-4], examples[-4:], 0)
    assert [r.step for r in read] == [0, 1, 2, 3]
    assert min(r.loss for r in read) == next(r.loss for r in read if r.step == steps)
    on_itself = training._readings(aid, start, examples, examples, 0, (3,))
    assert on_itself[-1].loss < on_itself[0].loss


def test_the_pooled_adapter_never_sees_the_querys_fifth(
    opened: tuple[Model, Board, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "POOLED_STEPS", 2)
    seen: list[list[str]] = []
    rows = training._pool_rows

    def watched(items: Any, *rest: Any) -> Any:
        seen.append([i.id for i in items])
        return rows(items, *rest)

    monkeypatch.setattr(training, "_pool_rows", watched)
    f, aid = aided(opened, "pooled")
    others = {i.id for i in opened[1].corpus.tested if training.part_of(i, 0) != training.part_of(aid.item, 0)}
    assert others, "the two shipped tasks are in different fifths"
    found = training.pooled(f, aid)
    assert seen == [sorted(others)]
    assert found.vector is not None
    assert found.vector.norm() > 0.0
    again = training.pooled(f, aid)  # from disk
    assert len(seen) == 1
    assert again.vector is not None
    assert again.vector.cosine(found.vector) == pytest.approx(1.0)


def test_each_row_is_scored_against_its_own_tasks_prompts(opened: tuple[Model, Board, Path]) -> None:
    model = opened[0]
    items = [model.corpus.get(t) for t in TASKS]
    many = training.ManyTasks.of(model.encoder, [model.prompts(i) for i in items])
    losses = []
    batch: list[tuple[str, int, int]] = []
    for t, item in enumerate(items):
        examples = chosen(item, "train", SIZES)[:3]
        losses += model.losses(model.texts(item, examples))[0].tolist()
        batch += [(e.text, e.label, t) for e in examples]
    tokens = model.bench.tokens([text for text, _, _ in batch])
    out = many(**tokens, task=torch.tensor([t for _, _, t in batch]), labels=torch.tensor([y for _, y, _ in batch]))
    assert float(out["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_random_adapter_has_the_norms_of_a_known_one(opened: tuple[Model, Board, Path]) -> None:
    f, aid = aided(opened, "random-lora")
    made = METHODS["random-lora"].function(f, aid).vector
    assert made is not None
    profiles = [[float(v.tensors[n].dense().norm()) for n in sorted(v.tensors)] for v in opened[0].corpus.vectors]
    mine = [float(made.tensors[n].dense().norm()) for n in sorted(made.tensors)]
    assert any(np.allclose(mine, p, rtol=1e-4) for p in profiles)
    assert made.rank == 8
    assert all(abs(made.cosine(v)) < 0.05 for v in opened[0].corpus.vectors)
    assert METHODS["random-lora"].function(f, aid).vector.inner(made) == pytest.approx(made.inner(made))  # type: ignore[union-attr]
    mixed = METHODS["random-coefficients"].function(f, aid).coefficients
    assert mixed is not None
    whole = combination([opened[0].corpus.vectors[k] for k in f.allowed], mixed.tolist())
    mean = combination([opened[0].corpus.vectors[k] for k in f.allowed], [1.0 / len(mixed)] * len(mixed))
    assert whole.norm() == pytest.approx(mean.norm(), rel=1e-5)
