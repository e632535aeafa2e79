"""One encoder read at many combinations of vectors: right answers, and weights put back bit for bit."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from comgrad.describe.task import Example, Task
from comgrad.errors import BaseMismatch, ComgradError
from comgrad.evaluate.classifier import Bench, evaluate, shifted
from comgrad.evaluate.digests import vector_digest
from comgrad.evaluate.predictor import Outcome, Predictor, from_factory, text_problem, through
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from evaluate_models import BASE, HIDDEN, WIDTH, inputs, predictor, problem, read, vector
from training_models import bert_base
from training_models import examples as cold_or_warm


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_outcome_is_that_of_a_model_with_those_weights() -> None:
    p, q = predictor(), problem("q", 1)
    terms = [(0.3, vector(1, whole=True)), (-1.7, vector(2)), (0.0, vector(3))]
    model = copy.deepcopy(p.encoder)
    with torch.no_grad():
        for alpha, tau in terms:
            for name, d in tau.tensors.items():
                model.get_parameter(name).add_(alpha * d.dense())
    x, y = inputs(q, "test")
    h = model(x).detach()
    z = 20.0 * h / h.norm(dim=1, keepdim=True) @ q.head.T
    found = p.outcome(q, "test", terms)
    assert np.array_equal(found.correct, (z.argmax(1) == y).numpy())
    assert found.loss == pytest.approx(float(-(z.log_softmax(1)[torch.arange(len(y)), y]).mean()), rel=1e-12)
    assert found.n == 17 and found.accuracy == found.correct.mean()


def test_weights_come_back_bit_for_bit_whatever_happens() -> None:
    p, q = predictor(), problem("q", 1)
    tau = vector(1, whole=True, size=1e-3)
    before = weights(p.encoder)
    for k in range(50):
        p.outcome(q, "test", [(0.1 * k - 2.3, tau)])
    assert same(before, weights(p.encoder))
    with pytest.raises(RuntimeError, match="inside"), p.at([(1.0, tau)]) as model:
        assert not same(before, weights(model))
        raise RuntimeError("inside")
    assert same(before, weights(p.encoder))
    broken = TaskVector(BASE, {"first.weight": Dense(torch.full((HIDDEN, WIDTH), torch.nan).double())})
    with pytest.raises(ComgradError, match="some logits are no numbers") as error:
        p.outcome(q, "test", [(1.0, broken)])
    assert error.value.code == "not-finite" and same(before, weights(p.encoder))


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    p, q = predictor(), problem("q", 1)
    p.encoder.second = nn.Sequential(nn.Dropout(0.5), p.encoder.second)  # type: ignore[assignment, arg-type]
    p.encoder.train()
    assert p.outcome(q, "test", []).loss == p.outcome(q, "test", []).loss
    assert p.encoder.training


def test_another_base_and_a_missing_split_are_refused() -> None:
    p, q = predictor(), problem("q", 1)
    other = TaskVector(BaseRef("toy", "beef"), dict(vector(1).tensors))
    with pytest.raises(BaseMismatch, match="the predictor and vector 1"):
        p.outcome(q, "test", [(1.0, vector(1)), (0.0, other)])
    with pytest.raises(ComgradError, match="has no split 'dev'"):
        p.outcome(q, "dev", [])
    with pytest.raises(ComgradError, match="it has no examples"):
        p.outcome(replace(q, parts={"test": ()}), "test", [])


def test_the_cache_is_used_survives_json_and_tells_everything_apart() -> None:
    p, q = predictor(), problem("q", 1)
    tau = vector(1)
    cache: dict[str, object] = {}
    first = p.outcome(q, "test", [(0.5, tau)], cache)
    cache = json.loads(json.dumps(cache))
    again = p.outcome(replace(q, parts={}), "test", [(0.5, tau), (0.0, vector(9))], cache)  # nothing is read
    assert again.loss == first.loss and np.array_equal(again.correct, first.correct) and again.n == first.n == 17
    twin = TaskVector(BASE, {n: Dense(d.dense().clone()) for n, d in tau.tensors.items()})
    assert vector_digest(twin) == vector_digest(tau)
    key = p.key("outcome", [q], "test", [(0.5, tau)])
    others = [
        p.key("outcome", [q], "validation", [(0.5, tau)]),
        p.key("outcome", [q], "test", [(0.25, tau)]),
        p.key("outcome", [q], "test", [(0.5, vector(2))]),
        p.key("other", [q], "test", [(0.5, tau)]),
        p.key("outcome", [problem("q", 2)], "test", [(0.5, tau)]),
        p.key("outcome", [replace(q, head=-q.head)], "test", [(0.5, tau)]),
        replace(p, kind="linearised").key("outcome", [q], "test", [(0.5, tau)]),
        replace(p, base=BaseRef("toy", "11")).key("outcome", [q], "test", [(0.5, tau)]),
    ]
    assert key in cache and len({key, *others}) == 9


@pytest.mark.parametrize("n", [1, 8, 17])
def test_outcomes_round_trip(n: int) -> None:
    o = Outcome(0.25, np.arange(n) % 3 == 1)
    back = Outcome.from_dict(o.as_dict())
    assert back.loss == o.loss and np.array_equal(back.correct, o.correct)


def low_rank() -> TaskVector:
    g = torch.Generator().manual_seed(4)
    B, A = torch.randn(HIDDEN, 2, generator=g).double(), torch.randn(2, WIDTH, generator=g).double()
    return TaskVector(BASE, {"first.weight": LowRank(B, A, 0.5), "first.bias": Dense(torch.ones(HIDDEN).double())})


class Taylor(nn.Module):
    """f(x; θ₀) + J·(θ − θ₀) of a module whose parameters may have moved since."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = [model]  # hidden, so that its parameters are not this module's
        self.start = {n: p.detach().clone() for n, p in model.named_parameters()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def f(theta: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(self.inner[0], theta, (x,))

        now = {n: p.detach() - self.start[n] for n, p in self.inner[0].named_parameters()}
        value, slope = torch.func.jvp(f, (self.start,), (now,))
        return value + slope


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch itself, on its first jvp
@pytest.mark.parametrize("way", ["through", "factory"])
def test_a_linearised_model_is_read_through_the_hook(way: str) -> None:
    p, q, tau = predictor(), problem("q", 1), low_rank()

    def moved(encoder: nn.Module, tau: TaskVector) -> nn.Module:
        taylor = Taylor(encoder)
        model = copy.deepcopy(encoder)
        with torch.no_grad():
            for name, d in tau.tensors.items():
                model.get_parameter(name).add_(d.dense())
        taylor.inner = [model]
        return taylor

    shift = through(Taylor(p.encoder)) if way == "through" else from_factory(moved)
    lin = Predictor(BASE, p.encoder, read=read, shift=shift, kind="linearised")
    x, _ = inputs(q, "test")
    with torch.no_grad():
        f0 = p.encoder(x)
        step = 1e-6
        with p.at([(step, tau)]) as model:
            slope = (model(x) - f0) / step
    with lin.at([(2.0, tau)]) as model:
        assert torch.allclose(model(x), f0 + 2.0 * slope, atol=1e-4)
    h = f0 + 2.0 * slope
    z = 20.0 * nn.functional.normalize(h, dim=1) @ q.head.T
    assert lin.outcome(q, "test", [(2.0, tau)]).loss == pytest.approx(
        float(nn.functional.cross_entropy(z, inputs(q, "test")[1])), rel=1e-3
    )
    assert lin.outcome(q, "test", [(2.0, tau)]).loss != p.outcome(q, "test", [(2.0, tau)]).loss


def test_texts_are_read_as_by_the_frozen_head_classifier(tmp_path: Path) -> None:
    bench = Bench.open(resolve_base(bert_base(tmp_path / "base")))
    rows = tuple(Example(**r) for r in cold_or_warm(30, "train", 1) + cold_or_warm(21, "test", 2))
    task = Task("t", "d", ("cold", "warm"), ("it is cold", "it is warm"), rows)
    p, q = Predictor.open(bench), text_problem(bench, task, splits=("train", "test"), batch_size=8)
    name = "encoder.layer.0.attention.self.query.weight"
    g = torch.Generator().manual_seed(0)
    tau = TaskVector(bench.base.ref, {name: LowRank(torch.randn(24, 2, generator=g), torch.randn(2, 24, generator=g))})
    encoder = bench.encoder()
    model = bench.classifier(task, encoder)
    for alpha in (0.0, 0.7):
        with shifted(encoder, tau, alpha):
            expected = evaluate(bench, model, task.split("test"))
        found = p.outcome(q, "test", [(alpha, tau)])
        assert (found.accuracy, found.n) == (expected.accuracy, 21)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    few = text_problem(bench, task, splits=("test",), limit=5)
    assert sum(len(y) for _, y in few.part("test")) == 5
    assert few.digests["test"] != q.digests["test"]
    assert q.digests == text_problem(bench, task, splits=("train", "test"), batch_size=8).digests


def test_any_context_will_do_as_a_hook() -> None:
    """The hook is a plain context: any module will do."""

    @contextmanager
    def shift(encoder: nn.Module, tau: TaskVector):
        yield nn.Identity()

    p = replace(predictor(), shift=shift, read=lambda m, b: m(b["x"])[:, :5])
    q = problem("q", 1)
    x, y = inputs(q, "test")
    z = nn.functional.normalize(x[:, :5], dim=1) @ q.head.T
    assert np.array_equal(p.outcome(q, "test", [(1.0, vector(1))]).correct, (z.argmax(1) == y).numpy())


def test_terms_of_zero_move_nothing() -> None:
    @contextmanager
    def never(encoder: nn.Module, tau: TaskVector):
        raise AssertionError("the weights were shifted")
        yield encoder

    p = replace(predictor(), shift=never)
    with p.at([(0.0, vector(1)), (-0.0, vector(2))]) as model:
        assert model is p.encoder
    with pytest.raises(AssertionError, match="were shifted"):
        p.outcome(problem("q", 1), "test", [(0.1, vector(1))])
