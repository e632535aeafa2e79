"""The tensors of a PEFT adapter file, sorted by the module they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from comgrad.errors import UnsupportedAdapter

PREFIX = "base_model.model."
OUT_PROJ = ".base_layer.out_proj"

_SUFFIXES = (
    (".lora_A.weight", "A"),
    (".lora_B.weight", "B"),
    (".lora_B.bias", "B_bias"),
    (".lora_embedding_A", "embedding_A"),
    (".lora_embedding_B", "embedding_B"),
    (".lora_magnitude_vector", "magnitude"),
    (".token_adapter.trainable_tokens_delta", "tokens"),
)
_PAIRS = (("A", "B"), ("embedding_A", "embedding_B"))


@dataclass
class Module:
    """One adapted module: part → key in the file."""

    name: str
    parts: dict[str, str] = field(default_factory=dict)
    is_attention: bool = False  # an nn.MultiheadAttention: A and B act on its fused in_proj_weight
    in_attention: bool = False  # the out_proj inside one


@dataclass(frozen=True)
class AdapterTensors:
    """Adapted modules by their name in the file, and whole parameters saved beside them: name → key."""

    modules: dict[str, Module]
    saved: dict[str, str]


def sort_tensors(keys: Iterable[str], where: str) -> AdapterTensors:
    """Give every tensor of the file its place.

    Raises:
        UnsupportedAdapter: a tensor without its partner, or one that no known variant writes.
    """
    modules: dict[str, Module] = {}
    saved: dict[str, str] = {}
    for key in sorted(keys):
        if not key.startswith(PREFIX):
            raise _leftover(key, where)
        name = key.removeprefix(PREFIX)
        for suffix, part in _SUFFIXES:
            if name.endswith(suffix):
                module = modules.setdefault(name.removesuffix(suffix), Module(name.removesuffix(suffix)))
                module.parts[part] = key
                break
        else:
            if "lora_" in name or "token_adapter" in name:
                raise _leftover(key, where)
            saved[name.replace(".base_layer.", ".")] = key
    for name in list(modules):
        if name.endswith(OUT_PROJ) and name.removesuffix(OUT_PROJ) in modules:
            modules[name.removesuffix(OUT_PROJ)].is_attention = True
            modules[name].in_attention = True
    _check_pairs(modules, where)
    return AdapterTensors(modules, saved)


def _check_pairs(modules: dict[str, Module], where: str) -> None:
    for name, module in modules.items():
        if "base_layer" in name.split(".") and not module.in_attention:
            raise _leftover(next(iter(module.parts.values())), where)
        for one, other in _PAIRS:
            if (one in module.parts) != (other in module.parts):
                there, absent = (one, other) if one in module.parts else (other, one)
                raise UnsupportedAdapter(
                    f"the adapter {where} has '{module.parts[there]}'",
                    f"its partner lora_{absent} is missing, and a delta needs both",
                    "save the adapter again",
                    code="peft-unpaired",
                )
        low = any(one in module.parts for one, _ in _PAIRS)
        if not low and "tokens" not in module.parts:
            raise _leftover(next(iter(module.parts.values())), where)
        if sum(p in module.parts for p in ("A", "embedding_A", "tokens")) > 1:
            raise _leftover(next(iter(module.parts.values())), where)


def _leftover(key: str, where: str) -> UnsupportedAdapter:
    return UnsupportedAdapter(
        f"the adapter {where} holds the tensor '{key}'",
        "no LoRA variant that this version reads writes such a tensor there",
        "merge it into its base with the PEFT that wrote it, and add the full checkpoint",
        code="peft-unknown-tensor",
    )
