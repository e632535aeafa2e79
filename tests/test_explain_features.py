"""Features from factors against ten lines of dense numpy, and the laws of scale and of the factors' freedom."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import ComgradError, Undefined
from comgrad.explain.features import (
    PUBLISHED,
    STATISTICS,
    Community,
    by_role,
    declared_features,
    kurtosis,
    response_features,
    spectral_features,
    tensor_statistics,
)
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("toy")
ROLE = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
}
NAME = "encoder.layer.{}.{}.weight"


def low(seed: int, m: int = 14, n: int = 11, r: int = 3, scale: float = 2.0) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(m, r, generator=g).double(), torch.randn(r, n, generator=g).double(), scale, torch.float64
    )


def vector(seed: int, roles: str = "qkvo", layers: int = 2, size: int = 12) -> TaskVector:
    names = [NAME.format(i, ROLE[r]) for i in range(layers) for r in roles]
    return TaskVector(BASE, {n: low(97 * seed + k, size, size) for k, n in enumerate(names)})


def plain(W: np.ndarray) -> dict[str, float]:
    """The table of the module, on ΔW itself."""
    s = np.linalg.svd(W, compute_uv=False)
    s = s[s > 1e-9 * s[0]]
    p = s / s.sum()
    x = W - W.mean()
    return {
        "sigma": s[0],
        "norm": np.linalg.norm(W),
        "share": s[0] ** 2 / (s**2).sum(),
        "entropy": -(p * np.log(p)).sum() / math.log(len(s)) if len(s) > 1 else 0.0,
        "kurtosis": (x**4).mean() / (x**2).mean() ** 2,
        "effective-rank": (s**2).sum() ** 2 / (s**4).sum(),
    }


def dense(v: TaskVector, name: str) -> np.ndarray:
    return v.tensors[name].dense().double().numpy()


SHAPES = st.tuples(st.integers(2, 40), st.integers(2, 40), st.integers(1, 6), st.integers(0, 10**6))


@given(SHAPES)
def test_statistics_are_those_of_the_dense_matrix(shape: tuple[int, int, int, int]) -> None:
    m, n, r, seed = shape
    delta = low(seed, m, n, min(r, m, n))
    wanted = plain(delta.dense().numpy())
    for found in (tensor_statistics(delta), tensor_statistics(Dense(delta.dense(), torch.float64))):
        if found["effective-rank"] and min(m, n) >= 2 * min(r, m, n):  # a dense delta is cut to half its side
            assert found == pytest.approx(wanted, rel=1e-7)


@given(SHAPES, st.floats(0.01, 100.0))
def test_size_scales_and_shape_stays(shape: tuple[int, int, int, int], c: float) -> None:
    m, n, r, seed = shape
    delta = low(seed, m, n, min(r, m, n))
    before, after = tensor_statistics(delta), tensor_statistics(delta.scaled(-c))
    for s in STATISTICS:
        factor = c if s in ("sigma", "norm") else 1.0
        assert after[s] == pytest.approx(factor * before[s], rel=1e-8)


@given(SHAPES)
def test_another_pair_of_factors_of_the_same_matrix_says_the_same(shape: tuple[int, int, int, int]) -> None:
    m, n, r, seed = shape
    delta = low(seed, m, n, min(r, m, n))
    k = delta.rank
    g = torch.Generator().manual_seed(seed + 1)
    M = torch.linalg.qr(torch.randn(k, k, generator=g).double())[0] * (1.0 + torch.rand(k, generator=g).double())
    other = LowRank(delta.B @ M, torch.linalg.inv(M) @ delta.A, delta.scale, torch.float64)
    assert tensor_statistics(other) == pytest.approx(tensor_statistics(delta), rel=1e-7)


def test_kurtosis_is_the_same_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = low(4, 300, 50)
    whole = kurtosis(delta)
    monkeypatch.setattr("comgrad.explain.features._BLOCK", 130)  # two rows at a time
    assert kurtosis(delta) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(plain(delta.dense().numpy())["kurtosis"], rel=1e-10)
    big = torch.randn(400, 400, generator=torch.Generator().manual_seed(0))
    assert kurtosis(Dense(big)) == pytest.approx(3.0, abs=0.05)  # of a Gaussian


@settings(max_examples=10)
@given(st.integers(0, 10**5))
def test_roles_have_the_mean_and_the_largest_of_their_layers(seed: int) -> None:
    v = vector(seed)
    found = spectral_features(v)
    assert len(found) == 4 * len(STATISTICS) * 2
    for role, module in ROLE.items():
        each = [plain(dense(v, NAME.format(i, module))) for i in range(2)]
        for s in STATISTICS:
            values = [e[s] for e in each]
            assert found[f"{role}.{s}.mean"] == pytest.approx(np.mean(values), rel=1e-7)
            assert found[f"{role}.{s}.max"] == pytest.approx(max(values), rel=1e-7)
    assert set(PUBLISHED) < set(STATISTICS)


@settings(max_examples=10)
@given(st.integers(0, 10**5), st.integers(1, 5))
def test_the_share_outside_is_that_of_least_squares(seed: int, k: int) -> None:
    known = [vector(seed + 1 + i) for i in range(k)]
    v = vector(seed)
    found = Community(tuple(known)).outside(v)
    for role, names in by_role(v).items():
        rest = whole = 0.0
        for name in names:
            A = np.stack([dense(u, name).ravel() for u in known], axis=1)
            b = dense(v, name).ravel()
            rest += np.square(b - A @ np.linalg.lstsq(A, b, rcond=None)[0]).sum()
            whole += np.square(b).sum()
        assert found[f"{role}.outside"] == pytest.approx(rest / whole, rel=1e-7)


def test_what_is_in_the_span_is_not_outside() -> None:
    known = [vector(i) for i in range(3)]
    inside = known[0] * 0.5 + known[2] * -2.0
    repeated = Community((*known, known[0]))  # a singular Gram matrix
    assert all(x == pytest.approx(0.0, abs=1e-9) for x in repeated.outside(inside).values())
    alone = Community((vector(1, "q"),)).outside(vector(2, "qv"))
    assert alone["v.outside"] == 1.0  # nobody changes that tensor
    assert alone["q.outside"] < 1.0


@settings(max_examples=10)
@given(st.integers(0, 10**5))
def test_beside_the_declared_vector(seed: int) -> None:
    v, d = vector(seed), vector(seed + 1)
    found = declared_features(v, d)
    for role, names in by_role(v).items():
        a, b = (np.concatenate([dense(u, n).ravel() for n in names]) for u in (v, d))
        assert found[f"{role}.cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-7)
        assert found[f"{role}.distance"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-7)
        sizes = [np.mean([plain(dense(u, n))["kurtosis"] for n in names]) for u in (v, d)]
        assert found[f"{role}.ratio-kurtosis"] == pytest.approx(sizes[0] / sizes[1], rel=1e-7)
        rests = [plain(dense(v, n) - a @ b / (b @ b) * dense(d, n)) for n in names]
        assert found[f"{role}.rest-sigma.max"] == pytest.approx(max(x["sigma"] for x in rests), rel=1e-6)
        assert found[f"{role}.rest-kurtosis.mean"] == pytest.approx(np.mean([x["kurtosis"] for x in rests]), rel=1e-6)


def test_a_word_that_decides_stands_out() -> None:
    X = torch.randn(500, 12, generator=torch.Generator().manual_seed(1)).double()
    name = NAME.format(0, ROLE["v"])
    v = vector(3, "v")
    found = response_features(v, {name: X})
    answers = np.linalg.norm(X.numpy() @ dense(v, name).T, axis=1)
    middle = np.sort(answers)[249]  # the lower of the two, as torch has it
    spread = np.sort(np.abs(answers - middle))[249]
    assert found["v.response-peak"] == pytest.approx((answers.max() - middle) / spread, rel=1e-8)
    X[:, 11] = 0.0
    X[7] = torch.eye(12, dtype=torch.float64)[11]  # a word with a direction of its own
    hook = {name: LowRank(torch.full((12, 1), 900.0).double(), X[7:8], 1.0, torch.float64)}
    before, after = (response_features(u, {name: X}) for u in (v, v + TaskVector(BASE, hook)))
    assert after["v.response-peak"] > 10 * before["v.response-peak"]
    assert after["v.response-kurtosis"] > 10 * before["v.response-kurtosis"]
    assert response_features(v, {}) == {}


def test_what_has_no_features_is_refused() -> None:
    zero = {NAME.format(0, ROLE["q"]): LowRank(torch.zeros(4, 2), torch.ones(2, 4))}
    with pytest.raises(Undefined, match="all its deltas are zero"):
        spectral_features(TaskVector(BASE, zero))
    broken = {NAME.format(0, ROLE["q"]): LowRank(torch.full((4, 2), torch.nan), torch.ones(2, 4))}
    with pytest.raises(ComgradError, match="NaN") as refused:
        spectral_features(TaskVector(BASE, broken))
    assert refused.value.code == "not-finite"
    with pytest.raises(ComgradError, match="no matrix"):
        spectral_features(TaskVector(BASE, {"encoder.layer.0.attention.self.query.bias": Dense(torch.ones(4))}))
    with pytest.raises(Undefined, match="share no tensor"):
        declared_features(vector(1, "q"), vector(2, "v"))
    assert {n.split(".")[0] for n in declared_features(vector(1, "qv"), vector(2, "vo"))} == {"v"}
    with pytest.raises(Undefined, match="zero there"):
        Community((vector(1, "q", size=4),)).outside(TaskVector(BASE, zero))


def test_a_tensor_that_was_not_touched_is_passed_over() -> None:
    v = vector(5, "q")
    names = sorted(v.tensors)
    half = TaskVector(BASE, {names[0]: v.tensors[names[0]], names[1]: v.tensors[names[1]].scaled(0.0)})
    found = spectral_features(half)
    assert found["q.norm.mean"] == found["q.norm.max"] == pytest.approx(np.linalg.norm(dense(v, names[0])))
