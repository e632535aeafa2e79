"""Image tasks on open_clip's two-tower models: logits = s · cos(image tower(x), label j), labels embedded by the base.

The head is zero-shot: a label's unit row is the mean of the text tower's unit rows for `template.format(prompt)` over the
task's templates (Radford et al., arXiv 2103.00020). The text tower is frozen, so all of a task's knowledge is in the image
tower's task vector. Images go through the base's own evaluation transform, in training too: a run can then be repeated
bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comgrad.describe.task import IMAGE_TEXT, Example, Task
from comgrad.errors import ComgradError
from comgrad.evaluate.classifier import LOGIT_SCALE, Bench, Score, scored
from comgrad.evaluate.predictor import (
    BATCH,
    Batch,
    Problem,
    Read,
    digests_of,
    first_by_content,
    pooled,
    text_problem,
)
from comgrad.weights.bases import BaseModel

CONFIG = "open_clip_config.json"
TOWER = "vision"
_READERS = 8  # threads that open images


class ImageTower(nn.Module):
    """The image tower under the names it has in the whole model: (b, 3, h, w) → (b, d), not normalised."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.visual(pixels)
        return out


class ImageClassifier(nn.Module):
    """The image tower with a frozen head of unit rows (labels, d)."""

    head: Tensor

    def __init__(self, tower: nn.Module, head: Tensor, *, logit_scale: float) -> None:
        super().__init__()
        self.tower = tower
        self.logit_scale = logit_scale
        self.register_buffer("head", head, persistent=False)

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """(b, labels) `logits`, and their mean cross-entropy with `labels` (b,) as `loss`."""
        logits = self.logit_scale * nn.functional.normalize(self.tower(pixels), dim=-1) @ self.head.T
        out = {"logits": logits}
        if labels is not None:
            out["loss"] = nn.functional.cross_entropy(logits, labels)
        return out


def is_open_clip(path: Path) -> bool:
    """Whether a base's folder is a model of open_clip."""
    return (path / CONFIG).is_file()


def encoded(tower: nn.Module, batch: Batch) -> Tensor:
    """(b, d): what a `Predictor` of image tasks reads."""
    out: Tensor = tower(**batch)
    return out


@dataclass(frozen=True)
class ImageBench:
    """An open_clip model opened for work, read once; see `classifier.Bench`, its twin for texts."""

    base: BaseModel
    device: torch.device

    @classmethod
    def open(cls, base: BaseModel) -> ImageBench:
        """Raises ComgradError: (`no-open-clip`) the library is not there or does not fit torch; (`base-unreadable`)."""
        bench = cls(base, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        _ = bench._opened
        return bench

    @cached_property
    def _opened(self) -> tuple[Any, Callable[[Any], Tensor]]:
        """The whole model at θ₀ in fp32, in evaluation mode, and the base's own transform: image → (3, h, w)."""
        model, transform = _read(self.base)
        return model.to(self.device).eval(), transform

    @property
    def logit_scale(self) -> float:
        """s, the exponential of the base's parameter."""
        return float(self._opened[0].logit_scale.detach().exp())

    def encoder(self) -> nn.Module:
        """A fresh copy of the base's image tower, in evaluation mode."""
        return ImageTower(copy.deepcopy(self._opened[0].visual))

    @torch.no_grad()
    def prompts(self, task: Task) -> Tensor:
        """(labels, d) unit rows of the base's text tower."""
        model, tokenizer = self._opened[0], _library().get_tokenizer(f"local-dir:{self.base.path}")
        rows = []
        for prompt in task.label_prompts:
            texts = [t.replace("{}", prompt) for t in task.templates or ("{}",)]
            each = nn.functional.normalize(model.encode_text(tokenizer(texts).to(self.device)), dim=-1)
            rows.append(nn.functional.normalize(each.mean(dim=0), dim=-1))
        return torch.stack(rows)

    def pixels(self, examples: Sequence[Example]) -> Tensor:
        """(b, 3, h, w) on the host. Raises ComgradError: (`bad-image`) a file that is no image, or not the one it was."""
        transform = self._opened[1]
        with ThreadPoolExecutor(_READERS) as pool:
            return torch.stack(list(pool.map(lambda e: transform(_image(e)), examples)))

    def batches(self, examples: Sequence[Example], batch_size: int) -> Iterator[tuple[Batch, Tensor]]:
        """Pixels and labels (b,) of the examples in their order."""
        for start in range(0, len(examples), batch_size):
            rows = examples[start : start + batch_size]
            labels = torch.tensor([e.label for e in rows], device=self.device)
            yield {"pixels": self.pixels(rows).to(self.device)}, labels


@dataclass(frozen=True)
class _Anew:
    """Batches of a split, read from their files at every pass: a data set of images does not fit in memory."""

    bench: ImageBench
    examples: Sequence[Example]
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        return self.bench.batches(self.examples, self.batch_size)


def image_problem(
    bench: ImageBench,
    task: Task,
    *,
    splits: Sequence[str] = ("validation", "test"),
    limit: int | None = None,
    head: Tensor | None = None,
    batch_size: int = BATCH,
) -> Problem:
    """As `predictor.text_problem`, of images. Raises ComgradError: an empty split."""
    chosen = {s: first_by_content(task.split(s), limit) for s in splits}
    parts = {s: _Anew(bench, rows, batch_size) for s, rows in chosen.items()}
    return Problem(
        task.name, bench.prompts(task) if head is None else head, parts, digests_of(task, chosen, batch_size)
    )


# -- texts or images ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Reading:
    """How a `Predictor` reads a bench's models."""

    read: Read
    logit_scale: float


def open_bench(base: BaseModel) -> Bench | ImageBench:
    """The bench that the base's folder asks for. Raises as the two."""
    return ImageBench.open(base) if is_open_clip(base.path) else Bench.open(base)


def reading(bench: Bench | ImageBench) -> Reading:
    """For a `Predictor`."""
    return Reading(encoded, bench.logit_scale) if isinstance(bench, ImageBench) else Reading(pooled, LOGIT_SCALE)


def problem_of(bench: Bench | ImageBench, task: Task, **how: Any) -> Problem:
    """`image_problem` or `predictor.text_problem`."""
    if isinstance(bench, ImageBench):
        return image_problem(bench, task, **how)
    return text_problem(bench, task, **how)


@dataclass(frozen=True)
class ImageHarness:
    """An image tower with its zero-shot head, ready to be trained; see `harness.Harness`."""

    bench: ImageBench
    task: Task
    kind: str = "image"

    @property
    def facts(self) -> dict[str, Any]:
        return {"logit_scale": self.bench.logit_scale, "tower": TOWER}

    @cached_property
    def head(self) -> Tensor:
        return self.bench.prompts(self.task)

    def fresh(self) -> nn.Module:
        return self.bench.encoder()

    def wrap(self, model: nn.Module) -> nn.Module:
        return ImageClassifier(model, self.head, logit_scale=self.bench.logit_scale).to(self.bench.device)

    def rows(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        return [{"example": e} for e in examples]

    def collate(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        examples = [row["example"] for row in batch]
        return {"pixels": self.bench.pixels(examples), "labels": torch.tensor([e.label for e in examples])}

    def score(self, model: nn.Module, examples: Sequence[Example]) -> Score:
        return scored(model, self.bench.batches(examples, BATCH))


# -- files -------------------------------------------------------------------------------------------------------------
def _image(example: Example) -> Any:
    """The image in RGB, if its file is the one that the task was read with."""
    from PIL import Image

    try:
        data = Path(example.image).read_bytes()
    except OSError as error:
        raise _bad_image(example, f"it cannot be read ({error.strerror or error})") from error
    if IMAGE_TEXT + hashlib.sha256(data).hexdigest() != example.text:
        raise _bad_image(example, "its contents are not those that the task states")
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _bad_image(example, f"it is no image that can be opened ({str(error)[:120]})") from error


def _bad_image(example: Example, why: str) -> ComgradError:
    return ComgradError(
        f"the image '{example.image}'", why, "mend the file, or leave it out of the task", code="bad-image"
    )


# -- the library -------------------------------------------------------------------------------------------------------
def _library() -> Any:
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        raise ComgradError(
            "a base of open_clip",
            f"the library cannot be loaded here ({str(error)[:160]})",
            "pip install 'comgrad[vision]', with a torchvision that fits the installed torch",
            code="no-open-clip",
        ) from error
    return open_clip


def _read(base: BaseModel) -> tuple[Any, Callable[[Any], Tensor]]:
    library = _library()
    try:
        model, _, transform = library.create_model_and_transforms(f"local-dir:{base.path}", precision="fp32")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ComgradError(
            f"the base '{base.name}'",
            f"open_clip cannot open it ({str(error).strip()[:200]})",
            f"pass a folder with {CONFIG} and open_clip_model.safetensors",
            code="base-unreadable",
        ) from error
    return model, transform
