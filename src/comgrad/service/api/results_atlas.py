"""What the API sends of many vectors together: the map, the trends. See `results`."""

from __future__ import annotations

from datetime import date, datetime

from pydantic import BaseModel

from comgrad.service.api.results import Figure


class Point(BaseModel):
    """A task on the map."""

    id: str
    name: str
    family: str
    description: str
    x: Figure
    y: Figure
    cluster: int


class Cluster(BaseModel):
    """A cluster of the map."""

    cluster: int
    ids: list[str]


class Part(BaseModel):
    """About some of what one may read over a base; `left_out` counts the others."""

    base: str
    left_out: int


class Map(Part):
    """The map of tasks: the first `exact` points by their distances, others among these; `waiting` are not placed yet."""

    exact: int
    waiting: int
    points: list[Point]
    clusters: list[Cluster]
    stress: Figure
    silhouette: Figure
    version: str


class Growth(BaseModel):
    """How many vectors there were at the end of each span of time, for each group."""

    unit: str
    starts: list[date]
    total: dict[str, list[int]]


class Rise(BaseModel):
    """How a group's share changed."""

    label: str
    before: int
    after: int
    share_before: Figure
    share_after: Figure
    chance: Figure
    emerging: bool


class Drift(BaseModel):
    """How the map moved; name and drift of each point, the farthest first."""

    common: int
    overall: Figure
    shuffled: Figure
    points: list[tuple[str, Figure]]


class Copy(BaseModel):
    """A vector that is nearly another, older one."""

    name: str
    of: str
    kind: str
    cosine: Figure
    length: Figure


class MixedIn(BaseModel):
    """A vector of a mixture and its coefficient."""

    name: str
    coefficient: Figure


class Mixture(BaseModel):
    """A vector that older ones span."""

    name: str
    parents: list[MixedIn]
    residual: Figure
    mixture: bool
    declared: list[str]
    as_declared: bool


class Lacking(BaseModel):
    """A description that people ask for, and what is nearest to it."""

    description: str
    nearest: str
    cosine: Figure
    usual: Figure
    lacking: bool


class Thin(BaseModel):
    """A family with few vectors."""

    family: str
    vectors: int


class Lonely(BaseModel):
    """A vector and the nearest other one, which is far."""

    name: str
    nearest: str
    centred_cosine: Figure


class Weighed(BaseModel):
    """The newest, of which all but growth is told, and since when."""

    vectors: int
    since: datetime | None


class Trends(Part):
    """What grows, drifts, is copied or lacking."""

    weighed: Weighed

    vectors: int
    counted: int
    span_days: Figure
    since: datetime | None
    growth: Growth
    families: list[Rise]
    clusters: list[Rise]
    drift: Drift | None
    copies: list[Copy]
    mixtures: list[Mixture]
    usual_residual: Figure
    lacking: list[Lacking]
    thin: list[Thin]
    lonely: list[Lonely]
    notes: list[str]
