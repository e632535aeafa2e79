"""Counts, times and memory of training steps whose cost is known."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from comgrad.errors import ComgradError
from comgrad.evaluate.cost import Candidate, Running, costs

WIDTH = 256
MATRIX = 4 * WIDTH * WIDTH  # bytes


def candidate(
    name: str, *, trained: int = 2, scratch: int = 0, wait: float = 0.0, log: list[str] | None = None
) -> Candidate:
    """Two square layers, the last `trained` of which are trained by Adam, and so many bytes of scratch memory."""

    def make() -> Running:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False))
        for layer in model[: 2 - trained]:
            layer.requires_grad_(False)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad] or model.parameters())
        x = torch.randn(4, WIDTH)

        def step() -> None:
            if log is not None:
                log.append(name)
            space = torch.empty(scratch, dtype=torch.uint8)
            del space
            time.sleep(wait)
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return Running(model, optimizer, step)

    return Candidate(name, make)


def test_what_is_trained_is_counted() -> None:
    whole, half = costs([candidate("whole"), candidate("half", trained=1)], warm_up=1, steps=2)
    assert (whole.trainable, whole.parameters, whole.trainable_share) == (2 * WIDTH**2, 2 * WIDTH**2, 1.0)
    assert (half.trainable, half.trainable_share) == (WIDTH**2, 0.5)
    assert whole.memory == "cpu" and whole.as_dict()["trainable_share"] == 1.0


def test_peak_memory_counts_what_torch_holds() -> None:
    """Weights and Adam's two moments are resident, 6 matrices or 2 + 2; gradients come on top during a step."""
    whole, half, big = costs(
        [candidate("whole"), candidate("half", trained=1), candidate("big", scratch=40_000_000)], warm_up=2, steps=1
    )
    assert 8 * MATRIX <= whole.peak_bytes < 13 * MATRIX
    assert 5 * MATRIX <= half.peak_bytes < 8 * MATRIX and half.memory_share < 0.75
    assert big.peak_bytes == pytest.approx(6 * MATRIX + 40_000_000, rel=0.01)
    assert whole.memory_share == 1.0


def test_steps_are_interleaved_and_ratios_are_to_the_reference() -> None:
    log: list[str] = []
    fast, slow = costs(
        [candidate("fast", log=log), candidate("slow", wait=0.02, log=log)], reference="slow", warm_up=1, steps=4
    )
    assert log[-8:] == ["fast", "slow", "slow", "fast", "fast", "slow", "slow", "fast"]
    assert slow.seconds >= 0.02 and slow.speed_up == 1.0 and fast.speed_up > 1.5
    assert slow.quartiles[0] <= slow.seconds <= slow.quartiles[1] and slow.steps == 4


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ComgradError, match="the recipe 'none'; it has no trainable parameter"):
        costs([candidate("none", trained=0)])
    for bad in ([], [candidate("a"), candidate("a")]):
        with pytest.raises(ComgradError, match="candidates of different names"):
            costs(bad)
    with pytest.raises(ComgradError, match="reference 'b'"):
        costs([candidate("a")], reference="b")
