"""Parameters by role, for every layout there is; nothing selected is an error, never a silent run."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from torch import nn

import vectors_models
from comgrad.errors import ComgradError
from comgrad.finetune.recipes import RECIPES
from comgrad.finetune.selection import PARADIGMS, Selection, select
from comgrad.weights.layouts import LAYOUTS, layout_of


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in model.named_parameters()}


class OpenClip(nn.Module):
    """The names of an open_clip model: fused in_proj, a vision and a text tower."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, d, 4, bias=False)
        self.visual.proj = nn.Parameter(torch.zeros(d, 4))
        self.visual.transformer = self._tower(d)
        self.transformer = self._tower(d)
        self.token_embedding = nn.Embedding(10, d)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    @staticmethod
    def _tower(d: int) -> nn.Module:
        tower = nn.Module()
        tower.resblocks = nn.ModuleList()
        for _ in range(2):
            block = nn.Module()
            block.ln_1 = nn.LayerNorm(d)
            block.attn = nn.MultiheadAttention(d, 2)
            block.mlp = nn.Module()
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
            tower.resblocks.append(block)
        return tower


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40
    )
    return transformers.RobertaModel(config)


def clip() -> nn.Module:
    tower = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    text = tower | {"vocab_size": 10, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=tower | {"image_size": 8, "patch_size": 4})
    return transformers.CLIPModel(config)


def vit() -> nn.Module:
    tower = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.ViTModel(transformers.ViTConfig(**tower, image_size=8, patch_size=4))


VIT = {  # as a ViT checkpoint has them
    "embeddings.cls_token": (1, 1, 8),
    "embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4),
    "pooler.dense.weight": (8, 8),
    **{
        f"encoder.layer.{i}.{module}.{kind}": ((out, inner) if kind == "weight" else (out,))
        for i in range(2)
        for module, out, inner in (
            ("attention.attention.query", 8, 8),
            ("attention.attention.key", 8, 8),
            ("attention.attention.value", 8, 8),
            ("attention.output.dense", 8, 8),
            ("intermediate.dense", 16, 8),
            ("output.dense", 8, 16),
            ("layernorm_before", 8, 1),
        )
        for kind in ("weight", "bias")
    },
}

# family: (shapes, what names of the attention end with, of the MLP)
FAMILIES = {
    "bert": (shapes(vectors_models.bert()), ("self.query", "self.key", "self.value", "attention.output.dense"), 2),
    "roberta": (shapes(roberta()), ("self.query", "self.key", "self.value", "attention.output.dense"), 2),
    "llama": (shapes(vectors_models.llama()), ("q_proj", "k_proj", "v_proj", "o_proj"), 3),
    "gpt2": (shapes(vectors_models.gpt2()), ("attn.c_attn", "attn.c_proj"), 2),
    "clip": (shapes(clip()), ("q_proj", "k_proj", "v_proj", "out_proj"), 2),
    "vit": (VIT, ("attention.query", "attention.key", "attention.value", "attention.output.dense"), 2),
    "vit-loaded": (shapes(vit()), ("q_proj", "k_proj", "v_proj", "o_proj"), 2),
    "open_clip": (shapes(OpenClip()), ("attn.in_proj", "attn.out_proj"), 2),
}


def test_every_layout_of_the_core_is_covered() -> None:
    found = {getattr(layout_of(s), "name", None) for s, _, _ in FAMILIES.values()}
    assert found == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_four_paradigms_select_what_the_paper_names(family: str) -> None:
    table, ends, mlps = FAMILIES[family]
    towers = 2 if family in ("clip", "open_clip") else 1
    chosen = {name: set(select(table, name).names) for name in PARADIGMS}
    weights = set(chosen["attention-linear"])
    stems = {n.removesuffix(".weight").removesuffix("_weight") for n in weights}
    assert len(weights) == 2 * towers * len(ends)  # two blocks
    assert all(s.endswith(ends) for s in stems)
    biases = chosen["attention-linear-bias"] - weights
    assert {n.removesuffix(".bias").removesuffix("_bias") for n in biases} == (set() if family == "llama" else stems)
    both = chosen["attention-mlp-linear"] - weights
    assert len(both) == 2 * towers * mlps
    assert all(len(table[n]) == 2 for n in chosen["attention-mlp-linear"])
    extra = chosen["attention-mlp-linear-bias"] - chosen["attention-mlp-linear"] - biases
    assert len(extra) == (0 if family == "llama" else len(both))
    assert not any("norm" in n.lower() or "ln_" in n or "embed" in n for c in chosen.values() for n in c)
    assert set(select(table).names) == set(table)


def test_one_tower_of_two() -> None:
    table = shapes(OpenClip())
    vision = select(table, "attention-linear", tower="vision")
    text = select(table, "attention-linear", tower="text")
    assert set(vision.names) | set(text.names) == set(select(table, "attention-linear").names)
    assert all(n.startswith("visual.") for n in vision.names)
    assert not any(n.startswith("visual.") for n in text.names)
    assert "visual.conv1.weight" in select(table, tower="vision").names
    assert vision.total == sum(map(math.prod, table.values()))


def test_the_share_is_counted_and_printed() -> None:
    model = vectors_models.bert()
    made = select(shapes(model), "attention-linear")
    total = sum(p.numel() for p in model.parameters())
    assert (made.parameters, made.total) == (2 * 4 * 24 * 24, total)
    assert made.share == 4608 / total
    assert str(Selection(("a",), 250, 1000)) == "250 of 1,000 parameters (25.0%)"


def test_nothing_selected_is_an_error() -> None:
    table = {n: s for n, s in shapes(vectors_models.bert()).items() if ".weight" not in n or "query" in n}
    only_key_bias = {n: s for n, s in table.items() if n.endswith("self.key.bias")}
    with pytest.raises(ComgradError, match=r"it selects no parameter, so nothing would be trained; .*family") as caught:
        select(only_key_bias, "attention-linear")
    assert caught.value.code == "no-targets"
    with pytest.raises(ComgradError, match="in the tower 'vision'"):
        select(table, "attention-linear", tower="vision")
    with pytest.raises(ComgradError) as caught:
        select({})
    assert caught.value.code == "no-targets"


def test_an_unknown_family_and_an_unknown_paradigm_are_errors() -> None:
    with pytest.raises(
        ComgradError, match=r"such as 'a.weight'; .*no family.*; use a model of .*bert.*nonlinear"
    ) as caught:
        select({"a.weight": (3, 3)}, "attention-linear")
    assert caught.value.code == "layout-unknown"
    assert select({"a.weight": (3, 3)}).parameters == 9
    with pytest.raises(ComgradError, match="the paradigm 'attention'.*use one of: attention-linear, "):
        select({"a.weight": (3, 3)}, "attention")


def test_each_paradigm_is_a_recipe() -> None:
    assert [p.number for p in PARADIGMS.values()] == [1, 2, 3, 4]
    assert [RECIPES[name].paradigm for name in PARADIGMS] == list(PARADIGMS)
    assert {r.name for r in RECIPES.values() if r.paradigm is None} == {"lora", "qlora", "nonlinear", "ntk"}
