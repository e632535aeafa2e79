"""Recipes that train a model's own parameters: only what was chosen moves, and the vector gives it back exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import vectors_models
from comgrad.errors import ComgradError, NotFound, ShapeMismatch
from comgrad.finetune.dense import in_place
from comgrad.finetune.recipes import RECIPES
from comgrad.finetune.selection import PARADIGMS
from comgrad.finetune.trainable import Start
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.exact import put_pinned, recombine
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("tiny", "f" * 64)
MODELS = {"bert": vectors_models.bert, "gpt2": vectors_models.gpt2, "llama": vectors_models.llama}


def start(init: TaskVector | None = None, path: Path | None = None) -> Start:
    return Start(BASE, path, frozen=init)


def train(model: nn.Module, by: float = 1e-3) -> None:
    """Move every trainable parameter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(by * torch.randn(p.shape, generator=generator))


def applied(vector: TaskVector, theta0: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """θ₀ + τ as `comgrad apply` forms it."""
    out = dict(theta0)
    for name, d in vector.tensors.items():
        out[name] = recombine(theta0[name], d.in_base_layout(), theta0[name].dtype)
        if isinstance(d, Dense) and d.pinned is not None:
            put_pinned(out[name], d.pinned)
    return out


@pytest.mark.parametrize("recipe", ["nonlinear", *PARADIGMS])
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_collected_gives_the_trained_model_back_bit_for_bit(kind: str, recipe: str) -> None:
    model = MODELS[kind]()
    theta0 = {n: p.detach().clone() for n, p in model.named_parameters()}
    ready = RECIPES[recipe].function(model, start())
    chosen = {n for n, p in model.named_parameters() if p.requires_grad}
    assert ready.parameters == sum(theta0[n].numel() for n in chosen)
    assert ready.total == sum(t.numel() for t in theta0.values())
    assert ready.share == ready.parameters / ready.total
    train(ready.model)
    vector = ready.collect()
    assert set(vector.tensors) == chosen
    assert (chosen == set(theta0)) == (recipe == "nonlinear")
    assert all(isinstance(d, Dense) and d.W.dtype == torch.float32 for d in vector.tensors.values())
    back = applied(vector, theta0)
    assert all(torch.equal(back[n], p) for n, p in model.named_parameters())
    assert all(torch.equal(theta0[n], p) for n, p in model.named_parameters() if n not in chosen)


def test_conv1d_deltas_have_the_output_side_first() -> None:
    model = vectors_models.gpt2()
    before = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    ready = RECIPES["attention-linear"].function(model, start())
    train(ready.model)
    d = ready.collect().tensors["transformer.h.0.attn.c_attn.weight"]
    assert d.shape == (72, 24)
    torch.testing.assert_close(d.dense().T, model.transformer.h[0].attn.c_attn.weight - before)


def test_tensors_that_did_not_move_are_left_out_unless_none_moved() -> None:
    model = vectors_models.bert()
    ready = in_place(model, start())
    assert ready.collect().norm() == 0.0
    with torch.no_grad():
        model.pooler.dense.bias.add_(1.0)
    assert list(ready.collect().tensors) == ["pooler.dense.bias"]


def test_an_init_is_where_it_starts_and_part_of_the_result() -> None:
    model = vectors_models.bert()
    theta0 = {n: p.detach().clone() for n, p in model.named_parameters()}
    query, up = "encoder.layer.0.attention.self.query.weight", "encoder.layer.1.intermediate.dense.weight"
    low = LowRank(torch.randn(24, 2), torch.randn(2, 24), 0.5)
    init = TaskVector(BASE, {query: low, up: Dense(torch.randn(40, 24))})
    ready = in_place(model, start(init), paradigm="attention-linear")
    now = dict(model.named_parameters())
    torch.testing.assert_close(now[query].detach(), theta0[query] + low.dense())
    torch.testing.assert_close(now[up].detach(), theta0[up] + init.tensors[up].dense())
    assert not now[up].requires_grad
    train(ready.model)
    back = applied(ready.collect(), theta0)
    assert all(torch.equal(back[n], p) for n, p in now.items())
    assert torch.equal(ready.changes()[query], now[query] - theta0[query])


def test_going_on_from_a_dense_result_starts_at_its_very_weights() -> None:
    first = vectors_models.bert()
    state = {n: p.detach().clone() for n, p in first.named_parameters()}
    with torch.no_grad():
        for p in first.parameters():
            p.mul_(1e4)  # a large base cancels part of a small delta: elements are pinned
    theta0 = {n: p.detach().clone() for n, p in first.named_parameters()}
    ready = in_place(first, start())
    with torch.no_grad():
        for n, p in first.named_parameters():
            p.copy_(state[n] * 1e-4)
    vector = ready.collect()
    assert any(isinstance(d, Dense) and d.pinned is not None for d in vector.tensors.values())
    second = vectors_models.bert()
    with torch.no_grad():
        for n, p in second.named_parameters():
            p.copy_(theta0[n])
    in_place(second, start(vector))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_a_parameter_that_the_checkpoint_lacks_is_never_trained(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = vectors_models.save_base(vectors_models.bert(), tmp_path / "base")
    weights = {n: t for n, t in load_file(folder / "model.safetensors").items() if not n.startswith("pooler")}
    save_file({f"bert.{n}": t for n, t in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    model = vectors_models.bert()
    ready = in_place(model, start(path=folder))
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    assert ready.total - ready.parameters == 24 * 24 + 24


def test_a_model_that_is_renamed_when_it_is_loaded_is_refused(tmp_path: Path) -> None:
    """Trained under names that the checkpoint has not, its vector would fit no base."""
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    model = transformers.ViTModel(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ComgradError, match=r"'layers.0.attention.*'; the base's checkpoint has no tensor of that name"):
        in_place(model, start(path=tmp_path))
    assert in_place(model, start()).share == 1.0


def test_only_trained_tensors_are_kept_a_second_time() -> None:
    from comgrad.finetune.dense import begin

    begun = begin(vectors_models.bert(), start(), "attention-linear")
    assert set(begun.theta0) == set(begun.chosen.names)
    assert all(t.device.type == "cpu" for t in begun.theta0.values())


def test_starts_that_do_not_fit_are_refused() -> None:
    low = LowRank(torch.ones(24, 1), torch.ones(1, 24))
    name = "encoder.layer.0.attention.self.query.weight"
    with pytest.raises(ComgradError, match="trains the model's own parameters"):
        in_place(vectors_models.bert(), Start(BASE, None, TaskVector(BASE, {name: low})))
    with pytest.raises(NotFound, match="nothing.weight"):
        in_place(vectors_models.bert(), start(TaskVector(BASE, {"nothing.weight": low})))
    wide = LowRank(torch.ones(30, 1), torch.ones(1, 24))
    with pytest.raises(ShapeMismatch, match=r"of shape \(30, 24\); the model has it with shape \(24, 24\)"):
        in_place(vectors_models.bert(), start(TaskVector(BASE, {name: wide})))
    with pytest.raises(ComgradError, match="no family"):
        in_place(nn.Linear(3, 3), start(), paradigm="attention-linear")
