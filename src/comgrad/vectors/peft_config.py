"""The configuration of a PEFT LoRA adapter: what it says about ΔW, or the name under which it is refused.

Read from PEFT 0.21.2's sources: `tuners/lora/config.py`, `tuners/lora/layer.py`, `utils/other.py:get_pattern_key`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from comgrad.errors import FileRefused, UnsupportedAdapter

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# Initialisations that leave the base weights alone: ΔW = s·B·A whatever A and B started from.
FAITHFUL_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Initialisations that subtract s·B₀·A₀ from the base (or quantise it): ΔW = s·(B·A − B₀·A₀), and A₀, B₀ are not stored.
MUTATING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")

# Variants whose forward pass is not W + s·B·A for one constant B and A: (config key, code, why).
VARIANTS = (
    ("layer_replication", "peft-layer-replication", "its layers are copies that the base does not have"),
    ("target_parameters", "peft-target-parameters", "its factors are stacked over the experts of a 3-D parameter"),
    ("alora_invocation_tokens", "peft-alora", "it acts only on the tokens after its invocation string"),
    ("arrow_config", "peft-arrow", "it routes every token through other adapters"),
    ("use_qalora", "peft-qalora", "it pools its inputs for a quantised base"),
    ("use_bdlora", "peft-bdlora", "its factors are stored as blocks of a block-diagonal matrix"),
    ("velora_config", "peft-velora", "it keeps projection buffers beside its factors"),
    ("monteclora_config", "peft-monteclora", "its weights are random: it has no single delta"),
    ("kasa_config", "peft-kasa", "it cuts singular values off the base's own weights"),
    ("megatron_config", "peft-megatron", "its layers are parallel pieces of the base's layers"),
    ("enable_lora", "peft-enable-lora", "it is the fused layout of PEFT before 0.3"),
    ("ensure_weight_tying", "peft-weight-tying", "its adapter on the embedding also acts on the tied head"),
)

# Keys that decide nothing about ΔW once the tensors are there.
INERT_KEYS = frozenset(
    {"peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"}
    | {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"}
    | {"bias", "modules_to_save", "trainable_token_indices", "init_lora_weights", "lora_dropout", "runtime_config"}
    | {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "merge_weights", "megatron_core"}
    | {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"}
)


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says about ΔW."""

    r: int
    alpha: int | float
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, int | float] = field(default_factory=dict)
    dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    fan_in_fan_out: bool = False
    modules_to_save: tuple[str, ...] = ()
    trainable_tokens: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None
    base_name: str | None = None
    peft_version: str | None = None

    def rank(self, module: str) -> int:
        """r of one module: the first pattern that matches its name, else the default."""
        return self.rank_pattern.get(pattern_key(self.rank_pattern, module), self.r)

    def scale(self, module: str) -> float:
        """s of one module: α/r, or α/√r for rsLoRA (arXiv 2312.03732)."""
        alpha = self.alpha_pattern.get(pattern_key(self.alpha_pattern, module), self.alpha)
        r = self.rank(module)
        return alpha / math.sqrt(r) if self.rslora else alpha / r


def pattern_key(patterns: Mapping[str, object], module: str) -> str:
    """The first key that matches the whole name or its end after a dot, as a regular expression (PEFT's rule)."""
    for key in patterns:
        if re.match(rf"(.*\.)?({key})$", module):
            return key
    return module


def parse_config(raw: Mapping[str, Any], where: str) -> AdapterConfig:
    """Check a configuration and keep what decides ΔW.

    Raises:
        UnsupportedAdapter: a variant whose delta is not s·B·A, by its name.
        FileRefused: a field of the wrong type.
    """
    _refuse_other_kinds(raw, where)
    _refuse_mutated_init(raw.get("init_lora_weights", True), where)
    variant_keys = {key for key, _, _ in VARIANTS}
    unknown = sorted(k for k, v in raw.items() if v and k not in INERT_KEYS and k not in variant_keys)
    if unknown:
        raise UnsupportedAdapter(
            f"the adapter {where} sets {', '.join(repr(k) for k in unknown[:3])}",
            "this version does not know what that does to the weights",
            "merge it into its base with the PEFT that wrote it, and add the full checkpoint",
            code="peft-config-key",
        )
    rank_pattern = {k: _count(v, f"rank_pattern['{k}']", where) for k, v in _pattern(raw, "rank_pattern", where)}
    alpha_pattern = {k: _number(v, f"alpha_pattern['{k}']", where) for k, v in _pattern(raw, "alpha_pattern", where)}
    return AdapterConfig(
        r=_count(raw.get("r", 8), "r", where),
        alpha=_number(raw.get("lora_alpha", 8), "lora_alpha", where),
        rslora=_flag(raw, "use_rslora", where),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        dora=_flag(raw, "use_dora", where),
        lora_bias=_flag(raw, "lora_bias", where),
        bias=_bias(raw.get("bias", "none"), where),
        fan_in_fan_out=_flag(raw, "fan_in_fan_out", where),
        modules_to_save=_names(raw.get("modules_to_save"), "modules_to_save", where),
        trainable_tokens=_tokens(raw.get("trainable_token_indices"), where),
        base_name=_text(raw.get("base_model_name_or_path"), "base_model_name_or_path", where),
        peft_version=_text(raw.get("peft_version"), "peft_version", where),
    )


def _refuse_other_kinds(raw: Mapping[str, Any], where: str) -> None:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapter(
            f"the adapter {where} is of PEFT type {kind!r}" if kind else f"{where} names no peft_type",
            "only LORA adapters have a delta that this version can compute",
            "merge it into its base with PEFT, and add the full checkpoint",
            code="peft-type",
        )
    for key, code, why in VARIANTS:
        if raw.get(key):
            raise UnsupportedAdapter(
                f"the adapter {where} uses '{key}'",
                f"{why}, so it is not one low-rank delta",
                "train it as plain LoRA, or merge it into its base and add the full checkpoint",
                code=code,
            )


def _refuse_mutated_init(init: Any, where: str) -> None:
    if isinstance(init, str) and init.lower().startswith(MUTATING_INITS):
        if init.lower() == "loftq":
            remedy = "merge it with its quantised base and add the full checkpoint"
        else:
            remedy = (
                "convert it: model.save_pretrained(out, path_initial_model_for_weight_conversion=<the adapter as it was"
                " before training>), and add the converted adapter"
            )
        raise UnsupportedAdapter(
            f"the adapter {where} was initialised with '{init}'",
            "that changes the base's weights, so its delta is B·A − B₀·A₀ and the start B₀, A₀ is not in the file",
            remedy,
            code=f"peft-init-{init.lower().split('_niter')[0].replace('_', '-')}",
        )
    if init is not None and not any(
        init is known or (isinstance(init, str) and init == known) for known in FAITHFUL_INITS
    ):
        raise UnsupportedAdapter(
            f"the adapter {where} was initialised with {init!r}",
            "this version does not know whether that changes the base's weights",
            "merge it into its base with the PEFT that wrote it, and add the full checkpoint",
            code="peft-init-unknown",
        )


def _wrong(name: str, value: Any, need: str, where: str) -> FileRefused:
    return FileRefused(
        f"the adapter {where} has {name} = {value!r:.60}", f"PEFT needs {need} there", "check its adapter_config.json",
        code="peft-config-value",
    )  # fmt: skip


def _count(value: Any, name: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(name, value, "a whole number of at least 1", where)
    return value


def _number(value: Any, name: str, where: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise _wrong(name, value, "a finite number", where)
    return value


def _flag(raw: Mapping[str, Any], name: str, where: str) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, value, "true or false", where)
    return bool(value)


def _text(value: Any, name: str, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _wrong(name, value, "a string", where)
    return value or None


def _names(value: Any, name: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise _wrong(name, value, "a list of names", where)
    return tuple(value)


def _bias(value: Any, where: str) -> str:
    if value not in ("none", "all", "lora_only"):
        raise _wrong("bias", value, "'none', 'all' or 'lora_only'", where)
    return str(value)


def _indices(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        raise _wrong("trainable_token_indices", value, "token numbers", where)
    return tuple(value)


def _tokens(value: Any, where: str) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    if not value:
        return None
    if isinstance(value, dict):
        return {str(k): _indices(v, where) for k, v in value.items()}
    return _indices(value, where)


def _pattern(raw: Mapping[str, Any], name: str, where: str) -> list[tuple[str, Any]]:
    value = raw.get(name) or {}
    if not isinstance(value, dict) or len(value) > 20_000:
        raise _wrong(name, value, "names with numbers", where)
    for key in value:
        _refuse_costly(key, name, where)
    return list(value.items())


def _refuse_costly(key: str, name: str, where: str) -> None:
    """Patterns come from strangers and run as regular expressions: none may backtrack without bound.

    At most two quantifiers and none on a group keep the cost below len(name)³ steps.
    """
    bare = re.sub(r"\\.", "", key)
    costly = len(key) > 256 or len(re.findall(r"[*+?{]", bare)) > 2 or re.search(r"\)[*+{]", bare)
    try:
        re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError, RecursionError):
        costly = True
    if costly:
        raise UnsupportedAdapter(
            f"the adapter {where} has the {name} key '{key[:60]}'",
            "it is no regular expression, or one that can take without bound to match",
            "write the module's full name there",
            code="peft-pattern",
        )
