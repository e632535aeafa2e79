"""Baselines that train: ordinary fine-tuning on the same few examples, and one adapter for all the other tasks at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from comgrad.describe.task import Example, Task
from comgrad.evaluate.classifier import LOGIT_SCALE, embed
from comgrad.finetune.adapter import Start, on_adapter
from comgrad.finetune.loop import TrainSpec, fine_tune
from comgrad.predict.start import combination, predicted_start, zero_start
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.corpus import Item
from comgrad.workflows.bench.fold import Fold
from comgrad.workflows.bench.outcome import Outcome
from comgrad.workflows.bench.prepare import chosen
from comgrad.workflows.bench.shots import described, linearised
from comgrad.workflows.starting import Reading, run_starts

if TYPE_CHECKING:
    from comgrad.workflows.bench.methods import Method

RANK, SCALE = 8, 2.0
STEPS = {16: 20, 160: 80}
LOOK_AT = (1, 2, 3, 5, 10, 15, 20, 30, 40, 60, 80)
Examples = tuple[Example, ...]
POOLED_FOLDS, POOLED_STEPS, POOLED_SAVE = 5, 600, 100


def finetuned(fold: Fold, aid: Aid, *, ours: bool) -> Outcome:
    """The starter zoo's recipe on the declared examples, from zero or from our prediction with the same examples.

    The number of steps, zero included, is the one that does best on a quarter of the examples after training on the
    others; then all are trained on.
    """
    from comgrad.predict import fewshot

    shots = aid.shots()
    item, like = aid.item, aid.model.corpus.vectors[0]
    start = zero_start(like.base, like.tensors, RANK, scale=SCALE).vector
    if ours:
        prior, uncertainty = described(fold)
        P = fewshot.precision(fold.evidence.gram, uncertainty, len(shots.examples))
        c = fewshot.fit(
            lambda at: linearised(shots.tangent_at(at)),
            shots.loss,
            prior,
            P,
            rounds=fewshot.rounds_for(len(shots.examples)),
        )
        if np.any(c):
            vectors = [aid.model.corpus.vectors[k] for k in fold.allowed]
            start = predicted_start(combination(vectors, c.tolist()), RANK, scale=SCALE).vector
    examples, test = shots.examples, chosen(item, "test", aid.sizes)
    held = max(1, len(examples) // 4)
    looked = _readings(aid, start, examples[:-held], examples[-held:], fold.seed)
    steps = min(looked, key=lambda r: (r.loss, r.step)).step
    found = next(r for r in _readings(aid, start, examples, test, fold.seed, (steps,)) if r.step == steps)
    return Outcome(score=(found.loss, found.accuracy), note={"steps": steps})


def _readings(
    aid: Aid, start: TaskVector, train: Examples, test: Examples, seed: int, look_at: Sequence[int] = ()
) -> list[Reading]:
    """Losses on `test` before training and after so many steps on `train`."""
    item, most = aid.item, STEPS.get(len(aid.shots().examples), max(STEPS.values()))
    at = tuple(look_at) or tuple(s for s in LOOK_AT if s <= most)
    spec = TrainSpec(steps=max(1, *at), seed=seed)
    rows = tuple(replace(e, split="train") for e in train) + tuple(replace(e, split="test") for e in test)
    task = Task(item.name, item.description, item.label_names, item.label_prompts, rows)
    return run_starts(aid.model.bench, task, {"start": start}, spec, at)["start"]


# -- one adapter for all -----------------------------------------------------------------------------------------------
def pooled(fold: Fold, aid: Aid) -> Outcome:
    """One adapter trained on the training examples of all tasks outside the query's fifth of the source groups."""
    fifth = part_of(aid.item, fold.seed)
    path = aid.work / f"pooled-{fifth}-{_key(aid, fold.seed)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # another process may be training it
        if not path.exists():
            train_pooled(aid, fifth, fold.seed, path.with_suffix("")).save(path)
    return Outcome(vector=TaskVector.load(path))


def part_of(item: Item, seed: int) -> int:
    """Which fifth of the source groups a task is in."""
    return int(hashlib.sha256(f"{seed} {item.source_group}".encode()).hexdigest(), 16) % POOLED_FOLDS


def _key(aid: Aid, seed: int) -> str:
    digests = aid.model.corpus.digests
    return hashlib.sha256(f"{digests} {seed} {POOLED_STEPS} {RANK}".encode()).hexdigest()[:16]


def train_pooled(aid: Aid, fifth: int, seed: int, work: Path) -> TaskVector:
    """600 steps on batches drawn evenly from the tasks of the other fifths; goes on from its checkpoints."""
    model = aid.model
    items = [i for i in model.corpus.tested if part_of(i, seed) != fifth]
    like = model.corpus.vectors[0]
    start = zero_start(like.base, like.tensors, RANK, scale=SCALE, seed=seed).vector
    torch.manual_seed(seed)
    trainable = on_adapter(model.bench.encoder(), Start(like.base, model.corpus.base.path, start))
    classifier = ManyTasks.of(trainable.model, [model.prompts(i) for i in items]).to(model.bench.device)
    spec = TrainSpec(steps=POOLED_STEPS, seed=seed)
    rows = _pool_rows(items, spec, seed)

    def collate(batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        tokens = {k: v.cpu() for k, v in model.bench.tokens([r["text"] for r in batch]).items()}
        numbers = {k: torch.tensor([r[k] for r in batch]) for k in ("task", "labels")}
        return {**tokens, **numbers}

    fine_tune(classifier, rows, collate, spec, work, save_every=POOLED_SAVE)
    return trainable.collect()


def _pool_rows(items: Sequence[Item], spec: TrainSpec, seed: int) -> list[dict[str, Any]]:
    """As many rows as the run uses, the same number from every task."""
    rng = np.random.default_rng([seed, 5])
    each = -(-spec.steps * spec.batch_size // len(items))
    out = []
    for t, item in enumerate(items):
        train = item.task.split("train")
        for i in rng.choice(len(train), each, replace=each > len(train)):
            out.append({"text": train[i].text, "labels": train[i].label, "task": t})  # noqa: PERF401
    return out


class ManyTasks(nn.Module):
    """One encoder, every task's prompts: each row is scored against the prompts of its own task."""

    prompts: Tensor
    absent: Tensor

    def __init__(self, encoder: nn.Module, prompts: Tensor, absent: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("prompts", prompts, persistent=False)
        self.register_buffer("absent", absent, persistent=False)

    @classmethod
    def of(cls, encoder: nn.Module, prompts: Sequence[Tensor]) -> ManyTasks:
        """Prompts of different numbers of labels, padded."""
        most = max(len(p) for p in prompts)
        table = torch.stack([nn.functional.pad(p, (0, 0, 0, most - len(p))) for p in prompts])
        absent = torch.stack([torch.arange(most) >= len(p) for p in prompts])
        return cls(encoder, table, absent)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task: Tensor, labels: Tensor) -> dict[str, Tensor]:
        rows = embed(self.encoder, input_ids, attention_mask)
        logits = LOGIT_SCALE * torch.einsum("bd,bcd->bc", rows, self.prompts[task])
        logits = logits.masked_fill(self.absent[task], -torch.inf)
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}


def methods() -> list[Method]:
    """The rows."""
    from comgrad.workflows.bench.methods import FITTING, TRAINED, Method

    rows = [
        Method(
            f"finetune+{n}" if not ours else f"ours-then-finetune+{n}",
            partial(finetuned, ours=ours),
            f"at most {STEPS[n]} training steps on {n} examples, early stopping on a quarter, from {'our start' if ours else 'zero'}",
            TRAINED,
            f"{n} examples",
            code=(__name__, "comgrad.finetune.loop", *(FITTING if ours else ())),
        )
        for ours in (False, True)
        for n in STEPS
    ]
    meaning = f"one adapter trained on all tasks of the other {POOLED_FOLDS - 1} fifths of the source groups"
    return [
        *rows,
        Method("pooled", pooled, meaning, TRAINED, "other tasks' data", code=(__name__,), splits=("losgo",)),
    ]
