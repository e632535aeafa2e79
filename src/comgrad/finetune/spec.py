"""What a run of the training loop is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from comgrad.errors import ComgradError

SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainSpec:
    """What a run is made of. The defaults are the recipe of the starter zoo's adapters.

    Args:
        precision: of the arithmetic inside the model; weights, their gradients' sums and the optimiser stay fp32.
    """

    steps: int = 80
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 0
    schedule: str = "constant"
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if self.steps < 1 or self.batch_size < 1 or not (rate > 0 and math.isfinite(rate)) or self.warmup_steps < 0:
            raise ComgradError(
                f"{self.steps} steps, batch size {self.batch_size}, learning rate {rate}, {self.warmup_steps} of warm-up",
                "a run needs at least one step, one example a batch and a positive learning rate",
                "correct the numbers",
                code="bad-recipe",
            )
        if self.warmup_steps >= self.steps:
            raise ComgradError(
                f"{self.warmup_steps} steps of warm-up in a run of {self.steps}",
                "the learning rate would never reach its value",
                "warm up for fewer steps, or train for more",
                code="bad-recipe",
            )
        if not 0 <= self.seed < 2**32:
            raise ComgradError(
                f"the seed {self.seed}", "a seed is a whole number below 2³²", "give another", code="bad-recipe"
            )
        for what, value, known in (("schedule", self.schedule, SCHEDULES), ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise ComgradError(
                    f"the {what} '{value}'",
                    "there is none of that name",
                    f"use one of: {', '.join(known)}",
                    code="bad-recipe",
                )

    def check_device(self, device: torch.device) -> None:
        """Refuse a precision that the device has not. Raises ComgradError (`no-precision`)."""
        cuda = device.type == "cuda"
        if self.precision == "fp16" and not cuda:
            why = f"fp16 arithmetic needs a CUDA GPU, and the model is on {device.type}"
        elif self.precision == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
            why = "this GPU has no bf16 arithmetic"
        else:
            return
        other = "bf16 or fp32" if self.precision == "fp16" else "fp16 or fp32"
        raise ComgradError(f"the precision '{self.precision}'", why, f"use {other}", code="no-precision")
