import math

import pytest
import torch

from comgrad.errors import ComgradError
from comgrad.geometry.null import expected_distance, overlap_mean, overlap_variance, overlap_z, pooled_z

CASES = [(20, 1, 1), (20, 3, 5), (12, 10, 4), (64, 8, 8)]


def simulate(m: int, r1: int, r2: int, draws: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    U, _ = torch.linalg.qr(torch.randn(draws, m, r1, generator=g, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(draws, m, r2, generator=g, dtype=torch.float64))
    return (U.mT @ V).square().sum((1, 2))


@pytest.mark.parametrize(("m", "r1", "r2"), CASES)
def test_mean_and_variance_are_those_of_random_subspaces(m: int, r1: int, r2: int) -> None:
    draws = 20_000
    F = simulate(m, r1, r2, draws, seed=m)
    mean, variance = overlap_mean(m, r1, r2), overlap_variance(m, r1, r2)
    assert abs(float(F.mean()) - mean) < 4 * math.sqrt(variance / draws)
    spread = float(((F - F.mean()) ** 2 - F.var()).std()) / math.sqrt(draws)  # standard error of the variance
    assert abs(float(F.var()) - variance) < 4 * spread
    z = overlap_z(F, m, torch.tensor(r1), torch.tensor(r2))
    assert abs(float(z.mean())) < 0.04
    assert float(z.std()) == pytest.approx(1.0, abs=0.03)


def test_one_dimension_is_the_beta_distribution() -> None:
    m = 7  # x² of a uniform unit vector is Beta(1/2, (m−1)/2)
    a, b = 0.5, (m - 1) / 2
    assert overlap_mean(m, 1, 1) == pytest.approx(a / (a + b))
    assert overlap_variance(m, 1, 1) == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)))


def test_the_whole_space_and_rank_zero_have_no_z() -> None:
    assert overlap_variance(5, 5, 2) == 0.0
    assert overlap_mean(5, 5, 2) == 2.0
    z = overlap_z(torch.tensor([2.0, 0.0, 0.3]), 5, torch.tensor([5, 0, 1]), torch.tensor([2, 2, 2]))
    assert z.isnan().tolist() == [True, True, False]
    with pytest.raises(ComgradError, match="between 1 and m dimensions"):
        overlap_mean(5, 0, 2)


def test_pooled_z_has_unit_variance_and_ignores_the_undefined() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(24, 5000, generator=g, dtype=torch.float64)
    assert float(pooled_z(z).std()) == pytest.approx(1.0, abs=0.05)
    z[3:] = math.nan
    torch.testing.assert_close(pooled_z(z), z[:3].sum(0) / math.sqrt(3))
    z[:, 0] = math.nan
    assert bool(pooled_z(z)[0].isnan())


def test_expected_distances_follow_the_published_shares_and_repeat() -> None:
    mean, spread = expected_distance(768, 8, 8, "geodesic")
    assert mean / (math.sqrt(8) * math.pi / 2) == pytest.approx(0.945, abs=0.004)
    assert 0 < spread < 0.1
    assert expected_distance(768, 8, 8, "geodesic") == (mean, spread)
    l1, _ = expected_distance(64, 4, 2)
    g = torch.Generator().manual_seed(9)
    U, _ = torch.linalg.qr(torch.randn(2000, 64, 4, generator=g, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(2000, 64, 2, generator=g, dtype=torch.float64))
    direct = float(torch.linalg.svdvals(U.mT @ V).clamp(max=1).arccos().sum(1).mean())
    assert l1 == pytest.approx(direct, abs=0.03)
    with pytest.raises(ComgradError, match="no simulated null"):
        expected_distance(64, 4, 2, "chordal")
