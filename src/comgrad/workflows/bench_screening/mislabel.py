"""Descriptions that do not belong to their vector, planted: can weights and words together tell?

With s_k the similarity of the declared description to the description of known task k and w_k the centred cosine of the
vector to its known vector, the agreement is Σ_k p_k w_k, p = softmax(s/T). It is standardised over all descriptions that
the registry knows, each in the place of the declared one: how much better the declared words fit than any other words do.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from comgrad.describe.encoder import load_encoder
from comgrad.errors import ComgradError, NotFound
from comgrad.geometry.gram import centred, cosine_from_gram, gram_by_tensor
from comgrad.workflows.bench.corpus import Corpus, Item

TEMPERATURE = 0.05
TRUE, NEAR, FAR = "true", "near swap", "far swap"
SWAPS = (NEAR, FAR)
ABSENT, PRESENT = "declared task not in the registry", "declared task in the registry"
FIELDS = ("setting", "task", "family", "source_group", "claim", "declared", "score")


@dataclass(frozen=True)
class Claim:
    """A vector of `task` under a description; `score` is higher the less the description fits it."""

    setting: str
    task: str
    family: str
    source_group: str
    claim: str
    declared: str
    score: float


def claims(corpus: Corpus, seed: int = 0) -> list[Claim]:
    """Every known vector under its own description, one of its family, and one of another family, drawn from the seed.

    `declared task not in the registry`: the vectors of the source groups of both the vector's own task and the declared
    one are taken out before the score, so that only other tasks can speak. `declared task in the registry`: second runs
    of known tasks against all first runs.

    Raises:
        ComgradError: fewer than three vectors.
    """
    known = corpus.known
    if len(known) < 3:
        raise ComgradError(f"{len(known)} vectors", "a claim is seen beside others", "give more", code="too-few")
    seconds = [(name, path) for kind in sorted(corpus.second_runs) for name, path in sorted(corpus.second_runs[kind].items())]  # fmt: skip
    words = _embedded(known)
    first = _cosines(corpus, [])
    out = []
    for i, item in enumerate(known):
        own = np.array([k.source_group == item.source_group for k in known])
        for claim, j in _swaps(known, i, seed):
            out_of_sight = own | np.array([k.source_group == known[j].source_group for k in known])
            score = _misfit(first[i], words, j, ~out_of_sight)
            out.append(_claim(ABSENT, item, claim, known[j], score))
    ids = [k.id for k in known]
    runs = [(ids.index(name), path) for name, path in seconds if name in ids]
    beside = _cosines(corpus, [path for _, path in runs])[len(known) :, : len(known)] if runs else np.zeros((0, 0))
    for row, (i, _) in zip(beside, runs, strict=True):
        for claim, j in _swaps(known, i, seed):
            score = _misfit(row, words, j, np.ones(len(known), dtype=bool))
            out.append(_claim(PRESENT, known[i], claim, known[j], score))
    return out


def _claim(setting: str, item: Item, claim: str, declared: Item, score: float) -> Claim:
    return Claim(setting, item.id, item.family, item.source_group, claim, declared.id, score)


def _swaps(known: Sequence[Item], i: int, seed: int) -> list[tuple[str, int]]:
    """The true description, and where there are candidates of other source groups a near and a far one."""
    draw = random.Random(f"{seed}/{known[i].id}")
    out = [(TRUE, i)]
    for claim in SWAPS:
        same = claim == NEAR
        others = [
            j for j, k in enumerate(known)
            if (k.family == known[i].family) == same and k.source_group != known[i].source_group
        ]  # fmt: skip
        if others:
            out.append((claim, draw.choice(others)))
    return out


def _misfit(cosines: np.ndarray, words: np.ndarray, declared: int, visible: np.ndarray) -> float:
    """Minus the agreement's z over all descriptions."""
    weights = np.exp((words[:, visible] - words[:, visible].max(axis=1, keepdims=True)) / TEMPERATURE)
    agreement = (weights / weights.sum(axis=1, keepdims=True)) @ cosines[visible]
    spread = float(agreement.std())
    return float(agreement.mean() - agreement[declared]) / spread if spread > 0 else 0.0


def _embedded(known: Sequence[Item]) -> Float[np.ndarray, "k k"]:
    E = load_encoder().encode([i.description for i in known]).astype(np.float64)
    similar: np.ndarray = E @ E.T
    return similar


def _cosines(corpus: Corpus, runs: Sequence[Path]) -> Float[np.ndarray, "k k"]:
    """Centred cosines; the mean is that of the known vectors alone."""
    vectors = [*corpus.vectors, *(type(corpus.vectors[0]).from_peft(p) for p in runs)]
    among = torch.zeros(len(vectors), dtype=torch.bool)
    among[: len(corpus.vectors)] = True
    G = gram_by_tensor(vectors, workers=1).total
    cosine: np.ndarray = np.nan_to_num(cosine_from_gram(centred(G, among)).numpy())
    return cosine


# -- kept --------------------------------------------------------------------------------------------------------------
def as_csv(found: Sequence[Claim]) -> bytes:
    """One line a claim."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(c), "score": f"{c.score:.6g}"} for c in found)
    return out.getvalue().encode()


def read_claims(path: Path) -> list[Claim]:
    """The claims of a file. Raises NotFound; ComgradError (`bad-table`)."""
    if not path.is_file():
        raise NotFound(f"'{path}'", "there is no such file", "name the file that an earlier run wrote")
    with path.open(encoding="utf-8", newline="") as lines:
        try:
            return [_read(line) for line in csv.DictReader(lines)]
        except (KeyError, ValueError, TypeError) as error:
            raise ComgradError(
                f"'{path}'", f"it is no table of claims ({error})", "write it again", code="bad-table"
            ) from error


def _read(line: Mapping[str, str]) -> Claim:
    words = {k: line[k] for k in FIELDS if k != "score"}
    return Claim(**words, score=float(line["score"]))
