"""PEFT LoRA adapters, read exactly or refused by name, and written so that stock PEFT loads them."""

from __future__ import annotations

from pathlib import Path

import torch

from comgrad.errors import FileRefused, NotFound, UnsupportedAdapter
from comgrad.vectors import delta as _delta
from comgrad.vectors.base_side import BaseSide
from comgrad.vectors.delta import Delta, Dense, LowRank, coarser
from comgrad.vectors.exact import same_bits, subtract
from comgrad.vectors.peft_config import CONFIG_NAME, WEIGHTS_NAME, AdapterConfig, parse_config
from comgrad.vectors.peft_tensors import OUT_PROJ, AdapterTensors, Module, sort_tensors
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.reader import SafetensorsFile, open_strict, read_json

_MAX_CONFIG = 1_000_000
# PEFT up to this version adds the delta of an nn.MultiheadAttention's out_proj twice, in training and in inference
# (huggingface/peft pull request 3774, open in September 2026).
_LAST_DOUBLED = (0, 21, 2)


def read_peft(path: Path, *, base: str | Path | None = None, drop_heads: bool = False) -> TaskVector:
    """The task vector of a PEFT LoRA adapter directory, exactly: ΔW = s·B·A for each module, s = α/r or α/√r.

    Args:
        path: directory with `adapter_config.json` and `adapter_model.safetensors`.
        base: name or path of the base; looked up from the config when left out. DoRA, trained biases, saved modules
            and trained tokens are differences to the base's weights and need it.
        drop_heads: leave out saved modules that the base lacks (a fresh classifier) instead of refusing.

    Raises:
        UnsupportedAdapter: a variant that has no exact delta from what is given; the code names the variant.
        BaseMismatch: a tensor that the base has not, or has in another shape.
        FileRefused, NotFound: the files themselves.
    """
    path = Path(path)
    where = f"'{path.name}'"
    config = parse_config(read_json(_config_file(path), _MAX_CONFIG), where)
    weights = _weights_file(path)
    with open_strict(weights) as file, BaseSide.find(base, config.base_name, where) as side:
        reader = _Reader(file, config, side, where, drop_heads)
        return TaskVector(side.ref, reader.deltas(), tuple(reader.warnings))


def _config_file(path: Path) -> Path:
    if not path.is_dir():
        raise NotFound(f"'{path}'", "there is no such directory", "pass the adapter's directory")
    if not (path / CONFIG_NAME).is_file():
        raise FileRefused(
            f"the directory '{path}'",
            f"it has no {CONFIG_NAME}, so the adapter's rank and scaling are unknown",
            "pass a directory that PEFT saved",
            code="peft-no-config",
        )
    return path / CONFIG_NAME


def _weights_file(path: Path) -> Path:
    if (path / WEIGHTS_NAME).exists():
        return path / WEIGHTS_NAME
    if (path / "adapter_model.bin").exists():
        raise FileRefused(
            f"the adapter '{path.name}' stores its weights in adapter_model.bin",
            "that is a Python pickle, which can run code when it is loaded",
            "save it as safetensors where you trust it (safe_serialization=True)",
            code="pickle",
        )
    raise FileRefused(
        f"the directory '{path}'", f"it has no {WEIGHTS_NAME}", "save the adapter again", code="peft-no-weights"
    )


class _Reader:
    """One adapter being read: collects deltas by the base's tensor names."""

    def __init__(
        self, file: SafetensorsFile, config: AdapterConfig, side: BaseSide, where: str, drop_heads: bool
    ) -> None:
        self.file, self.config, self.side, self.where, self.drop_heads = file, config, side, where, drop_heads
        self.warnings: list[str] = []
        self._out: dict[str, Delta] = {}

    def deltas(self) -> dict[str, Delta]:
        tensors: AdapterTensors = sort_tensors(self.file.names, self.where)
        self.side.learn_layout(_names(m) for m in tensors.modules.values())
        for module in tensors.modules.values():
            self._module(module)
        for name, key in tensors.saved.items():
            self._saved(name, key)
        if not self._out:
            raise self._refused("peft-empty", "nothing that it changes is left", "keep its heads")
        if not self.side.known:
            self.warnings.append(f"the base {self.side.ref.label} is not on this machine; shapes were not checked")
        return self._out

    # -- one adapted module -------------------------------------------------------------------------------------------
    def _module(self, module: Module) -> None:
        if "tokens" in module.parts:
            self._tokens(module)
            return
        low = self._low_rank(module)
        name = self.side.parameter(_names(module))
        low = self._placed(name, low, module)
        if self.config.dora:
            self._add(name, self._dora(name, low, module))
        elif "magnitude" in module.parts:
            raise self._refused("peft-unknown-tensor", "it has DoRA magnitudes but use_dora is off", "fix its config")
        else:
            self._add(name, low)
        if "B_bias" in module.parts:
            self._lora_bias(module, low.scale)

    def _low_rank(self, module: Module) -> LowRank:
        embedding = "embedding_A" in module.parts
        A = self.file.get(module.parts["embedding_A" if embedding else "A"])
        B = self.file.get(module.parts["embedding_B" if embedding else "B"])
        owner = module.name.removesuffix(OUT_PROJ) if module.in_attention else module.name
        r, scale = self.config.rank(owner), self.config.scale(owner)
        if A.shape[0] != r:
            raise self._refused(
                "peft-rank",
                f"'{module.name}' is stored with rank {A.shape[0]}, the config says {r}: its scaling is unknown",
                "correct r or rank_pattern in its config",
            )
        if module.in_attention:
            scale *= self._doubling()
        if B.ndim < 2 or B.ndim != A.ndim or B.shape[1] != r or (B.ndim > 2 and B.shape[2:].numel() != 1):
            raise self._refused(
                "peft-factor-shape",
                f"the factors of '{module.name}' have shapes {tuple(B.shape)} and {tuple(A.shape)}, "
                "which is not a product of rank r (a grouped convolution is not)",
                "merge it into its base and add the full checkpoint",
            )
        kernel = (B.shape[0], *A.shape[1:]) if A.ndim > 2 else None
        stored = coarser(A.dtype, B.dtype)
        return LowRank(B.reshape(B.shape[0], r), A.reshape(r, -1), scale, stored, weight_shape=kernel)

    def _doubling(self) -> float:
        """How often the PEFT that trained this adapter added the delta of an attention's out_proj."""
        version = self.config.peft_version
        if version is not None and _version(version) > _LAST_DOUBLED:
            raise self._refused(
                "peft-attention-version",
                f"PEFT up to {'.'.join(map(str, _LAST_DOUBLED))} adds the delta of an attention's out_proj twice, "
                f"and this version does not know what PEFT {version} does",
                "merge it into its base with that PEFT, and add the full checkpoint",
            )
        note = "out_proj of nn.MultiheadAttention counts twice, as the PEFT that trained it adds it twice"
        if note not in self.warnings:
            self.warnings.append(note)
        return 2.0

    def _placed(self, name: str, low: LowRank, module: Module) -> LowRank:
        """The delta with the base's layout, checked against the base's shape."""
        if low.weight_shape is not None:
            self.side.require(name, low.weight_shape)
            return low
        m, n = low.shape
        embedding = "embedding_A" in module.parts
        if embedding:
            self.side.require(name, (n, m))
            if self.side.tied:
                self.warnings.append(f"'{name}' is tied to the output head in the base: applied, it changes both")
        transposed = embedding or self.side.transposed(name, m, n, self.config.fan_in_fan_out)
        return LowRank(low.B, low.A, low.scale, low.stored, transposed)

    def _dora(self, name: str, low: LowRank, module: Module) -> Dense:
        """DoRA (arXiv 2402.09353): ΔW = (m / ‖W₀ + sBA‖_row) ∘ (W₀ + sBA) − W₀, in fp64."""
        if "magnitude" not in module.parts:
            raise self._refused("peft-unpaired", f"'{module.name}' has no lora_magnitude_vector", "save it again")
        self._need_base("peft-dora-needs-base", "its magnitudes rescale the base's own weights")
        stored = self.side.get(name)
        W0 = stored.double().T if low.transposed else stored.double().reshape(low.shape)
        V = W0 + low.scale * (low.B.double() @ low.A.double())
        norm = torch.linalg.vector_norm(V, dim=1)
        magnitude = self.file.get(module.parts["magnitude"]).double().reshape(-1)
        if magnitude.shape != norm.shape:
            raise self.side.mismatch(name, tuple(norm.shape), tuple(magnitude.shape))
        if bool((norm == 0).any()):
            raise self._refused("peft-dora-zero-row", f"a row of '{name}' is zero and has no direction", "retrain it")
        W = (magnitude / norm)[:, None] * V - W0
        kept = W.to(torch.float64 if stored.dtype == torch.float64 else torch.float32)
        shaped = kept if low.weight_shape is None else kept.reshape(low.weight_shape)
        return Dense(shaped, stored.dtype, low.transposed)

    def _lora_bias(self, module: Module, scale: float) -> None:
        if module.is_attention or module.in_attention:
            raise self._refused("peft-attention-bias", "lora_bias has no effect on attention", "retrain it")
        b = self.file.get(module.parts["B_bias"])
        if not bool(b.any()):
            return
        target = f"{module.name}.bias"
        if self.side.known and self.side.find_parameter(target) is None:
            raise self._refused(
                "peft-lora-bias-no-bias",
                f"'{module.name}' has no bias in the base, so a trained one has no place",
                "train it without lora_bias",
            )
        name = self.side.parameter(target)
        self.side.require(name, tuple(b.shape))
        exact = b.double() * scale  # fp32 when that loses nothing, so that what is written back is what was read
        W = exact.float() if bool((exact.float().double() == exact).all()) else exact
        self._add(name, Dense(W, b.dtype))

    def _tokens(self, module: Module) -> None:
        """Trained token rows replace the base's rows."""
        self._need_base("peft-tokens-need-base", "its trained token rows replace rows of the base's embedding")
        chosen = self.config.trainable_tokens
        if isinstance(chosen, dict):
            ends = [k for k in chosen if module.name == k or module.name.endswith(f".{k}")]
            chosen = chosen[ends[0]] if len(ends) == 1 else None
        rows = self.file.get(module.parts["tokens"])
        name = self.side.parameter(f"{module.name}.weight")
        base = self.side.get(name)
        if not isinstance(chosen, tuple) or len(chosen) != rows.shape[0] or rows.shape[1:] != base.shape[1:]:
            raise self._refused(
                "peft-tokens",
                f"the rows of '{module.name}' do not match trainable_token_indices",
                "save it again",
            )
        if not all(0 <= i < base.shape[0] for i in chosen) or len(set(chosen)) != len(chosen):
            raise self._refused("peft-tokens", "a trained token is not in the base", "use the resized base")
        trained = base.clone()
        trained[list(chosen)] = rows.to(base.dtype)
        W, pinned = subtract(base, trained)
        self._add(name, Dense(W.T, base.dtype, transposed=True, pinned=pinned))

    # -- parameters saved whole ---------------------------------------------------------------------------------------
    def _saved(self, name: str, key: str) -> None:
        """A parameter saved whole: ΔW is its difference to the base's."""
        head = next((m for m in self.config.modules_to_save if f".{name}".find(f".{m}.") >= 0), None)
        if head is not None:
            self._need_base("peft-modules-to-save-needs-base", f"it saves the module '{head}' whole")
        elif name.endswith(".bias") and self.config.bias != "none":
            self._need_base("peft-bias-needs-base", f"it saves trained biases whole (bias='{self.config.bias}')")
        else:
            self._need_base("peft-saved-weights-need-base", f"it saves '{name}' whole")
        target = self.side.find_parameter(name)
        if target is None:
            if head is not None and self.drop_heads:
                self.warnings.append(f"'{name}' is not in the base and was left out: the vector has no head '{head}'")
                return
            raise self._refused(
                "peft-module-not-in-base" if head else "peft-unknown-tensor",
                f"it saves '{name}', which the base {self.side.ref.label} does not have",
                "leave fresh heads out (drop_heads=True), or use the base with its head" if head else "save it again",
            )
        trained, base = self.file.get(key), self.side.get(target)
        self.side.require(target, tuple(trained.shape))
        if trained.dtype == base.dtype and bool(same_bits(trained, base).all()):
            return  # saved, not trained
        if not trained.is_floating_point():
            raise self._refused("peft-integer-tensor", f"it changes the integer tensor '{name}'", "add the checkpoint")
        W, pinned = subtract(base, trained)
        turned = W.ndim == 2 and self.side.stores_transpose(target)
        self._add(target, Dense(W.T if turned else W, trained.dtype, turned, pinned))

    # -- shared -------------------------------------------------------------------------------------------------------
    def _add(self, name: str, d: Delta) -> None:
        """Set a delta; a LoRA delta on a parameter that was saved whole as well adds to it."""
        if name in self._out:
            both_low = isinstance(self._out[name], LowRank) and isinstance(d, LowRank)
            if both_low or self.config.dora:
                raise self._refused("peft-twice", f"two of its modules change '{name}'", "save it again")
            d = _delta.add(self._out[name], d)
        self._out[name] = d

    def _need_base(self, code: str, why: str) -> None:
        if not self.side.known:
            raise self._refused(
                code, f"{why}, and the base {self.side.ref.label} is not on this machine", "pass its path as the base"
            )

    def _refused(self, code: str, why: str, remedy: str) -> UnsupportedAdapter:
        return UnsupportedAdapter(f"the adapter {self.where}", why, remedy, code=code)


def _names(module: Module) -> str:
    """The parameter that A and B change, as the model without PEFT names it."""
    name = module.name.replace(".base_layer", "")
    return f"{name}.in_proj_weight" if module.is_attention else f"{name}.weight"


def _version(text: str) -> tuple[int, ...]:
    digits = text.split("@")[0].split(".")[:3]
    return tuple(int("".join(c for c in d if c.isdigit()) or 0) for d in digits)


__all__ = ["read_peft", "write_peft"]
