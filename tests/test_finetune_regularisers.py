"""The regulariser hook: one function of what is trained, added to the loss, with its gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vectors_models
from comgrad.errors import ComgradError
from comgrad.finetune.adapter import on_adapter
from comgrad.finetune.dense import in_place
from comgrad.finetune.loop import TrainSpec, fine_tune
from comgrad.finetune.regularisers import REGULARISERS, orthogonality, regulariser_named, weighted
from comgrad.finetune.trainable import Start, Trainable
from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("tiny")


def of(*changes: Tensor) -> Trainable:
    nothing = TaskVector(BASE, {"w": LowRank(torch.ones(2, 1), torch.ones(1, 2))})
    return Trainable(nn.Linear(1, 1), 1, 1, lambda: nothing, lambda: {str(i): c for i, c in enumerate(changes)})


def reference(d: Tensor) -> float:
    """‖ΔWᵀΔW − I‖_F from singular values, on the smaller side: √Σ(σ² − 1)²."""
    return float((torch.linalg.svdvals(d.double()).square() - 1).square().sum().sqrt())


def test_it_is_the_published_formula() -> None:
    a, b, c = torch.randn(6, 4), torch.randn(3, 7), torch.randn(5)
    assert float(orthogonality(of(a, b, c))) == pytest.approx(reference(a) + reference(b), rel=1e-5)
    assert float(orthogonality(of(a.T, b.T))) == pytest.approx(reference(a) + reference(b), rel=1e-5)


def test_it_is_zero_for_orthonormal_columns_and_the_root_of_n_for_no_change() -> None:
    q = torch.linalg.qr(torch.randn(8, 5, dtype=torch.float64))[0]
    assert float(orthogonality(of(q))) < 1e-12
    assert float(orthogonality(of(q.T))) < 1e-12
    assert float(orthogonality(of(torch.zeros(8, 5)))) == pytest.approx(5**0.5)


def test_its_gradient_is_right() -> None:
    d = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: orthogonality(of(x)), (d,))


def test_changes_of_a_dense_recipe_and_of_an_adapter_are_delta_w() -> None:
    model = vectors_models.bert()
    ready = in_place(model, Start(BASE, None), paradigm="attention-linear")
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    expected = sum(reference(d.dense()) for d in ready.collect().tensors.values())
    assert float(orthogonality(ready).detach()) == pytest.approx(expected, rel=1e-4)
    low = {
        f"encoder.layer.{i}.attention.self.{m}.weight": LowRank(torch.randn(24, 3), torch.randn(3, 24), 0.7)
        for i in range(2)
        for m in ("query", "value")
    }
    adapted = on_adapter(vectors_models.bert(), Start(BASE, None, TaskVector(BASE, dict(low))))
    assert float(orthogonality(adapted).detach()) == pytest.approx(
        sum(reference(d.dense()) for d in low.values()), rel=1e-4
    )
    orthogonality(adapted).backward()
    assert all(p.grad is not None for p in adapted.model.parameters() if p.requires_grad)


class Toy(nn.Module):
    """No loss of its own: what moves it is the regulariser."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(0.3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": 0.0 * (x @ self.w).sum()}


def test_the_loop_minimises_it_and_logs_the_whole_loss(tmp_path: Path) -> None:
    model = Toy()
    theta0 = torch.zeros(6, 4)
    ready = Trainable(model, 24, 24, lambda: pytest.fail("not asked for"), lambda: {"w": model.w - theta0})
    before = float(orthogonality(ready).detach())
    losses = fine_tune(
        model,
        [{"x": torch.randn(6)} for _ in range(8)],
        lambda batch: {"x": torch.stack([r["x"] for r in batch])},
        TrainSpec(steps=60, batch_size=4, learning_rate=0.02),
        tmp_path,
        regulariser=weighted(orthogonality, ready, 2.0),
    )
    assert losses[0][1] == pytest.approx(2.0 * before, rel=1e-3)
    assert float(orthogonality(ready).detach()) < 0.1 * before


def test_the_table_and_its_refusals() -> None:
    assert all(name == r.name and r.source.startswith("arXiv") for name, r in REGULARISERS.items())
    assert regulariser_named("orthoreg").function is orthogonality
    with pytest.raises(ComgradError, match="the regulariser 'l2'; there is none of that name; use one of: orthoreg"):
        regulariser_named("l2")
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ComgradError, match="a weight is a positive number"):
            weighted(orthogonality, of(torch.ones(2, 2)), weight)
    with pytest.raises(ComgradError, match="with no trained matrix"):
        orthogonality(of(torch.ones(3)))
