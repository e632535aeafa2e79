"""The map: planted structure is found, the same matrix gives the same picture."""

from __future__ import annotations

import numpy as np
import pytest

from comgrad.atlas.layout import lay_out
from comgrad.atlas.picture import Point, as_html, as_image
from comgrad.errors import ComgradError


def planted(groups: int = 3, each: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(50, groups)))[0]
    rows = np.concatenate([centres[:, g] + 0.05 * rng.normal(size=(each, 50)) for g in range(groups)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def points(n: int) -> list[Point]:
    return [Point(f"i{i}", f"name {i}", f"family {i % 3}", "words <script>alert(1)</script> & more") for i in range(n)]


def test_planted_clusters_are_found_and_drawn_apart() -> None:
    found = lay_out(planted())
    assert [set(found.clusters[g * 6 : g * 6 + 6]) for g in range(3)] == [{found.clusters[g * 6]} for g in range(3)]
    assert len(set(found.clusters)) == 3
    assert found.silhouette > 0.5
    centres = np.stack([found.positions[g * 6 : g * 6 + 6].mean(axis=0) for g in range(3)])
    inside = max(np.linalg.norm(found.positions[g * 6 : g * 6 + 6] - centres[g], axis=1).max() for g in range(3))
    between = min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert between > 2 * inside
    assert 0 <= found.stress < 0.2


def test_the_same_matrix_gives_the_same_bytes() -> None:
    S = planted(seed=3)
    first, second = lay_out(S), lay_out(S.copy())
    np.testing.assert_array_equal(first.positions, second.positions)
    assert as_image(first, points(18), "svg") == as_image(second, points(18), "svg")
    assert as_image(first, points(18), "png") == as_image(second, points(18), "png")


def test_html_needs_no_network_and_runs_nobody_elses_script() -> None:
    page = as_html(lay_out(planted()), points(18)).decode()
    assert "<script>alert(1)" not in page
    assert "<script src" not in page
    assert "Plotly" in page


def test_two_vectors_make_no_map() -> None:
    with pytest.raises(ComgradError, match="2 vectors; a map needs at least three"):
        lay_out(np.eye(2))


def test_identical_vectors_do_not_break_the_map() -> None:
    found = lay_out(np.ones((5, 5)))
    assert np.isfinite(found.positions).all()
    assert set(found.clusters) == {0}
