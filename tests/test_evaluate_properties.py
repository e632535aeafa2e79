"""Properties 1 to 4: zero where they hold by construction, and the written-out definitions elsewhere."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comgrad.evaluate.predictor import Predictor, Problem
from comgrad.evaluate.properties import properties
from comgrad.vectors.task_vector import TaskVector
from evaluate_models import BLOCKS, inputs, predictor, problem, vector

APART = [problem("a", 1, BLOCKS[0]), problem("b", 2, BLOCKS[1])]
KEPT = [vector(1, BLOCKS[0]), vector(2, BLOCKS[1])]


def features(p: Predictor, q: Problem, terms: list[tuple[float, TaskVector]]) -> Tensor:
    model = copy.deepcopy(p.encoder)
    with torch.no_grad():
        for alpha, tau in terms:
            for name, d in tau.tensors.items():
                model.get_parameter(name).add_(alpha * d.dense())
        return model(inputs(q, "test")[0])


def logits(q: Problem, h: Tensor) -> Tensor:
    return 20.0 * nn.functional.normalize(h, dim=1) @ q.head.T


def test_all_four_hold_for_disjoint_supports() -> None:
    nowhere = problem("nowhere", 5, (0, 0))  # the zero input: outside both blocks
    found = properties(predictor(), APART, KEPT, [0.7, -1.3], outside=[nowhere])
    for part in (found.first, found.third):
        assert set(part.inside.values()) | set(part.outside.values()) == {0.0}
        assert part.inside.keys() == {"a", "b"} and part.outside.keys() == {"nowhere"}
    for part in (found.second, found.fourth):
        assert part.elsewhere == 0.0 and part.additivity == {"a": 0.0, "b": 0.0}
        assert (np.diag(part.locality) > 0).all()  # each vector does something on its own data


def test_against_the_definitions_written_out() -> None:
    p, alphas = predictor(), [0.7, -1.3]
    problems, vectors = [problem("a", 1), problem("b", 2)], [vector(1, whole=True), vector(2)]
    apart = problem("c", 3)
    found = properties(p, problems, vectors, alphas, outside=[apart])
    terms = list(zip(alphas, vectors, strict=True))
    for s, q in enumerate(problems):
        h0, h = features(p, q, []), features(p, q, terms)
        one = [features(p, q, [t]) for t in terms]
        z0, z = logits(q, h0), logits(q, h)
        zs = [logits(q, x) for x in one]
        assert found.first.inside[q.name] == float((z.argmax(1) != zs[s].argmax(1)).double().mean())
        for t in range(2):
            moved = float((zs[t].argmax(1) != z0.argmax(1)).double().mean())
            assert found.second.locality[s, t] == pytest.approx(moved)
        left, right = z - z0, zs[0] - z0 + zs[1] - z0
        assert found.second.additivity[q.name] == pytest.approx(float((left - right).norm() / left.norm()), rel=1e-9)
        left, right = h - h0, one[0] - h0 + one[1] - h0
        assert found.fourth.additivity[q.name] == pytest.approx(float((left - right).norm() / left.norm()), rel=1e-9)
        a, b = h.softmax(1), one[s].softmax(1)
        expected = float((0.5 * (a - b) * (a / b).log()).sum(1).mean())
        assert found.third.inside[q.name] == pytest.approx(expected, rel=1e-9) and expected > 0
    h0, h = features(p, apart, []), features(p, apart, terms)
    changed = logits(apart, h).argmax(1) != logits(apart, h0).argmax(1)
    assert found.first.outside["c"] == float(changed.double().mean()) > 0
    off = found.fourth.locality
    assert found.fourth.elsewhere == pytest.approx((off[0, 1] + off[1, 0]) / 2)
    assert json.loads(json.dumps(found.as_dict()))["property_2"]["tasks"] == ["a", "b"]


def test_a_model_linear_in_its_parameters_is_additive_but_not_local() -> None:
    p = predictor()
    p.encoder.second = nn.Linear(6, 5).double().requires_grad_(False)  # type: ignore[assignment]
    linear = Predictor(p.base, p.encoder, read=lambda m, b: m.first(b["x"]) @ m.second.weight.T)
    found = properties(linear, [problem("a", 1), problem("b", 2)], [vector(1), vector(2)])
    assert max(found.fourth.additivity.values()) < 1e-14 and found.fourth.elsewhere > 1e-3


def test_one_task_alone() -> None:
    found = properties(predictor(), APART[:1], KEPT[:1])
    assert found.alphas == (1.0,) and np.isnan(found.second.elsewhere) and found.fourth.additivity == {"a": 0.0}
