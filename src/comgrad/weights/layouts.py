"""Tensor-name layouts as data: which tensor of which model family plays which part.

A row is (module or parameter pattern, roles, transposed). `{i}` stands for the layer's number. `transposed` marks
tensors stored as (input, output): GPT-2's Conv1D and embedding tables. To support a family, add a `Layout`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from comgrad.errors import ComgradError
from comgrad.weights.names import PREFIXES, NameIndex, forms, resolve_name
from comgrad.weights.roles import ROLES, Layout, Role, Row

TIED_HEADS: Final = ("lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight")
_INPUT_EMBEDDINGS: Final = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


def _rows(prefix: str, table: Mapping[str, str | tuple[str, ...]], *, transposed: bool = False) -> tuple[Row, ...]:
    return tuple(
        (prefix + module, (roles,) if isinstance(roles, str) else roles, transposed or roles == "embed")
        for module, roles in table.items()
    )


_FUSED: Final = ("q", "k", "v")

BERT = Layout(
    "bert",
    "encoder.layer.{i}.attention.self.*",
    _rows(
        "encoder.layer.{i}.",
        {
            "attention.self.query": "q",
            "attention.self.key": "k",
            "attention.self.value": "v",
            "attention.output.dense": "o",
            "attention.output.LayerNorm": "norm",
            "intermediate.dense": "mlp-in",
            "output.dense": "mlp-out",
            "output.LayerNorm": "norm",
        },
    )
    + _rows(
        "",
        {
            "embeddings.word_embeddings": "embed",
            "embeddings.position_embeddings": "embed",
            "embeddings.token_type_embeddings": "embed",
            "embeddings.LayerNorm": "norm",
            "pooler.dense": "head",
            "classifier": "head",
            "classifier.dense": "head",
            "classifier.out_proj": "head",
            "qa_outputs": "head",
            "cls.predictions.bias!": "head",
            "cls.predictions.decoder": "head",
            "cls.predictions.transform.dense": "head",
            "cls.predictions.transform.LayerNorm": "norm",
            "cls.seq_relationship": "head",
            "lm_head.bias!": "head",
            "lm_head.decoder": "head",
            "lm_head.dense": "head",
            "lm_head.layer_norm": "norm",
        },
    ),
)

LLAMA = Layout(
    "llama",
    "layers.{i}.self_attn.*_proj",
    _rows(
        "layers.{i}.",
        {
            "self_attn.q_proj": "q",
            "self_attn.k_proj": "k",
            "self_attn.v_proj": "v",
            "self_attn.o_proj": "o",
            "self_attn.q_norm": "norm",
            "self_attn.k_norm": "norm",
            "mlp.up_proj": "mlp-in",
            "mlp.gate_proj": "mlp-gate",
            "mlp.down_proj": "mlp-out",
            "input_layernorm": "norm",
            "post_attention_layernorm": "norm",
        },
    )
    + _rows("", {"embed_tokens": "embed", "norm": "norm", "lm_head": "head", "score": "head"}),
)

GPT2 = Layout(
    "gpt2",
    "h.{i}.attn.c_attn",
    _rows(
        "h.{i}.",
        {"attn.c_attn": _FUSED, "attn.c_proj": "o", "mlp.c_fc": "mlp-in", "mlp.c_proj": "mlp-out"},
        transposed=True,
    )
    + _rows("h.{i}.", {"ln_1": "norm", "ln_2": "norm", "attn.bias!": "other", "attn.masked_bias!": "other"})
    + _rows("", {"wte": "embed", "wpe": "embed", "ln_f": "norm", "lm_head": "head", "score": "head"}),
)

_CLIP_BLOCK: Final = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "o",
    "mlp.fc1": "mlp-in",
    "mlp.fc2": "mlp-out",
    "layer_norm1": "norm",
    "layer_norm2": "norm",
}
CLIP = Layout(
    "clip",
    "*_model.encoder.layers.{i}.self_attn.*_proj",
    _rows("text_model.encoder.layers.{i}.", _CLIP_BLOCK)
    + _rows("vision_model.encoder.layers.{i}.", _CLIP_BLOCK)
    + _rows(
        "",
        {
            "text_model.embeddings.token_embedding": "embed",
            "text_model.embeddings.position_embedding": "embed",
            "vision_model.embeddings.position_embedding": "embed",
            "text_model.final_layer_norm": "norm",
            "vision_model.pre_layrnorm": "norm",
            "vision_model.post_layernorm": "norm",
            "text_projection": "head",
            "visual_projection": "head",
            "logit_scale!": "other",
        },
    )
    + (
        ("vision_model.embeddings.patch_embedding", ("embed",), False),  # a convolution
        ("vision_model.embeddings.class_embedding!", ("embed",), False),  # a vector
    ),
    towers=(("text_", "text"), ("vision_", "vision"), ("visual_", "vision")),
)

_VIT_OUTSIDE: Final[tuple[Row, ...]] = (
    *_rows("", {"layernorm": "norm", "pooler.dense": "head", "classifier": "head"}),
    # three- and four-dimensional: no transpose
    ("embeddings.cls_token!", ("embed",), False),
    ("embeddings.mask_token!", ("embed",), False),
    ("embeddings.position_embeddings!", ("embed",), False),
    ("embeddings.patch_embeddings.projection", ("embed",), False),
)

VIT = Layout(
    "vit",
    "encoder.layer.{i}.attention.attention.*",
    _rows(
        "encoder.layer.{i}.",
        {
            "attention.attention.query": "q",
            "attention.attention.key": "k",
            "attention.attention.value": "v",
            "attention.output.dense": "o",
            "intermediate.dense": "mlp-in",
            "output.dense": "mlp-out",
            "layernorm_before": "norm",
            "layernorm_after": "norm",
        },
    )
    + _VIT_OUTSIDE,
)
VIT_LOADED = Layout(  # as transformers 5 names the blocks in memory; it saves them under the names of VIT
    "vit-loaded",
    "layers.{i}.attention.*_proj",
    _rows(
        "layers.{i}.",
        {
            "attention.q_proj": "q",
            "attention.k_proj": "k",
            "attention.v_proj": "v",
            "attention.o_proj": "o",
            "mlp.fc1": "mlp-in",
            "mlp.fc2": "mlp-out",
            "layernorm_before": "norm",
            "layernorm_after": "norm",
        },
    )
    + _VIT_OUTSIDE,
)

_OPEN_CLIP_BLOCK: Final[dict[str, str | tuple[str, ...]]] = {
    "attn.in_proj_weight!": _FUSED,
    "attn.in_proj_bias!": _FUSED,
    "attn.out_proj": "o",
    "mlp.c_fc": "mlp-in",
    "mlp.c_proj": "mlp-out",
    "ln_1": "norm",
    "ln_2": "norm",
}
OPEN_CLIP = Layout(
    "open_clip",
    "visual.transformer.resblocks.{i}.attn.in_proj_weight!",
    _rows("visual.transformer.resblocks.{i}.", _OPEN_CLIP_BLOCK)
    + _rows("transformer.resblocks.{i}.", _OPEN_CLIP_BLOCK)
    + _rows(
        "",
        {
            "token_embedding": "embed",
            "positional_embedding!": "embed",
            "visual.positional_embedding!": "embed",
            "ln_final": "norm",
            "visual.ln_pre": "norm",
            "visual.ln_post": "norm",
            "logit_scale!": "other",
            "logit_bias!": "other",
            "attn_mask!": "other",
        },
    )
    + (
        ("visual.conv1", ("embed",), False),
        ("visual.class_embedding!", ("embed",), False),
        ("visual.proj!", ("head",), True),  # features @ proj
        ("text_projection!", ("head",), True),
    ),
    towers=(("visual.", "vision"), ("", "text")),
)

LAYOUTS: Final = (BERT, LLAMA, GPT2, CLIP, VIT, VIT_LOADED, OPEN_CLIP)


def layout_of(names: Iterable[str]) -> Layout | None:
    """The family whose signature the tensor names show; None when none does.

    Raises:
        ComgradError: `layout-ambiguous`, the names show the signatures of several families (a composite model).
    """
    names = list(names)
    found = [layout for layout in LAYOUTS if layout.matches(names)]
    if len(found) > 1:
        raise ComgradError(
            f"tensor names of the families {' and '.join(layout.name for layout in found)}",
            "a model of several families has no single layout",
            "pass the part that was fine-tuned",
            code="layout-ambiguous",
        )
    return found[0] if found else None


def is_input_embedding(name: str) -> bool:
    """Whether a parameter is a table of input token embeddings."""
    return any(name == e or name.endswith("." + e) for e in _INPUT_EMBEDDINGS)


__all__ = [
    "BERT",
    "CLIP",
    "GPT2",
    "LAYOUTS",
    "LLAMA",
    "OPEN_CLIP",
    "PREFIXES",
    "ROLES",
    "TIED_HEADS",
    "VIT",
    "VIT_LOADED",
    "Layout",
    "NameIndex",
    "Role",
    "forms",
    "is_input_embedding",
    "layout_of",
    "resolve_name",
]
