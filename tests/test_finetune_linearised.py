"""The first-order model: exact where the network is linear in θ, jvp right to finite differences, trainable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vectors_models
from comgrad.errors import ComgradError
from comgrad.evaluate.causal import AnswerModel
from comgrad.evaluate.classifier import PromptClassifier, embed, shifted
from comgrad.finetune.linearised import Linearised, LinearOutput, ntk
from comgrad.finetune.trainable import Start
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense
from comgrad.vectors.task_vector import TaskVector

START = Start(BaseRef("tiny"), None)
IDS = torch.tensor([[5, 9, 11, 7, 3], [8, 2, 30, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": MASK}


def read(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    found: Tensor = output.last_hidden_state if logits is None else logits
    return found


def fused_attention() -> nn.Module:
    return vectors_models.Attention()


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "bert": (vectors_models.bert, BATCH),
    "llama": (vectors_models.llama, BATCH),
    "gpt2": (vectors_models.gpt2, BATCH),
    "open_clip": (fused_attention, {"x": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))}),
}


def moved(model: nn.Module, by: float, seed: int = 2) -> dict[str, Tensor]:
    """A direction in parameter space."""
    generator = torch.Generator().manual_seed(seed)
    return {n: by * torch.randn(p.shape, generator=generator).to(p.dtype) for n, p in model.named_parameters()}


def move(model: nn.Module, direction: dict[str, Tensor], by: float = 1.0) -> None:
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.add_(by * direction[n])


class LinearInTheta(nn.Module):
    """x W + b ∘ cos(x): linear in its parameters, not in x."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x) @ self.W + self.b * torch.cos(x[:, :3])


def test_it_is_exact_on_a_model_that_is_linear_in_its_parameters() -> None:
    model = LinearInTheta().double()
    lin, x = Linearised(model), torch.randn(6, 4, dtype=torch.float64)
    move(model, moved(model, 100.0))
    torch.testing.assert_close(lin(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_at_theta0_it_is_the_plain_model(case: str) -> None:
    make, inputs = CASES[case]
    model = make().eval()
    with torch.no_grad():
        torch.testing.assert_close(read(Linearised(model)(**inputs)), read(model(**inputs)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_its_slope_is_that_of_central_differences(case: str) -> None:
    make, inputs = CASES[case]
    model = make().double().eval()
    given = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    lin, direction, h = Linearised(model), moved(model, 1.0), 1e-5
    with torch.no_grad():
        at = read(model(**given))
        move(model, direction, h)
        ahead = read(model(**given))
        slope = (read(lin(**given)) - at) / h
        move(model, direction, -2 * h)
        behind = read(model(**given))
    expected = (ahead - behind) / (2 * h)
    assert float(expected.abs().max()) > 1e-2
    assert float((slope - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_it_is_linear_in_theta_where_the_model_is_not(case: str) -> None:
    make, inputs = CASES[case]
    model = make().double().eval()
    given = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    lin, a, b = Linearised(model), moved(model, 0.3, 4), moved(model, 0.3, 5)

    def at(x: float, y: float) -> Tensor:
        move(model, a, x)
        move(model, b, y)
        with torch.no_grad():
            out = read(lin(**given))
        move(model, a, -x)
        move(model, b, -y)
        return out

    zero = at(0, 0)
    torch.testing.assert_close(
        at(2, -3) - zero, 2 * (at(1, 0) - zero) - 3 * (at(0, 1) - zero), rtol=1e-4, atol=1e-5
    )  # Llama computes some of it in fp32
    move(model, a)
    with torch.no_grad():
        assert float((read(lin(**given)) - read(model(**given))).abs().max()) > 1e-3


@pytest.mark.parametrize("case", ["bert", "llama", "gpt2"])
def test_gradients_reach_the_trained_parameters_and_are_those_at_theta0(case: str) -> None:
    """∂f_lin/∂θ = J(x; θ₀) wherever θ is."""
    make, inputs = CASES[case]
    model = make().double().eval()
    names = [n for n, _ in model.named_parameters() if "pooler" not in n]
    own = dict(model.named_parameters())
    weights = torch.randn_like(read(model(**inputs)))
    plain = torch.autograd.grad((weights * read(model(**inputs))).sum(), [own[n] for n in names])
    ready = ntk(model, START)
    move(model, moved(model, 0.5))
    (weights * read(ready.model(**inputs))).sum().backward()
    for name, g in zip(names, plain, strict=True):
        grad = own[name].grad
        assert grad is not None, name
        torch.testing.assert_close(grad, g, rtol=1e-7, atol=1e-9)


def test_under_the_prompt_head_training_lowers_the_loss_and_the_vector_scores_alike() -> None:
    torch.manual_seed(0)
    model = vectors_models.bert()
    theta0 = {n: p.detach().clone() for n, p in model.named_parameters()}
    prompts = torch.nn.functional.normalize(torch.randn(2, 24), dim=1)
    ready = ntk(model, START)
    assert ready.linearised
    assert ready.parameters == ready.total
    headed, labels = PromptClassifier(ready.model, prompts), torch.tensor([0, 1])
    optimiser = torch.optim.AdamW([p for p in headed.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        loss = headed.train()(**BATCH, labels=labels)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        trained = embed(ready.model, **BATCH)
    vector = ready.collect()
    fresh = vectors_models.bert()
    fresh.load_state_dict(theta0, strict=False)
    lin = Linearised(fresh)
    with shifted(fresh, vector), torch.no_grad():
        torch.testing.assert_close(embed(lin, **BATCH), trained, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        plain = embed(fresh, **BATCH)
        assert float((embed(lin, **BATCH) - plain).abs().max()) < 1e-5
        assert float((trained - plain).abs().max()) > 1e-3


def test_dropout_is_off_in_training_too() -> None:
    model = vectors_models.bert()
    lin = Linearised(model).train()
    assert lin.training
    assert not model.training
    assert torch.equal(read(lin(**BATCH)), read(lin(**BATCH)))


def test_a_causal_model_is_linearised_in_its_logits() -> None:
    ready = ntk(vectors_models.llama(tied=True), START)
    answer = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]])
    loss = AnswerModel(ready.model)(IDS, MASK, answer)["loss"]
    loss.backward()
    assert all(p.grad is not None for p in ready.model.parameters())


def test_an_init_is_where_theta_starts_and_no_part_of_theta0() -> None:
    model = vectors_models.bert().eval()
    with torch.no_grad():
        plain = read(model(**BATCH))
    name = "encoder.layer.0.attention.self.query.weight"
    init = TaskVector(BaseRef("tiny"), {name: Dense(torch.randn(24, 24))})
    ready = ntk(model, Start(BaseRef("tiny"), None, frozen=init))
    with torch.no_grad():
        assert float((read(ready.model(**BATCH)) - plain).abs().max()) > 1e-3
        move(
            model,
            {n: -init.tensors[n].dense() if n == name else torch.zeros_like(p) for n, p in model.named_parameters()},
        )
        torch.testing.assert_close(read(ready.model(**BATCH)), plain, rtol=1e-4, atol=1e-5)


def test_only_a_paradigm_may_move_and_the_attention_settings_are_put_back() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    model = vectors_models.bert()
    ready = ntk(model, START, paradigm="attention-linear")
    assert ready.parameters == 2 * 4 * 24 * 24
    assert len(ready.model.theta0()) == 8  # type: ignore[operator]
    ready.model(**BATCH)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_theta0_is_no_part_of_the_checkpoint_and_moves_with_the_model() -> None:
    lin = Linearised(vectors_models.bert())
    assert not any("theta0" in n for n in lin.state_dict())
    assert all(t.dtype == torch.float64 for t in lin.double().theta0().values())


def test_an_output_that_cannot_be_linearised_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self) -> tuple[Tensor]:
            return (self.w,)

    with pytest.raises(ComgradError, match="output is a tuple; only a tensor, last_hidden_state or logits"):
        Linearised(Odd())()


def test_the_output_has_one_of_the_two_fields() -> None:
    assert isinstance(Linearised(vectors_models.gpt2())(**BATCH), LinearOutput)
    assert Linearised(vectors_models.gpt2())(**BATCH).last_hidden_state is None
    assert Linearised(vectors_models.bert())(**BATCH).logits is None
