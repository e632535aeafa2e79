"""Layouts against the real modules of transformers: every parameter has the part its module plays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from comgrad.errors import ComgradError, NotFound, ShapeMismatch
from comgrad.weights.layouts import (
    BERT,
    CLIP,
    GPT2,
    LAYOUTS,
    LLAMA,
    OPEN_CLIP,
    PREFIXES,
    ROLES,
    VIT,
    VIT_LOADED,
    Layout,
    Role,
    forms,
    is_input_embedding,
    layout_of,
    resolve_name,
)

SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
TEXT = {**SMALL, "vocab_size": 30, "max_position_embeddings": 16}
GQA = {**TEXT, "num_key_value_heads": 1}


def clip() -> nn.Module:
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=TEXT, vision_config={**SMALL, "image_size": 8, "patch_size": 4}, projection_dim=4
        )
    )


MODELS: dict[str, tuple[Layout, Callable[[], nn.Module]]] = {
    "bert": (BERT, lambda: transformers.BertModel(transformers.BertConfig(**TEXT))),
    "bert-mlm": (BERT, lambda: transformers.BertForPreTraining(transformers.BertConfig(**TEXT))),
    "bert-classifier": (BERT, lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))),
    "roberta-mlm": (BERT, lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**TEXT))),
    "roberta-classifier": (
        BERT,
        lambda: transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**TEXT)),
    ),
    "llama": (LLAMA, lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA))),
    "mistral": (LLAMA, lambda: transformers.MistralModel(transformers.MistralConfig(**GQA, head_dim=4))),
    "qwen2": (LLAMA, lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GQA))),
    "gpt2": (
        GPT2,
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=30, n_positions=16)
        ),
    ),
    "clip": (CLIP, clip),
    "vit": (
        VIT,
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, image_size=8, patch_size=4)),
    ),
}


@cache
def saved(key: str) -> dict[str, torch.Size]:
    """Tensor name → shape as the library saves the model."""
    import tempfile

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        MODELS[key][1]().save_pretrained(folder)
        return {n: t.shape for n, t in load_file(folder + "/model.safetensors").items()}


def open_clip_block(prefix: str) -> dict[str, torch.Size]:
    """A block with PyTorch's own fused attention, named as open_clip names its parts."""
    parts = {
        "ln_1": nn.LayerNorm(8),
        "attn": nn.MultiheadAttention(8, 2),
        "ln_2": nn.LayerNorm(8),
        "mlp": nn.ModuleDict({"c_fc": nn.Linear(8, 32), "c_proj": nn.Linear(32, 8)}),
    }
    return {prefix + n: p.shape for n, p in nn.ModuleDict(parts).named_parameters()}


def open_clip() -> dict[str, torch.Size]:
    norms = ("ln_final", "visual.ln_pre", "visual.ln_post")
    single = {
        "positional_embedding": (77, 8),
        "text_projection": (8, 4),
        "logit_scale": (),
        "token_embedding.weight": (30, 8),
        "visual.class_embedding": (8,),
        "visual.proj": (8, 4),
        "visual.positional_embedding": (5, 8),
        "visual.conv1.weight": (8, 3, 4, 4),
        **{f"{n}.{k}": (8,) for n in norms for k in ("weight", "bias")},
    }
    out = {n: torch.Size(s) for n, s in single.items()}
    for i in range(2):
        out |= open_clip_block(f"visual.transformer.resblocks.{i}.") | open_clip_block(f"transformer.resblocks.{i}.")
    return out


def names_of(key: str) -> dict[str, torch.Size]:
    return open_clip() if key == "open_clip" else saved(key)


KEYS = [*MODELS, "open_clip"]


@pytest.mark.parametrize("key", KEYS)
def test_recognised_and_complete(key: str) -> None:
    layout = OPEN_CLIP if key == "open_clip" else MODELS[key][0]
    names = names_of(key)
    assert len(names) >= 20
    assert layout_of(names) is layout
    others = {n for n in names if "other" in layout.role(n).roles}
    assert {n.rpartition(".")[2] for n in others} <= {"logit_scale"}
    for name in names:
        role = layout.role(name)
        assert set(role.roles) <= set(ROLES)
        assert role.kind == ("bias" if name.endswith("bias") else "weight")
        assert (role.layer is not None) == any(part.isdigit() for part in name.split("."))
    for i in range(2):
        want = {"q", "k", "v", "o", "mlp-in", "mlp-out", "norm"} | ({"mlp-gate"} if layout is LLAMA else set())
        assert {r for n in names if layout.role(n).layer == i for r in layout.role(n).roles} == want


@pytest.mark.parametrize("key", KEYS)
def test_orientation_and_rows_agree_with_shapes(key: str) -> None:
    """With `transposed` undone every block matrix is output × input: d→d, d→inner and inner→d."""
    layout = OPEN_CLIP if key == "open_clip" else MODELS[key][0]
    inner = 32 if key in ("open_clip", "gpt2") else 12
    checked = 0
    for name, shape in names_of(key).items():
        role = layout.role(name)
        if role.transposed:
            assert len(shape) == 2, name
        if role.layer is None or len(shape) != 2:
            continue
        out_side, in_side = tuple(shape)[::-1] if role.transposed else tuple(shape)
        parts = layout.split(name, shape)
        assert list(parts) == list(role.roles)
        assert [b for b, _ in parts.values()] + [out_side] == [0] + [e for _, e in parts.values()]
        size = out_side // len(role.roles)
        want = {"mlp-in": (inner, 8), "mlp-gate": (inner, 8), "mlp-out": (8, inner)}.get(role.roles[0], (8, 8))
        if key in ("llama", "mistral", "qwen2") and role.roles[0] in ("k", "v"):
            want = (4, 8)  # one key-value head of four
        assert (size, in_side) == want, name
        checked += 1
    assert checked >= 8


@pytest.mark.parametrize("key", ["bert", "llama", "gpt2", "clip", "vit"])
def test_embedding_tables_are_input_by_output(key: str) -> None:
    model = MODELS[key][1]()
    tables = {n + ".weight" for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    layout = MODELS[key][0]
    assert all(layout.role(n).transposed and layout.role(n).roles == ("embed",) for n in tables)
    assert tables or key == "vit"
    linear = {n + ".weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert not any(layout.role(n).transposed for n in linear)


def test_fused_attention_splits_as_pytorch_does() -> None:
    """Rows of in_proj_weight: set one third to zero and see which of q, k and v vanishes."""
    attention = nn.MultiheadAttention(8, 2, bias=False)
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    parts = OPEN_CLIP.split(name, attention.in_proj_weight.shape)
    x = torch.randn(3, 1, 8)
    with torch.no_grad():
        attention.in_proj_weight[slice(*parts["v"])] = 0
        assert attention(x, x, x)[0].abs().max() == 0
        attention.in_proj_weight[slice(*parts["v"])] = 1
        attention.in_proj_weight[slice(*parts["q"])] = 0
        _, weights = attention(x, x, x)
        assert torch.allclose(weights, torch.full_like(weights, 1 / 3))


def test_gpt2_splits_as_transformers_does() -> None:
    model = MODELS["gpt2"][1]().eval()
    w = model.transformer.h[0].attn.c_attn.weight
    parts = GPT2.split("transformer.h.0.attn.c_attn.weight", w.shape)
    seen: list[torch.Tensor] = []
    hook = model.transformer.h[0].attn.c_attn.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        w[:, slice(*parts["k"])] = 0
        model(torch.tensor([[1, 2, 3]]))
    hook.remove()
    q, k, v = seen[0].split(8, dim=2)
    assert k.abs().max() == 0
    assert q.abs().max() > 0
    assert v.abs().max() > 0


def test_rows_that_do_not_divide() -> None:
    with pytest.raises(ShapeMismatch, match="25 rows do not divide into 3 equal parts"):
        GPT2.split("h.0.attn.c_attn.weight", (8, 25))
    assert GPT2.split("h.0.attn.c_attn.bias", (24,)) == {"q": (0, 8), "k": (8, 16), "v": (16, 24)}
    assert BERT.split("logit", ()) == {"other": (0, 1)}


def test_roles_spelled_out() -> None:
    assert BERT.role("bert.encoder.layer.3.attention.self.key.bias") == Role(3, ("k",), "bias", False)
    assert BERT.role("embeddings.LayerNorm.gamma") == Role(None, ("norm",), "weight", False)
    assert BERT.role("embeddings.LayerNorm.beta") == Role(None, ("norm",), "bias", False)
    assert GPT2.role("transformer.h.1.mlp.c_fc.weight") == Role(1, ("mlp-in",), "weight", True)
    assert GPT2.role("h.1.mlp.c_fc.bias") == Role(1, ("mlp-in",), "bias", False)
    assert GPT2.role("h.1.attn.bias").roles == ("other",)
    assert LLAMA.role("model.layers.11.mlp.gate_proj.weight") == Role(11, ("mlp-gate",), "weight", False)
    assert CLIP.role("vision_model.encoder.layers.1.mlp.fc2.weight") == Role(1, ("mlp-out",), "weight", False, "vision")
    assert OPEN_CLIP.role("transformer.resblocks.0.ln_1.bias") == Role(0, ("norm",), "bias", False, "text")
    assert OPEN_CLIP.role("visual.proj") == Role(None, ("head",), "weight", True, "vision")
    assert LLAMA.role("unheard.of.weight") == Role(None, ("other",), "weight", False)


def test_an_adapters_few_modules_are_enough() -> None:
    assert layout_of(["base_model.model.encoder.layer.0.attention.self.query.weight"]) is BERT
    assert layout_of(["base_model.model.model.layers.0.self_attn.v_proj.weight"]) is LLAMA
    assert layout_of(["classifier.weight"]) is None
    assert layout_of([]) is None


def test_a_composite_model_is_ambiguous() -> None:
    with pytest.raises(ComgradError, match="families bert and vit; a model of several families") as caught:
        layout_of([*saved("bert"), *saved("vit")])
    assert caught.value.code == "layout-ambiguous"


def test_select() -> None:
    names = saved("bert")
    assert len(BERT.select(names, ["q", "v"], kind="weight")) == 4
    assert len(BERT.select(names, ["q", "v"])) == 8
    assert GPT2.select(saved("gpt2"), ["k"], kind="weight") == GPT2.select(saved("gpt2"), ["q", "k"], kind="weight")
    with pytest.raises(ComgradError, match="role 'query'"):
        BERT.select(names, ["query"])


def test_a_vit_in_memory_has_the_parts_of_its_checkpoint() -> None:
    """transformers 5 renames a ViT's blocks when it loads them: role by role there are as many tensors of each shape."""
    loaded = {n: p.shape for n, p in MODELS["vit"][1]().named_parameters()}
    assert layout_of(loaded) is VIT_LOADED
    assert "vit.layers.0.attention.q_proj.weight" in loaded
    parts = [
        sorted(
            (layout.role(n).roles, layout.role(n).kind, layout.role(n).layer or 0, tuple(s)) for n, s in names.items()
        )
        for layout, names in ((VIT_LOADED, loaded), (VIT, saved("vit")))
    ]
    assert parts[0] == parts[1]
    assert len(VIT_LOADED.select(loaded, ["q", "k", "v", "o"], kind="weight")) == 8


def test_tables_name_only_known_roles() -> None:
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS) == 7
    for layout in LAYOUTS:
        assert all(set(roles) <= set(ROLES) for _, roles, _ in layout.rows)
        assert len({row[0] for row in layout.rows}) == len(layout.rows)


def test_input_embeddings() -> None:
    assert [k for k in KEYS if any(map(is_input_embedding, names_of(k)))] == [
        k for k in KEYS if k not in ("clip", "vit", "open_clip")
    ]


# -- names under prefixes ---------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(PREFIXES), max_size=3), st.sampled_from(["", *PREFIXES]), st.data())
def test_found_under_any_prefix(extra: list[str], own: str, data: st.DataObject) -> None:
    available = [own + n for n in saved("bert")]
    want = data.draw(st.sampled_from(available))
    asked = "".join(extra) + want.removeprefix(own)
    assert resolve_name(asked, available) == want


def test_modules_stand_for_their_weight() -> None:
    names = saved("roberta-mlm")
    query = "encoder.layer.0.attention.self.query"
    assert resolve_name(f"base_model.model.roberta.{query}", names) == f"roberta.{query}.weight"
    assert resolve_name(query + ".bias", names) == f"roberta.{query}.bias"


def test_unknown_and_ambiguous_names() -> None:
    with pytest.raises(NotFound, match=r"none of that name \(the nearest is 'norm.weight'\)"):
        resolve_name("norn.weight", ["norm.weight", "x"])
    with pytest.raises(NotFound, match="check that this is the base"):
        resolve_name("q", [])
    with pytest.raises(ComgradError, match=r"it may be any of 'bert.a.weight', 'model.a.weight'") as caught:
        resolve_name("a.weight", ["bert.a.weight", "model.a.weight"])
    assert caught.value.code == "name-ambiguous"
    assert resolve_name("a.weight", ["bert.a.weight", "a.weight"]) == "a.weight"
    assert forms("module.model.a") == ["module.model.a", "model.a", "a"]
