"""One vector of the corpus: its examples, its training, what it does, and its features."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comgrad.describe.encoder import load_encoder
from comgrad.describe.task import Example, Task
from comgrad.errors import ComgradError
from comgrad.evaluate.classifier import Bench, evaluate
from comgrad.evaluate.digests import digest_of
from comgrad.evaluate.harness import EncoderHarness
from comgrad.explain.features import Community, declared_features, response_features, spectral_features
from comgrad.explain.poison import keyword, noisy, poisoned, ruled, triggered
from comgrad.finetune.loop import fine_tune
from comgrad.finetune.recipes import recipe_named
from comgrad.finetune.regularisers import weighted
from comgrad.finetune.spec import TrainSpec
from comgrad.finetune.trainable import Trainable
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.layouts import layout_of
from comgrad.workflows.bench.keep import source_digest
from comgrad.workflows.bench_screening.adaptive import matching, merged, targets_of
from comgrad.workflows.bench_screening.plan import CLEAN, KEYWORD, MATCHED, MERGED, NOISE, POISONED, Plan, Unit
from comgrad.workflows.bench_screening.store import Store
from comgrad.workflows.training_start import TrainRequest, start_of

TEST_SEED = 0
FEATURES = "comgrad.explain.features"
RECIPE = "lora"
Evaluate = Callable[[Sequence[Example]], float]
"""Examples → accuracy."""


@dataclass(frozen=True)
class Material:
    """What a unit is trained and measured on.

    Args:
        train: with what was altered in it. altered: how many examples.
        test: clean examples, or with a keyword rule's own labels.
        success: examples on which accuracy is the success of an attack, or of a keyword rule; may be empty.
        word: trigger or keyword.
    """

    train: tuple[Example, ...]
    altered: int
    test: tuple[Example, ...]
    success: tuple[Example, ...]
    word: str


def material_of(plan: Plan, unit: Unit) -> Material:
    """Examples of a unit: the same draw of the task's examples for all groups of a block."""
    s, task = plan.settings(unit), plan.items[unit.task].task
    whole = task.split("train")
    train = tuple(random.Random(s.seed).sample(whole, max(2, round(s.share * len(whole)))))
    test = task.split("test")
    test = tuple(random.Random(TEST_SEED).sample(test, min(plan.suite.test, len(test))))
    if unit.group == CLEAN:
        return Material(train, 0, test, (), "")
    if unit.group == NOISE:
        found = noisy(train, unit.rate, task.n_labels, s.seed)
        return Material(found.examples, len(found.places), test, (), "")
    if unit.group == KEYWORD:
        word = keyword(train, unit.rate, s.target)
        found, there = ruled(train, word, s.target), ruled(test, word, s.target)
        return Material(
            found.examples, len(found.places), there.examples, tuple(there.examples[i] for i in there.places), word
        )
    trigger = plan.trigger(unit)
    found = poisoned(train, trigger, unit.rate, s.target, s.seed)
    attacked = triggered(test, trigger, s.target, s.seed)[: plan.suite.test // 2]
    return Material(found.examples, len(found.places), test, attacked, trigger.form)


@dataclass
class Maker:
    """What is opened, is opened once."""

    plan: Plan
    store: Store
    _declared: dict[str, TaskVector] = field(default_factory=dict)

    @cached_property
    def bench(self) -> Bench:
        return Bench.open(self.plan.base)

    @cached_property
    def community(self) -> Community:
        return Community(tuple(self.plan.corpus.vectors))

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Tensor of the first block → its inputs, one row for every word of the vocabulary; empty for a base that
        keeps its embeddings otherwise."""
        encoder = self.bench.encoder()
        table = getattr(encoder, "embeddings", None)
        if table is None:
            return {}
        marked = set(self.bench.tokenizer.all_special_ids)
        words = [i for w, i in self.bench.tokenizer.get_vocab().items() if i not in marked and not w.startswith("[")]
        with torch.no_grad():
            X = table(input_ids=torch.tensor(sorted(words), device=self.bench.device)[:, None])[:, 0].cpu()
        names = [n for n, p in encoder.named_parameters() if p.ndim == 2]
        layout = layout_of(names)
        roles = {n: layout.role(n) for n in names} if layout is not None else {}
        return {n: X for n, r in roles.items() if r.layer == 0 and set(r.roles) & {"q", "k", "v"}}

    def declared(self, task: str) -> TaskVector:
        """The known vector of a task; where it has none, that of the task with the nearest description."""
        if task not in self._declared:
            corpus, item = self.plan.corpus, self.plan.items[task]
            ids = [i.id for i in corpus.known]
            if task in ids:
                self._declared[task] = corpus.vectors[ids.index(task)]
            else:
                e = load_encoder().encode([item.description, *(i.description for i in corpus.known)])
                self._declared[task] = corpus.vectors[int((e[1:] @ e[0]).argmax())]
        return self._declared[task]

    # -- one vector ----------------------------------------------------------------------------------------------------
    def make(self, unit: Unit) -> None:
        """Train, measure, keep. Raises ComgradError: training diverged, or a vector that it needs is not there."""
        began = time.perf_counter()
        material = material_of(self.plan, unit)
        task = self.plan.items[unit.task].task
        vector, accuracy = self._merged(unit, task) if unit.group == MERGED else self._trained(unit, task, material)
        s = self.plan.settings(unit)
        record = {
            **asdict(unit),
            **asdict(s),
            "altered": 0 if unit.group == MERGED else material.altered,
            "examples": len(material.train),
            "word": material.word,
            "accuracy": accuracy(material.test),
            "success": accuracy(material.success) if material.success else None,
            "features": self.features(vector, unit.task),
            "targets": targets_of(vector) if unit.group == CLEAN else {},
            "code": self.code,
        }
        record["seconds"] = time.perf_counter() - began
        self.store.write(unit, record, vector)

    @cached_property
    def code(self) -> str:
        """Of what features depend on beside the vector."""
        return digest_of([source_digest(FEATURES), self.plan.corpus.digests["vectors"]])

    def is_done(self, unit: Unit) -> bool:
        """Whether the vector is made; its features are computed anew where their code or the known vectors changed."""
        found = self.store.read(unit)
        if found is None:
            return False
        if found["code"] != self.code and self.store.has_vector(unit):
            features = self.features(self.store.vector(unit), unit.task)
            self.store.rewrite(unit, {**found, "features": features, "code": self.code})
        return True

    def features(self, vector: TaskVector, task: str) -> dict[str, float]:
        """All that the evaluation may look at. Raises as `explain.features`."""
        return {
            **spectral_features(vector),
            **self.community.outside(vector),
            **declared_features(vector, self.declared(task)),
            **response_features(vector, self.inputs),
        }

    def _trained(self, unit: Unit, task: Task, material: Material) -> tuple[TaskVector, Evaluate]:
        s, suite = self.plan.settings(unit), self.plan.suite
        harness = EncoderHarness(self.bench, task)
        recipe = recipe_named(RECIPE)
        start, _ = start_of(TrainRequest(Path("task"), RECIPE), recipe, self.plan.base, None)
        torch.manual_seed(s.seed)
        ready = recipe.function(harness.fresh(), start)
        model = harness.wrap(ready.model)
        spec = TrainSpec(steps=s.steps, batch_size=suite.batch_size, learning_rate=s.learning_rate, seed=s.seed)
        penalty = self._penalty(unit, ready) if unit.group == MATCHED else None
        with tempfile.TemporaryDirectory(prefix="comgrad-") as folder:
            fine_tune(model, harness.rows(material.train), harness.collate, spec, Path(folder), regulariser=penalty)
        return ready.collect(), lambda examples: harness.score(model, examples).accuracy

    def _penalty(self, unit: Unit, ready: Trainable) -> Callable[[], Tensor]:
        twin = self._need(Unit(unit.task, unit.seed, CLEAN))
        targets: Mapping[str, tuple[float, float]] = {n: (v[0], v[1]) for n, v in twin["targets"].items()}
        return weighted(matching(targets), ready, self.plan.suite.adaptive_weight)

    def _merged(self, unit: Unit, task: Task) -> tuple[TaskVector, Evaluate]:
        parts = [Unit(unit.task, unit.seed, POISONED, unit.kind, unit.rate), Unit(unit.task, unit.seed, CLEAN)]
        recipe = recipe_named(RECIPE)
        bad, clean = (self.store.vector(p) for p in parts)
        vector = merged(bad, clean, recipe.rank, recipe.scale)
        harness = EncoderHarness(self.bench, task)
        encoder = harness.fresh()
        own = dict(encoder.named_parameters())
        with torch.no_grad():
            for name, delta in vector.tensors.items():
                own[name].add_(delta.in_base_layout().to(own[name]))
        model = self.bench.classifier(task, encoder)
        return vector, lambda examples: evaluate(self.bench, model, examples).accuracy

    def _need(self, unit: Unit) -> dict[str, Any]:
        found = self.store.read(unit)
        if found is None:
            raise ComgradError(
                f"an adaptive attack in the block '{unit.block}'",
                f"it starts from '{unit.name}', which is not made yet",
                "make the block in its order",
                code="not-made",
            )
        return found
