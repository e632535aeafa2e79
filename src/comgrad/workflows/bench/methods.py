"""The benchmark's methods as rows of a table: what each needs beyond the description, and what it does.

| needs | gets |
|---|---|
| description | the query's text and the fold |
| nothing | the fold alone; the text is not looked at |
| family | also the query's family |
| n examples | also n labelled training examples of the query |
| other tasks' data | trains on the other tasks' examples |
| oracle | the query's own vector, or all its prepared examples: a ceiling, no method |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from comgrad.predict.rules import RULES
from comgrad.vectors.delta import Delta, LowRank, matrix_shape
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench import ceilings, near, scale, search, shots, training
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.cut import RANK, cut
from comgrad.workflows.bench.fold import Fold
from comgrad.workflows.bench.outcome import Outcome

Vector = Float[np.ndarray, "k"]
Function = Callable[[Fold, Aid], Outcome]
PREDICTING = tuple(
    f"comgrad.{m}"
    for m in (
        "predict.rules", "predict.evidence", "predict.functional", "predict.ridge", "describe.head", "describe.targets"
    )
)  # fmt: skip
FITTING = (*PREDICTING, "comgrad.predict.fewshot", "comgrad.workflows.bench.shots")
SCALING = (*PREDICTING, "comgrad.workflows.bench.scale")
CUT = (*PREDICTING, "comgrad.workflows.bench.cut", "comgrad.predict.start")
NEAR = (*PREDICTING, "comgrad.workflows.bench.near")
TEXT, FEW, TRAINED, CEILING = "text", "examples", "trained", "ceiling"


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        group: `text`, `examples`, `trained` or `ceiling`.
        needs: see the module.
        long: runs only when asked for: takes minutes per task, or answers a question of its own.
        code: packages and modules whose source a kept result depends on.
        splits: where it has a meaning; empty: everywhere.
    """

    name: str
    function: Function
    meaning: str
    group: str = TEXT
    needs: str = "description"
    long: bool = False
    code: tuple[str, ...] = PREDICTING
    splits: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """How many labelled examples of the query it uses."""
        return int(self.needs.split()[0]) if self.needs.endswith(" examples") else 0


def by_rule(fold: Fold, aid: Aid, *, rule: str) -> Outcome:
    """A rule of `predict.rules` as it is."""
    del aid
    return Outcome.of(RULES[rule](fold.evidence, fold.query))


def forced(fold: Fold, aid: Aid, *, rule: str) -> Outcome:
    """The same without its abstention."""
    del aid
    found = RULES[rule](fold.evidence, fold.query)
    return Outcome(found.coefficients, strength=found.strength, expected_gain=found.expected_gain)


def bold(fold: Fold, aid: Aid) -> Outcome:
    """Functional coefficients and half of softmax5's: more gain where a relative exists, more harm elsewhere."""
    del aid
    safe, near = (RULES[rule](fold.evidence, fold.query).coefficients for rule in ("functional", "softmax5"))
    return Outcome(safe + 0.5 * near)


def family_mean(fold: Fold, aid: Aid) -> Outcome:
    """The mean of the fold's vectors of the query's family; of all where there is none."""
    same = np.array([f == aid.family for f in fold.families])
    if not same.any():
        same[:] = True
    return Outcome(same / same.sum())


def random_coefficients(fold: Fold, aid: Aid) -> Outcome:
    """Normal coefficients, scaled to the norm of the mean vector."""
    del aid
    K = len(fold.allowed)
    c = _generator(fold).standard_normal(K)
    mean = np.full(K, 1.0 / K)
    G = fold.evidence.gram
    return Outcome(c * float(np.sqrt(max(mean @ G @ mean, 0.0) / max(c @ G @ c, 1e-300))))


def random_lora(fold: Fold, aid: Aid) -> Outcome:
    """Random factors with, tensor by tensor, the rank and the norm of a known vector drawn at random."""
    rng = _generator(fold)
    like = aid.model.corpus.vectors[int(rng.choice(fold.allowed))]
    draw = torch.Generator().manual_seed(int(rng.integers(2**31)))
    tensors: dict[str, Delta] = {}
    for name, d in like.tensors.items():
        if not d.is_matrix:
            continue
        m, n = matrix_shape(d)
        r = d.rank if isinstance(d, LowRank) else min(m, n, 8)
        made = LowRank(torch.randn(m, r, generator=draw), torch.randn(r, n, generator=draw), transposed=d.transposed)
        own = TaskVector(like.base, {name: d}).norm()
        tensors[name] = made.scaled(own / TaskVector(like.base, {name: made}).norm())
    return Outcome(vector=TaskVector(like.base, tensors))


def _generator(fold: Fold) -> np.random.Generator:
    key = int.from_bytes(hashlib.sha256(fold.query.text.encode()).digest()[:4], "big")
    return np.random.default_rng([fold.seed, key, len(fold.allowed)])


def _table() -> list[Method]:
    rules = [
        Method("zero", partial(by_rule, rule="zero"), "the base model", needs="nothing"),
        Method("mean", partial(by_rule, rule="mean"), "mean of all vectors", needs="nothing"),
        Method("mean-scaled", partial(scale.scaled, rule="mean"), "mean × fitted scale", needs="nothing", code=SCALING),
        Method("family-mean", family_mean, "mean of the query's family, which it is told", needs="family"),
        Method("nearest", partial(by_rule, rule="nearest"), "vector of the nearest description"),
        Method("nearest-scaled", partial(scale.scaled, rule="nearest"), "nearest × fitted scale", code=SCALING),
        Method("tfidf-nearest", partial(by_rule, rule="tfidf-nearest"), "vector of the nearest description by TF-IDF"),
        Method("softmax3", partial(by_rule, rule="softmax3"), "softmax over the 3 nearest descriptions"),
        Method("softmax5", partial(by_rule, rule="softmax5"), "softmax over the 5 nearest descriptions"),
        Method("softmax10", partial(by_rule, rule="softmax10"), "softmax over the 10 nearest descriptions"),
        Method("softmax5-scaled", partial(scale.scaled, rule="softmax5"), "softmax5 × fitted scale", code=SCALING),
        Method("eq1", partial(by_rule, rule="eq1"), "the note's Eq. 1 as written"),
        Method("eq1-scaled", partial(scale.scaled, rule="eq1"), "Eq. 1 × fitted scale", code=SCALING),
        Method("eq1-centred", partial(by_rule, rule="eq1-centred"), "Eq. 1 on centred vectors, plus the mean"),
        Method("gram-corrected", partial(by_rule, rule="gram-corrected"), "Eq. 1 solved for coordinates in the span"),
        Method("ridge", partial(by_rule, rule="ridge"), "kernel ridge on centred vectors"),
        Method(
            "functional-fixed", partial(by_rule, rule="functional-fixed"), "functional without the learned embedding"
        ),
        Method(
            "functional", partial(by_rule, rule="functional"), "**ours**: predicted gains, charged for risk; abstains"
        ),
        Method("functional-forced", partial(forced, rule="functional"), "the same, never abstaining"),
        Method(
            f"functional-r{RANK}",
            partial(cut, whole=partial(by_rule, rule="functional")),
            f"functional as `comgrad suggest` writes it: at rank {RANK}",
            code=CUT,
        ),
        *(
            Method(
                f"{rule}-near{most}",
                partial(near.near, most=most, rule=rule),
                f"{rule} on a neighbourhood of {most} in words, as the service takes it among thousands",
                long=True,
                code=NEAR,
            )
            for rule in ("functional", "ridge")
            for most in (12, 24, 48, 96)
        ),
        Method("bold", bold, "functional-forced plus half of softmax5: the other end of the trade"),
        Method("random-coefficients", random_coefficients, "random sum with the mean's norm", needs="nothing", code=()),
        Method("random-lora", random_lora, "random adapter with a known one's norms", needs="nothing", code=()),
    ]
    few = [
        Method(f"ours+{n}", shots.ours, f"**ours** with {n} labelled examples", FEW, f"{n} examples", code=FITTING)
        for n in (16, 160)
    ]
    few.append(
        Method(
            f"ours+16-r{RANK}",
            partial(cut, whole=shots.ours),
            f"ours+16 at rank {RANK}",
            FEW,
            "16 examples",
            code=(*FITTING, *CUT),
        )
    )
    once = partial(shots.ours, rounds=1)
    few.append(Method("ours+160-once", once, "ours+160 linearised at the base only", FEW, "160 examples", code=FITTING))
    few += [
        Method(
            f"lorahub-{start}20-{budget}+{n}",
            partial(search.lorahub, start=start, budget=budget),
            f"LoraHub-like: 20 {'random' if start == 'random' else 'text-nearest'} vectors, {budget} losses, {n} examples",
            FEW,
            f"{n} examples",
            long=budget * n >= 40 * 160,
            code=("comgrad.workflows.bench.search",),
        )
        for budget, n in ((40, 16), (400, 16), (40, 160), (400, 160))
        for start in ("random", "nearest")
    ]
    return rules + few + training.methods() + ceilings.methods()


METHODS: Mapping[str, Method] = {m.name: m for m in _table()}
