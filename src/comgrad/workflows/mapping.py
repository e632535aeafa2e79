"""Journey: the map of a registry's tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from comgrad.atlas.collection import Collection
from comgrad.atlas.layout import Layout, lay_out
from comgrad.atlas.picture import Point, as_html, as_image
from comgrad.errors import ComgradError
from comgrad.geometry.measures import MEASURES
from comgrad.geometry.measures import matrix as measure_matrix
from comgrad.weights.writer import atomic_write_bytes
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection

SUFFIXES = (".html", ".png", ".svg")


def draw_map(out: Path, *, measure: str = "centred_cosine", base: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Write the map and return its points, clusters and stress. Raises ComgradError."""
    if out.suffix not in SUFFIXES:
        raise ComgradError(
            f"'{out}'",
            "a map is written as .html, .png or .svg",
            "end the file's name in one of them",
            code="file-type",
        )
    atlas = collection(Registry(), base=base)
    layout = lay_out(similarity(atlas, measure), seed=seed)
    points = [Point(m.id, m.name, m.family, m.description) for m in atlas.members]
    title = f"Map of {len(points)} tasks by {measure.replace('_', ' ')}"
    write_picture(out, layout, points, title)
    return {"path": str(out), "measure": measure, **_as_dict(layout, points)}


def placed(atlas: Collection, *, seed: int = 0) -> dict[str, Any]:
    """The map of a collection by centred cosine, as plain values: points with their descriptions, clusters, stress."""
    points = [Point(m.id, m.name, m.family, m.description) for m in atlas.members]
    made = _as_dict(lay_out(similarity(atlas, "centred_cosine"), seed=seed), points)
    described = [p | {"description": m.description} for p, m in zip(made["points"], atlas.members, strict=True)]
    return made | {"points": described}


def _as_dict(layout: Layout, points: list[Point]) -> dict[str, Any]:
    return {
        "points": [
            {"id": p.id, "name": p.name, "family": p.family, "x": float(x), "y": float(y), "cluster": int(c)}
            for p, (x, y), c in zip(points, layout.positions, layout.clusters, strict=True)
        ],
        "clusters": [
            {"cluster": c, "ids": [p.id for p, k in zip(points, layout.clusters, strict=True) if k == c]}
            for c in range(int(layout.clusters.max()) + 1)
        ],
        "stress": layout.stress,
        "silhouette": layout.silhouette,
    }


def write_picture(out: Path, layout: Layout, points: list[Point], title: str) -> None:
    """The map in the kind its suffix names."""
    data = (
        as_html(layout, points, title=title)
        if out.suffix == ".html"
        else as_image(layout, points, out.suffix[1:], title=title)
    )
    atomic_write_bytes(out, data)


def similarity(atlas: Collection, measure: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(K, K) where larger is nearer, whichever way the measure counts."""
    if measure == "centred_cosine":
        return atlas.centred_cosine()
    if measure not in MEASURES or not MEASURES[measure].symmetric:
        choices = [n for n, m in MEASURES.items() if m.symmetric]
        raise ComgradError(
            f"the measure '{measure}'",
            "a map needs a symmetric measure",
            f"choose one of: {', '.join(choices)}",
            code="unknown-measure",
        )
    values = np.asarray(measure_matrix(atlas.vectors(), measure).values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ComgradError(
            f"the measure '{measure}'", "it is undefined for some pairs here", "use centred_cosine", code="undefined"
        )
    others = np.abs(values[~np.eye(len(values), dtype=bool)])
    scale = float(others.max(initial=0.0)) or 1.0
    return values / scale if MEASURES[measure].higher_is_nearer else 1.0 - values / scale
