"""Proposition 1's ratio against token-by-token products, its exact zeros, and its null against drawn rotations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from comgrad.errors import ShapeMismatch, Undefined
from comgrad.evaluate.interference import interference, predicts, ratio_table
from comgrad.evaluate.orthogonality import layer_inputs, layer_ratio, vector_ratio
from comgrad.evaluate.predictor import Predictor, Problem, pooled
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector
from evaluate_models import BLOCKS, inputs, predictor, problem, vector
from vectors_models import Attention, bert, gpt2


def moment(x: Tensor) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True)
    return unit.T @ unit / len(x)


@given(st.integers(0, 99), st.booleans(), st.sampled_from(["frobenius", "spectral"]))
def test_the_ratio_is_that_of_the_products(seed: int, low: bool, norm: str) -> None:
    g = torch.Generator().manual_seed(seed)
    B, A = torch.randn(5, 2, generator=g).double(), torch.randn(2, 7, generator=g).double()
    x = torch.randn(30, 7, generator=g).double() + 1.0
    d = LowRank(B, A, -0.7) if low else Dense(torch.randn(5, 7, generator=g).double())
    W = d.dense()
    size = torch.linalg.matrix_norm(W, "fro" if norm == "frobenius" else 2)
    expected = float(((x @ W.T).norm(dim=1) / (size * x.norm(dim=1))).square().mean().sqrt())
    found = layer_ratio("w", d, moment(x), norm)  # type: ignore[arg-type]
    assert found.ratio == pytest.approx(expected, rel=1e-9) and 0 <= found.ratio <= 1 + 1e-12
    assert found.size == pytest.approx(float(W.square().sum()), rel=1e-9)


@pytest.mark.parametrize("low", [False, True])
def test_the_null_is_that_of_random_right_singular_vectors(low: bool) -> None:
    g = torch.Generator().manual_seed(1)
    n = 9
    d = LowRank(torch.randn(5, 2, generator=g).double(), torch.randn(2, n, generator=g).double(), 2.0)
    if not low:
        d = Dense(torch.randn(5, n, generator=g).double() * torch.arange(1, n + 1))
    C = moment(torch.randn(50, n, generator=g).double() + 0.7)
    S = torch.linalg.svdvals(d.dense())
    draws = []
    for _ in range(20000):
        Q, R = torch.linalg.qr(torch.randn(n, len(S), generator=g).double())
        V = Q * R.diagonal().sign()
        draws.append(float((S.square() * (V * (C @ V)).sum(0)).sum()))
    found = layer_ratio("w", d, C)
    assert np.mean(draws) == pytest.approx(found.null_mean, rel=0.02)
    assert np.var(draws) == pytest.approx(found.null_variance, rel=0.06)
    assert found.null_ratio == pytest.approx(1 / math.sqrt(n)) and math.isfinite(found.z)
    assert found.z == pytest.approx((found.energy - np.mean(draws)) / np.std(draws), abs=0.1)


def test_orthogonal_inputs_give_exactly_zero() -> None:
    p = predictor()
    q = [problem("a", 1, BLOCKS[0]), problem("b", 2, BLOCKS[1])]
    tau = [vector(1, BLOCKS[0]), vector(2, BLOCKS[1])]
    table = ratio_table(p, q, tau)
    assert table[0][1].ratio == table[1][0].ratio == 0.0 and table[0][1].relative == 0.0
    assert table[0][0].ratio > 0 and table[0][0].relative > 1 and table[0][1].z < 0
    assert (table[0][1].vector, table[0][1].inputs) == ("b", "a")
    harm = interference(p, q, tau)
    assert harm.loss[0, 1] == harm.loss[1, 0] == harm.accuracy[0, 1] == 0.0 and np.isnan(harm.loss[0, 0])


def test_the_measure_over_layers_and_the_place_of_the_inputs() -> None:
    p, q, tau = predictor(), problem("a", 1), vector(1, whole=True)
    x, _ = inputs(q, "test")
    names = sorted(tau.tensors)
    for at in ([], [(1.0, tau)]):
        found = layer_inputs(p, q, names, at=at)
        with torch.no_grad(), p.at(at) as model:
            hidden = torch.tanh(model.first(x))
        assert found.unseen == ("first.bias",)
        assert torch.allclose(found.moments["first.weight"], moment(x))
        assert torch.allclose(found.moments["second.weight"], moment(hidden))
    whole = vector_ratio(tau, found, norm="spectral")
    a, b = tau.tensors["first.weight"].dense(), tau.tensors["second.weight"].dense()
    e = [((v @ W.T).norm(dim=1) / v.norm(dim=1)).square().mean() for v, W in ((x, a), (hidden, b))]
    lengths = torch.linalg.matrix_norm(a, 2) ** 2 + torch.linalg.matrix_norm(b, 2) ** 2
    null = a.square().sum() / 8 + b.square().sum() / 6
    assert whole.ratio == pytest.approx(float((sum(e) / lengths).sqrt()))
    assert whole.relative == pytest.approx(float((sum(e) / null).sqrt()))
    assert whole.unseen == ("first.bias",) and [x.name for x in whole.layers] == ["first.weight", "second.weight"]
    assert json.loads(json.dumps(whole.as_dict()))["layers"][0]["name"] == "first.weight"


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_real_layers_are_seen_at_real_tokens(kind: str) -> None:
    torch.manual_seed(0)
    model = (bert() if kind == "bert" else gpt2().transformer).double().eval()
    name = "encoder.layer.1.attention.self.query.weight" if kind == "bert" else "h.1.attn.c_attn.weight"
    table = "embeddings.word_embeddings.weight" if kind == "bert" else "wte.weight"
    ids = torch.randint(1, 40, (4, 7))
    mask = (torch.arange(7) < torch.tensor([[7], [3], [5], [1]])).long()
    rows = [
        ({"input_ids": ids[i], "attention_mask": mask[i]}, torch.zeros(2).long()) for i in (slice(0, 2), slice(2, 4))
    ]
    q = Problem("t", torch.eye(24)[:2].double(), {"test": rows}, {})
    kept: list[Tensor] = []
    handle = model.get_submodule(name.removesuffix(".weight")).register_forward_hook(lambda m, a, o: kept.append(a[0]))
    p = Predictor(BaseRef("t"), model, read=pooled)
    found = layer_inputs(p, q, [name, table])
    handle.remove()
    assert found.unseen == (table,) and len(kept) == 2
    x = torch.cat([k[m.bool()] for k, m in zip(kept, (mask[:2], mask[2:]), strict=True)]).detach()
    assert len(x) == 16 and torch.allclose(found.moments[name], moment(x))
    assert not model.get_submodule(name.removesuffix(".weight"))._forward_pre_hooks
    turned = kind == "gpt2"
    out = 72 if turned else 24
    d = Dense(torch.randn(out, 24).double(), transposed=turned)
    W = d.in_base_layout().T if turned else d.in_base_layout()
    expected = ((x @ W.T).norm(dim=1) / (W.norm() * x.norm(dim=1))).square().mean().sqrt()
    whole = vector_ratio(TaskVector(BaseRef("t"), {name: d}), found)
    assert whole.ratio == pytest.approx(float(expected))
    assert isinstance(model, transformers.PreTrainedModel)


def test_fused_projections_are_seen_and_the_hidden_output_projection_is_reported() -> None:
    torch.manual_seed(0)
    model = Attention().double().eval()
    x = torch.randn(3, 5, 16).double()
    q = Problem("t", torch.eye(16)[:2].double(), {"test": [({"x": x}, torch.zeros(3).long())]}, {})
    p = Predictor(BaseRef("t"), model, read=lambda m, b: m(b["x"]).mean(1))
    found = layer_inputs(p, q, ["attn.in_proj_weight", "attn.out_proj.weight", "mlp.weight"])
    assert torch.allclose(found.moments["attn.in_proj_weight"], moment(x.reshape(-1, 16)))
    assert set(found.moments) == {"attn.in_proj_weight", "mlp.weight"} and found.unseen == ("attn.out_proj.weight",)


def test_zero_inputs_have_no_direction_and_zero_deltas_no_ratio() -> None:
    p = predictor()
    none = layer_inputs(p, problem("zero", 1, (0, 0)), ["first.weight"])
    assert none.unseen == ("first.weight",) and not none.moments
    C = torch.eye(8).double() / 8
    with pytest.raises(Undefined, match="its delta is zero"):
        layer_ratio("w", Dense(torch.zeros(3, 8)), C)
    with pytest.raises(ShapeMismatch, match="was seen to read 8 numbers"):
        layer_ratio("w", Dense(torch.ones(3, 7)), C)
    with pytest.raises(Undefined, match="it changes no linear layer whose inputs were seen"):
        vector_ratio(vector(1), none)
    with pytest.raises(ShapeMismatch, match="tensor 'third.weight'"):
        layer_inputs(p, problem("a", 1), ["third.weight"])
    assert math.isnan(layer_ratio("w", Dense(torch.randn(3, 8)), C).z)  # isotropic inputs: every rotation is alike


def test_interference_is_what_is_lost() -> None:
    p = predictor()
    q, tau = [problem(f"q{k}", k) for k in range(3)], [vector(k, whole=True) for k in range(3)]
    found = interference(p, q, tau, alpha=0.5, split="validation")
    own = p.outcome(q[0], "validation", [(0.5, tau[0])])
    both = p.outcome(q[0], "validation", [(1.0, (tau[0] + tau[2]) * 0.5)])
    assert found.loss[0, 2] == pytest.approx(both.loss - own.loss)
    assert found.accuracy[0, 2] == own.accuracy - both.accuracy
    assert found.as_dict()["tasks"] == ["q0", "q1", "q2"]


def test_the_association_is_spearmans_and_its_p_counts_permuted_tasks() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 5))
    b = a + 0.8 * rng.normal(size=(5, 5))
    off = ~np.eye(5, dtype=bool)
    found = predicts(a, b, permutations=400)
    assert found.rho == pytest.approx(spearmanr(a[off], b[off]).statistic)
    assert found.pairs == 20 and 1 / 401 <= found.p <= 1
    np.fill_diagonal(b, np.nan)
    assert predicts(a, b, permutations=400) == found  # the diagonal is not looked at
    assert predicts(a, a, permutations=400).rho == pytest.approx(1.0)
    # a full count over all 120 orders, with p to match
    from itertools import permutations as orders

    values = [spearmanr(a[np.ix_(o, o)][off], b[off]).statistic for o in orders(range(5))]
    exact = np.mean([v >= found.rho - 1e-12 for v in values])
    assert predicts(a, b, permutations=4000).p == pytest.approx(exact, abs=0.03)
    with pytest.raises(Undefined, match="at least three tasks"):
        predicts(a[:2, :2], b[:2, :2])
    with pytest.raises(Undefined, match="the association with a constant"):
        predicts(np.ones((4, 4)), rng.normal(size=(4, 4)))


def test_on_a_shipped_adapter(zoo: list[Path]) -> None:
    """Rank 8 changes of 384 × 384 layers, against inputs that no training saw: between 0 and 1, near the null."""
    tau = TaskVector.from_peft(zoo[3])
    C = moment(torch.randn(4000, 384, generator=torch.Generator().manual_seed(0)).double())
    for name, d in list(tau.tensors.items())[:3]:
        found = layer_ratio(name, d, C)
        assert found.ratio == pytest.approx(found.null_ratio, rel=0.1) and abs(found.z) < 5
