"""Nothing of what a split leaves out reaches a method: shown with numbers that poison whatever they touch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench_boards import board, items, poisoned
from comgrad.errors import ComgradError, NotFound
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.fold import SPLITS, Board, Fold, fold_of, growing, in_development, may_know
from comgrad.workflows.bench.methods import METHODS, TEXT
from comgrad.workflows.bench.prepare import Sizes
from comgrad.workflows.bench.scale import GRID, best_scale, losses_along

TEXT_METHODS = [m for m in METHODS.values() if m.group == TEXT and m.name != "random-lora"]
QUERY = 3
NO_MODEL: Any = None


def left_out(whole: Board, split: str) -> list[int]:
    query = whole.corpus.items[QUERY]
    return [i for i, o in enumerate(whole.corpus.items) if not may_know(split, query, o)]


def fold(on: Board, split: str) -> Fold:
    query = on.corpus.items[QUERY]
    made = fold_of(on, query, split, query.description)
    clean = board().embeddings[query.description]  # the text itself is what a method may see
    return replace(made, query=replace(made.query, embedding=clean))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("method", TEXT_METHODS, ids=lambda m: m.name)
def test_what_is_left_out_is_not_there(method: Any, split: str) -> None:
    whole = board()
    found = []
    for on in (whole, poisoned(whole, left_out(whole, split))):
        f = fold(on, split)
        aid = Aid(NO_MODEL, on.corpus.items[QUERY], f, Sizes(), method.needs, Path())
        found.append(method.function(f, aid).coefficients)
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[0], found[1])


def test_the_poison_works() -> None:
    """Left in, it would have been noticed."""
    whole = board()
    bad = left_out(whole, "losgo")
    f = fold(poisoned(whole, bad), "loo")
    for name in ("softmax5-scaled", "ridge", "gram-corrected"):
        aid = Aid(NO_MODEL, whole.corpus.items[QUERY], f, Sizes(), METHODS[name].needs, Path())
        try:
            c = METHODS[name].function(f, aid).coefficients
        except (ValueError, np.linalg.LinAlgError):
            continue
        clean = fold(whole, "loo")
        expected = METHODS[name].function(clean, replace(aid, fold=clean)).coefficients
        assert not np.array_equal(c, expected), name


@pytest.mark.parametrize("split", SPLITS)
def test_a_fold_is_what_its_split_says(split: str) -> None:
    whole = board()
    query = whole.corpus.items[QUERY]
    f = fold(whole, split)
    kept = [whole.corpus.items[i] for i in f.allowed]
    assert query not in kept
    if split != "loo":
        assert all(o.source_group != query.source_group for o in kept)
    if split == "lofo":
        assert all(o.family != query.family for o in kept)
    assert [o.id for o in f.other_items] == [o.id for o in kept]
    assert len(kept) == 24 - len(left_out(whole, split))
    assert f.evidence.texts == tuple(o.description for o in kept)
    for other in f.others:
        assert other.tangent.phi.shape[2] == len(kept)
        assert other.place is not None
        assert f.groups[other.place] == other.group


def test_growth_is_nested_and_limits_the_evidence_too() -> None:
    sets = [growing(24, n, seed=5) for n in (4, 8, 16, 24)]
    for small, large in pairwise(sets):
        assert set(small) < set(large)
    assert sets[-1] == list(range(24))
    assert growing(24, 8, seed=5) != growing(24, 8, seed=6)
    whole = board()
    query = whole.corpus.items[QUERY]
    f = fold_of(whole, query, "losgo", query.description, among=sets[1])
    assert set(f.allowed.tolist()) <= set(sets[1])
    assert {i.id for i in f.other_items} == {whole.corpus.items[k].id for k in f.allowed}


def test_tasks_without_a_vector_still_lend_their_examples() -> None:
    whole = board()
    lone = replace(items()[23], adapter=None)
    corpus = type(whole.corpus)((*whole.corpus.items[:23], lone))
    cut = Board(
        corpus,
        whole.gram[:23, :23],
        whole.embeddings,
        {n: replace(p, tangent=replace(p.tangent, phi=p.tangent.phi[:, :, :23])) for n, p in whole.prepared.items()},
    )
    f = fold_of(cut, corpus.items[0], "losgo", corpus.items[0].description)
    assert lone in f.other_items
    assert [o.place for o in f.others if o.group == lone.source_group][-1] is None
    g = fold_of(cut, lone, "losgo", lone.description)
    assert len(g.allowed) == sum(o.source_group != lone.source_group for o in corpus.items)


def test_the_fitted_scale_is_the_best_of_the_grid() -> None:
    f = fold(board(), "losgo")
    totals = np.zeros(len(GRID))
    for other in f.others:
        c = np.zeros(len(f.allowed))
        at = [i for i, g in enumerate(f.groups) if g != other.group]
        c[at] = 1.0 / len(at)
        totals += [other.tangent.loss(s * c) for s in GRID]
        np.testing.assert_allclose(losses_along(other, c), [other.tangent.loss(s * c) for s in GRID], rtol=1e-6)
    assert best_scale(f, "mean") == GRID[int(np.argmin(totals))]
    assert best_scale(f, "nearest") > 0.0


def test_a_method_gets_what_it_declared_and_no_more() -> None:
    whole = board()
    f = fold(whole, "losgo")
    item = whole.corpus.items[QUERY]
    plain = Aid(NO_MODEL, item, f, Sizes(), "description", Path())
    with pytest.raises(NotFound, match="labelled examples; the method declared that it needs description"):
        plain.shots()
    with pytest.raises(NotFound, match="the query's answer"):
        _ = plain.answer
    with pytest.raises(NotFound, match="the query's answer"):
        plain.all_shots()
    with pytest.raises(NotFound, match="the query's family"):
        _ = plain.family
    assert Aid(NO_MODEL, item, f, Sizes(), "family", Path()).family == item.family


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ComgradError, match="'lopo'.*losgo, loo, lofo"):
        may_know("lopo", *items()[:2])


def test_the_development_pool_keeps_source_groups_whole() -> None:
    found = {i.source_group: in_development(i) for i in items()}
    assert all(in_development(i) == found[i.source_group] for i in items())
