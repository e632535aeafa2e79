"""Journey: trends. What grows in a registry, how its map drifts, what is copied or mixed in it, and what it lacks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.atlas.alignment import Alignment, align, shuffled_drift
from comgrad.atlas.collection import Collection
from comgrad.atlas.duplicates import copies, derived, other_factors, residuals
from comgrad.atlas.layout import Layout, lay_out
from comgrad.atlas.picture import Point
from comgrad.atlas.trends import Gap, Rise, gaps, lonely, rises
from comgrad.describe.encoder import load_encoder
from comgrad.describe.memory import encode_cached
from comgrad.errors import ComgradError, NotFound
from comgrad.weights.strict_json import read_json
from comgrad.workflows.registry import Entry, Registry
from comgrad.workflows.resolve import collection
from comgrad.workflows.searching import checked_description
from comgrad.workflows.trends_time import NO_FAMILY, OverTime, parsed_day

FEWEST_TO_DRIFT = 5
MOST_WANTED = 10_000


@dataclass(frozen=True)
class Drift:
    """How the map moved between two versions.

    Args:
        common: how many vectors are on both maps.
        overall: root mean square drift over the newer map's radius.
        shuffled: the same for points paired at random, its mean: no shared shape at all.
        points: name and drift, the farthest first.
    """

    common: int
    overall: float
    shuffled: float
    points: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Trends(OverTime):
    """What `comgrad trends` shows. Near-duplicates count once everywhere but in the list of them.

    Args:
        copies: name, that of the older one, kind, cosine, length.
        mixtures: name, its parents with coefficients, residual, declared parents, and whether they are the found ones.
        lonely: name, nearest other one, centred cosine.
        usual_residual: median share of a vector that the older ones do not span.
    """

    vectors: int
    counted: int
    clusters: tuple[Rise, ...]
    drift: Drift | None
    copies: tuple[dict[str, Any], ...]
    mixtures: tuple[dict[str, Any], ...]
    usual_residual: float
    lacking: tuple[dict[str, Any], ...]
    lonely: tuple[tuple[str, str, float], ...]
    points: tuple[Point, ...]
    layout: Layout | None
    before: Any = None  # (K, 2) the older map in the newer one's frame, NaN where a point was not on it

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        plain = ("vectors", "counted", "copies", "mixtures", "usual_residual", "lacking")
        out = {k: getattr(self, k) for k in plain} | super().as_dict()
        out["clusters"] = [r.as_dict() for r in self.clusters]
        out["drift"] = None if self.drift is None else asdict(self.drift)
        out["lonely"] = [{"name": n, "nearest": m, "centred_cosine": c} for n, m, c in self.lonely]
        return out


def trends(
    *,
    out: Path | None = None,
    since: str | None = None,
    wanted: Path | None = None,
    base: str | None = None,
    registry: Registry | None = None,
) -> Trends:
    """The trends of a registry, and the page of them where a file is named.

    Args:
        out: an .html file to write.
        since: a date, or a date and time (UTC unless it says otherwise); default: when the last quarter was added.
        wanted: what people ask for: a file with a description per line, a .jsonl of cards, or a folder of task folders.

    Raises:
        ComgradError: an empty registry; several bases; a date or a file that cannot be read.
    """
    if out is not None and out.suffix != ".html":
        raise ComgradError(f"'{out}'", "trends are written as .html", "end the file's name in .html", code="file-type")
    asked = wanted_texts(wanted) if wanted is not None else []
    day = parsed_day(since) if since is not None else None
    registry = registry or Registry()
    atlas = collection(registry, base=base)
    entries = {e.id: e for e in registry.list()}
    made = study(atlas, [entries[i] for i in atlas.ids], asked, day)
    if out is not None:
        from comgrad.workflows.trends_page import write_page

        write_page(made, out)
    return made


def study(atlas: Collection, entries: Sequence[Entry], asked: Sequence[str], since: datetime | None) -> Trends:
    """The trends of a collection whose entries, in the same order, say when each was added."""
    kept = atlas.groups.leaders
    alone = atlas.subset(kept)
    time = OverTime.of([entries[i].record.created_at for i in kept], [m.family for m in alone.members], since)
    layout = lay_out(alone.centred_cosine()) if len(kept) >= 3 else None
    moved = _drift(alone, layout, time.recent) if layout is not None else None
    clusters = _cluster_names(alone, layout) if layout is not None else []
    return Trends(
        **vars(time),
        vectors=len(atlas.members),
        counted=len(kept),
        clusters=tuple(rises(clusters, time.recent)) if clusters and any(time.recent) else (),
        drift=moved[0] if moved else None,
        copies=tuple(_copies(atlas)),
        mixtures=tuple(_mixtures(atlas, kept, entries)),
        usual_residual=float(np.median(residuals(atlas.gram, kept))),
        lacking=tuple(_lacking(alone, asked)),
        lonely=tuple((alone.members[i].name, alone.members[j].name, c) for i, j, c in lonely(alone.centred_cosine())),
        points=tuple(Point(m.id, m.name, m.family, m.description) for m in alone.members),
        layout=layout,
        before=moved[1] if moved else None,
    )


# -- the map -----------------------------------------------------------------------------------------------------------
def _drift(alone: Collection, layout: Layout, recent: Sequence[bool]) -> tuple[Drift, Any] | None:
    """The map of what was there before, laid on today's; None where either is too small or nothing is new."""
    old = [i for i, new in enumerate(recent) if not new]
    if len(old) < FEWEST_TO_DRIFT or len(old) == len(recent):
        return None
    before = lay_out(alone.subset(old).centred_cosine()).positions
    now = layout.positions[old]
    found: Alignment = align(before, now)
    order = np.argsort(-found.drift, kind="stable")
    points = tuple((alone.members[old[int(i)]].name, float(found.drift[i])) for i in order)
    null = float(shuffled_drift(before, now).mean())
    placed = np.full(layout.positions.shape, np.nan)
    placed[old] = found.moved
    return Drift(len(old), found.overall, null, points), placed


def _cluster_names(alone: Collection, layout: Layout) -> list[str]:
    """For each member its cluster, called by the family that most of its members have and its most central member."""
    similarity = alone.centred_cosine()
    names = {}
    for c in sorted(set(layout.clusters.tolist())):
        of = np.flatnonzero(layout.clusters == c)
        centre = alone.members[int(of[similarity[np.ix_(of, of)].sum(axis=1).argmax()])].name
        family = Counter(alone.members[int(i)].family or NO_FAMILY for i in of).most_common(1)[0][0]
        names[c] = f"{c}: {family}, around {centre}"
    return [names[int(c)] for c in layout.clusters]


# -- copies and mixtures -----------------------------------------------------------------------------------------------
def _copies(atlas: Collection) -> list[dict[str, Any]]:
    out = []
    for c in copies(atlas.gram, atlas.groups):
        kind = c.kind
        if kind == "same" and other_factors(atlas.members[c.index].load(), atlas.members[c.of].load()):
            kind = "same, in other factors"
        name, of = atlas.members[c.index].name, atlas.members[c.of].name
        out.append({"name": name, "of": of, "kind": kind, "cosine": c.cosine, "length": c.length})
    return out


def _mixtures(atlas: Collection, kept: list[int], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    out = []
    for d in derived(atlas.gram, kept):
        parents = [{"name": atlas.members[i].name, "coefficient": c} for i, c in d.parents]
        declared = [p.id for p in entries[d.index].card.parents]
        known = {word for i, _ in d.parents for word in (atlas.ids[i], atlas.members[i].name)}
        out.append(
            {
                "name": atlas.members[d.index].name,
                "parents": parents,
                "residual": d.residual,
                "mixture": d.mixture,
                "declared": declared,
                "as_declared": bool(declared) and len(declared) == len(parents) and set(declared) <= known,
            }
        )
    return out


# -- what is lacking ---------------------------------------------------------------------------------------------------
def _lacking(alone: Collection, asked: Sequence[str]) -> list[dict[str, Any]]:
    described = [m for m in alone.members if m.description.strip()]
    if not asked or not described:
        return []
    encoder = load_encoder()
    known = encode_cached(encoder, [m.description for m in described], alone.cache).astype(np.float64)
    found: list[Gap] = gaps(encoder.encode(list(asked)).astype(np.float64), known, list(asked))
    return [
        {
            "description": g.text,
            "nearest": described[g.nearest].name,
            "cosine": g.cosine,
            "usual": g.usual,
            "lacking": g.lacking,
        }
        for g in found
    ]


def wanted_texts(path: Path) -> list[str]:
    """Descriptions from a text file (one a line), a .jsonl of cards, a task folder, or a folder of them.

    Raises:
        NotFound: nothing there, or no description in it. ComgradError: a description that cannot be one.
    """
    if path.is_dir():
        cards = [path / "task_card.json", *sorted(path.glob("*/task_card.json"))]
        texts = [str(read_json(p).get("description") or "") for p in cards if p.is_file()]
    else:
        try:
            lines = path.read_text("utf-8").splitlines()
        except FileNotFoundError as error:
            raise NotFound(f"'{path}'", "there is no such file", "check the spelling") from error
        except UnicodeDecodeError as error:
            raise ComgradError(f"'{path}'", "it is no text in UTF-8", "give a text file", code="not-text") from error
        texts = [_from_card(line, path) for line in lines] if path.suffix == ".jsonl" else lines
    texts = list(dict.fromkeys(t.strip() for t in texts if t.strip()))
    if not texts:
        raise NotFound(f"descriptions in '{path}'", "it holds none", "write one description a line")
    if len(texts) > MOST_WANTED:
        raise ComgradError(f"{len(texts)} descriptions", f"at most {MOST_WANTED} are compared", "give fewer")
    return [checked_description(t) for t in texts]


def _from_card(line: str, path: Path) -> str:
    if not line.strip():
        return ""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ComgradError(f"'{path}'", "a line of it is no JSON", "give one card a line", code="bad-json") from error
    return str(found.get("description") or "") if isinstance(found, dict) else str(found)


def shortened(made: Trends, most: int = 15) -> Trends:
    """The same with at most so many rows per list, for a terminal."""
    return replace(
        made,
        families=made.families[:most],
        clusters=made.clusters[:most],
        copies=made.copies[:most],
        mixtures=made.mixtures[:most],
        lacking=made.lacking[:most],
        thin=made.thin[:most],
        lonely=made.lonely[:most],
    )
