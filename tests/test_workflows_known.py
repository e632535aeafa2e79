"""What anybody may put into a registry: one long vector, a copy, a gradient of another shape, and no suggestion bends."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from comgrad.errors import ComgradError
from comgrad.vectors.delta import LowRank
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.gradients import GRADIENT_FILE, read_gradient_file, two_labels, write_gradient_file
from comgrad.workflows.known import LONGEST, Known, bounded, footing
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection
from comgrad.workflows.suggesting import Suggestion, predict

TEXT = "Say which of fifteen things a user asks a voice assistant about their bank account."


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory, zoo: list[Path]) -> Path:
    """A registry of sixteen adapters."""
    home = tmp_path_factory.mktemp("sixteen") / "home"
    add_paths(zoo[:16], AddRequest(), registry=Registry(home))
    return home


def with_one_more(sixteen: Path, folder: Path, vector: TaskVector, gradient: Any = None) -> tuple[Registry, Any]:
    """A copy of the registry with one vector more."""
    registry = Registry(shutil.copytree(sixteen, folder / "home"))
    card = {"schema": 1, "description": "Arrange moon rocks by colour", "base_model": vector.base.name, "name": "odd"}
    write_peft(vector, folder / "odd", extra_files={"task_card.json": json.dumps(card).encode()})
    if gradient is not None:
        write_gradient_file(folder / "odd", gradient)
    return registry, add_paths([folder / "odd"], AddRequest(), registry=registry)[0]


def suggested(registry: Registry, rule: str | None = None) -> Suggestion:
    return predict(Known.of(collection(registry)), TEXT, dare=True, rule=rule)


def scaled(path: Path, times: float) -> TaskVector:
    """A vector's factors times a number, the factors themselves made larger."""
    v = TaskVector.from_peft(path)
    return TaskVector(v.base, {n: replace(d, B=d.B * times) for n, d in v.tensors.items() if isinstance(d, LowRank)})


@pytest.mark.parametrize("times", [1000.0, 2.0, -0.5])
def test_a_long_vector_or_a_copy_takes_nothing_over(
    sixteen: Path, zoo: list[Path], tmp_path: Path, times: float
) -> None:
    plain = suggested(Registry(sixteen))
    registry, added = with_one_more(sixteen, tmp_path, scaled(zoo[3], times))
    assert added.status == "added"
    made = suggested(registry)
    assert made.scale < 2 * plain.scale
    assert max(abs(s.coefficient) for s in made.sources) < 2 * max(abs(s.coefficient) for s in plain.sources)
    assert made.vector.cosine(plain.vector) > 0.7
    assert any("'odd' is" in w and "times as long" in w for w in made.warnings) == (times > 100)
    assert suggested(registry, "functional-fixed").scale < 2 * plain.scale + 0.1


def test_a_gradient_of_another_shape_or_base_is_not_attached(sixteen: Path, zoo: list[Path], tmp_path: Path) -> None:
    gradient = read_gradient_file(zoo[20])
    assert gradient is not None
    vector = TaskVector.from_peft(zoo[20])
    name = next(iter(vector.tensors))
    tiny = {
        **gradient.vector.tensors,
        name: LowRank(vector.tensors[name].dense()[:8, :1], vector.tensors[name].dense()[:1, :8]),
    }
    odd = replace(gradient, vector=TaskVector(gradient.vector.base, tiny))
    registry, added = with_one_more(sixteen, tmp_path, vector, odd)
    assert (added.status, added.gradient) == ("added", None)
    assert any("of shape (8, 8)" in w for w in added.warnings)
    assert suggested(registry).warnings == ()


def test_examples_of_one_label_are_refused(zoo: list[Path], tasks: list[Path]) -> None:
    from comgrad.describe.task import load_task

    examples = load_task(tasks[0]).split("train")
    same = [e for e in examples if e.label == examples[0].label]
    assert len(two_labels(list(examples))) == len(examples)
    with pytest.raises(ComgradError, match="of one label"):
        two_labels(same)


@pytest.mark.parametrize("change", [{"loss": 10**400}, {"examples": 1.5}, {"prompts": {"a": 1}}, {"base": {"name": 5}}])
def test_odd_facts_of_a_gradient_are_refused_in_words(zoo: list[Path], tmp_path: Path, change: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(zoo[0], tmp_path / "odd"))
    facts = folder / GRADIENT_FILE.replace("safetensors", "json")
    facts.write_text(json.dumps({**json.loads(facts.read_text()), **change}))
    with pytest.raises(ComgradError, match="wrong kind"):
        read_gradient_file(folder)


def test_a_rule_that_makes_everything_zero_abstains(sixteen: Path) -> None:
    made = suggested(Registry(sixteen), "zero")
    assert made.abstained
    assert "every coefficient zero" in made.reason


def test_coefficients_are_those_of_the_vectors_as_stored(sixteen: Path, zoo: list[Path], tmp_path: Path) -> None:
    registry, _ = with_one_more(sixteen, tmp_path, scaled(zoo[3], 50.0))
    made = predict(Known.of(collection(registry)), TEXT, rank=384, dare=True)
    first, *rest = [s.coefficient * registry.get(s.id).vector() for s in made.sources]
    whole = sum(rest, first)
    assert (whole - made.vector).norm() < 1e-4 * whole.norm()


@given(arrays(float, 6, elements=st.floats(1e-3, 1e3)))
def test_no_vector_counts_as_longer_than_twice_the_median(norms: Any) -> None:
    s = footing(np.diag(norms**2))
    usual = np.median(norms)
    assert (norms * s <= LONGEST * usual * (1 + 1e-12)).all()
    assert (s[norms <= LONGEST * usual] == 1.0).all()


SIZES = st.just(0.0) | st.floats(1e-6, 10) | st.floats(-10, -1e-6)


@given(arrays(float, (6, 6), elements=SIZES), st.floats(1, 1e6))
def test_bounded_rows_keep_their_direction_and_small_ones_all(gains: Any, times: float) -> None:
    gains[0] *= times
    gains[5] = np.nan
    kept, odd = bounded(gains)
    size = np.sqrt((gains[:5] ** 2).mean(axis=1))
    first = np.median(size)
    usual = np.median(size[size <= 30 * first])
    assert np.isnan(kept[5]).all()
    for row, (before, after) in enumerate(zip(gains[:5], kept[:5], strict=True)):
        assert (row in odd) == (first > 0 and size[row] > 30 * first)
        expected = before if first == 0 or size[row] <= 3 * usual else before * (3 * usual / size[row])
        np.testing.assert_allclose(after, np.full(6, np.nan) if row in odd else expected, rtol=1e-9, atol=1e-300)


def test_a_sum_reads_only_what_counts(sixteen: Path) -> None:
    """A service keeps what it knows of many neighbourhoods: none may hold its vectors, or read them all each time."""
    plain = collection(Registry(sixteen))
    read: list[str] = []

    def counted(m: Any) -> Any:
        return replace(m, load=lambda: (read.append(m.id), m.load())[1])

    known = Known.of(replace(plain, members=tuple(map(counted, plain.members))))
    c = np.zeros(len(known.footing))
    c[[2, 5]] = 0.5, -1.0
    read.clear()
    total = known.sum(c)
    assert read == [known.atlas.members[2].id, known.atlas.members[5].id]
    whole = 0.5 * known.vectors[2] + -1.0 * known.vectors[5]
    assert (total - whole).norm() <= 1e-6 * whole.norm()
    with pytest.raises(ComgradError, match="all coefficients are zero"):
        known.sum(c * 0.0)


def test_known_embeddings_stand_for_the_encoder(sixteen: Path) -> None:
    plain = collection(Registry(sixteen))
    usual = Known.of(plain)
    rows = dict(zip(usual.evidence.texts, usual.evidence.embeddings, strict=True))
    again = Known.of(plain, rows={m.description: 2.0 * rows.get(m.description, 0.0) for m in plain.members})
    np.testing.assert_allclose(again.evidence.embeddings, 2.0 * usual.evidence.embeddings)
