"""Writing a low-rank task vector as a PEFT directory that stock PEFT (0.14 and later) loads."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comgrad.errors import UnsupportedAdapter
from comgrad.vectors.delta import Dense, LowRank, working
from comgrad.vectors.peft_config import CONFIG_NAME, WEIGHTS_NAME, pattern_key
from comgrad.vectors.peft_tensors import PREFIX
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.writer import atomic_directory, atomic_write_bytes, write_safetensors

_EMBEDDINGS = frozenset(
    {"word_embeddings", "position_embeddings", "token_type_embeddings", "embed_tokens", "wte", "wpe"}
    | {"token_embedding", "position_embedding", "shared"}
)


@dataclass(frozen=True)
class _Target:
    """One module to write: its low-rank delta, and the α that gives its scaling back."""

    module: str
    low: LowRank
    alpha: int | float
    embedding: bool


def write_peft(
    tau: TaskVector,
    path: Path,
    *,
    extra_config: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    replace_existing: bool = False,
) -> None:
    """Write a vector as `adapter_config.json` and `adapter_model.safetensors`, atomically.

    Factors keep their dtype. The scaling is written as lora_alpha (and alpha_pattern) where α/r gives it back exactly,
    and is folded into B in working precision where it does not.

    Args:
        tau: every matrix low-rank; deltas of biases beside a low-rank delta of the same module.
        path: the directory; absent or empty.
        extra_config: further keys for the configuration, over the ones written here.
        extra_files: further files for the directory, by plain name (a card, say).
        replace_existing: replace a directory with contents.

    Raises:
        UnsupportedAdapter: a dense delta or a place that a LoRA adapter has no tensor for, by name. StorageError.
    """
    low, biases = _sorted_deltas(tau)
    rslora = _prefers_rslora(list(low.values()))
    targets = [_target(name, d, rslora) for name, d in low.items()]
    _check_mixture(targets)
    tensors: dict[str, Tensor] = {}
    for t in targets:
        tensors |= _factors(t, biases.get(f"{t.module}.bias"), bool(biases), rslora)
    config = _config(tau, targets, bool(biases), rslora) | dict(extra_config or {})
    with atomic_directory(Path(path), replace=replace_existing) as folder:
        write_safetensors(folder / WEIGHTS_NAME, tensors, {"format": "pt"})
        atomic_write_bytes(folder / CONFIG_NAME, json.dumps(config, indent=2).encode())
        for name, data in (extra_files or {}).items():
            atomic_write_bytes(folder / name, data)


def _sorted_deltas(tau: TaskVector) -> tuple[dict[str, LowRank], dict[str, Dense]]:
    low: dict[str, LowRank] = {}
    dense: dict[str, Dense] = {}
    for name, d in tau.tensors.items():
        if isinstance(d, LowRank):
            low[name] = d
        else:
            dense[name] = d
    for name, w in dense.items():
        if w.is_matrix:
            raise _refused(
                "peft-write-dense",
                f"'{name}' is a dense matrix",
                "a LoRA adapter holds factors",
                "compress(rank) first",
            )
        weight = low.get(name.removesuffix(".bias") + ".weight") if name.endswith(".bias") else None
        if weight is None:
            raise _refused(
                "peft-write-vector",
                f"'{name}' is no matrix",
                "a LoRA adapter can only hold a bias, beside the low-rank delta of the same module",
                "apply the vector to its base and save the checkpoint",
            )
    return low, dense


def _target(name: str, d: LowRank, rslora: bool) -> _Target:
    module = name.removesuffix(".weight")
    if module == name:
        raise _refused(
            "peft-write-parameter",
            f"'{name}' is no module's weight (a fused in_proj_weight, say)",
            "PEFT adapts modules",
            "apply the vector to its base and save the checkpoint",
        )
    alpha = _alpha(d.scale, d.rank, rslora)
    if alpha is None:
        B = (d.B.double() * d.scale).to(working(d.B).dtype)
        d, alpha = replace(d, B=B, scale=1.0), _alpha(1.0, d.rank, rslora)
        if alpha is None:  # √r·1/√r ≠ 1 can only happen under rsLoRA, which is then not chosen
            raise AssertionError(f"no α for rank {d.rank}")
    embedding = d.transposed and module.rpartition(".")[2] in _EMBEDDINGS
    return _Target(module, d, alpha, embedding)


def _alpha(scale: float, r: int, rslora: bool) -> int | float | None:
    """α with α/r == s (or α/√r == s) in double precision, whole where possible; None when there is none."""
    root = math.sqrt(r) if rslora else r
    near = scale * root
    for alpha in (float(round(near)), near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf)):
        if alpha / root == scale and math.isfinite(alpha):
            return int(alpha) if alpha.is_integer() else alpha
    return None


def _prefers_rslora(deltas: Sequence[LowRank]) -> bool:
    """rsLoRA when its α are whole for every delta and plain LoRA's are not: what trained adapters look like."""

    def whole(rslora: bool) -> bool:
        return all(isinstance(_alpha(d.scale, d.rank, rslora), int) for d in deltas)

    return not whole(False) and whole(True)


def _check_mixture(targets: Sequence[_Target]) -> None:
    turned = {t.low.transposed for t in targets if not t.embedding and t.low.weight_shape is None}
    if len(turned) > 1:
        raise _refused(
            "peft-write-mixed-layout",
            "some of its modules store the transpose and some do not",
            "fan_in_fan_out is one setting for a whole adapter",
            "write the two groups as two adapters",
        )


def _factors(t: _Target, bias: Dense | None, with_bias: bool, rslora: bool) -> dict[str, Tensor]:
    key, d = PREFIX + t.module, t.low
    if t.embedding:
        if with_bias:
            raise _refused(
                "peft-write-vector",
                f"'{t.module}' is an embedding",
                "PEFT has no lora_bias there",
                "leave the biases out",
            )
        return {f"{key}.lora_embedding_A": d.A, f"{key}.lora_embedding_B": d.B}
    A, B = d.A, d.B
    if d.weight_shape is not None:
        A = A.reshape(d.rank, *d.weight_shape[1:])
        B = B.reshape(*B.shape, *(1 for _ in d.weight_shape[2:]))
    out = {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
    if with_bias:
        out[f"{key}.lora_B.bias"] = _bias(t, bias, rslora)
    return out


def _bias(t: _Target, bias: Dense | None, rslora: bool) -> Tensor:
    """b with s·b = Δbias; PEFT gives every target one when lora_bias is on, so absent ones are zero."""
    if bias is None:
        return torch.zeros(t.low.B.shape[0], dtype=t.low.B.dtype)
    scale = t.alpha / (math.sqrt(t.low.rank) if rslora else t.low.rank)
    if scale == 0:
        raise _refused("peft-write-vector", f"'{t.module}' has scaling 0", "its bias cannot be scaled", "leave it out")
    return (bias.W.double() / scale).to(torch.promote_types(bias.stored, t.low.B.dtype))


def _config(tau: TaskVector, targets: Sequence[_Target], with_bias: bool, rslora: bool) -> dict[str, Any]:
    ranks, alphas = Counter(t.low.rank for t in targets), Counter(t.alpha for t in targets)
    r = min(ranks, key=lambda v: (-ranks[v], v))
    alpha = min(alphas, key=lambda v: (-alphas[v], v))
    turned = any(t.low.transposed for t in targets if not t.embedding)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": tau.base.name,
        "task_type": None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": rslora,
        "lora_bias": with_bias,
        "bias": "none",
        "fan_in_fan_out": turned,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": _pattern({t.module: t.low.rank for t in targets}, r),
        "alpha_pattern": _pattern({t.module: t.alpha for t in targets}, alpha),
        "target_modules": sorted(t.module for t in targets),
    }


def _pattern(values: Mapping[str, int | float], default: int | float) -> dict[str, int | float]:
    """Module → value where it is not the default, so that PEFT's matching gives every module its own.

    Plain names are what PEFT of all ages reads. A pattern also matches names that end like it; where that would give
    another module a wrong value, names are anchored.
    """
    plain = {module: v for module, v in values.items() if v != default}
    if all(plain.get(pattern_key(plain, module), default) == v for module, v in values.items()):
        return plain
    return {"^" + re.escape(module): v for module, v in plain.items()}


def _refused(code: str, given: str, why: str, remedy: str) -> UnsupportedAdapter:
    return UnsupportedAdapter(given, why, remedy, code=code)
