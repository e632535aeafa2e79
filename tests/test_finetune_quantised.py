"""QLoRA: refused in three parts where it cannot run; all of its path but the 4-bit kernels runs here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vectors_models
from comgrad.errors import ComgradError, ShapeMismatch
from comgrad.finetune.quantised import check_available, load_quantised, on_quantised
from comgrad.finetune.trainable import Start
from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("tiny")
NAME = "model.layers.0.self_attn.q_proj.weight"


def start(path: Path | None = None, *, n: int = 24, frozen: bool = False) -> Start:
    vector = TaskVector(BASE, {NAME: LowRank(torch.zeros(24, 2), torch.randn(2, n))})
    return Start(BASE, path, vector, vector if frozen else None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_error_says_what_to_do(tmp_path: Path) -> None:
    pattern = (
        "the recipe 'qlora' on this machine; 4-bit weights need bitsandbytes and a CUDA GPU: .*no CUDA GPU is visible; "
        "run: pip install bitsandbytes, on a machine with a CUDA GPU; or use the recipe lora"
    )
    for call in (check_available, lambda: load_quantised(tmp_path, "causal")):
        with pytest.raises(ComgradError, match=pattern) as caught:
            call()
        assert caught.value.code == "no-4bit"


def test_the_adapter_is_put_on_a_prepared_base(tmp_path: Path) -> None:
    folder = vectors_models.save_base(vectors_models.llama(), tmp_path / "tiny")
    model = vectors_models.llama().to(torch.bfloat16)
    model.is_loaded_in_4bit = True  # what the 4-bit loader sets, and preparing looks at
    ready = on_quantised(model, start(folder))
    assert ready.parameters == 2 * (24 + 24)
    assert ready.total == sum(p.numel() for p in vectors_models.llama().parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert [p.requires_grad for n, p in ready.model.named_parameters() if "lora_" not in n].count(True) == 0
    assert model.is_gradient_checkpointing
    ids = torch.tensor([[3, 4, 5]])
    ready.model.train()(input_ids=ids, use_cache=False).logits.sum().backward()
    assert all(p.grad is not None for p in ready.model.parameters() if p.requires_grad)
    assert list(ready.collect().tensors) == [NAME]


def test_shapes_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder = vectors_models.save_base(vectors_models.llama(), tmp_path / "tiny")
    with pytest.raises(ShapeMismatch, match=r"of shape \(24, 30\); the model has it with shape \(24, 24\)"):
        on_quantised(vectors_models.llama(), start(folder, n=30))


def test_nothing_is_merged_into_weights_of_four_bits() -> None:
    with pytest.raises(ComgradError, match="weights of 4 bits cannot take a small change") as caught:
        on_quantised(vectors_models.llama(), start(frozen=True))
    assert caught.value.code == "frozen-in-4bit"
