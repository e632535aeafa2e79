"""ξ against a plain double loop, its zeros, its symmetry, and the picture."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from comgrad.errors import ComgradError
from comgrad.evaluate.disentanglement import DISTANCES, GRID, disentanglement, disentanglement_error, symmetric_kl
from comgrad.evaluate.heatmap import matrices_png, surfaces_png
from comgrad.evaluate.predictor import Predictor, Problem
from comgrad.vectors.task_vector import TaskVector
from evaluate_models import BLOCKS, inputs, predictor, problem, vector

MIXED = [problem("a", 1), problem("b", 2, sizes=(11, 2))]
VECTORS = [vector(1, whole=True), vector(2, whole=True)]
SMALL = (-1.0, 0.0, 0.5, 1.0)


def outputs(p: Predictor, q: Problem, split: str, terms: list[tuple[float, TaskVector]]) -> tuple[Tensor, Tensor]:
    """Independent: representations and labels of a copied model with changed weights, all examples at once."""
    model = copy.deepcopy(p.encoder)
    with torch.no_grad():
        for alpha, tau in terms:
            for name, d in tau.tensors.items():
                model.get_parameter(name).add_(alpha * d.dense())
        h = model(inputs(q, split)[0])
    return h, (h / h.norm(dim=1, keepdim=True) @ q.head.T).argmax(1)


def reference(p: Predictor, split: str, a1: float, a2: float) -> tuple[float, float]:
    differ = kl = 0.0
    both = [(a1, VECTORS[0]), (a2, VECTORS[1])]
    for t, q in enumerate(MIXED):
        (h1, y1), (h2, y2) = outputs(p, q, split, [both[t]]), outputs(p, q, split, both)
        differ += float((y1 != y2).double().mean())
        s1, s2 = h1.softmax(1), h2.softmax(1)
        kl += float(0.5 * ((s1 * (s1 / s2).log()).sum(1) + (s2 * (s2 / s1).log()).sum(1)).mean())
    return differ, kl


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_surface_against_a_plain_double_loop(split: str) -> None:
    p = predictor()
    found = disentanglement(p, MIXED, VECTORS, grid=SMALL, split=split)
    for i, a1 in enumerate(SMALL):
        for j, a2 in enumerate(SMALL):
            differ, kl = reference(p, split, a1, a2)
            assert found.xi("disagreement")[i, j] == pytest.approx(differ, abs=1e-12)
            assert found.xi("kl")[i, j] == pytest.approx(kl, abs=1e-9)
    assert found.xi("disagreement").max() > 0.2 and found.xi("kl").max() > 0.01  # else nothing was compared
    assert found.n == (17, 13)


def test_it_is_exactly_zero_at_the_base_and_for_one_vector_alone_on_its_own_data() -> None:
    found = disentanglement(predictor(), MIXED, VECTORS, grid=SMALL)
    zero = SMALL.index(0.0)
    for d in DISTANCES:
        assert found.xi(d)[zero, zero] == 0.0
        assert (found.terms[d][0, :, zero] == 0.0).all() and (found.terms[d][1, zero, :] == 0.0).all()
        assert found.terms[d][0, zero, :].max() > 0  # task 1's data still feel vector 2 alone


def test_it_is_zero_everywhere_for_disjoint_supports() -> None:
    problems = [problem("a", 1, BLOCKS[0]), problem("b", 2, BLOCKS[1])]
    vectors = [vector(1, BLOCKS[0]), vector(2, BLOCKS[1])]
    found = disentanglement(predictor(), problems, vectors)
    assert found.alphas == GRID and all((found.terms[d] == 0.0).all() for d in DISTANCES)
    swapped = disentanglement(predictor(), problems, vectors[::-1])  # each vector acts on the other's data
    assert all(swapped.xi(d).max() > 0 for d in DISTANCES)


@given(st.integers(0, 5), st.sampled_from([-2.0, -0.5, 0.3, 1.0]), st.sampled_from([-1.0, 0.0, 0.8]))
def test_swapping_the_tasks_with_their_coefficients_changes_nothing(seed: int, a1: float, a2: float) -> None:
    p = predictor()
    problems, vectors = [problem("a", seed), problem("b", seed + 1)], [vector(seed, whole=True), vector(seed + 7)]
    one = disentanglement_error(p, problems, vectors, [a1, a2])
    two = disentanglement_error(p, problems[::-1], vectors[::-1], [a2, a1])
    assert one.disagreement == two.disagreement[::-1] and one.kl == pytest.approx(two.kl[::-1], abs=1e-12)


def test_the_surface_of_swapped_tasks_is_the_transpose() -> None:
    one = disentanglement(predictor(), MIXED, VECTORS, grid=SMALL)
    two = disentanglement(predictor(), MIXED[::-1], VECTORS[::-1], grid=SMALL)
    for d in DISTANCES:
        assert np.allclose(one.xi(d), two.xi(d).T, atol=1e-12)


def test_batches_weigh_by_their_examples() -> None:
    x, y = inputs(MIXED[0], "test")
    parts = [((0, 16), (16, 17)), ((0, 1), (1, 17)), ((0, 17),)]
    values = []
    for cut in parts:
        rows = tuple(({"x": x[a:b]}, y[a:b]) for a, b in cut)
        q = replace(MIXED[0], parts={"test": rows})
        values.append(disentanglement_error(predictor(), [q, MIXED[1]], VECTORS, [1.0, 1.0]).kl[0])
    assert values == pytest.approx([values[0]] * 3, rel=1e-9) and values[0] > 0


def test_more_than_two_tasks() -> None:
    p = predictor()
    problems, vectors = [*MIXED, problem("c", 3)], [*VECTORS, vector(3)]
    assert disentanglement_error(p, problems, vectors, [0.0, 0.0, 0.0]).total("kl") == 0.0
    two, three = (disentanglement_error(p, problems[:k], vectors[:k], [0.7, 0.4, 0.0][:k]) for k in (2, 3))
    assert three.kl[:2] == two.kl and three.disagreement[:2] == two.disagreement and three.kl[2] > 0


def test_each_task_alone_is_read_once_for_each_alpha_and_cells_are_not_read_again() -> None:
    p, log, cache = predictor(), [], {}

    def counted(model: torch.nn.Module, batch) -> Tensor:
        log.append(1)
        return model(batch["x"])

    p = replace(p, read=counted)
    first = disentanglement(p, MIXED, VECTORS, grid=SMALL, cache=cache)
    batches = sum(len(list(q.part("test"))) for q in MIXED)
    assert len(log) == batches * (len(SMALL) + len(SMALL) ** 2) and len(cache) == 16
    log.clear()
    done = json.loads(json.dumps(dict(list(cache.items())[:12])))
    again = disentanglement(p, MIXED, VECTORS, grid=SMALL, cache=done)
    assert all(np.array_equal(first.terms[d], again.terms[d]) for d in DISTANCES)
    assert len(log) == 4 * batches + 3 + 2 * 4  # the last row: one α of task 1 (3 batches), four of task 2 (2 each)
    log.clear()
    disentanglement(p, MIXED, VECTORS, grid=SMALL, cache=done)
    assert log == []


def test_the_mean_is_over_the_points_in_the_unit_square() -> None:
    found = disentanglement(predictor(), MIXED, VECTORS, grid=SMALL)
    assert found.unit_mean("kl") == pytest.approx(found.xi("kl")[1:, 1:].mean())
    assert json.loads(json.dumps(found.as_dict()))["unit_mean"]["kl"] == found.unit_mean("kl")
    assert np.isnan(disentanglement(predictor(), MIXED, VECTORS, grid=(-1.0,)).unit_mean())


@given(st.integers(0, 99))
def test_the_symmetric_divergence(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(3, 4, generator=g).double(), 3 * torch.randn(3, 4, generator=g).double()
    p, q = torch.distributions.Categorical(logits=a), torch.distributions.Categorical(logits=b)
    expected = 0.5 * (torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p))
    assert torch.allclose(symmetric_kl(a, b), expected, rtol=1e-10)
    assert torch.equal(symmetric_kl(a, a), torch.zeros(3).double())
    assert torch.allclose(symmetric_kl(a, a + 5.0), torch.zeros(3).double(), atol=1e-12)  # softmax sees no shift


def test_only_pairs_have_a_surface() -> None:
    with pytest.raises(ComgradError, match="each task needs its own vector"):
        disentanglement(predictor(), [*MIXED, problem("c", 3)], [*VECTORS, vector(3)])


def test_pictures_are_the_same_for_the_same_input() -> None:
    found = disentanglement(predictor(), MIXED, VECTORS, grid=SMALL)
    one = surfaces_png([found, found], ["x", "y"], "kl", title="both")
    assert one[:4] == b"\x89PNG" and one == surfaces_png([found, found], ["x", "y"], "kl", title="both")
    assert one != surfaces_png([found, found], ["x", "y"], "disagreement", title="both")
    m = matrices_png([np.eye(3)], ["recipe"], ["a", "b", "c"])
    assert m[:4] == b"\x89PNG"
