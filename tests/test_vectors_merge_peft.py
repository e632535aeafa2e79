"""Merges against PEFT's own `add_weighted_adapter`, on adapters PEFT made and through files PEFT wrote."""

from __future__ import annotations

import warnings
from pathlib import Path

import peft
import pytest
import torch

from comgrad.vectors.merge import merge
from comgrad.vectors.task_vector import TaskVector
from vectors_models import bert, gpt2, save_base

CASES = {
    "bert": (bert, {"target_modules": ["query", "value"], "r": 4, "lora_alpha": 8}),
    "gpt2": (gpt2, {"target_modules": ["c_attn"], "r": 4, "lora_alpha": 6, "fan_in_fan_out": True}),
}
DIMENSIONS = 24  # the smaller side of every target: PEFT's SVD of a merged matrix loses nothing


@pytest.fixture(scope="module", params=CASES)
def adapters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> peft.PeftModel:
    """A tiny model with two adapters of random numbers and of two scalings."""
    make, config = CASES[request.param]
    torch.manual_seed(0)
    base = make()
    folder = save_base(base, tmp_path_factory.mktemp("bases") / request.param)
    model = peft.get_peft_model(base, peft.LoraConfig(**config), adapter_name="first")
    model.base_folder = folder
    model.add_adapter("second", peft.LoraConfig(**(config | {"lora_alpha": 2})))
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name) + sum(name.encode()))))
    return model


def saved(model: peft.PeftModel, name: str, folder: Path) -> TaskVector:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, selected_adapters=[name])
    return TaskVector.from_peft(folder / name, base=model.base_folder)


def distance(a: TaskVector, b: TaskVector) -> float:
    return (a - b).norm() / b.norm()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, -2.0)])
@pytest.mark.parametrize(
    ("theirs", "method", "parameters"),
    [
        ("cat", "sum", {}),
        ("svd", "sum", {}),
        ("ties_svd", "ties", {"density": 0.3, "match": "peft"}),
        ("ties_svd", "ties", {"density": 0.005, "match": "peft"}),
        ("magnitude_prune_svd", "magnitude", {"density": 0.3, "match": "peft"}),
    ],
)
def test_merges_equal_pefts(
    adapters: peft.PeftModel,
    theirs: str,
    method: str,
    parameters: dict[str, float],
    weights: tuple[float, float],
    tmp_path: Path,
) -> None:
    name = f"{theirs}-{method}-{weights}-{parameters.get('density')}".replace(".", "_")
    adapters.add_weighted_adapter(
        ["first", "second"],
        list(weights),
        name,
        combination_type=theirs,
        svd_rank=None if theirs == "cat" else DIMENSIONS,
        density=parameters.get("density"),
    )
    vectors = [saved(adapters, n, tmp_path) for n in ("first", "second")]
    ours, published = merge(vectors, method, weights, **parameters), saved(adapters, name, tmp_path)
    assert distance(ours, published) < 1e-5
    if "match" in parameters:  # without it the formula is another one, so the comparison above can fail
        assert distance(merge(vectors, method, weights, density=0.3), published) > 0.01


def test_dare_drops_and_rescales_as_peft_does(adapters: peft.PeftModel, tmp_path: Path) -> None:
    """The two draw other masks, so every element is compared with the two values it can have.

    The second adapter has weight 0: PEFT turns a merge of one adapter into a plain copy.
    """
    adapters.add_weighted_adapter(
        ["first", "second"], [2.0, 0.0], "dared", combination_type="dare_linear_svd", svd_rank=DIMENSIONS, density=0.4
    )
    one, theirs = saved(adapters, "first", tmp_path), saved(adapters, "dared", tmp_path)
    for out in (merge([one], "dare", [2.0], density=0.4), theirs):
        for n, d in out.tensors.items():
            kept = 2.0 * one.tensors[n].dense() / 0.4
            error = torch.minimum(d.dense().abs(), (d.dense() - kept).abs())
            assert float(error.max()) < 1e-4 * float(kept.abs().max())
            share = float((d.dense().abs() > kept.abs() / 2).double().mean())
            assert abs(share - 0.4) < 5 * (0.24 / d.numel) ** 0.5


def test_pefts_linear_and_ties_on_factors_are_other_formulas(adapters: peft.PeftModel, tmp_path: Path) -> None:
    """PEFT's `linear` adds A and B themselves, cross terms included; comgrad never does."""
    adapters.add_weighted_adapter(["first", "second"], [1.0, 1.0], "linear", combination_type="linear")
    vectors = [saved(adapters, n, tmp_path) for n in ("first", "second")]
    assert distance(merge(vectors, "sum"), saved(adapters, "linear", tmp_path)) > 0.5
