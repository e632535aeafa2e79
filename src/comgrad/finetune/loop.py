"""Fine-tuning on the loop of transformers: schedule, clipping, checkpoints and resuming are its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comgrad.errors import ComgradError, StorageError
from comgrad.finetune.checkpoints import last_whole, load_into, seal, step_of, trainable_state_only
from comgrad.weights.storage import storage_error

SCHEDULES = ("constant", "linear", "cosine")


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
        rate = self.learning_rate
        if self.steps < 1 or self.batch_size < 1 or not (rate > 0 and math.isfinite(rate)) or self.warmup_steps < 0:
            raise ComgradError(
                f"{self.steps} steps, batch size {self.batch_size}, learning rate {rate}, {self.warmup_steps} of warm-up",
                "a run needs at least one step, one example a batch and a positive learning rate",
                "correct the numbers",
                code="bad-recipe",
            )
        if not 0 <= self.seed < 2**32:
            raise ComgradError(
                f"the seed {self.seed}", "a seed is a whole number below 2³²", "give another", code="bad-recipe"
            )
        if self.schedule not in SCHEDULES:
            raise ComgradError(
                f"the schedule '{self.schedule}'",
                "there is none of that name",
                f"use one of: {', '.join(SCHEDULES)}",
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
    progress: Callable[[int, int], None] | None = None,
    save_every: int | None = None,
) -> list[tuple[int, float]]:
    """Train the model's trainable parameters in place; same seed, same order of examples, whatever the start.

    With `save_every`, checkpoints of the trainable parameters, the optimiser and the random state go to `out`; a run
    that finds whole ones there goes on from the last, and ends at the very numbers of an uninterrupted one.

    Args:
        model: returns a mapping with `loss` on a collated batch.
        rows: training examples, as `collate` wants them.
        out: folder for the loop's own files.
        probe: called with the step number, before training (0) and after each step in `probe_at`.
        progress: called after every step with (done, total).
        save_every: steps between checkpoints; none without it.

    Returns:
        (step, training loss of that step's batch) for every step, also those before an interruption.

    Raises:
        ComgradError: no trainable parameter, or a loss that is not finite. StorageError: a checkpoint cannot be written.
    """
    from transformers import Trainer

    if not any(p.requires_grad for p in model.parameters()):
        raise ComgradError(
            "a model with no trainable parameter",
            "there is nothing to train",
            "load the adapter as trainable",
            code="nothing-to-train",
        )
    last = last_whole(out) if save_every else None
    if last is not None and step_of(last) >= spec.steps:
        load_into(model, last)
        return _losses(last)
    if probe is not None:
        probe(0)
    trainer = Trainer(
        model=model,
        args=_arguments(spec, out, model, save_every),
        train_dataset=list(rows),
        data_collator=collate,
        callbacks=[_watch(probe, probe_at, progress)],
    )
    _quiet(trainer)
    with trainable_state_only(model), _storage_errors(out), _hushed():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return [(int(row["step"]), float(row["loss"])) for row in trainer.state.log_history if "loss" in row]


def _losses(checkpoint: Path) -> list[tuple[int, float]]:
    from transformers import TrainerState

    history = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).log_history
    return [(int(row["step"]), float(row["loss"])) for row in history if "loss" in row]


def _quiet(trainer: Any) -> None:
    """Trainer prints every log line to stdout, where a command's result belongs."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _watch(
    probe: Callable[[int], None] | None, probe_at: Sequence[int], progress: Callable[[int, int], None] | None
) -> Any:
    """A callback of the loop: stops at a loss that is not finite, seals checkpoints, tells who watches."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs and not math.isfinite(float(logs["loss"])):
                raise ComgradError(
                    f"the loss of step {state.global_step} is {logs['loss']}",
                    "training diverged",
                    "lower the learning rate",
                    code="diverged",
                )

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if progress is not None:
                progress(state.global_step, args.max_steps)
            if probe is not None and state.global_step in probe_at:
                probe(state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Watch()


@contextmanager
def _hushed() -> Iterator[None]:
    """The library's remarks on how it keeps checkpoints are no news for who trains."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    """What the libraries make of a full disk, in three parts."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise storage_error(out, error) from error
    except SafetensorError as error:
        raise _unwritable(out, error) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
            raise _unwritable(out, error) from error
        raise


def _unwritable(out: Path, error: Exception) -> StorageError:
    reason = str(error).strip().splitlines()[0][:200]
    return StorageError(
        f"a checkpoint in '{out}'", f"it cannot be written ({reason})", "free some space, or write elsewhere"
    )


def _arguments(spec: TrainSpec, out: Path, model: nn.Module, save_every: int | None) -> Any:
    """The recipe in the loop's own terms; it runs on the device the model is on."""
    from transformers import TrainingArguments

    device: torch.device = next(model.parameters()).device
    return TrainingArguments(
        output_dir=str(out),
        max_steps=spec.steps,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        warmup_steps=spec.warmup_steps,
        lr_scheduler_type=_schedule(spec),
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        data_seed=spec.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or 500,
        save_total_limit=2,
        report_to=[],
        use_cpu=device.type == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def _schedule(spec: TrainSpec) -> str:
    """The loop's `constant` has no warm-up; another of its schedules has."""
    return "constant_with_warmup" if spec.schedule == "constant" and spec.warmup_steps else spec.schedule
