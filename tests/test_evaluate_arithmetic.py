"""Addition, negation and analogy: what is chosen, on which data, and the figures against ten-line references."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comgrad.describe.task import load_task
from comgrad.errors import ComgradError, Undefined
from comgrad.evaluate.arithmetic import GRID, addition, single_task
from comgrad.evaluate.classifier import Bench
from comgrad.evaluate.editing import analogy, negation
from comgrad.evaluate.predictor import Predictor, Problem, text_problem
from comgrad.evaluate.splits import three_way
from comgrad.vectors.delta import Dense
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from evaluate_models import BASE, OUT, inputs, predictor, problem, vector


def accuracy(p: Predictor, q: Problem, split: str, changes: dict[str, Tensor]) -> float:
    """Independent: the toy written out, with changed weights."""
    x, y = inputs(q, split)
    w = {n: v.detach() + changes.get(n, 0.0) for n, v in p.encoder.state_dict().items()}
    h = torch.tanh(x @ w["first.weight"].T + w["first.bias"]) @ w["second.weight"].T + w["second.bias"]
    z = h / h.norm(dim=1, keepdim=True) @ q.head.T
    return float((z.argmax(1) == y).double().mean())


def scaled(alpha: float, *vectors: TaskVector) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for v in vectors:
        for n, d in v.tensors.items():
            out[n] = out.get(n, 0.0) + alpha * d.dense()
    return out


PROBLEMS = [problem(f"q{k}", 10 + k, sizes=(20, 9)) for k in range(3)]
VECTORS = [vector(k, whole=True) for k in range(3)]


def test_addition_against_a_ten_line_reference() -> None:
    p = predictor()
    found = addition(p, PROBLEMS, VECTORS, draws=200)
    own = {
        s: [accuracy(p, q, s, scaled(1.0, v)) for q, v in zip(PROBLEMS, VECTORS, strict=True)]
        for s in ("validation", "test")
    }
    curve = []
    for i in range(21):
        a = [accuracy(p, q, "validation", scaled(i / 20, *VECTORS)) for q in PROBLEMS]
        curve.append(sum(x / y for x, y in zip(a, own["validation"], strict=True)) / 3)
    best = curve.index(max(curve)) / 20
    tested = [accuracy(p, q, "test", scaled(best, *VECTORS)) for q in PROBLEMS]
    assert found.alpha == pytest.approx(best) and len(found.curve) == 21
    assert [c.normalised for c in found.curve] == pytest.approx(curve)
    assert found.absolute == pytest.approx(sum(tested) / 3)
    assert found.normalised == pytest.approx(sum(x / y for x, y in zip(tested, own["test"], strict=True)) / 3)
    assert found.base == pytest.approx(sum(accuracy(p, q, "test", {}) for q in PROBLEMS) / 3)
    assert found.finetuned == pytest.approx(sum(own["test"]) / 3)
    assert found.absolute_interval.low <= found.absolute <= found.absolute_interval.high
    assert found.absolute_examples.low <= found.absolute <= found.absolute_examples.high
    assert json.loads(json.dumps(found.as_dict()))["tasks"][1]["normalised"] == found.tasks[1].normalised


class Watched:
    """Batches that write down when they are read."""

    def __init__(self, rows: Any, name: str, log: list[str]) -> None:
        self.rows, self.name, self.log = rows, name, log

    def __iter__(self) -> Iterator[Any]:
        self.log.append(self.name)
        return iter(self.rows)


def watched(q: Problem, log: list[str]) -> Problem:
    return replace(q, parts={s: Watched(rows, s, log) for s, rows in q.parts.items()})


def poisoned(q: Problem) -> Problem:
    """Test data with noise for inputs and every label turned."""
    g = torch.Generator().manual_seed(99)
    rows = [({"x": 100 * torch.randn(b["x"].shape, generator=g).double()}, (y + 1) % 3) for b, y in q.parts["test"]]
    return replace(q, parts={**q.parts, "test": rows})


def test_alpha_never_looks_at_test_data() -> None:
    p = predictor()
    clean = addition(p, PROBLEMS, VECTORS, draws=50)
    bad = addition(p, [poisoned(q) for q in PROBLEMS], VECTORS, draws=50)
    assert (clean.alpha, clean.curve) == (bad.alpha, bad.curve)
    assert clean.absolute != bad.absolute
    target, controls = PROBLEMS[0], PROBLEMS[1:]
    left = negation(p, target, VECTORS[0], controls, threshold=0.5)
    right = negation(p, poisoned(target), VECTORS[0], [poisoned(c) for c in controls], threshold=0.5)
    assert (left.alpha, left.curve) == (right.alpha, right.curve)
    one, two = (analogy(p, q, *VECTORS) for q in (target, poisoned(target)))
    assert (one.alpha, one.curve) == (two.alpha, two.curve)


def test_the_test_split_is_read_after_the_search_and_once_for_each_figure() -> None:
    log: list[str] = []
    addition(predictor(), [watched(q, log) for q in PROBLEMS], VECTORS, draws=50)
    assert log == ["validation"] * (3 + 3 * 21) + ["test"] * 9  # base, merged and fine-tuned, three tasks each
    log.clear()
    negation(predictor(), watched(PROBLEMS[0], log), VECTORS[0], [watched(PROBLEMS[1], log)])
    assert log == ["validation"] * (1 + 2 * 21) + ["test"] * 4


def test_of_equal_alphas_the_lowest_is_taken() -> None:
    p = predictor()
    nothing = TaskVector(BASE, {"second.bias": Dense(torch.zeros(OUT).double())})
    assert addition(p, PROBLEMS[:1], [nothing], draws=20).alpha == 0.0
    assert addition(p, PROBLEMS[:1], [nothing], grid=(0.7, 0.3, 0.5), draws=20).alpha == 0.3
    assert negation(p, PROBLEMS[0], nothing, PROBLEMS[1:]).alpha == 0.0
    assert analogy(p, PROBLEMS[0], nothing, nothing, nothing, grid=(0.9, 0.4)).alpha == 0.4
    found = addition(p, PROBLEMS, VECTORS, draws=20)
    assert found.alpha == min(c.alpha for c in found.curve if c.normalised == max(x.normalised for x in found.curve))


def test_a_merged_vector_takes_the_place_of_the_sum() -> None:
    p = predictor()
    mean = (VECTORS[0] + VECTORS[1] + VECTORS[2]) / 3.0
    found = addition(p, PROBLEMS, VECTORS, merged=mean, method="mean", grid=(0.0, 1.5, 3.0), draws=20)
    plain = addition(p, PROBLEMS, VECTORS, grid=(0.0, 0.5, 1.0), draws=20)
    assert found.method == "mean" and found.alpha == pytest.approx(3 * plain.alpha)
    assert found.normalised == pytest.approx(plain.normalised)
    assert addition(p, PROBLEMS, VECTORS, grid=(0.5,), draws=20).at_edge


def test_one_task_normalises_to_one_at_its_own_vector() -> None:
    found = addition(predictor(), PROBLEMS[:1], VECTORS[:1], grid=(1.0,), draws=50)
    assert found.normalised == found.tasks[0].normalised_interval.low == found.tasks[0].normalised_interval.high == 1.0
    single = single_task(predictor(), PROBLEMS[0], VECTORS[0])
    assert single.tuned.accuracy == found.absolute
    assert single.as_dict()["base"] == accuracy(predictor(), PROBLEMS[0], "test", {})


def test_a_cache_resumes_and_changes_nothing() -> None:
    p, cache = predictor(), {}
    whole = addition(p, PROBLEMS, VECTORS, draws=50, cache=cache)
    done = dict(list(cache.items())[:20])  # interrupted after twenty evaluations
    log: list[str] = []
    again = addition(p, [watched(q, log) for q in PROBLEMS], VECTORS, draws=50, cache=done)
    assert again.as_dict() == whole.as_dict() and done.keys() == cache.keys()
    assert len(log) == len(cache) - 20
    log.clear()
    addition(p, [watched(q, log) for q in PROBLEMS], VECTORS, draws=50, cache=done)
    assert log == []


def answered(p: Predictor, q: Problem) -> Problem:
    """The problem with the base's own answers for labels: every step away from the base costs."""
    with torch.no_grad():
        parts = {
            s: [(b, (nn.functional.normalize(p.encoder(b["x"]), dim=1) @ q.head.T).argmax(1)) for b, _ in rows]
            for s, rows in q.parts.items()
        }
    return replace(q, parts=parts)


def test_negation_minimises_the_target_under_the_constraint() -> None:
    p, bound = predictor(), 0
    problems = [answered(p, q) for q in PROBLEMS]
    for seed in range(6):
        tau = vector(seed, whole=True)
        for threshold in (0.6, 0.95):
            found = negation(p, problems[0], tau, problems[1:], threshold=threshold)
            base = [accuracy(p, q, "validation", {}) for q in problems]
            rows, every = [], []
            for i in range(21):
                a = [accuracy(p, q, "validation", scaled(-i / 20, tau)) for q in problems]
                every.append((a[0], i / 20))
                if all(a[k] >= threshold * base[k] for k in (1, 2)):
                    rows.append((a[0], i / 20))
            assert found.satisfied and found.target and found.alpha == pytest.approx(min(rows)[1])
            assert found.target.after.accuracy == accuracy(p, problems[0], "test", scaled(-found.alpha, tau))
            assert found.controls[1].base.accuracy == accuracy(p, problems[2], "test", {})
            assert sum(c.allowed for c in found.curve) == len(rows)
            mean = negation(p, problems[0], tau, problems[1:], threshold=threshold, constraint="mean")
            assert sum(c.allowed for c in mean.curve) >= len(rows)
            bound += min(rows) != min(every)
    assert bound > 0  # else the constraint decided nothing


def test_negation_says_so_when_no_alpha_keeps_the_controls() -> None:
    p = predictor()
    for seed in range(20):
        found = negation(
            p, PROBLEMS[0], vector(seed, whole=True, size=4.0), PROBLEMS[1:], threshold=1.0, grid=(0.8, 1.0)
        )
        if not found.satisfied:
            break
    assert found.alpha is None and found.target is None and found.controls == () and len(found.curve) == 2
    assert found.as_dict()["satisfied"] is False and json.dumps(found.as_dict())


def test_an_analogy_of_constructed_tasks_is_exact() -> None:
    """With D = C + B − A in weight space, the analogy at α = 1 is the model fine-tuned on D."""
    p = predictor()
    a, b, c = VECTORS
    d = c + (b - a)
    found = analogy(p, PROBLEMS[0], a, b, c, grid=(1.0,))
    assert np.array_equal(found.after.correct, p.outcome(PROBLEMS[0], "test", [(1.0, d)]).correct)
    assert found.c_alone.accuracy == accuracy(p, PROBLEMS[0], "test", scaled(1.0, c))
    assert found.base.accuracy == accuracy(p, PROBLEMS[0], "test", {})
    values = [accuracy(p, PROBLEMS[0], "validation", scaled(i / 20, d)) for i in range(21)]
    searched = analogy(p, PROBLEMS[0], a, b, c)
    assert searched.alpha == pytest.approx(values.index(max(values)) / 20) and json.dumps(searched.as_dict())


def test_bad_input_is_refused() -> None:
    p = predictor()
    with pytest.raises(ComgradError, match="3 tasks and 2 vectors"):
        addition(p, PROBLEMS, VECTORS[:2])
    with pytest.raises(ComgradError, match="at least one finite number"):
        addition(p, PROBLEMS, VECTORS, grid=(0.5, float("nan")))
    with pytest.raises(ComgradError, match="at least one finite number"):
        addition(p, PROBLEMS, VECTORS, grid=())
    with pytest.raises(ComgradError, match="a negation steps back along the vector"):
        negation(p, PROBLEMS[0], VECTORS[0], [])
    with pytest.raises(ComgradError, match="a negation steps back along the vector"):
        negation(p, PROBLEMS[0], VECTORS[0], PROBLEMS[1:], grid=(-0.1, 0.5))
    x, _ = inputs(PROBLEMS[0], "validation")
    with torch.no_grad(), p.at([(1.0, VECTORS[0])]) as model:
        wrong = (nn.functional.normalize(model(x), dim=1) @ PROBLEMS[0].head.T).argmin(1)
    hopeless = replace(PROBLEMS[0], parts={**PROBLEMS[0].parts, "validation": (({"x": x}, wrong),)})
    with pytest.raises(Undefined, match="the normalised accuracy of 'q0'"):
        addition(p, [hopeless], VECTORS[:1])
    assert GRID[0] == 0.0 and GRID[-1] == 1.0 and len(GRID) == 21


def test_on_the_shipped_encoder_and_adapters(tasks: list[Path], zoo: list[Path]) -> None:
    bench = Bench.open(resolve_base("sentence-transformers/all-MiniLM-L6-v2"))
    chosen = [three_way(load_task(folder)).as_task() for folder in tasks[:2]]
    problems = [text_problem(bench, t, limit=24) for t in chosen]
    vectors = [TaskVector.from_peft(zoo[i]) for i in (3, 20)]
    p = Predictor.open(bench)
    before = {n: x.clone() for n, x in p.encoder.state_dict().items()}
    found = addition(p, problems, vectors, grid=(0.0, 0.5, 1.0), draws=100)
    assert all(torch.equal(before[n], x) for n, x in p.encoder.state_dict().items())
    assert [t.merged.n for t in found.tasks] == [24, 24] and 0 <= found.absolute <= 1
    assert found.curve[0].absolute == np.mean([p.outcome(q, "validation", []).accuracy for q in problems])
