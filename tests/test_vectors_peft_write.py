"""Vectors written as PEFT directories: read back bit for bit, and loaded by stock PEFT to the same outputs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from comgrad.errors import UnsupportedAdapter
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.merge import merge
from comgrad.vectors.peft import read_peft, write_peft
from comgrad.vectors.task_vector import TaskVector
from vectors_models import Convolutions, adapted, bert, gpt2, llama, save_adapter, save_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
BASE = BaseRef("b/b")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMGRAD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)


def assert_same(a: TaskVector, b: TaskVector) -> None:
    """Bit for bit: the same names, kinds, factors, dtypes and scales."""
    assert list(a.tensors) == list(b.tensors)
    for name, x in a.tensors.items():
        y = b.tensors[name]
        assert x.transposed == y.transposed and x.stored == y.stored and type(x) is type(y)
        if isinstance(x, LowRank) and isinstance(y, LowRank):
            assert x.scale == y.scale and x.weight_shape == y.weight_shape
            assert x.A.dtype == y.A.dtype and torch.equal(x.A, y.A) and torch.equal(x.B, y.B)
        else:
            assert torch.equal(x.dense(), y.dense())


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (bert, {"r": 4, "lora_alpha": 6, "target_modules": ["query", "value"]}),
    "rslora": (bert, {"r": 5, "lora_alpha": 6, "use_rslora": True, "target_modules": ["query"]}),
    "patterns": (
        bert,
        {
            "r": 4, "lora_alpha": 8, "target_modules": ["query", "value", "key"],
            "rank_pattern": {"layer.0.attention.self.query": 2, "value": 7}, "alpha_pattern": {"query": 3},
        },
    ),
    "lora-bias": (bert, {"r": 6, "lora_alpha": 7, "lora_bias": True, "target_modules": ["query"]}),
    "conv1d": (gpt2, {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "llama": (llama, {"r": 3, "lora_alpha": 1, "target_modules": ["q_proj", "k_proj"]}),
    "conv2d": (Convolutions, {"r": 4, "target_modules": ["first", "second"]}),
    "embedding": (bert, {"r": 3, "target_modules": ["word_embeddings", "query"]}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_read_then_write_then_read_is_the_identity(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make, config = CASES[case]
    base = make()
    adapter = save_adapter(adapted(base, **config).to(dtype), tmp_path / "a", save_embedding_layers=False)
    folder = save_base(base, tmp_path / "base")
    tau = read_peft(adapter, base=folder)
    write_peft(tau, tmp_path / "again")
    assert_same(tau, read_peft(tmp_path / "again", base=folder))


@pytest.mark.parametrize("case", CASES)
def test_stock_peft_loads_it_to_the_same_outputs(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    base = make().eval()
    model = adapted(base, **config)
    tau = read_peft(
        save_adapter(model, tmp_path / "a", save_embedding_layers=False), base=save_base(base, tmp_path / "base")
    )
    write_peft(tau, tmp_path / "again")
    x = torch.randn(2, 3, 9, 9) if make is Convolutions else torch.arange(12).reshape(2, 6)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "again").eval()
    with torch.no_grad():
        one, other = model(x), loaded(x)
    pick = one[0] if not isinstance(one, torch.Tensor) else one
    torch.testing.assert_close(other[0] if not isinstance(other, torch.Tensor) else other, pick, rtol=1e-6, atol=1e-6)


def test_a_merged_adapter_in_stock_peft_is_the_dense_sum(tmp_path: Path) -> None:
    """0.7·τ₁ + 1.5·τ₂, of unlike ranks and scalings, loaded in PEFT against base + dense sum."""
    base = bert().eval()
    folder = save_base(base, tmp_path / "base")
    one = adapted(base, seed=1, r=4, lora_alpha=6, target_modules=["query", "value"])
    two = adapted(base, seed=2, r=3, lora_alpha=5, use_rslora=True, lora_bias=True, target_modules=["query", "key"])
    a = read_peft(save_adapter(one, tmp_path / "1"), base=folder)
    b = read_peft(save_adapter(two, tmp_path / "2"), base=folder)
    merged = merge([a, b], "sum", [0.7, 1.5])
    write_peft(merged, tmp_path / "merged")
    reference = copy.deepcopy(base)
    with torch.no_grad():
        for name, p in reference.named_parameters():
            for tau, w in ((a, 0.7), (b, 1.5)):
                if name in tau.tensors:
                    p += w * tau.tensors[name].in_base_layout()
        ids = torch.arange(24).reshape(2, 12)
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "merged").eval()
        got, want = loaded(ids).last_hidden_state, reference(ids).last_hidden_state
        assert float((got - want).abs().max()) < 1e-5
        assert float((want - base(ids).last_hidden_state).abs().max()) > 1e-2


def low(m: int = 4, n: int = 3, r: int = 2, **kwargs: Any) -> LowRank:
    return LowRank(torch.randn(m, r), torch.randn(r, n), **kwargs)


@pytest.mark.parametrize("scale", [1 / 3, 0.1, 2.0**-40, 1e-7, 2.5, -1.5, 0.0, 16 / 8**0.5])
@pytest.mark.parametrize("r", [1, 3, 7, 8])
def test_any_scaling_survives(scale: float, r: int, tmp_path: Path) -> None:
    tau = TaskVector(BASE, {"x.weight": low(8, 9, r, scale=scale), "y.weight": low(9, 8, r, scale=1.0)})
    write_peft(tau, tmp_path / "a")
    again = read_peft(tmp_path / "a")
    for name, d in tau.tensors.items():
        size = float(d.dense().abs().max())
        torch.testing.assert_close(again.tensors[name].dense(), d.dense(), rtol=0, atol=1e-6 * size)


def test_config_is_plain_lora_with_whole_numbers(tmp_path: Path) -> None:
    tau = TaskVector(BASE, {"a.x.weight": low(r=2, scale=2.0), "a.y.weight": low(r=3, scale=2.0)})
    write_peft(tau, tmp_path / "a", extra_config={"task_type": "FEATURE_EXTRACTION"})
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["lora_alpha"] == 4 and config["task_type"] == "FEATURE_EXTRACTION"
    assert config["rank_pattern"] == {"a.y": 3} and config["alpha_pattern"] == {"a.y": 6}
    assert config["base_model_name_or_path"] == "b/b" and config["target_modules"] == ["a.x", "a.y"]


@pytest.mark.parametrize("ranks", [(1, 2, 3, 4, 4), (1, 4, 3, 4, 4), (4, 2, 4, 3, 4)])
def test_names_that_end_like_others_keep_their_own_rank(ranks: tuple[int, ...], tmp_path: Path) -> None:
    """'a.x' ends with 'x', and PEFT takes the first pattern that matches an ending."""
    names = ("x", "a.x", "b.a.x", "z", "y")
    tau = TaskVector(BASE, {f"{n}.weight": low(r=r) for n, r in zip(names, ranks, strict=True)})
    write_peft(tau, tmp_path / "a")
    assert_same(tau, read_peft(tmp_path / "a"))


@pytest.mark.parametrize(
    ("tensors", "code", "words"),
    [
        ({"x.weight": Dense(torch.ones(2, 2))}, "peft-write-dense", "compress"),
        ({"x.weight": low(), "y.bias": Dense(torch.ones(3))}, "peft-write-vector", "beside the low-rank delta"),
        ({"x.weight": low(), "x.scale": Dense(torch.ones(3))}, "peft-write-vector", "is no matrix"),
        ({"attn.in_proj_weight": low()}, "peft-write-parameter", "fused in_proj_weight"),
        ({"x.weight": low(), "y.weight": low(transposed=True)}, "peft-write-mixed-layout", "fan_in_fan_out"),
        ({"x.bias": Dense(torch.ones(3))}, "peft-write-vector", "is no matrix"),
        (
            {"wte.weight": low(transposed=True), "x.weight": low(), "x.bias": Dense(torch.ones(4))},
            "peft-write-vector",
            "no lora_bias there",
        ),
        (
            {"x.weight": low(scale=0.0), "x.bias": Dense(torch.ones(4))},
            "peft-write-vector",
            "cannot be scaled",
        ),
    ],
)
def test_what_an_adapter_cannot_hold_is_refused(tensors: dict[str, Any], code: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapter) as e:
        write_peft(TaskVector(BASE, tensors), tmp_path / "a")
    assert e.value.code == code and words in str(e.value)
    assert not (tmp_path / "a").exists()


def test_a_compressed_dense_vector_can_be_written(tmp_path: Path) -> None:
    tau = TaskVector(BASE, {"x.weight": Dense(torch.randn(6, 5))})
    small, kept = tau.compress(5)
    assert kept == pytest.approx(1.0)
    write_peft(small, tmp_path / "a")
    torch.testing.assert_close(
        read_peft(tmp_path / "a").tensors["x.weight"].dense(), tau.tensors["x.weight"].dense(), rtol=1e-5, atol=1e-6
    )


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    bad = low()
    nn.init.constant_(bad.A, float("nan"))
    with pytest.raises(Exception, match="NaN"):
        write_peft(TaskVector(BASE, {"x.weight": bad}), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
