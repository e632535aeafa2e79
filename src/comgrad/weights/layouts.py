"""Tensor-name layouts as data: which tensor of which model family plays which part.

A row is (module or parameter pattern, roles, transposed). `{i}` stands for the layer's number. `transposed` marks
tensors stored as (input, output): GPT-2's Conv1D and embedding tables. To support a family, add a `Layout`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final, Literal

from comgrad.errors import ComgradError, NotFound, ShapeMismatch

Row = tuple[str, tuple[str, ...], bool]
Kind = Literal["weight", "bias"]

ROLES: Final = ("q", "k", "v", "o", "mlp-in", "mlp-gate", "mlp-out", "embed", "norm", "head", "other")
PREFIXES: Final = (  # what wrappers put before a parameter's own name
    "base_model.model.",
    "module.",
    "_orig_mod.",
    "0.auto_model.",
    "auto_model.",
    "model.",
    "bert.",
    "roberta.",
    "transformer.",
    "vit.",
    "clip.",
    "language_model.",
    "text.",
)
TIED_HEADS: Final = ("lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight")
_INPUT_EMBEDDINGS: Final = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


@dataclass(frozen=True)
class Role:
    """The part one tensor plays.

    Args:
        layer: number of its block; None outside the blocks.
        roles: one of `ROLES`; several, in the order of their rows, when the tensor is fused.
        kind: weight or bias.
        transposed: stored as (input, output).
        tower: `text` or `vision` in a model with two, else empty.
    """

    layer: int | None
    roles: tuple[str, ...]
    kind: Kind
    transposed: bool
    tower: str = ""


@dataclass(frozen=True)
class Layout:
    """One family's table. `signature` matches a tensor that only this family has."""

    name: str
    signature: str
    rows: tuple[Row, ...]
    towers: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _patterns(self) -> tuple[tuple[re.Pattern[str], Row], ...]:
        return tuple((_pattern(row[0]), row) for row in self.rows)

    def matches(self, names: Iterable[str]) -> bool:
        """Whether some tensor has this family's signature."""
        signature = _pattern(self.signature)
        return any(signature.fullmatch(form) for name in names for form in forms(name))

    def role(self, name: str) -> Role:
        """The part of a tensor, found under any known prefix; `other` when the table does not list it."""
        for form in forms(name):
            for pattern, (_, roles, transposed) in self._patterns:
                if match := pattern.fullmatch(form):
                    layer = match.groupdict().get("i")
                    kind: Kind = "bias" if match["kind"] in ("bias", "beta", "in_proj_bias") else "weight"
                    turned = transposed and kind == "weight"
                    return Role(None if layer is None else int(layer), roles, kind, turned, self._tower(form))
        kind = "bias" if name.endswith(".bias") else "weight"
        return Role(None, ("other",), kind, False, self._tower(name))

    def split(self, name: str, shape: Sequence[int]) -> dict[str, tuple[int, int]]:
        """Where each role of a tensor begins and ends on its output side.

        Args:
            name: the tensor.
            shape: as stored. The output side is the last axis of a transposed tensor, the first of any other.

        Raises:
            ShapeMismatch: the output side does not divide into the fused parts.
        """
        role = self.role(name)
        rows = (shape[-1] if role.transposed else shape[0]) if shape else 1
        size, rest = divmod(rows, len(role.roles))
        if rest:
            raise ShapeMismatch(
                f"'{name}' of shape {tuple(shape)}",
                f"{rows} rows do not divide into {len(role.roles)} equal parts ({', '.join(role.roles)})",
                "check that the model is of the family it was recognised as",
            )
        return {r: (i * size, (i + 1) * size) for i, r in enumerate(role.roles)}

    def select(self, names: Iterable[str], roles: Iterable[str], *, kind: Kind | None = None) -> list[str]:
        """The tensors that play one of `roles`, sorted."""
        wanted = set(roles)
        if unknown := sorted(wanted - set(ROLES)):
            raise ComgradError(f"role '{unknown[0]}'", "there is no such role", f"use one of {', '.join(ROLES)}")
        found = ((name, self.role(name)) for name in names)
        return sorted(n for n, r in found if wanted & set(r.roles) and kind in (None, r.kind))

    def _tower(self, form: str) -> str:
        return next((tower for start, tower in self.towers if form.startswith(start)), "")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """A row's regular expression: a module takes weight or bias (or their old names); `!` ends a bare parameter."""
    bare = template.endswith("!")
    body = re.escape(template.rstrip("!")).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"[^.]+")
    if bare:
        head, _, last = body.rpartition(r"\.")
        return re.compile((head + r"\." if head else "") + f"(?P<kind>{last})")
    return re.compile(body + r"\.(?P<kind>weight|bias|gamma|beta)")


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
    + _rows("", {"layernorm": "norm", "pooler.dense": "head", "classifier": "head"})
    + (  # three- and four-dimensional: no transpose
        ("embeddings.cls_token!", ("embed",), False),
        ("embeddings.mask_token!", ("embed",), False),
        ("embeddings.position_embeddings!", ("embed",), False),
        ("embeddings.patch_embeddings.projection", ("embed",), False),
    ),
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

LAYOUTS: Final = (BERT, LLAMA, GPT2, CLIP, VIT, OPEN_CLIP)


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


def forms(name: str) -> list[str]:
    """The name, then with known prefixes taken off one after the other."""
    out = [name]
    while True:
        prefix = next((p for p in PREFIXES if out[-1].startswith(p)), None)
        if prefix is None:
            return out
        out.append(out[-1].removeprefix(prefix))


class NameIndex:
    """Parameter names of one checkpoint, to be found under whatever prefix a wrapper gave them."""

    def __init__(self, available: Iterable[str]) -> None:
        self._available = dict.fromkeys(available)
        self._by_form: dict[str, list[str]] = {}
        for name in self._available:
            for form in forms(name):
                self._by_form.setdefault(form, []).append(name)

    def resolve(self, name: str) -> str:
        """The available parameter that `name` (a parameter, or a module whose weight is meant) stands for.

        Raises:
            NotFound: none. ComgradError: `name-ambiguous`, several.
        """
        for candidate in (name, f"{name}.weight"):
            for form in forms(candidate):
                if form in self._available:
                    return form
            for form in forms(candidate):
                found = self._by_form.get(form, [])
                if len(found) == 1:
                    return found[0]
                if found:
                    raise ComgradError(
                        f"parameter '{name}'",
                        f"it may be any of {', '.join(repr(f) for f in sorted(found)[:4])}",
                        "give the full name",
                        code="name-ambiguous",
                    )
        near = difflib.get_close_matches(name, self._available, n=1)
        raise NotFound(
            f"parameter '{name}'",
            "the checkpoint has none of that name" + (f" (the nearest is '{near[0]}')" if near else ""),
            "check that this is the base it was trained from",
        )


def resolve_name(name: str, available: Iterable[str]) -> str:
    """`NameIndex(available).resolve(name)`; build the index yourself to resolve many names."""
    return NameIndex(available).resolve(name)
