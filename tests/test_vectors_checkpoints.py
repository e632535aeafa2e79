"""Full checkpoints: base + τ is the fine-tuned model bit for bit; odd pairs are refused; memory is bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from comgrad.errors import BaseMismatch, ComgradError, FileRefused, ShapeMismatch
from comgrad.types import BaseRef
from comgrad.vectors import container
from comgrad.vectors.checkpoints import apply, difference, extract
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.exact import BLOCK, recombine, same_bits, subtract
from comgrad.vectors.task_vector import Deferred, TaskVector
from vectors_models import bert, gpt2, llama, save_base

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMGRAD_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_bits(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    held: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        held |= load_file(file)
    assert set(held) == set(expected)
    for name, want in expected.items():
        got = held[name]
        assert got.dtype == want.dtype and got.shape == want.shape, name
        if want.is_floating_point():
            assert bool((got.view(BITS[got.element_size()]) == want.view(BITS[want.element_size()])).all()), name
        else:
            assert torch.equal(got, want), name


# -- bit for bit -------------------------------------------------------------------------------------------------------
def finite_bits(dtype: torch.dtype) -> st.SearchStrategy[list[int]]:
    """Any finite numbers of a dtype, as raw bits: subnormals, both zeros, the largest."""
    size = torch.finfo(dtype).bits
    return st.lists(st.integers(0, 2**size - 1), min_size=1, max_size=24)


def from_bits(bits: list[int], dtype: torch.dtype) -> torch.Tensor:
    size = torch.finfo(dtype).bits
    raw = np.array(bits, dtype=f"u{size // 8}").view(f"i{size // 8}")
    x = torch.from_numpy(raw.copy()).view(dtype)
    return torch.where(torch.isfinite(x), x, torch.zeros_like(x))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), one=st.sampled_from(list(DTYPES)), other=st.sampled_from(list(DTYPES)))
def test_the_difference_added_back_gives_the_very_bits(data: st.DataObject, one: str, other: str) -> None:
    b = from_bits(data.draw(finite_bits(DTYPES[one])), DTYPES[one])
    f = from_bits(data.draw(finite_bits(DTYPES[other])), DTYPES[other])
    n = min(len(b), len(f))
    b, f = b[:n], f[:n]
    W, pinned = subtract(b, f)
    assert bool(torch.isfinite(W).all())
    back = recombine(b, W, f.dtype)
    if pinned is not None:
        back[pinned.index] = pinned.value
    assert bool(same_bits(back, f).all())


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_a_light_fine_tune_pins_next_to_nothing(dtype: torch.dtype) -> None:
    b = torch.randn(200_000).to(dtype)
    f = (b.double() + 1e-3 * torch.randn(200_000).double()).to(dtype)
    W, pinned = subtract(b, f)
    assert W.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    share = 0 if pinned is None else pinned.index.numel() / b.numel()
    assert share < 1e-3


def test_blocks_do_not_change_the_result() -> None:
    b, f = torch.randn(BLOCK + 7), torch.randn(BLOCK + 7) * 1e-6
    f[-1] = -0.0
    W, pinned = subtract(b, f)
    assert pinned is not None and int(pinned.index[-1]) == BLOCK + 6
    assert bool(same_bits(W, (f.double() - b.double()).float()).all())


@pytest.mark.parametrize("one", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_apply_gives_the_fine_tuned_checkpoint_bit_for_bit(one: str, other: str, tmp_path: Path) -> None:
    base = {k: v.to(DTYPES[one]) for k, v in gpt2().state_dict().items() if k != "lm_head.weight"}
    tuned = {k: (v.double() + 1e-2 * torch.randn(v.shape).double()).to(DTYPES[other]) for k, v in base.items()}
    first = next(iter(tuned))
    tiny = torch.finfo(DTYPES[other]).smallest_normal / 4
    odd = [-0.0, tiny, -tiny, torch.finfo(DTYPES[other]).max, 0.0]
    tuned[first].view(-1)[:5] = torch.tensor(odd, dtype=torch.float64).to(DTYPES[other])
    b, f = checkpoint(tmp_path / "b", base), checkpoint(tmp_path / "f", tuned)
    tau = difference(b, f)
    assert isinstance(tau.tensors, Deferred) and tau.base.status == "verified"
    done = apply(tau, b, tmp_path / "direct", max_shard_bytes=10_000)
    assert done.tensors == done.changed == len(base) and done.pinned >= 1
    assert_bits(tmp_path / "direct", tuned)
    assert len(list((tmp_path / "direct").glob("*.safetensors"))) > 1
    got = extract(b, f, tmp_path / "e")
    apply(TaskVector.load(got.path / "vector.safetensors"), b, tmp_path / "saved")
    assert_bits(tmp_path / "saved", tuned)
    if one != other:
        assert any("part of the delta is that rounding" in w for w in tau.warnings)


def test_transposes_follow_the_layout(tmp_path: Path) -> None:
    base = {k: v for k, v in gpt2().state_dict().items() if k != "lm_head.weight"}
    tuned = {k: v + 0.1 * torch.randn_like(v) for k, v in base.items()}
    tau = difference(checkpoint(tmp_path / "b", base), checkpoint(tmp_path / "f", tuned))
    name = "transformer.h.0.attn.c_attn.weight"
    d = tau.tensors[name]
    assert d.transposed and d.shape == (72, 24) and base[name].shape == (24, 72)
    torch.testing.assert_close(d.in_base_layout(), tuned[name] - base[name])
    assert not tau.tensors["transformer.ln_f.weight"].transposed
    assert tau.tensors["transformer.wte.weight"].transposed


# -- apply -------------------------------------------------------------------------------------------------------------
def test_apply_scales_copies_and_ignores_pins_elsewhere(tmp_path: Path) -> None:
    base = {"a.weight": torch.randn(4, 3), "b": torch.randn(5), "ids": torch.arange(3)}
    tuned = base | {"a.weight": torch.full((4, 3), -0.0)}
    b, f = checkpoint(tmp_path / "b", base, {"torch_dtype": "float32", "x": 1}), checkpoint(tmp_path / "f", tuned)
    (b / "tokenizer.json").write_text("{}")
    (b / "1_Pooling").mkdir()
    (b / "1_Pooling" / "config.json").write_text('{"p": 1}')
    (b / "code.py").write_text("import os")
    (b / "pytorch_model.bin").write_bytes(b"x")
    tau = difference(b, f)
    done = apply(tau, b, tmp_path / "half", scale=0.5)
    assert done.pinned == 0
    held = load_file(tmp_path / "half" / "model.safetensors")
    torch.testing.assert_close(held["a.weight"], base["a.weight"] / 2)
    assert torch.equal(held["ids"], base["ids"])
    names = {p.relative_to(tmp_path / "half").as_posix() for p in (tmp_path / "half").rglob("*") if p.is_file()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json"}
    apply(tau, b, tmp_path / "bf16", dtype=torch.bfloat16)
    assert load_file(tmp_path / "bf16" / "model.safetensors")["b"].dtype == torch.bfloat16
    assert json.loads((tmp_path / "bf16" / "config.json").read_text()) == {"torch_dtype": "bfloat16", "x": 1}
    assert_bits(_applied(tau * 0.0, b, tmp_path / "zero"), base)
    assert_bits(_applied(tau - tau, b, tmp_path / "none"), base)


def _applied(tau: TaskVector, base: Path, out: Path) -> Path:
    return apply(tau, base, out).path


def test_apply_low_rank_keeps_the_bases_dtype(tmp_path: Path) -> None:
    base = {"a.weight": torch.randn(4, 3).bfloat16(), "b": torch.randn(5).bfloat16()}
    b = checkpoint(tmp_path / "b", base)
    d = LowRank(torch.randn(4, 2), torch.randn(2, 3), 0.5)
    done = apply(TaskVector(BaseRef("b"), {"a.weight": d}), b, tmp_path / "o")
    assert done.changed == 1 and any("only shapes were checked" in w for w in done.warnings)
    held = load_file(tmp_path / "o" / "model.safetensors")
    assert torch.equal(held["b"], base["b"])
    want = (base["a.weight"].double() + d.dense().double()).to(torch.bfloat16)
    assert torch.equal(held["a.weight"], want)


def test_apply_refuses_other_bases(tmp_path: Path) -> None:
    base = {"a.weight": torch.randn(4, 3)}
    b, f = checkpoint(tmp_path / "b", base), checkpoint(tmp_path / "f", {"a.weight": torch.randn(4, 3)})
    tau = difference(b, f)
    with pytest.raises(BaseMismatch, match="only has a meaning on its own base"):
        apply(tau, f, tmp_path / "o")
    loose = TaskVector(BaseRef("b"), {"a.weight": Dense(torch.ones(2, 2))})
    with pytest.raises(BaseMismatch, match=r"shape \(2, 2\).*shape \(4, 3\)"):
        apply(loose, b, tmp_path / "o")
    with pytest.raises(BaseMismatch, match="no such tensor"):
        apply(TaskVector(BaseRef("b"), {"zz": Dense(torch.ones(2))}), b, tmp_path / "o")
    with pytest.raises(ComgradError, match="finite"):
        apply(tau, b, tmp_path / "o", scale=float("nan"))
    ints = checkpoint(tmp_path / "i", {"a.weight": torch.ones(2, 2, dtype=torch.int8), "c": torch.ones(1)})
    with pytest.raises(FileRefused, match="integers"):
        apply(loose, ints, tmp_path / "o")
    assert not (tmp_path / "o").exists()


# -- odd pairs ---------------------------------------------------------------------------------------------------------
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(("base_head", "tuned_head"), [(True, True), (True, False), (False, True), (False, False)])
def test_tied_heads_count_once_whether_stored_or_not(base_head: bool, tuned_head: bool, tmp_path: Path) -> None:
    base = {k: v for k, v in llama(tied=True).state_dict().items() if k != HEAD}
    tuned = {k: v + 0.01 * torch.randn_like(v) for k, v in base.items()}
    b = checkpoint(tmp_path / "b", base | ({HEAD: base[EMBED]} if base_head else {}))
    f = checkpoint(tmp_path / "f", tuned | ({HEAD: tuned[EMBED]} if tuned_head else {}))
    tau = difference(b, f)
    assert set(tau.tensors) == set(base)
    assert any("counted once" in w for w in tau.warnings) == (base_head or tuned_head)
    apply(tau, b, tmp_path / "o")
    assert_bits(tmp_path / "o", tuned | ({HEAD: tuned[EMBED]} if base_head else {}))


def test_a_head_that_was_untied_is_a_tensor_or_refused(tmp_path: Path) -> None:
    base = {k: v for k, v in llama(tied=True).state_dict().items() if k != HEAD}
    tuned = base | {HEAD: torch.randn(40, 24)}
    stored = checkpoint(tmp_path / "b1", base | {HEAD: base[EMBED]})
    f = checkpoint(tmp_path / "f", tuned)
    tau = difference(stored, f)
    assert HEAD in tau.tensors
    assert_bits(_applied(tau, stored, tmp_path / "o"), tuned)
    with pytest.raises(FileRefused, match="of its own") as e:
        difference(checkpoint(tmp_path / "b2", base), f)
    assert e.value.code == "untied-head"


def test_buffers_are_left_out_or_refused(tmp_path: Path) -> None:
    w = {"a.weight": torch.randn(2, 2)}
    ids = {"emb.position_ids": torch.arange(4), "x.rotary_emb.inv_freq": torch.rand(3)}
    f = checkpoint(tmp_path / "f", w)
    tau = difference(checkpoint(tmp_path / "b", w | ids), f)
    assert list(tau.tensors) == ["a.weight"] and sum("left out" in n for n in tau.warnings) == 2
    other = checkpoint(tmp_path / "g", w | {"emb.position_ids": torch.arange(4) + 1})
    with pytest.raises(FileRefused, match="position_ids' differs") as e:
        difference(tmp_path / "b", other)
    assert e.value.code == "integer-tensor"
    wide = checkpoint(tmp_path / "h", w | {"emb.position_ids": torch.arange(4, dtype=torch.int32)})
    assert list(difference(tmp_path / "b", wide).tensors) == ["a.weight"]
    quantised = checkpoint(tmp_path / "q", {"a.weight": torch.ones(2, 2, dtype=torch.int8), "n": torch.ones(1)})
    with pytest.raises(FileRefused, match="neither is quantised"):
        difference(checkpoint(tmp_path / "c", w | {"n": torch.ones(1)}), quantised)


def test_resized_vocabularies_missing_keys_and_other_architectures(tmp_path: Path) -> None:
    model = bert()
    b = save_base(model, tmp_path / "b")
    model.resize_token_embeddings(56)
    with pytest.raises(ShapeMismatch, match=r"\(50, 24\) in the base and \(56, 24\).*resize_token_embeddings"):
        difference(b, save_base(model, tmp_path / "resized"))
    tensors = load_file(b / "model.safetensors")
    del tensors["pooler.dense.weight"]
    lacking = checkpoint(tmp_path / "lacking", tensors | {f"extra.{i}": torch.ones(1) for i in range(6)})
    with pytest.raises(BaseMismatch, match=r"lacks 'pooler\.dense\.weight' and has 'extra\.0'.*and 2 others more"):
        difference(b, lacking)
    with pytest.raises(BaseMismatch, match="share 0 tensor names"):
        difference(b, save_base(llama(), tmp_path / "llama"))
    tensors = load_file(b / "model.safetensors")
    tensors["pooler.dense.weight"] = torch.ones(3, 3)
    with pytest.raises(ShapeMismatch, match=r"\(24, 24\) in the base and \(3, 3\).*same architecture"):
        difference(b, checkpoint(tmp_path / "shape", tensors))


# -- extract -----------------------------------------------------------------------------------------------------------
def test_extract_writes_the_vector_its_facts_and_reports_progress(tmp_path: Path) -> None:
    base = {k: v.bfloat16() for k, v in bert().state_dict().items()}
    tuned = {k: (v.double() + 1e-5 * torch.randn(v.shape)).bfloat16() for k, v in base.items()}
    b, f = checkpoint(tmp_path / "b", base), checkpoint(tmp_path / "f", tuned)
    calls: list[tuple[int, int, str]] = []
    got = extract(b, f, tmp_path / "e", progress=lambda i, n, name: calls.append((i, n, name)))
    assert [c[0] for c in calls] == list(range(1, got.tensors + 1)) and {c[1] for c in calls} == {got.tensors}
    tau = container.load(tmp_path / "e" / "vector.safetensors")
    assert tau.norm() == pytest.approx(got.energy**0.5, rel=1e-5)
    facts = json.loads((tmp_path / "e" / "facts.json").read_text())
    assert facts["sha256"] == got.sha256 and facts["noise_floor"] == got.noise_floor
    assert set(facts["noise_floor_by_tensor"]) == set(tau.tensors)
    assert any("mostly rounding noise" in w for w in got.warnings) and got.noise.ratio < 3
    assert got.base == tau.base


def test_extract_is_reproducible(tmp_path: Path) -> None:
    model = bert()
    b = save_base(model, tmp_path / "b")
    transformers.set_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    f = save_base(model, tmp_path / "f")
    assert extract(b, f, tmp_path / "1").sha256 == extract(b, f, tmp_path / "2").sha256


MEMORY = """
import resource, sys, threading, time, torch
from pathlib import Path
from comgrad.vectors.checkpoints import apply, difference, extract
from comgrad.vectors.task_vector import TaskVector
import comgrad.vectors.peft, safetensors

def resident():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["RssAnon"].split()[0]) / 1024

b, f, out = map(Path, sys.argv[1:])
torch.set_num_threads(1)
x = torch.randn(1000, 1000) @ torch.randn(1000, 1000)
del x
start, peak, run = resident(), [0.0, 0.0], True
def watch():
    while run:
        now = resident()
        peak[0], peak[1] = max(peak[0], now[0]), max(peak[1], now[1])
        time.sleep(0.002)
t = threading.Thread(target=watch); t.start()
extract(b, f, out / "e")
apply(TaskVector.load(out / "e" / "vector.safetensors"), b, out / "o", max_shard_bytes=80_000_000)
run = False; t.join()
print(peak[0] - start[0], peak[1] - start[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory counters")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """300 MB of shards on either side, extracted and applied, with less than 150 MB more resident memory."""
    for side, seed in (("b", 0), ("f", 1)):
        (tmp_path / side).mkdir()
        weight_map = {}
        generator = torch.Generator().manual_seed(seed)
        for shard in range(4):
            names = [f"layer.{shard}.{i}.weight" for i in range(12)]
            file = f"model-{shard:05d}.safetensors"
            save_file({n: torch.randn(1024, 1536, generator=generator) for n in names}, tmp_path / side / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (tmp_path / side / "model.safetensors.index.json").write_text(json.dumps(index))
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "b"), str(tmp_path / "f"), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    resident, anonymous = map(float, run.stdout.split())
    assert resident < 150, (resident, anonymous)  # of 900 MB that pass through
    assert len(list((tmp_path / "o").glob("*.safetensors"))) == 4
