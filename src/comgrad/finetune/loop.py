"""Fine-tuning on the loop of transformers: schedule, clipping and accumulation are its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comgrad.errors import ComgradError


@dataclass(frozen=True)
class TrainSpec:
    """What a run is made of. The defaults are the recipe of the starter zoo's adapters."""

    steps: int = 80
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 0
    schedule: str = "constant"
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ComgradError(
                f"{self.steps} steps, batch size {self.batch_size}, learning rate {self.learning_rate}",
                "a run needs at least one step, one example a batch and a positive learning rate",
                "correct the numbers",
                code="bad-recipe",
            )


def fine_tune(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Mapping[str, Any]]], dict[str, Tensor]],
    spec: TrainSpec,
    out: Path,
    *,
    probe: Callable[[int], None] | None = None,
    probe_at: Sequence[int] = (),
) -> list[tuple[int, float]]:
    """Train the model's trainable parameters in place; same seed, same order of examples, whatever the start.

    Args:
        model: returns `{"loss", "logits"}` on a collated batch.
        rows: training examples, as `collate` wants them.
        out: folder for the loop's own files.
        probe: called with the step number, before training (0) and after each step in `probe_at`.

    Returns:
        (step, training loss of that step's batch) for every step.

    Raises:
        ComgradError: no trainable parameter, or a loss that is not finite.
    """
    from transformers import Trainer

    if not any(p.requires_grad for p in model.parameters()):
        raise ComgradError(
            "a model with no trainable parameter",
            "there is nothing to train",
            "load the adapter as trainable",
            code="nothing-to-train",
        )
    losses: list[tuple[int, float]] = []

    if probe is not None:
        probe(0)
    trainer = Trainer(
        model=model,
        args=_arguments(spec, out, model),
        train_dataset=list(rows),
        data_collator=collate,
        callbacks=[_watch(losses, probe, probe_at)],
    )
    _quiet(trainer)
    trainer.train()
    return losses


def _quiet(trainer: Any) -> None:
    """Trainer prints every log line to stdout, where a command's result belongs."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _watch(losses: list[tuple[int, float]], probe: Callable[[int], None] | None, probe_at: Sequence[int]) -> Any:
    """A callback of the loop: keeps every step's loss, stops at one that is not finite, calls the probe."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append((state.global_step, float(logs["loss"])))
                if not torch.isfinite(torch.tensor(losses[-1][1])):
                    raise ComgradError(
                        f"the loss of step {state.global_step} is {logs['loss']}",
                        "training diverged",
                        "lower the learning rate",
                        code="diverged",
                    )

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if probe is not None and state.global_step in probe_at:
                probe(state.global_step)

    return Watch()


def _arguments(spec: TrainSpec, out: Path, model: nn.Module) -> Any:
    """The recipe in the loop's own terms; it runs on the device the model is on."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(out),
        max_steps=spec.steps,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        warmup_steps=spec.warmup_steps,
        lr_scheduler_type=spec.schedule,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        data_seed=spec.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        use_cpu=next(model.parameters()).device.type == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
