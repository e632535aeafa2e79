"""Merging methods against the plain formula on dense matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import BaseMismatch, ComgradError, ShapeMismatch
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.merge import METHODS, merge, parameters_of
from comgrad.vectors.task_vector import Deferred, TaskVector

BASE = BaseRef("b")


def vector(seed: int, kinds: str = "lLd", base: BaseRef = BASE) -> TaskVector:
    """One tensor for each kind: l low-rank, L low-rank of another rank, d dense; '-' leaves it out."""
    g = torch.Generator().manual_seed(seed)
    out: dict[str, Delta] = {}
    for i, kind in enumerate(kinds):
        if kind in "lL":
            r = 2 if kind == "l" else 3
            out[f"t{i}"] = LowRank(torch.randn(5, r, generator=g), torch.randn(r, 4, generator=g), 0.5 + seed % 3)
        elif kind == "d":
            out[f"t{i}"] = Dense(torch.randn(5, 4, generator=g))
    return TaskVector(base, out)


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.text("lLd-", min_size=3, max_size=3).filter(lambda k: k != "---"), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    method=st.sampled_from(["sum", "mean"]),
    data=st.data(),
)
def test_sum_and_mean_are_their_formulas(kinds: list[str], seed: int, method: str, data: st.DataObject) -> None:
    weights = [data.draw(st.floats(0.1, 3.0)) for _ in kinds]
    vectors = [vector(seed + i, k) for i, k in enumerate(kinds)]
    merged = merge(vectors, method, weights)
    divisor = sum(weights) if method == "mean" else 1.0
    names = {n for v in vectors for n in v.tensors}
    assert set(merged.tensors) == names
    for n in names:
        terms = [v.tensors[n].dense().double() * w for v, w in zip(vectors, weights, strict=True) if n in v.tensors]
        want = torch.stack(terms).sum(0) / divisor
        torch.testing.assert_close(merged.tensors[n].dense().double(), want, rtol=0, atol=1e-4)
        low = all(isinstance(v.tensors[n], LowRank) for v in vectors if n in v.tensors)
        assert isinstance(merged.tensors[n], LowRank) == low


def test_ranks_add_and_deferred_stays_deferred() -> None:
    a, b = vector(0), vector(1)
    assert merge([a, b]).tensors["t0"].rank == 4  # type: ignore[union-attr]
    lazy = TaskVector(BASE, Deferred(tuple(a.tensors), a.tensors.__getitem__))
    assert isinstance(merge([lazy, b]).tensors, Deferred)
    assert merge([a]).tensors["t2"].dense().equal(a.tensors["t2"].dense())


def test_convolutions_match_their_matrix_form() -> None:
    low = LowRank(torch.randn(4, 2), torch.randn(2, 12), weight_shape=(4, 3, 2, 2))
    dense = Dense(torch.randn(4, 3, 2, 2))
    both = merge([TaskVector(BASE, {"c": low}), TaskVector(BASE, {"c": dense})]).tensors["c"]
    torch.testing.assert_close(both.dense(), dense.W + low.dense().reshape(4, 3, 2, 2))
    torch.testing.assert_close(both.in_base_layout(), dense.W + low.in_base_layout())


def test_the_base_is_the_better_known_one() -> None:
    known = vector(1, base=BaseRef("b", "ab" * 32))
    assert merge([vector(0), known]).base == known.base


@pytest.mark.parametrize(
    ("vectors", "method", "weights", "error", "words"),
    [
        ([vector(0)], "ties!", None, ComgradError, "use one of sum, mean"),
        ([], "sum", None, ComgradError, "nothing to merge"),
        ([vector(0)], "sum", [1.0, 2.0], ComgradError, "2 weights for 1 vectors"),
        ([vector(0)], "sum", [float("inf")], ComgradError, "finite"),
        ([vector(0), vector(1)], "mean", [1.0, -1.0], ComgradError, "mean is not defined"),
        ([vector(0), vector(1, base=BaseRef("c"))], "sum", None, BaseMismatch, "different bases"),
        (
            [vector(0, "d"), TaskVector(BASE, {"t0": Dense(torch.ones(2, 2))})],
            "sum",
            None,
            ShapeMismatch,
            "must have its shape",
        ),
    ],
)
def test_refusals(
    vectors: list[TaskVector], method: str, weights: list[float] | None, error: type[ComgradError], words: str
) -> None:
    with pytest.raises(error, match=words):
        merge(vectors, method, weights)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("ties", {"density": 0.0}, "the density 0; .* above 0 and at most 1; try 0.2"),
        ("ties", {"density": 1.5}, "the density 1.5"),
        ("dare", {"density": float("nan")}, "the density nan"),
        ("breadcrumbs", {"gamma": -0.1}, r"the gamma -0.1; .* in \[0, 1\)"),
        ("breadcrumbs", {"gamma": 1.0}, "the gamma 1"),
        ("breadcrumbs", {"density": 0.9, "gamma": 0.2}, "keep and remove more than all .* at most 0.1"),
        ("dare", {"seed": -1}, "the seed -1; .* 64 bits"),
        ("dare", {"seed": 2**64}, "from 0 to"),
        ("ties", {"scope": "layer"}, "the scope 'layer'; .* use one of global, tensor"),
        ("ties", {"match": "fusion"}, "use one of none, mergekit, peft"),
        ("magnitude", {"match": "mergekit"}, "use one of none, peft"),
        ("ties", {"match": "peft", "scope": "global"}, "that tool trims each tensor by itself"),
        ("knots", {"inner": "knots"}, "use one of ties, sum, dare"),
        ("sum", {"density": 0.5}, "'density' for the method 'sum'; the method does not read it; .* none"),
        ("ties", {"seed": 1}, "its parameters: 'density', 'scope', 'match'"),
        ("tsv-m", {"scope": "global"}, "does not read it"),
    ],
)
def test_parameters_are_checked(method: str, given: dict[str, float], words: str) -> None:
    with pytest.raises(ComgradError, match=words) as caught:
        merge([vector(0), vector(1)], method, **given)  # type: ignore[arg-type]
    assert caught.value.code == "merge-parameter"
    with pytest.raises(ComgradError, match=words):
        parameters_of(method, **given)


def test_the_table_names_its_sources() -> None:
    assert set(METHODS) == {"sum", "mean", "magnitude", "ties", "dare", "breadcrumbs", "tsv-m", "iso-c", "knots"}
    for name, row in METHODS.items():
        assert row.name == name
        assert row.source.startswith("https://arxiv.org/abs/")
        assert row.meaning
        assert parameters_of(name) == row.default_values
        assert set(row.words) <= set(row.parameters)


def test_defaults_are_what_is_used_when_nothing_is_given() -> None:
    vectors = [vector(0), vector(1)]
    for name, row in METHODS.items():
        one, two = merge(vectors, name), merge(vectors, name, [1.0, 1.0], **row.default_values)
        assert all(one.tensors[n].dense().equal(two.tensors[n].dense()) for n in one.tensors)
    assert parameters_of("ties", match="peft") == {"density": 0.2, "scope": "tensor", "match": "peft"}


def test_every_method_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "merging.md").read_text()
    for name, row in METHODS.items():
        assert f"| `{name}` |" in page
        assert row.source in page
        assert all(f"`{p}` {v}" in page for p, v in row.default_values.items()), name
