"""The input-weighted inner product is the mean inner product of what two changes do to real inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from comgrad.evaluate.classifier import Bench
from comgrad.evaluate.input_metric import input_roots, weighted
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base


def test_it_equals_the_mean_over_tokens_of_real_text(zoo: list[Path]) -> None:
    a, b = (TaskVector.from_peft(path) for path in zoo[:2])
    bench = Bench.open(resolve_base(a.base.name))
    name = "encoder.layer.2.attention.self.value.weight"
    texts = ["a short one", "a rather longer sentence that has more tokens than the other", "third"]
    roots = input_roots(bench, texts, [name])
    seen: list[torch.Tensor] = []
    model = bench.encoder()
    layer = model.get_submodule(name.removesuffix(".weight"))
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for text in texts:  # one at a time: no padding
            model(**bench.tokens([text]))
    handle.remove()
    x = torch.cat(seen).double()
    by_hand = ((x @ a.tensors[name].dense().double().T) * (x @ b.tensors[name].dense().double().T)).sum(1).mean()
    assert float(weighted(a, roots).inner(weighted(b, roots))) == pytest.approx(float(by_hand), rel=1e-4)
