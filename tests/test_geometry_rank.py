import math

import numpy as np
import pytest
import torch

from comgrad.errors import ComgradError
from comgrad.geometry.rank import canonical, numerical_rank
from comgrad.vectors.delta import Dense, LowRank

DTYPES = {torch.bfloat16: 10.0, torch.float16: 30.0, torch.float32: 1e3}  # largest condition the dtype can resolve


def planted(m: int, rank: int, columns: int, condition: float, seed: int) -> torch.Tensor:
    """(m, columns) fp64 of exact rank and condition number, all columns of similar size."""
    g = torch.Generator().manual_seed(seed)
    U, _ = torch.linalg.qr(torch.randn(m, rank, generator=g, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(columns, rank, generator=g, dtype=torch.float64))
    return U * torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64) @ V.T


def grid() -> list[tuple[torch.dtype, int, int, float, int]]:
    return [
        (dtype, rank, columns, condition, m)
        for dtype, most in DTYPES.items()
        for rank, columns in [(1, 8), (4, 16), (8, 8), (8, 32), (16, 16)]
        for condition in (1.0, math.sqrt(most), most)
        for m in (256, 1024)
    ]


@pytest.mark.parametrize(("dtype", "rank", "columns", "condition", "m"), grid())
def test_planted_rank_is_found_exactly(dtype: torch.dtype, rank: int, columns: int, condition: float, m: int) -> None:
    B = planted(m, rank, columns, condition, seed=rank + columns).to(dtype)
    g = torch.Generator().manual_seed(1)
    A = torch.randn(columns, 192, generator=g, dtype=torch.float64).to(dtype)
    assert numerical_rank(B) == rank
    assert int(canonical(LowRank(B, A, stored=dtype)).rank[0]) == rank
    assert int(canonical(LowRank(A.T, B.T, stored=dtype)).rank[0]) == rank  # the deficiency in A


def test_the_grid_is_as_large_as_promised() -> None:
    assert len(grid()) == 90


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_stored_dtype_decides_not_the_working_one(dtype: torch.dtype) -> None:
    B = planted(512, 4, 16, 2.0, seed=3).to(dtype)
    assert numerical_rank(B.double(), stored=dtype) == 4
    assert numerical_rank(B.double()) == 16  # what an upcast does to anyone who forgets: the guard can fail


@pytest.mark.parametrize("common", [0, 1, 2, 3])
def test_both_factors_deficient_rank_is_that_of_the_meeting_spaces(common: int) -> None:
    """B's row space and A's column space are 3-dimensional in ℝ⁸ and share `common` directions."""
    g = torch.Generator().manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64))
    rows, cols = basis[:, :3], basis[:, 3 - common : 6 - common]
    for dtype in (torch.float32, torch.float64, torch.float16):
        B = (torch.randn(200, 3, generator=g, dtype=torch.float64) @ rows.T).to(dtype)
        A = (cols @ torch.randn(3, 150, generator=g, dtype=torch.float64)).to(dtype)
        form = canonical(LowRank(B, A, stored=dtype))
        assert int(form.rank[0]) == common
        assert int((form.S[0] > 0).sum()) == common


@pytest.mark.parametrize(("m", "n", "r"), [(20, 30, 4), (6, 30, 8), (30, 5, 9), (4, 4, 1)])
@pytest.mark.parametrize("scale", [2.0, -0.3])
def test_canonical_form_is_the_delta(m: int, n: int, r: int, scale: float) -> None:
    g = torch.Generator().manual_seed(m * n)
    d = LowRank(
        torch.randn(m, r, generator=g, dtype=torch.float64),
        torch.randn(r, n, generator=g, dtype=torch.float64),
        scale=scale,
        stored=torch.float64,
    )
    form = canonical(d)
    U, S, V = form.U[0], form.S[0], form.V[0]
    k = min(m, n, r)
    assert int(form.rank[0]) == k
    torch.testing.assert_close(U * S @ V.T, d.dense(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(U.T @ U, torch.eye(k).double(), rtol=0, atol=1e-13)
    reference = np.linalg.svd(d.dense().numpy(), compute_uv=False)[:k]
    np.testing.assert_allclose(S.numpy(), reference, rtol=1e-11)
    assert float(form.energy[0]) == pytest.approx(float(d.dense().square().sum()), rel=1e-12)


@pytest.mark.parametrize(
    "d",
    [
        LowRank(torch.zeros(6, 2), torch.ones(2, 5)),
        LowRank(torch.ones(6, 2), torch.zeros(2, 5)),
        LowRank(torch.ones(6, 2), torch.ones(2, 5), scale=0.0),
        Dense(torch.zeros(6, 5)),
    ],
)
def test_a_zero_delta_has_rank_zero(d: Dense | LowRank) -> None:
    form = canonical(d)
    assert int(form.rank[0]) == 0
    assert float(form.energy[0]) == 0.0


def test_dense_form_of_a_low_rank_delta_keeps_its_rank() -> None:
    g = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        B, A = torch.randn(60, 5, generator=g, dtype=dtype), torch.randn(5, 80, generator=g, dtype=dtype)
        assert int(canonical(Dense(B @ A, stored=dtype)).rank[0]) == 5


def test_dense_full_rank_is_cut_by_energy_and_never_beyond_half() -> None:
    g = torch.Generator().manual_seed(0)
    W = torch.randn(40, 60, generator=g)
    assert int(canonical(Dense(W)).rank[0]) == 20
    S = np.linalg.svd(W.double().numpy(), compute_uv=False)
    wanted = 1 + int((np.cumsum(S**2) < 0.3 * (S**2).sum()).sum())
    assert wanted < 20
    assert int(canonical(Dense(W), energy=0.3).rank[0]) == wanted


def test_what_is_no_matrix_or_not_finite_is_refused() -> None:
    with pytest.raises(ComgradError, match="only a matrix has a column space"):
        canonical(Dense(torch.ones(4)))
    with pytest.raises(ComgradError, match="NaN would win"):
        canonical(Dense(torch.full((3, 3), math.nan)))
    assert int(canonical(Dense(torch.randn(4, 3, 2, 2))).U.shape[1]) == 4  # a convolution kernel is (out, in·kh·kw)
