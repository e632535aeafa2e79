"""PEFT adapters read exactly: against PEFT's own merged weights and `get_delta_weight`, or refused by name."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn

from comgrad.errors import BaseMismatch, ComgradError, FileRefused, UnsupportedAdapter
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.peft import read_peft
from comgrad.vectors.peft_config import VARIANTS, AdapterConfig, parse_config, pattern_key
from comgrad.vectors.task_vector import TaskVector
from vectors_models import (
    Attention,
    Convolutions,
    adapted,
    bert,
    gpt2,
    llama,
    merged_weights,
    save_adapter,
    save_base,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMGRAD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)


def assert_is_merge(
    tau: TaskVector, base: Mapping[str, torch.Tensor], model: peft.PeftModel, atol: float = 2e-6
) -> None:
    """base + τ is, tensor by tensor, what PEFT merges; tensors without a delta are unchanged."""
    merged = merged_weights(model)
    seen = 0
    for name, weight in base.items():
        d = tau.tensors.get(name)
        seen += d is not None
        ours = weight if d is None else weight.double() + d.in_base_layout().double()
        torch.testing.assert_close(
            ours.double(), merged[name].double(), rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert seen == len(tau.tensors) > 0


def assert_is_delta_weight(tau: TaskVector, model: peft.PeftModel) -> None:
    """Each module's delta is PEFT's get_delta_weight."""
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    assert len(layers) == sum(isinstance(d, LowRank) for d in tau.tensors.values()) > 0
    for name, layer in layers.items():
        d = tau.tensors[f"{name}.weight"]
        torch.testing.assert_close(d.in_base_layout(), layer.get_delta_weight("default"), rtol=1e-5, atol=1e-7)


BERT_ALL = ["query", "value", "intermediate.dense"]
EXACT: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (bert, {"r": 4, "lora_alpha": 6, "target_modules": BERT_ALL}),
    "rslora": (bert, {"r": 5, "lora_alpha": 6, "use_rslora": True, "target_modules": BERT_ALL}),
    "patterns": (
        bert,
        {
            "r": 4, "lora_alpha": 8, "target_modules": BERT_ALL,
            "rank_pattern": {"layer.0.attention.self.query": 2, r".*\.1\..*value": 6},
            "alpha_pattern": {"query": 3, "^encoder.layer.1.intermediate.dense": 11},
        },
    ),
    "patterns-rslora": (
        bert,
        {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": BERT_ALL, "rank_pattern": {"query": 7}},
    ),
    "lora-bias": (bert, {"r": 4, "lora_alpha": 7, "lora_bias": True, "target_modules": BERT_ALL}),
    "bias-all": (bert, {"r": 4, "bias": "all", "target_modules": BERT_ALL}),
    "bias-lora-only": (bert, {"r": 4, "bias": "lora_only", "target_modules": BERT_ALL}),
    "modules-to-save": (bert, {"r": 4, "target_modules": ["query"], "modules_to_save": ["pooler", "LayerNorm"]}),
    "dora": (bert, {"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": BERT_ALL}),
    "gaussian": (bert, {"r": 4, "init_lora_weights": "gaussian", "target_modules": BERT_ALL}),
    "orthogonal": (bert, {"r": 4, "init_lora_weights": "orthogonal", "target_modules": BERT_ALL}),
    "mica": (bert, {"r": 4, "init_lora_weights": "mica", "target_modules": BERT_ALL}),
    "embedding": (bert, {"r": 3, "target_modules": ["word_embeddings", "query"]}),
    "tokens": (bert, {"r": 3, "target_modules": ["query"], "trainable_token_indices": {"word_embeddings": [3, 7, 1]}}),
    "conv1d": (gpt2, {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d-dora": (gpt2, {"r": 4, "target_modules": ["c_attn", "c_proj"], "use_dora": True, "fan_in_fan_out": True}),
    "llama-gqa": (llama, {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]}),
    "all-linear": (llama, {"r": 2, "target_modules": "all-linear"}),
    "conv2d": (Convolutions, {"r": 4, "target_modules": ["first", "second"]}),
    "conv2d-dora": (Convolutions, {"r": 4, "use_dora": True, "target_modules": ["first", "second"]}),
    "attention": (Attention, {"r": 2, "target_modules": ["attn", "mlp"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT)
def test_every_exact_variant_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    make, config = EXACT[case]
    base = make()
    model = adapted(base, **config)
    folder = save_base(base, tmp_path / "base")
    tau = read_peft(save_adapter(model, tmp_path / "adapter"), base=folder)
    assert tau.base.status == "verified"
    assert_is_merge(tau, load_file(folder / "model.safetensors"), model)
    if case not in ("dora", "conv1d-dora", "conv2d-dora", "attention"):
        assert_is_delta_weight(tau, model)


@pytest.mark.parametrize(
    "case", ["plain", "rslora", "patterns", "lora-bias", "conv1d", "llama-gqa", "conv2d", "attention"]
)
def test_without_the_base_the_delta_is_the_same(case: str, tmp_path: Path) -> None:
    make, config = EXACT[case]
    base = make()
    adapter = save_adapter(adapted(base, **config), tmp_path / "adapter")
    raw = json.loads((adapter / "adapter_config.json").read_text())
    raw["base_model_name_or_path"] = "someone/some-base"
    (adapter / "adapter_config.json").write_text(json.dumps(raw))
    seen = read_peft(adapter, base=save_base(base, tmp_path / "base"))
    blind = read_peft(adapter)
    assert blind.base.status == "declared" and blind.base.name == "someone/some-base"
    assert any("not on this machine" in w for w in blind.warnings)
    assert len(blind.tensors) == len(seen.tensors)
    for (_, a), (_, b) in zip(blind.tensors.items(), seen.tensors.items(), strict=True):
        assert torch.equal(a.in_base_layout(), b.in_base_layout())


def test_attention_forward_is_the_vectors_model(tmp_path: Path) -> None:
    """PEFT adds out_proj's delta twice; the vector is what the adapted model computes, not get_delta_weight."""
    base = Attention().eval()
    model = adapted(base, r=2, lora_alpha=6, target_modules=["attn"])
    tau = read_peft(save_adapter(model, tmp_path / "a"), base=save_base(base, tmp_path / "base"))
    with torch.no_grad():
        for name, p in base.named_parameters():
            if name in tau.tensors:
                p += tau.tensors[name].in_base_layout()
        x = torch.randn(2, 5, 16)
        torch.testing.assert_close(base(x), model(x), rtol=1e-5, atol=1e-6)
    assert set(tau.tensors) == {"attn.in_proj_weight", "attn.out_proj.weight"}
    assert any("counts twice" in w for w in tau.warnings)


def test_a_newer_peft_than_the_known_doubling_is_refused_for_attention(tmp_path: Path) -> None:
    base = Attention()
    adapter = save_adapter(adapted(base, r=2, target_modules=["attn"]), tmp_path / "a")
    rewrite(adapter, peft_version="0.22.0")
    with pytest.raises(UnsupportedAdapter, match="out_proj twice") as e:
        read_peft(adapter, base=save_base(base, tmp_path / "base"))
    assert e.value.code == "peft-attention-version"


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_a_converted_adapter_is_the_difference_to_the_untouched_base(init: str, tmp_path: Path) -> None:
    base = bert()
    folder = save_base(base, tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=init, target_modules=["query", "value"])
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = init
    for name, p in model.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                p += torch.randn_like(p) * 0.05
    trained = {k: v.clone() for k, v in merged_weights(model).items()}
    save_adapter(model, tmp_path / "raw")
    with pytest.raises(UnsupportedAdapter, match="path_initial_model_for_weight_conversion"):
        read_peft(tmp_path / "raw", base=folder)
    save_adapter(model, tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    tau = read_peft(tmp_path / "converted", base=folder)
    assert tau.rank == 8
    for name, d in tau.tensors.items():
        torch.testing.assert_close(base.state_dict()[name] + d.in_base_layout(), trained[name], rtol=0, atol=2e-6)


def test_names_are_resolved_under_the_prefix_of_a_head_model(tmp_path: Path) -> None:
    base = bert()
    folder = save_base(base, tmp_path / "base")
    classifier = transformers.BertForSequenceClassification(base.config)
    classifier.bert.load_state_dict(base.state_dict(), strict=False)
    model = adapted(classifier, r=4, target_modules=["query"], task_type="SEQ_CLS")
    adapter = save_adapter(model, tmp_path / "a")
    with pytest.raises(UnsupportedAdapter, match=r"does not have.*drop_heads") as e:
        read_peft(adapter, base=folder)
    assert e.value.code == "peft-module-not-in-base"
    tau = read_peft(adapter, base=folder, drop_heads=True)
    assert all(n.startswith("encoder.layer.") for n in tau.tensors) and len(tau.tensors) == 2
    assert sum("left out" in w for w in tau.warnings) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_factors_stay_as_they_were_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    model = adapted(bert(), r=4, target_modules=["query"]).to(dtype)
    adapter = save_adapter(model, tmp_path / "a")
    rewrite(adapter, base_model_name_or_path="b/b")
    raw = load_file(adapter / "adapter_model.safetensors")
    tau = read_peft(adapter)
    for name, d in tau.tensors.items():
        assert isinstance(d, LowRank) and d.stored == dtype
        key = "base_model.model." + name.removesuffix(".weight")
        assert torch.equal(d.A, raw[f"{key}.lora_A.weight"]) and torch.equal(d.B, raw[f"{key}.lora_B.weight"])


def test_the_pattern_rule_is_pefts() -> None:
    patterns = {"query": 1, r"layer\.1\..*": 2, "^encoder.layer.0.value": 3, "er.0.key": 4}
    modules = [
        "encoder.layer.0.query",
        "encoder.layer.1.key",
        "encoder.layer.0.value",
        "encoder.layer.0.key",
        "myquery",
    ]
    for module in modules:
        assert pattern_key(patterns, module) == get_pattern_key(patterns.keys(), module)
    config = AdapterConfig(8, 16, True, {"query": 4}, {"key": 3})
    assert config.scale("a.query") == 16 / math.sqrt(4) and config.scale("a.key") == 3 / math.sqrt(8)


# -- refusals ----------------------------------------------------------------------------------------------------------
def rewrite(adapter: Path, **changes: Any) -> None:
    raw = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(raw | changes))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A plain adapter on a base that is only named."""
    folder = save_adapter(adapted(bert(), r=4, target_modules=["query"]), tmp_path / "adapter")
    rewrite(folder, base_model_name_or_path="someone/some-base")
    return folder


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        *(({key: {"x": 1}}, code, f"uses '{key}'") for key, code, _ in VARIANTS),
        ({"init_lora_weights": "pissa"}, "peft-init-pissa", "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, "peft-init-pissa", "B₀·A₀"),
        ({"init_lora_weights": "olora"}, "peft-init-olora", "convert it"),
        ({"init_lora_weights": "corda"}, "peft-init-corda", "convert it"),
        ({"init_lora_weights": "lora_ga"}, "peft-init-lora-ga", "convert it"),
        ({"init_lora_weights": "loftq"}, "peft-init-loftq", "quantised base"),
        ({"init_lora_weights": "novel"}, "peft-init-unknown", "'novel'"),
        ({"peft_type": "IA3"}, "peft-type", "'IA3'"),
        ({"peft_type": None}, "peft-type", "names no peft_type"),
        ({"use_shiny": True}, "peft-config-key", "'use_shiny'"),
        ({"use_dora": True}, "peft-unpaired", "lora_magnitude_vector"),
        ({"r": 6}, "peft-rank", "its scaling is unknown"),
        ({"rank_pattern": {"query": 2}}, "peft-rank", "the config says 2"),
        ({"rank_pattern": {"(a+)+x": 2}}, "peft-pattern", "regular expression"),
        ({"alpha_pattern": {"a*b*c*": 2}}, "peft-pattern", "full name"),
        ({"alpha_pattern": {"(": 2}}, "peft-pattern", "full name"),
        ({"r": 0}, "peft-config-value", "at least 1"),
        ({"r": True}, "peft-config-value", "at least 1"),
        ({"lora_alpha": "8"}, "peft-config-value", "finite number"),
        ({"use_rslora": "yes"}, "peft-config-value", "true or false"),
        ({"bias": "some"}, "peft-config-value", "lora_only"),
        ({"modules_to_save": "head"}, "peft-config-value", "list of names"),
        ({"trainable_token_indices": ["a"]}, "peft-config-value", "token numbers"),
        ({"rank_pattern": [1]}, "peft-config-value", "names with numbers"),
        ({"base_model_name_or_path": None}, "base-mismatch", "does not name its base"),
    ],
)  # fmt: skip
def test_refused_by_name(adapter: Path, changes: dict[str, Any], code: str, words: str) -> None:
    rewrite(adapter, **changes)
    with pytest.raises(ComgradError) as e:
        read_peft(adapter)
    assert e.value.code == code
    assert words in str(e.value)
    assert str(e.value).count("; ") >= 2


def test_falsy_unknown_keys_and_ignored_subconfigs_are_accepted(adapter: Path) -> None:
    rewrite(
        adapter,
        use_shiny=False,
        brand_new=None,
        eva_config={"rho": 2.0},
        runtime_config={"x": 1},
        loftq_config={"a": 1},
    )
    assert len(read_peft(adapter).tensors) == 2


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("dora", "peft-dora-needs-base"),
        ("bias-all", "peft-bias-needs-base"),
        ("modules-to-save", "peft-modules-to-save-needs-base"),
        ("tokens", "peft-tokens-need-base"),
        ("embedding", "peft-saved-weights-need-base"),
    ],
)
def test_what_needs_the_base_says_so(case: str, code: str, tmp_path: Path) -> None:
    make, config = EXACT[case]
    adapter = save_adapter(adapted(make(), **config), tmp_path / "a", save_embedding_layers=case == "embedding")
    rewrite(adapter, base_model_name_or_path="someone/some-base")
    with pytest.raises(UnsupportedAdapter, match="pass its path as the base") as e:
        read_peft(adapter)
    assert e.value.code == code


def edit(adapter: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of the file; `query` stands for the first query module."""
    file = adapter / "adapter_model.safetensors"
    held: dict[str, torch.Tensor | None] = dict(load_file(file))
    prefix = "base_model.model.encoder.layer.0.attention.self."
    held |= {(prefix + k.replace("__", ".")): v for k, v in tensors.items()}
    save_file({k: v for k, v in held.items() if v is not None}, file)


@pytest.mark.parametrize(
    ("tensors", "code", "words"),
    [
        ({"query__lora_B__weight": None}, "peft-unpaired", "lora_B is missing"),
        ({"query__lora_A__weight": None}, "peft-unpaired", "lora_A is missing"),
        ({"query__lora_C__weight": torch.ones(2)}, "peft-unknown-tensor", "lora_C"),
        ({"query__lora_magnitude_vector": torch.ones(24)}, "peft-unknown-tensor", "use_dora is off"),
        ({"query__base_layer__lora_A__weight": torch.ones(2, 2)}, "peft-unknown-tensor", "base_layer"),
        ({"query__token_adapter__x": torch.ones(2)}, "peft-unknown-tensor", "token_adapter"),
        ({"key__weight": torch.ones(24, 24)}, "peft-saved-weights-need-base", "whole"),
        ({"query__lora_B__weight": torch.ones(24, 3)}, "peft-factor-shape", "product of rank r"),
    ],
)
def test_odd_tensors_are_refused(adapter: Path, tensors: dict[str, torch.Tensor | None], code: str, words: str) -> None:
    edit(adapter, **tensors)
    with pytest.raises(UnsupportedAdapter) as e:
        read_peft(adapter)
    assert e.value.code == code and words in str(e.value)


def test_a_tensor_outside_the_model_prefix_is_refused(adapter: Path) -> None:
    save_file({"lora_A.weight": torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    with pytest.raises(UnsupportedAdapter, match=r"'lora_A\.weight'"):
        read_peft(adapter)


def test_wrong_bases_are_named_with_both_shapes(adapter: Path, tmp_path: Path) -> None:
    other = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8
        )
    )
    with pytest.raises(BaseMismatch, match=r"query\.weight' as a tensor of shape \(24, 24\).*has shape \(16, 16\)"):
        read_peft(adapter, base=save_base(other, tmp_path / "other"))
    with pytest.raises(BaseMismatch, match="has no such parameter"):
        read_peft(adapter, base=save_base(llama(), tmp_path / "llama"))


def test_a_resized_vocabulary_is_named(tmp_path: Path) -> None:
    base = bert()
    folder = save_base(base, tmp_path / "base")
    base.resize_token_embeddings(56)
    adapter = save_adapter(adapted(base, r=2, target_modules=["word_embeddings"]), tmp_path / "a")
    with pytest.raises(BaseMismatch, match="vocabulary was resized"):
        read_peft(adapter, base=folder)


def test_grouped_convolutions_are_refused(tmp_path: Path) -> None:
    base = Convolutions()
    adapter = save_adapter(adapted(base, r=3, target_modules=["grouped"]), tmp_path / "a")
    with pytest.raises(UnsupportedAdapter, match="grouped convolution"):
        read_peft(adapter, base=save_base(base, tmp_path / "base"))


def test_lora_bias_without_a_bias_is_refused(tmp_path: Path) -> None:
    base = llama()
    adapter = save_adapter(adapted(base, r=3, lora_bias=True, target_modules=["q_proj"]), tmp_path / "a")
    with pytest.raises(UnsupportedAdapter, match="has no bias in the base") as e:
        read_peft(adapter, base=save_base(base, tmp_path / "base"))
    assert e.value.code == "peft-lora-bias-no-bias"


def test_missing_files_and_pickles(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(FileRefused, match="pickle") as e:
        read_peft(adapter)
    assert e.value.code == "pickle"
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(FileRefused, match=r"no adapter_model\.safetensors") as e:
        read_peft(adapter)
    assert e.value.code == "peft-no-weights"
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(FileRefused, match=r"no adapter_config\.json") as e:
        read_peft(adapter)
    assert e.value.code == "peft-no-config"
    with pytest.raises(ComgradError, match="no such directory"):
        read_peft(tmp_path / "nowhere")


def test_a_declared_path_is_never_opened(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config is a stranger's: what it names is looked up as a Hub name, not as a place on this machine."""
    folder = save_base(bert(), tmp_path / "some" / "base")
    monkeypatch.chdir(tmp_path)
    for declared in (str(folder), "some/base", "../some/base", "~/base"):
        rewrite(adapter, base_model_name_or_path=declared)
        assert read_peft(adapter).base.status == "declared"
    assert read_peft(adapter, base=folder).base.name == "base"


def test_a_zero_bias_says_nothing(tmp_path: Path) -> None:
    base = bert()
    model = adapted(base, r=3, lora_bias=True, target_modules=["query"])
    for n, p in model.named_parameters():
        if n.endswith("lora_B.default.bias"):
            nn.init.zeros_(p)
    tau = read_peft(save_adapter(model, tmp_path / "a"), base=save_base(base, tmp_path / "base"))
    assert not any(isinstance(d, Dense) for d in tau.tensors.values())


def test_config_of_the_shipped_kind_parses() -> None:
    assert parse_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16}, "'x'").scale("any") == 2.0
