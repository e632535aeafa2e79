"""Subspaces: the kernel is an inner product of projectors, whatever the factors, lengths and ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.explain.reference import FEWEST_TO_CENTRE, centred
from comgrad.explain.subspaces import subspaces
from comgrad.geometry.measures import matrix
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector
from explain_models import BASE, NAMES, SIZE, dense_noise, noise, planted


def projector(d: torch.Tensor) -> np.ndarray:
    U, S, _ = torch.linalg.svd(d.double())
    U = U[:, 1e-5 * S[0] < S]
    return (U @ U.T).numpy()


def test_it_is_the_mean_cosine_of_projectors() -> None:
    vectors = [*planted(each=1)[:3], noise(1, rank=1), noise(2, rank=7)]
    found = subspaces(vectors, vectors)
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors):
            cosines = []
            for n in NAMES:
                P, Q = projector(a.tensors[n].dense()), projector(b.tensors[n].dense())
                cosines.append((P * Q).sum() / np.linalg.norm(P) / np.linalg.norm(Q))
            assert found.kernel[i, j] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.rank.tolist() == [6, 6, 6, 1, 7]
    assert found.first[3] == pytest.approx(1.0)
    assert np.linalg.eigvalsh(found.kernel).min() > -1e-9
    np.testing.assert_allclose(found.own, 1.0)


def test_z_is_that_of_the_measures() -> None:
    vectors = planted(each=2)
    expected = matrix(vectors, "overlap_z").values.numpy()
    found = subspaces(vectors[:3], vectors).z
    off = ~np.eye(len(vectors), dtype=bool)[:3]
    np.testing.assert_allclose(found[off], expected[:3][off], rtol=1e-9)


@given(st.integers(0, 1000), st.floats(0.01, 100.0))
@settings(max_examples=15)
def test_gauge_and_length_do_not_matter(seed: int, factor: float) -> None:
    vectors = planted(each=2)
    g = torch.Generator().manual_seed(seed)

    def turned(d: LowRank) -> LowRank:
        R = torch.linalg.qr(torch.randn(d.rank, d.rank, generator=g, dtype=torch.float64))[0]
        R = R * torch.logspace(-1, 1, d.rank, dtype=torch.float64)
        return LowRank((d.B.double() @ R).float() * factor, (torch.linalg.inv(R) @ d.A.double()).float(), 1.0)

    same = TaskVector(BASE, {n: turned(d) for n, d in vectors[0].tensors.items() if isinstance(d, LowRank)})
    a, b = subspaces([vectors[0]], vectors[1:]), subspaces([same], vectors[1:])
    np.testing.assert_allclose(a.kernel, b.kernel, atol=1e-5)
    assert a.first[0] == pytest.approx(b.first[0], abs=1e-5)


def test_rows_and_the_whole_agree_and_dense_is_low_rank_where_it_is() -> None:
    vectors = planted(each=2)
    whole = subspaces(vectors, vectors).kernel
    np.testing.assert_allclose(subspaces(vectors[2:4], vectors).kernel, whole[2:4], atol=1e-12)
    dense = TaskVector(BASE, {n: Dense(d.dense()) for n, d in vectors[0].tensors.items()})
    np.testing.assert_allclose(subspaces([dense], vectors).kernel[0], whole[0], atol=1e-5)


def test_full_rank_and_missing_tensors_have_values() -> None:
    vectors = planted(each=1)
    part = TaskVector(BASE, {NAMES[0]: vectors[0].tensors[NAMES[0]]})
    bias = TaskVector(BASE, {"encoder.layer.0.attention.self.query.bias": Dense(torch.ones(SIZE))})
    found = subspaces([dense_noise(1), part, bias], vectors)
    assert np.isfinite(found.kernel).all()
    assert found.kernel[1, 0] == pytest.approx(1 / np.sqrt(len(NAMES)))  # a quarter of the tensors: cosine 1/2
    assert found.own.tolist() == [1.0, 1.0, 0.0]
    assert found.kernel[2].tolist() == [0.0] * len(vectors)
    assert not np.isfinite(found.z[2]).any()


def test_centring_takes_out_what_all_share_and_the_probe_does_not_move_the_mean() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 60)) + 2.0 * rng.standard_normal(60)
    x = rng.standard_normal(60) + X.mean(axis=0)
    found = centred(X @ X.T, X @ x, float(x @ x))
    Y, y = X - X.mean(axis=0), x - X.mean(axis=0)
    expected = Y @ y / np.linalg.norm(Y, axis=1) / np.linalg.norm(y)
    np.testing.assert_allclose(found.row, expected, atol=1e-9)
    assert found.centred


def test_the_mean_itself_is_near_to_nothing_and_few_are_not_centred() -> None:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((20, 60))
    hub = X.mean(axis=0)
    found = centred(X @ X.T, X @ hub, float(hub @ hub))
    assert np.abs(found.row).max() == 0.0
    H = np.concatenate([X, hub[None]])  # among the known ones it can win no ranking either
    x = X[3] + 0.1 * rng.standard_normal(60)
    seen = centred(H @ H.T, H @ x, float(x @ x))
    assert not seen.alive[-1] and seen.row[-1] == 0.0 and seen.row.argmax() == 3
    few = X[: FEWEST_TO_CENTRE - 1]
    plain = centred(few @ few.T, few @ x, float(x @ x))
    assert not plain.centred
    assert plain.row[3] == pytest.approx(few[3] @ x / np.linalg.norm(few[3]) / np.linalg.norm(x))
