"""The file of sketches: one that other sketches are in is never read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from comgrad.geometry import sketch
from comgrad.service.sketches import Sketches
from comgrad.workflows.resolve import read_vector

GEOMETRY: Any = SimpleNamespace(vector=lambda entry: read_vector(entry))


@pytest.fixture
def group(zoo: list[Path]) -> list[Any]:
    """As much of listings as sketches need: real vectors under their ids."""
    return [SimpleNamespace(id=f"tv-{at}", entry=path) for at, path in enumerate(zoo[:3])]


def forget() -> None:
    for made in (sketch._numbers, sketch._signs):
        made.cache_clear()


def test_sketches_that_an_older_version_wrote_are_made_again(
    group: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cut larger tensors in another way, under the name that its file had."""
    with monkeypatch.context() as m:
        m.setattr(sketch, "BLOCK", 32)
        forget()
        old = Sketches(tmp_path)
        places = old.places(group, GEOMETRY)
        wrong = old.rows()[places]
        next(tmp_path.iterdir()).rename(tmp_path / "sketches-1.bin")
    forget()
    right = np.stack([sketch.sketch(GEOMETRY.vector(x.entry)) for x in group])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    assert not np.allclose(wrong, right, atol=1e-2)
    new = Sketches(tmp_path)
    new.prune({x.id for x in group})
    places = new.places(group, GEOMETRY)
    assert np.allclose(new.rows()[places], right, atol=1e-3)
    assert len(list(tmp_path.iterdir())) == 1  # the old one is gone
    again = Sketches(tmp_path)
    again.prune({x.id for x in group})
    monkeypatch.setattr(GEOMETRY, "vector", lambda entry: pytest.fail("it is read"))
    places = again.places(group, GEOMETRY)
    assert np.allclose(again.rows()[places], right, atol=1e-3)


def test_a_sketch_s_identity_changes_with_what_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {sketch.identity(), sketch.identity()}
    assert len(seen) == 1
    for name, value in (("BLOCK", 1 << 15), ("VERSION", 2)):
        with monkeypatch.context() as m:
            m.setattr(sketch, name, value)
            seen.add(sketch.identity())
    monkeypatch.setattr(sketch, "_random", lambda words: np.random.Generator(np.random.PCG64(1)))  # another stream
    seen.add(sketch.identity())
    assert len(seen) == 4
