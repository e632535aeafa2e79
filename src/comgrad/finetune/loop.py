"""Fine-tuning on the loop of transformers: schedule, clipping, checkpoints and resuming are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comgrad.errors import ComgradError
from comgrad.finetune.checkpoints import last_whole, load_into, seal, step_of, trainable_state_only
from comgrad.finetune.guard import broken_weights, diverged, memory_errors, storage_errors
from comgrad.finetune.spec import PRECISIONS, SCHEDULES, TrainSpec

ROWS = "_rows"  # key of a batch: which training examples are in it


def fine_tune(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Mapping[str, Any]]], dict[str, Tensor]],
    spec: TrainSpec,
    out: Path,
    *,
    regulariser: Callable[[], Tensor] | None = None,
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
        regulariser: a scalar that is added to the loss of every step (`regularisers.weighted`).
        probe: called with the step number, before training (0) and after each step in `probe_at`.
        progress: called after every step with (done, total).
        save_every: steps between checkpoints; none without it.

    Returns:
        (step, training loss of that step's batch) for every step, also those before an interruption.

    Raises:
        ComgradError: no trainable parameter; (`diverged`) a loss that is not finite, with its batch, checkpoints of
            earlier steps stay; (`out-of-memory`); (`no-precision`). StorageError: a checkpoint cannot be written.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ComgradError(
            "a model with no trainable parameter",
            "there is nothing to train",
            "load the adapter as trainable",
            code="nothing-to-train",
        )
    spec.check_device(next(model.parameters()).device)
    last = last_whole(out) if save_every else None
    if last is not None and step_of(last) >= spec.steps:
        load_into(model, last)
        return _losses(last)
    if probe is not None:
        probe(0)
    trainer = _trainer(regulariser)(
        model=model,
        args=_arguments(spec, out, model, save_every),
        train_dataset=list(enumerate(rows)),
        data_collator=_with_rows(collate),
        callbacks=[_watch(model, probe, probe_at, progress)],
    )
    _quiet(trainer)
    with trainable_state_only(model), storage_errors(out), memory_errors(spec), _hushed():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if spec.precision != "fp32":
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the model computes in fp32 again
    return [(int(row["step"]), float(row["loss"])) for row in trainer.state.log_history if "loss" in row]


def _losses(checkpoint: Path) -> list[tuple[int, float]]:
    from transformers import TrainerState

    history = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).log_history
    return [(int(row["step"]), float(row["loss"])) for row in history if "loss" in row]


def _quiet(trainer: Any) -> None:
    """Trainer prints every log line to stdout, where a command's result belongs."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _with_rows(
    collate: Callable[[list[Mapping[str, Any]]], dict[str, Tensor]],
) -> Callable[[list[tuple[int, Mapping[str, Any]]]], dict[str, Tensor]]:
    """Batches that say which examples they are of: the loop reads ahead, so nothing else could."""

    def collated(batch: list[tuple[int, Mapping[str, Any]]]) -> dict[str, Tensor]:
        return {**collate([row for _, row in batch]), ROWS: torch.tensor([i for i, _ in batch])}

    return collated


def _trainer(regulariser: Callable[[], Tensor] | None) -> Any:
    """The library's loop, whose loss has the regulariser in it and stops the run where it is no number."""
    from transformers import Trainer

    class Loop(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            batch = {k: v for k, v in inputs.items() if k != ROWS}
            loss = super().compute_loss(model, batch, *args, **kwargs)
            if regulariser is not None:
                loss = loss + regulariser()
            if not bool(torch.isfinite(loss.detach()).all()):
                raise diverged(self.state.global_step + 1, float(loss.detach().mean()), inputs[ROWS].tolist())
            return loss

    return Loop


def _watch(
    model: nn.Module,
    probe: Callable[[int], None] | None,
    probe_at: Sequence[int],
    progress: Callable[[int, int], None] | None,
) -> Any:
    """A callback of the loop: seals checkpoints of weights that are numbers, tells who watches."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if progress is not None:
                progress(state.global_step, args.max_steps)
            if probe is not None and state.global_step in probe_at:
                probe(state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad):
                raise broken_weights(state.global_step)
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
        bf16=spec.precision == "bf16",
        fp16=spec.precision == "fp16",
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


__all__ = ["PRECISIONS", "SCHEDULES", "TrainSpec", "fine_tune"]
