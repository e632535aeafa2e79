"""What can go wrong while a model trains, in three parts: divergence, a full disk, a full memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from comgrad.errors import ComgradError, StorageError
from comgrad.finetune.spec import TrainSpec
from comgrad.weights.storage import storage_error

MOST_ROWS = 64  # named in a message
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad alloc")


def diverged(step: int, loss: float, rows: Sequence[int]) -> ComgradError:
    """The error for a loss that is no number, with the batch it was the loss of."""
    shown = ", ".join(map(str, rows[:MOST_ROWS])) + (f" and {len(rows) - MOST_ROWS} more" * (len(rows) > MOST_ROWS))
    return ComgradError(
        f"the loss of step {step} is {loss}",
        "training diverged",
        f"lower the learning rate, or look at the examples of this batch (rows {shown} of the training examples, from 0)",
        code="diverged",
    )


def broken_weights(step: int) -> ComgradError:
    """The error for weights that are no numbers after a step; no checkpoint is made of them."""
    return ComgradError(
        f"the weights after step {step} are not finite",
        "training diverged",
        "lower the learning rate",
        code="diverged",
    )


@contextmanager
def memory_errors(spec: TrainSpec) -> Iterator[None]:
    """What the libraries make of a full memory, in three parts. Raises ComgradError (`out-of-memory`)."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error).strip()
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(sign in text.lower() for sign in _NO_MEMORY):
            raise
        reason = text.splitlines()[0][:200] if text else type(error).__name__
        raise ComgradError(
            f"steps of {spec.batch_size} examples in {spec.precision}",
            f"the memory is not enough ({reason})",
            "lower the batch size, shorten the texts or give a recipe that trains less (attention-linear, lora)",
            code="out-of-memory",
        ) from error


@contextmanager
def storage_errors(out: Path) -> Iterator[None]:
    """What the libraries make of a full disk, in three parts. Raises StorageError."""
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
