"""Poisoned registries: what the benchmark plants is found without defences, and gets nowhere with what is shipped."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.bench.corpus import open_corpus
from comgrad.workflows.known import Known
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection
from comgrad.workflows.searching import counted, search
from comgrad.workflows.standing import CLAIM, standing
from comgrad.workflows.suggesting import from_words


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "hijacking.py"
    spec = importlib.util.spec_from_file_location("hijacking", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hijacking"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


bench = _benchmark()
COPIES = 6
# the common direction of thirteen vectors is made of so few that it counts as a merge; of 38 it is solved too (benchmark)
SOLVED = ("the mean of all", "a copy of 100 times the length", f"{COPIES} near-copies of one")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    ids = [i.id for i in open_corpus(None).known][::3]
    lines: list[str] = []
    found = bench.run(open_corpus(None).only(ids), tmp_path_factory.mktemp("work"), copies=COPIES, say=lines.append)
    assert len(lines) > 40
    assert isinstance(found, dict)
    return found


def rows(result: dict[str, Any], attack: str, defended: bool) -> dict[str, dict[str, Any]]:
    return {r["path"]: r for r in result["rows"] if r["attack"] == attack and r["defended"] == defended}


@pytest.mark.slow
@pytest.mark.parametrize("attack", SOLVED)
def test_no_honest_query_is_hijacked(result: dict[str, Any], attack: str) -> None:
    after = rows(result, attack, True)
    assert len(after) == 7
    assert {path: (r["first"], r["among_five"]) for path, r in after.items()} == dict.fromkeys(after, (0.0, 0.0))
    assert result["uploads"][attack]["refused"] == 0


@pytest.mark.slow
def test_a_common_direction_is_at_least_nobodys_neighbour(result: dict[str, Any]) -> None:
    after = rows(result, "the common direction", True)
    assert all(r["first"] == 0.0 for path, r in after.items() if path.startswith("neighbours"))


@pytest.mark.slow
def test_without_defences_they_do_get_in(result: dict[str, Any]) -> None:
    assert rows(result, "the mean of all", False)["neighbours, cosine"]["first"] == 1.0
    assert rows(result, "the common direction", False)["neighbours, cosine"]["first"] > 0.1
    assert rows(result, "a copy of 100 times the length", False)["neighbours, inner product"]["first"] > 0.2
    assert rows(result, f"{COPIES} near-copies of one", False)["search by meaning"]["first"] > 0.2
    assert rows(result, "a vector with a NaN, if taken", False)["neighbours, argmax"]["first"] == 1.0


@pytest.mark.slow
def test_what_the_weights_cannot_tell_is_reported_and_not_hidden(result: dict[str, Any]) -> None:
    adaptive = rows(result, f"adaptive: {COPIES} at cosine 0.85", True)
    assert adaptive["search by meaning"]["queries"] == 13
    assert any(r["among_five"] > 0 for r in adaptive.values())


@pytest.mark.slow
def test_nothing_that_is_no_number_is_taken(result: dict[str, Any]) -> None:
    assert result["refused"] == {"nan": "refused: not-finite", "infinity": "refused: not-finite"}


@pytest.mark.slow
def test_where_nobody_attacks_the_answers_are_what_they_were(result: dict[str, Any]) -> None:
    cost = result["cost"]
    assert (cost["collapsed"], cost["doubted"]) == (0, 0)
    for path in ("search by meaning", "search by words", "suggest, softmax5 rule", "neighbours, plainly centred"):
        assert cost[path] == [1.0, 1.0]


# -- one by one --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory, zoo: list[Path]) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("twelve"))
    add_paths(zoo[:12], AddRequest(), registry=registry)
    return registry


def test_coefficients_without_attackers_are_those_of_all_vectors(
    twelve: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = collection(twelve)
    known = Known.of(atlas)
    assert known.atlas.ids == atlas.ids and known.warnings == ()
    everyone = standing(atlas)
    assert everyone.kept == list(range(12)) and everyone.notes == ()
    monkeypatch.setattr("comgrad.workflows.known.standing", lambda chosen: everyone)
    plain = Known.of(atlas)
    one, other = (from_words(k, k.query("Is this sentence well formed?")).coefficients for k in (known, plain))
    np.testing.assert_array_equal(one, other)


def upload(registry: Registry, folder: Path, uploads: list[tuple[Any, str]]) -> list[str]:
    """The ids of vectors with descriptions, added in this order."""
    out = []
    for i, (vector, words) in enumerate(uploads):
        place = folder / f"u{i}"
        place.mkdir()
        vector.save(place / "vector.safetensors")
        request = AddRequest(describe=words, name=f"u{i}")
        out.append(add_paths([place], request, registry=registry)[0].id)
    return out


def test_a_second_training_is_believed_and_a_stranger_under_the_same_words_is_not(
    twelve: Registry, tmp_path: Path, zoo: list[Path]
) -> None:
    registry = Registry(Path(shutil.copytree(twelve.store.path, tmp_path / "home")))
    first, other = registry.list()[2], registry.list()[7]
    v, w = first.vector(), other.vector()
    second = v * 0.5 + bench._noised(w, 5.0, 1) * (0.8 * v.norm() / bench._noised(w, 5.0, 1).norm())
    assert 0.4 < second.cosine(v) < 0.7
    stranger = bench._noised(w, 5.0, 2)
    ids = upload(registry, tmp_path, [(second, first.description), (stranger, f"Best! {first.description} And more.")])
    among = counted(list(registry.list()))
    assert set(among.doubt) == {ids[1]} and not among.hidden
    assert f"repeats that of '{first.name}', which its weights do not resemble" in among.doubt[ids[1]]
    found = search(first.description, registry=registry, limit=14)
    assert [f.entry.id for f in found[:2]] == [first.id, ids[0]]
    assert found[-1].entry.id == ids[1] and found[-1].as_dict()["doubt"]
    assert ids[1] not in Known.of(collection(registry)).atlas.ids
    assert 0.0 < CLAIM < 0.25


def test_copies_answer_in_the_words_of_the_oldest_only(twelve: Registry, tmp_path: Path) -> None:
    registry = Registry(Path(shutil.copytree(twelve.store.path, tmp_path / "home")))
    first, other = registry.list()[2], registry.list()[7]
    copies = [(bench._noised(first.vector(), 0.2, i), other.description) for i in range(3)]
    ids = upload(registry, tmp_path, copies)
    for words_only in (False, True):
        found = search(other.description, registry=registry, limit=20, words_only=words_only)
        assert found[0].entry.id == other.id
        assert not {f.entry.id for f in found} & set(ids)
        assert next(f.copies for f in found if f.entry.id == first.id) == 3
    known = Known.of(collection(registry))
    assert len(known.atlas.ids) == 12
    assert any(f"is a near-copy of '{first.name}'" in w and "so do 2 others" in w for w in known.warnings)


def test_a_lost_file_does_not_stop_a_search(twelve: Registry, tmp_path: Path) -> None:
    home = Path(shutil.copytree(twelve.store.path, tmp_path / "home"))
    registry = Registry(home)
    for file in registry.store.cache_dir.glob("gram-*"):
        file.unlink()
    entry = registry.list()[3]
    registry.store.blobs.path(entry.record.digest).unlink()
    assert search(entry.description, registry=registry)[0].entry.id == entry.id
