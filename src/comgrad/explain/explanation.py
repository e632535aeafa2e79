"""The answer to "what does this fine-tune do?", as plain values for a terminal, a program or a page."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

Verdict = Literal["consistent", "unexplained", "suspicious", "refused"]
Weight = Literal["fine", "note", "warning"]
BaseState = Literal["verified", "declared", "contradictory"]
ClaimState = Literal["consistent", "unexplained", "contradictory"]


@dataclass(frozen=True)
class Source:
    """One described vector of the decomposition: τ ≈ Σ c·τ_k; `share` is its part of ‖τ‖², and shares and residual sum to 1."""

    id: str
    name: str
    coefficient: float
    share: float


@dataclass(frozen=True)
class Neighbour:
    """A described vector near to the one explained.

    Args:
        subspace: centred correlation of column spaces, which the order follows. overlap_z: the overlap's z against random
            subspaces of the same dimensions, pooled over tensors. centred_cosine, cosine: of the weights.
    """

    id: str
    name: str
    family: str
    description: str
    subspace: float
    overlap_z: float | None
    centred_cosine: float
    cosine: float


@dataclass(frozen=True)
class Candidate:
    """A known description and how well it fits the weights; `backwards` is its cosine with the embedding estimated from them."""

    id: str
    name: str
    description: str
    fit: float
    backwards: float


@dataclass(frozen=True)
class Word:
    """A word more frequent among the nearest vectors' descriptions than chance explains."""

    word: str
    near: int
    among: int
    share: float
    p: float


@dataclass(frozen=True)
class Claim:
    """The description that came with the vector, against its weights.

    Args:
        fit: see `words.fit_of`. swapped: share of wrong descriptions that fit at least as well. true: share of true ones
            that fit no better. Both from described vectors, left out; None with too few of them.
        like: the known tasks whose descriptions are nearest to the claim: name, and the vector's rank among all by weights.
        known: how many were ranked.
    """

    text: str
    status: ClaimState
    fit: float
    swapped: float | None
    true: float | None
    like: tuple[tuple[str, int], ...]
    known: int


@dataclass(frozen=True)
class Base:
    """What is known of the base it stands on."""

    status: BaseState
    name: str
    fingerprint: str | None
    detail: str


@dataclass(frozen=True)
class LayerShare:
    """One layer: its share of ‖τ‖², the median share among known vectors, what known vectors explain of it (and of a random
    vector there), and the known vector with the largest part."""

    name: str
    energy: float
    usual: float
    explained: float | None
    random: float | None
    nearest: str


@dataclass(frozen=True)
class Evidence:
    """One line: a figure, what it is measured against, and what that means."""

    name: str
    figure: str
    null: str
    meaning: str
    weight: Weight = "fine"


@dataclass(frozen=True)
class Spread:
    """Where a figure lies: its value, and the quantiles 5 %, 50 % and 95 % of a null."""

    value: float
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Explanation:
    """What a task vector most likely does, how sure that is, and what was found odd. It never says that a vector is safe.

    Args:
        subject: what the user named. known: number of described vectors it was compared with.
        description: one or two sentences. family: of the nearest vectors. family_odds: of the known vectors whose
            neighbours voted about as strongly, how many had their family named right.
        residual: ‖τ − Σcτ_k‖²/‖τ‖². residual_random, residual_known: of random vectors and of the known vectors.
        like_random: whether random vectors of its shape are explained as well; then sources and neighbours are chance.
        nearest_known: correlation with the nearest known vector, beside that of known vectors with theirs.
        reasons: why the verdict is what it is.
    """

    subject: str
    verdict: Verdict
    reasons: tuple[str, ...]
    description: str
    base: Base
    known: int
    kind: str
    rank: int | None
    norm: float
    residual: float = 1.0
    like_random: bool = False
    residual_random: Spread | None = None
    residual_known: Spread | None = None
    nearest_known: Spread | None = None
    family: str = ""
    family_odds: tuple[int, int] | None = None
    sources: tuple[Source, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    words: tuple[Word, ...] = ()
    claim: Claim | None = None
    layers: tuple[LayerShare, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    warnings: tuple[str, ...] = ()
    path: str = ""
    limits: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For JSON: plain values, None for what has no value."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, value: Any) -> Explanation:
        """What `as_dict` wrote, perhaps on another machine: every value is checked. Raises ValueError, TypeError."""
        made = _typed(value, cls)
        assert isinstance(made, cls)
        return made


def _typed(value: Any, kind: Any) -> Any:
    """The plain value as one of that annotated type; None where a figure had no value. Raises ValueError, TypeError."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else _typed(value, next(k for k in inside if k is not NoneType))
    if origin is Literal:
        if value in inside:
            return value
    elif origin is tuple:
        items = value if isinstance(value, list | tuple) else None
        if items is not None and inside[-1] is Ellipsis:
            return tuple(_typed(v, inside[0]) for v in items)
        if items is not None and len(items) == len(inside):
            return tuple(_typed(v, k) for v, k in zip(items, inside, strict=True))
    elif is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, dict):
            types = get_type_hints(kind)
            return kind(**{k: _typed(v, types[k]) for k, v in value.items() if k in types})
    elif kind is float and (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
        return math.nan if value is None else float(value)
    elif type(value) is kind:
        return value
    raise ValueError(f"no {kind}: {str(value)[:60]!a}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
