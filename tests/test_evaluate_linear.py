"""A linear predictor: the same answers as the model itself at every combination, from one pass for each vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from comgrad.errors import BaseMismatch
from comgrad.evaluate.disentanglement import disentanglement
from comgrad.evaluate.linear import LinearPredictor
from comgrad.evaluate.predictor import Predictor, through
from comgrad.finetune.linearised import Linearised
from comgrad.types import BaseRef
from comgrad.vectors.task_vector import TaskVector
from evaluate_models import BASE, Toy, problem, read, vector

ALPHAS = st.sampled_from([-2.0, -0.5, 0.0, 0.3, 1.0])


class Counted(nn.Module):
    """The first-order model, counting its calls."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.model = Linearised(encoder)
        self.calls = 0

    def forward(self, *args: Any) -> Any:
        self.calls += 1
        return self.model(*args)


def pair() -> tuple[Predictor, LinearPredictor, Counted]:
    """The model itself, shifted anew at every point, and the linear predictor of the same model."""
    first, second = Toy(3).eval(), Toy(3).eval()
    counted = Counted(second)
    itself = Predictor(BASE, first, read, through(Linearised(first)), "linearised")
    return itself, LinearPredictor.of(BASE, counted, second, read=read), counted


@settings(max_examples=20, deadline=None)
@given(alphas=st.tuples(ALPHAS, ALPHAS, ALPHAS))
def test_it_answers_as_the_model_itself(alphas: tuple[float, float, float]) -> None:
    itself, linear, _ = pair()
    terms = [(a, vector(k, whole=k == 2)) for k, a in enumerate(alphas)]
    for name in ("one", "two"):
        p = problem(name, 5)
        with itself.at(terms) as a, linear.at(terms) as b:
            for (h, z, y), (h2, z2, y2) in zip(itself.passes(a, p, "test"), linear.passes(b, p, "test"), strict=True):
                torch.testing.assert_close(h2, h, rtol=1e-10, atol=1e-12)
                torch.testing.assert_close(z2, z, rtol=1e-9, atol=1e-9)
                assert torch.equal(y, y2)


def test_a_grid_costs_a_pass_for_each_vector_and_batch() -> None:
    itself, linear, counted = pair()
    problems, vectors = [problem("a", 1), problem("b", 2)], [vector(1), vector(2, whole=True)]
    found, expected = (disentanglement(p, problems, vectors).as_dict() for p in (linear, itself))
    assert counted.calls == 2 * 2 * 3  # vectors, tasks, batches; the grid has 81 points
    for distance, rows in expected["xi"].items():
        torch.testing.assert_close(torch.tensor(found["xi"][distance]), torch.tensor(rows), rtol=1e-8, atol=1e-10)


def test_called_it_is_the_model_there() -> None:
    itself, linear, _ = pair()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).double()
    terms = [(0.5, vector(1)), (-1.0, vector(2))]
    with itself.at(terms) as a, linear.at(terms) as b:
        assert torch.equal(a(x), b(x))
    with linear.at([(0.0, vector(1))]) as model:
        assert model is linear.encoder


def test_a_vector_of_another_base_is_refused() -> None:
    _, linear, _ = pair()
    other: Mapping[str, Any] = vector(1).tensors
    with pytest.raises(BaseMismatch), linear.at([(1.0, TaskVector(BaseRef("another", "11aa"), dict(other)))]):
        pass


def test_no_weight_stays_moved() -> None:
    _, linear, _ = pair()
    before: dict[str, Tensor] = {n: p.clone() for n, p in linear.encoder.named_parameters()}
    linear.outcome(problem("a", 1), "test", [(1.5, vector(1, whole=True))])
    assert all(torch.equal(p, before[n]) for n, p in linear.encoder.named_parameters())
