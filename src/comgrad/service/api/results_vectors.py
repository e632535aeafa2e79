"""What the API sends of vectors, and of what is computed from them. See `results`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from comgrad.registry.card import Card
from comgrad.service.api.results import Digest, Figure, Sent, Visibility


# -- vectors -----------------------------------------------------------------------------------------------------------
class Vector(Sent):
    """A listed vector in short."""

    id: str
    owner: str
    name: str
    full_name: str
    description: str
    family: str
    tags: list[str]
    base: str
    base_status: Literal["verified", "declared"]
    kind: str
    rank: int | None
    norm: Figure
    digest: Digest
    size_bytes: int
    visibility: Visibility
    created_at: datetime


class Near(Sent):
    """A neighbour by weights, as it was noted."""

    id: str
    name: str
    cosine: Figure


class Related(Sent):
    """What was found around a vector when it came."""

    neighbours: list[Near]
    notes: list[str]
    doubt: str = ""
    copy_of: str | None = None
    about: list[str] = Field(default_factory=list)


class Screening(BaseModel):
    """Whether its weights bear out its description; advice. Of one that was not screened, why."""

    verdict: str | None
    known: int
    reasons: list[str] = Field(default_factory=list)
    about: list[str] = Field(default_factory=list)


class WholeVector(Vector):
    """A listed vector with its card, and with what was found at its admission."""

    base_fingerprint: str | None
    damage: str | None
    card: Card
    related: Related | None
    screening: Screening | None


class OneVector(Sent):
    """A vector."""

    vector: WholeVector


class Removed(Sent):
    """A vector that is shared no more."""

    vector: Vector
    removed: Literal[True]


class Count(Sent):
    """A value of a facet, and how many vectors have it."""

    value: str
    count: int


class Catalogue(Sent):
    """A page of the catalogue, and the counts of each facet."""

    items: list[Vector]
    total: int
    offset: int
    limit: int
    facets: dict[Literal["family", "base", "kind", "tag", "owner", "visibility"], list[Count]]


class Neighbour(Vector):
    """A vector near to another."""

    cosine: Figure


class Neighbours(Sent):
    """The nearest vectors, best first."""

    items: list[Neighbour]


class Layer(Sent):
    """A layer, its share of the vector's squared norm, and the largest rank of its tensors."""

    layer: str
    share: Figure
    rank: int | None
    tensors: int


class Profile(Sent):
    """The layers in the model's order."""

    items: list[Layer]


class Link(Sent):
    """A vector that another was made from, or that was made from it."""

    id: str
    name: str | None
    role: str
    coefficient: Figure
    readable: bool


class Lineage(Sent):
    """Where a vector comes from, and what was made of it."""

    parents: list[Link]
    children: list[Link]


class File(Sent):
    """A file that can be downloaded."""

    name: str
    size: int
    sha256: Digest
    media_type: str


class Files(Sent):
    """Files that can be downloaded."""

    items: list[File]


class Hashed(Sent):
    """A file's digest and size."""

    sha256: Digest
    size: int


class Manifest(Sent):
    """The digests of all files; the signature is a sigstore bundle, where the site signs."""

    vector: str
    name: str
    files: dict[str, Hashed]
    signature: dict[str, Any] | None


# -- what is computed --------------------------------------------------------------------------------------------------
class Hit(Vector):
    """A vector that was found; of how many copies it is the first, and why its description is doubted."""

    score: Figure
    copies: int
    doubt: str


class Hits(Sent):
    """What was found, best first."""

    items: list[Hit]


class Source(Sent):
    """A vector of a suggestion and its coefficient."""

    id: str
    name: str
    coefficient: Figure
    description: str
    owner: str


class Gain(Sent):
    """The predicted fall of the loss in nats, with its 90 % interval."""

    nats: Figure
    low: Figure
    high: Figure


class Suggestion(Sent):
    """A starting adapter, where it comes from, and how far to trust it."""

    id: str
    description: str
    abstained: bool
    reason: str
    rule: str
    confidence: Figure
    expected_gain: Gain | None = None
    scale: Figure
    energy_kept: Figure
    base: str
    examples: int
    warnings: list[str]
    trainable: dict[str, int]
    sources: list[Source]
    layers: list[Layer]
    files: list[File]


class Measured(BaseModel):
    """Every measure between two vectors or tensors; null where it is not defined."""

    cosine: Figure
    inner: Figure
    norms: list[Figure] = Field(min_length=2, max_length=2)
    l2: Figure
    projection: Figure
    projection_reverse: Figure
    grassmann_l1: Figure
    geodesic: Figure
    chordal: Figure
    projection_metric: Figure
    overlap: Figure
    overlap_z: Figure
    spectral: dict[Literal["forward", "backward"], dict[str, Figure]]


class Comparison(Measured):
    """Every measure between two vectors, in total and for each tensor; `notes` says why some are not defined."""

    a: Vector
    b: Vector
    tensors: dict[str, Measured]
    notes: list[str]


class Base(Sent):
    """A base model, and how many vectors stand on it."""

    base: str
    fingerprint: str | None
    vectors: int


class Bases(Sent):
    """The base models."""

    items: list[Base]
