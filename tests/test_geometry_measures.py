import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import BaseMismatch, ComgradError
from comgrad.geometry.angles import grassmann, grassmann_by_tensor
from comgrad.geometry.measures import MEASURES, compare, matrices, matrix
from comgrad.geometry.spectral import spectral_projection
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import TaskVector

BASE = BaseRef("tiny")
SHAPES = {"a": (26, 22), "b": (21, 30)}
ALL = tuple(MEASURES)
PLAIN = tuple(n for n in ALL if n != "centred_cosine")


def lowrank(name: str, r: int, seed: int, columns: int | None = None) -> LowRank:
    """A delta of rank r; stored with `columns` ≥ r columns of B when given."""
    g = torch.Generator().manual_seed(1000 * seed + r)
    m, n = SHAPES[name]
    B = torch.randn(m, r, generator=g, dtype=torch.float64)
    if columns is not None:
        B = B @ torch.randn(r, columns, generator=g, dtype=torch.float64)
    A = torch.randn(B.shape[1], n, generator=g, dtype=torch.float64)
    return LowRank(B, A, scale=0.5 + seed % 4, stored=torch.float64)


def densified(v: TaskVector, which: str) -> TaskVector:
    return TaskVector(
        BASE,
        {n: Dense(d.dense(), stored=torch.float64) if n in which else d for n, d in v.tensors.items()},
    )


def reference(a: Delta, b: Delta) -> dict[str, float]:
    """Every measure of one tensor from the dense matrices alone."""
    X, Y = a.dense().double().numpy(), b.dense().double().numpy()
    (U, S, Vh), (P, T, _) = np.linalg.svd(X), np.linalg.svd(Y)
    r, q, m = int((1e-10 * S[0] < S).sum()), int((1e-10 * T[0] < T).sum()), len(X)
    theta = scipy.linalg.subspace_angles(U[:, :r], P[:, :q])
    F = ((U[:, :r].T @ P[:, :q]) ** 2).sum()
    core = U[:, :r].T @ Y @ Vh[:r].T
    s1, s2 = S[:r], np.diagonal(core)
    p1, p2 = s1 / s1.sum(), np.abs(s2) / np.abs(s2).sum()

    def h(p: np.ndarray) -> float:
        return float(-(p * np.log(p)).sum() / np.log(r)) if r > 1 else 0.0

    sd = math.sqrt(2 * r * q * (m - r) * (m - q) / (m**2 * (m - 1) * (m + 2)))
    return {
        "inner": (X * Y).sum(),
        "cosine": (X * Y).sum() / np.linalg.norm(X) / np.linalg.norm(Y),
        "l2": np.linalg.norm(X - Y),
        "projection": (X * Y).sum() / (Y * Y).sum(),
        "grassmann_l1": theta.sum(),
        "geodesic": np.linalg.norm(theta),
        "chordal": np.linalg.norm(np.sin(theta)),
        "projection_metric": np.sin(theta.max()),
        "overlap": F / min(r, q),
        "overlap_z": (F - r * q / m) / sd,
        "spectral_explained": (s2**2).sum() / (Y**2).sum(),
        "spectral_core_explained": (core**2).sum() / (Y**2).sum(),
        "spectral_l1": np.abs(s1 - s2).sum(),
        "spectral_l2": np.linalg.norm(s1 - s2),
        "spectral_rec": np.minimum(p1, p2).sum(),
        "spectral_entropy_1": h(p1),
        "spectral_entropy_2": h(p2),
    }


kinds = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["", "a", "ab"])), min_size=2, max_size=4
)


@given(kinds, st.booleans(), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_every_measure_of_every_pair_against_dense_numpy(
    kinds: list[tuple[int, int, str]], deficient: bool, seed: int
) -> None:
    """Mixed ranks, dense and low-rank, rank-deficient storage: all paths of the batched code, one reference."""
    vectors = [
        densified(
            TaskVector(
                BASE,
                {
                    "a": lowrank("a", r, seed + i, columns=7 if deficient and i % 2 else None),
                    "b": lowrank("b", q, seed + 50 + i),
                },
            ),
            dense,
        )
        for i, (r, q, dense) in enumerate(kinds)
    ]
    found = matrices(vectors, PLAIN)
    for t, name in enumerate(("a", "b")):
        for i, u in enumerate(vectors):
            for j, v in enumerate(vectors):
                if i == j:
                    continue
                for measure, value in reference(u.tensors[name], v.tensors[name]).items():
                    ours = float(found[measure].per_tensor[t, i, j])
                    assert ours == pytest.approx(value, rel=1e-8, abs=2e-7), (measure, name, i, j)
    for measure, result in found.items():
        if MEASURES[measure].pool == "mean":
            torch.testing.assert_close(result.values, result.per_tensor.mean(0), rtol=1e-12, atol=1e-12)
        if MEASURES[measure].symmetric:
            assert torch.equal(result.values, result.values.T), measure
            assert torch.equal(result.per_tensor, result.per_tensor.mT), measure
    z = found["overlap_z"]
    torch.testing.assert_close(z.values, z.per_tensor.sum(0) / math.sqrt(2), rtol=1e-12, atol=1e-12)


def some(count: int = 6) -> list[TaskVector]:
    return [TaskVector(BASE, {"a": lowrank("a", 3, s), "b": lowrank("b", 2 + s % 3, 20 + s)}) for s in range(count)]


def test_a_table_row_says_all_about_its_measure() -> None:
    assert len(MEASURES) == 18
    for name, row in MEASURES.items():
        assert row.name == name
        assert row.formula
        assert row.source
        assert (row.on_gram is None) != (row.on_table is None)
    assert [n for n, row in MEASURES.items() if not row.symmetric and not n.startswith("spectral_")] == ["projection"]


def test_scale_changes_no_angle_and_no_normalised_spectrum() -> None:
    vectors = some()
    scaled = [v * (1e-4 * (-3.0) ** k) for k, v in enumerate(vectors)]
    free = ("grassmann_l1", "geodesic", "chordal", "overlap", "overlap_z", "spectral_explained", "spectral_rec")
    before, after = matrices(vectors, free), matrices(scaled, free)
    for name in free:
        torch.testing.assert_close(after[name].values, before[name].values, rtol=1e-9, atol=1e-11)


def test_gauge_changes_nothing() -> None:
    vectors = some()
    g = torch.Generator().manual_seed(0)
    turned = []
    for v in vectors:
        tensors: dict[str, Delta] = {}
        for name, d in v.tensors.items():
            assert isinstance(d, LowRank)
            G = torch.randn(d.rank, d.rank, generator=g, dtype=torch.float64)
            tensors[name] = LowRank(d.B @ G, torch.linalg.solve(G, d.A), d.scale, torch.float64)
        turned.append(TaskVector(BASE, tensors))
    before, after = matrices(vectors, ALL), matrices(turned, ALL)
    for name in ALL:
        torch.testing.assert_close(after[name].per_tensor, before[name].per_tensor, rtol=1e-8, atol=1e-8)


def test_workers_and_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = some(9)
    one, many = matrices(vectors, ALL, workers=1), matrices(vectors, ALL, workers=4)
    for name in ALL:
        assert torch.equal(one[name].values.nan_to_num(7.0), many[name].values.nan_to_num(7.0)), name
    from comgrad.geometry import pairs, stack

    monkeypatch.setattr(pairs, "CACHE_BUDGET", 5000)
    monkeypatch.setattr(stack, "CACHE_BUDGET", 5000)
    small = matrices(vectors, ALL)
    for name in ALL:
        torch.testing.assert_close(small[name].values, one[name].values, rtol=1e-11, atol=1e-11)


def test_batched_agrees_with_the_functions_for_a_pair_on_real_adapters(zoo: list[Path]) -> None:
    vectors = [TaskVector.from_peft(p) for p in zoo[:5]]
    vectors.append(vectors[0])  # a duplicate: the batch must find the same small angles as the pair
    found = matrices(vectors, ALL)
    for name, variant in [
        ("projection_metric", "projection"),
        *((n, n) for n in ("grassmann_l1", "geodesic", "overlap")),
    ]:
        for i, j in [(0, 1), (3, 2), (1, 4)]:
            assert float(found[name].values[i, j]) == pytest.approx(
                grassmann(vectors[i], vectors[j], variant), abs=1e-10
            )
    assert float(found["grassmann_l1"].values[0, 5]) <= 1e-12
    assert float(found["cosine"].values[0, 5]) == pytest.approx(1.0, abs=1e-14)
    for i, j in [(0, 1), (1, 0)]:
        by_tensor = spectral_projection(vectors[i], vectors[j])
        for t, name in enumerate(found["inner"].tensor_names):
            one = by_tensor[name]
            assert float(found["spectral_l2"].per_tensor[t, i, j]) == pytest.approx(one.lp(2), rel=1e-10)
            assert float(found["spectral_rec"].per_tensor[t, i, j]) == pytest.approx(one.rec, rel=1e-9)
            assert float(found["spectral_core_explained"].per_tensor[t, i, j]) == pytest.approx(one.core_explained)
    assert float(found["inner"].values[2, 3]) == pytest.approx(vectors[2].inner(vectors[3]), rel=1e-10)


def test_unequal_ranks_in_both_conventions() -> None:
    u, v = (TaskVector(BASE, {"a": lowrank("a", r, r)}) for r in (2, 5))
    for name in ("grassmann_l1", "geodesic", "chordal", "overlap"):
        for convention in ("containment", "full"):
            batched = float(matrix([u, v], name, convention=convention).values[0, 1])
            assert batched == pytest.approx(grassmann(u, v, name, convention=convention), abs=1e-12)
    assert float(matrix([u, v], "projection_metric", convention="full").values[0, 1]) == 1.0
    nested = TaskVector(BASE, {"a": v.tensors["a"]}) + u
    assert float(matrix([u, nested], "grassmann_l1").values[0, 1]) < 1e-10
    assert float(matrix([u, nested], "grassmann_l1", convention="full").values[0, 1]) == pytest.approx(5 * math.pi / 2)


def test_zero_and_missing_tensors_are_undefined_never_zero() -> None:
    zero = LowRank(torch.zeros(26, 3), torch.ones(3, 22))
    vectors = [
        *some(2),
        TaskVector(BASE, {"a": zero, "b": lowrank("b", 2, 9)}),
        TaskVector(BASE, {"b": lowrank("b", 2, 8)}),
    ]
    found = matrices(vectors, ALL)
    for name, result in found.items():
        if MEASURES[name].needs_subspace:
            assert bool(result.per_tensor[0, 2:].isnan().all()), name
            assert bool(result.per_tensor[0, :, 2:].isnan().all()), name
            assert bool(result.per_tensor[0, :2, :2].isfinite().all()), name
            assert bool(result.values.isfinite().all()), name  # tensor b decides
            if result.measure != "overlap_z":
                torch.testing.assert_close(result.values[2:, 2:], result.per_tensor[1, 2:, 2:])
    assert bool(found["cosine"].per_tensor[0, 2:].isnan().all())
    assert float(found["inner"].per_tensor[0, 0, 3]) == 0.0
    lonely = matrix([TaskVector(BASE, {"a": zero}), *some(1)], "grassmann_l1")
    assert bool(lonely.values[0].isnan().all())
    assert float(lonely.values[1, 1]) == 0.0


def test_biases_count_in_inner_products_only() -> None:
    u, v = some(2)
    with_bias = [
        TaskVector(BASE, {**w.tensors, "bias": Dense(torch.full((4,), 1.0 + k))}) for k, w in enumerate((u, v))
    ]
    plain, more = matrices([u, v], ALL), matrices(with_bias, ALL)
    assert float(more["inner"].values[0, 1]) == pytest.approx(float(plain["inner"].values[0, 1]) + 8.0)
    assert float(more["grassmann_l1"].values[0, 1]) == pytest.approx(float(plain["grassmann_l1"].values[0, 1]))
    assert more["grassmann_l1"].tensor_names == ("a", "b", "bias")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_never_wins(bad: float) -> None:
    B = torch.ones(26, 2)
    B[0, 0] = bad
    broken = TaskVector(BASE, {"a": LowRank(B, torch.ones(2, 22))})
    for name in ALL:
        with pytest.raises(ComgradError, match="tensor 'a' of vector 2 holds NaN or infinite"):
            matrix([*some(2), broken], name)
    with pytest.raises(ComgradError, match="holds NaN"):
        compare(broken, some(1)[0])


def test_the_mean_vector_hijacks_the_cosine_but_not_the_centred_one() -> None:
    """Four pairs of near twins with a common part: the mean of all is everyone's nearest by raw cosine."""
    common, *own = some(13)
    own = [v * (1 / v.norm()) for v in own]
    common = common * (3.0 / common.norm())
    twins = [common + 0.6 * own[k] + 0.9 * own[4 + k + 4 * side] for k in range(4) for side in (0, 1)]
    mean = twins[0]
    for v in twins[1:]:
        mean = mean + v
    found = matrices([*twins, mean], ["cosine", "centred_cosine"])
    nearest = {n: (m.values[:8] - 9 * torch.eye(9)[:8]).argmax(1).tolist() for n, m in found.items()}
    assert nearest["cosine"] == [8] * 8
    assert nearest["centred_cosine"] == [1, 0, 3, 2, 5, 4, 7, 6]


def test_what_equals_the_mean_has_no_centred_cosine_and_a_zero_vector_spoils_no_other() -> None:
    u, v, w = some(3)
    zero = TaskVector(BASE, {"a": Dense(torch.zeros(26, 22))})
    with_zero = matrix([u, zero, v, w], "centred_cosine").values
    assert bool(with_zero[1].isnan().all())
    torch.testing.assert_close(with_zero[[0, 2, 3]][:, [0, 2, 3]], matrix([u, v, w], "centred_cosine").values)
    assert bool(matrix([u, 2.0 * u, 3.0 * u], "centred_cosine").values.isnan().all())  # their centred norm is rounding


def test_progress_is_told_of_every_tensor() -> None:
    seen: list[tuple[int, int]] = []
    matrix(some(3), "cosine", progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]


KEYS = {
    "cosine", "inner", "norms", "l2", "projection", "projection_reverse", "projection_metric", "grassmann_l1",
    "geodesic", "chordal", "overlap", "overlap_z", "spectral",
}  # fmt: skip
SPECTRAL_KEYS = {"explained", "core_explained", "l1", "l2", "rec", "entropy_1", "entropy_2"}


def test_compare_has_the_promised_keys_and_values() -> None:
    u, v = some(2)
    result = compare(u, v).as_dict()
    assert set(result) == KEYS | {"tensors", "notes"}
    for record in (result, *result["tensors"].values()):
        assert set(record) >= KEYS
        assert set(record["spectral"]) == {"forward", "backward"}
        assert all(set(way) == SPECTRAL_KEYS for way in record["spectral"].values())
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["inner"] == pytest.approx(u.inner(v))
    assert result["norms"] == pytest.approx([u.norm(), v.norm()])
    assert result["l2"] == pytest.approx((u - v).norm())
    assert result["projection"] == pytest.approx(u.inner(v) / v.inner(v))
    assert result["projection_reverse"] == pytest.approx(u.inner(v) / u.inner(u))
    assert result["grassmann_l1"] == pytest.approx(grassmann(u, v))
    assert result["tensors"]["b"]["geodesic"] == pytest.approx(grassmann_by_tensor(u, v, "geodesic")["b"])
    ahead = spectral_projection(u, v)
    assert result["spectral"]["forward"]["l1"] == pytest.approx(sum(p.lp(1) for p in ahead.values()) / 2)
    swapped = compare(v, u).as_dict()
    for key in ("explained", "l1", "rec", "entropy_1"):
        assert swapped["spectral"]["forward"][key] == pytest.approx(result["spectral"]["backward"][key])
    assert result["notes"] == []


def test_compare_says_why_a_value_is_missing() -> None:
    u = some(1)[0]
    zero = TaskVector(BASE, {"a": Dense(torch.zeros(26, 22)), "bias": Dense(torch.ones(3))})
    result = compare(u, zero).as_dict()
    assert result["grassmann_l1"] is None
    assert result["tensors"]["a"]["cosine"] is None
    assert result["cosine"] == 0.0
    notes = " / ".join(result["notes"])
    assert "only A changes 1 tensor ('b')" in notes
    assert "only B changes 1 tensor ('bias')" in notes
    assert "a vector is zero on 1 tensor ('a')" in notes
    assert json.dumps(result, allow_nan=False)


def test_mistakes_are_refused_by_name() -> None:
    u, v = some(2)
    with pytest.raises(ComgradError, match="the measure 'grassmann'.*choose one of: inner, cosine") as refused:
        matrix([u, v], "grassmann")
    assert refused.value.code == "unknown-measure"
    with pytest.raises(ComgradError, match="the convention 'outer'"):
        matrix([u, v], "chordal", convention="outer")
    with pytest.raises(ComgradError, match="an empty collection"):
        matrix([], "cosine")
    with pytest.raises(BaseMismatch, match="vectors 0 and 1 come from different bases"):
        matrix([u, TaskVector(BaseRef("other"), dict(v.tensors))], "cosine")
