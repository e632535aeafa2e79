"""magnitude, TIES, DARE and breadcrumbs against ten lines of numpy, and the laws their formulas imply."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import ComgradError
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.merge import merge
from comgrad.vectors.merging import common, sparse
from comgrad.vectors.merging.masks import at_random
from comgrad.vectors.merging.ranks import KthLargest, kth_largest
from comgrad.vectors.task_vector import Deferred, TaskVector
from merge_vectors import BASE, Array, Plain, difference, plain, same, vector

KINDS = st.lists(st.text("lLdtb-", min_size=4, max_size=4).filter(lambda k: k != "----"), min_size=1, max_size=4)


def one_layout(kinds: list[str]) -> list[str]:
    """All vectors hold a tensor in one layout and shape: the first vector's kind decides."""

    def fit(kind: str, lead: str) -> str:
        if kind == "-" or lead == "-":
            return kind if lead == "-" and kind in "-d" else "-"
        return lead if lead in "tb" else (kind if kind in "lLd" else lead)

    fitted = [kinds[0], *("".join(fit(k, c) for k, c in zip(row, kinds[0], strict=True)) for row in kinds[1:])]
    return [k for k in fitted if k.strip("-")]


def band(x: Plain, have: set[str], density: float, gamma: float, scope: str) -> Plain:
    """Reference: the g largest of the elements go, the next k stay (with the equals of the last)."""
    groups = [sorted(have)] if scope == "global" else [[n] for n in sorted(have)]
    out = {n: np.zeros_like(v) for n, v in x.items()}
    for names in groups:
        size = -np.sort(-np.abs(np.concatenate([x[n].ravel() for n in names])))
        k = max(1, round(density * size.size))
        g = min(int(gamma * size.size), size.size - k)
        for n in names:
            stays = (np.abs(x[n]) >= size[g + k - 1]) & (np.abs(x[n]) <= size[g])
            out[n] = np.where(stays, x[n], 0.0)
    return out


def elected(xs: list[Array], w: list[float]) -> Array:
    """Reference: the weighted mean of what agrees with the sign of the weighted sum."""
    y = np.stack([a * x for a, x in zip(w, xs, strict=True)])
    sign = np.sign(y.sum(0))
    agree = (np.sign(y) == sign) & (sign != 0)
    weight = (np.abs(np.array(w)).reshape(-1, *[1] * xs[0].ndim) * agree).sum(0)
    return np.divide((y * agree).sum(0), weight, out=np.zeros_like(sign), where=weight > 0)


@settings(max_examples=60)
@given(
    kinds=KINDS.map(one_layout),
    seed=st.integers(0, 999),
    whole=st.booleans(),
    method=st.sampled_from(["magnitude", "ties", "breadcrumbs", "breadcrumbs-ties"]),
    scope=st.sampled_from(["global", "tensor"]),
    density=st.floats(0.01, 1.0),
    gamma=st.floats(0.0, 0.5),
    data=st.data(),
)
def test_trimming_methods_are_their_formulas(
    kinds: list[str], seed: int, whole: bool, method: str, scope: str, density: float, gamma: float, data: st.DataObject
) -> None:
    weights = [data.draw(st.sampled_from([1.0, 0.5, -0.25, 2.0])) for _ in kinds]
    vectors = [vector(seed + i, k, whole_numbers=whole) for i, k in enumerate(kinds)]
    crumbs = method.startswith("breadcrumbs")
    gamma = min(gamma, 1.0 - density) if crumbs else 0.0
    kept = [band(x, set(v.tensors), density, gamma, scope) for x, v in zip(plain(vectors), vectors, strict=True)]
    put = elected if "ties" in method else (lambda xs, w: sum(a * x for a, x in zip(w, xs, strict=True)))
    want = {n: np.asarray(put([k[n] for k in kept], weights)) for n in kept[0]}
    more = {"gamma": gamma, "inner": "ties" if "ties" in method else "sum"} if crumbs else {}
    merged = merge(vectors, method.split("-")[0], weights, density=density, scope=scope, **more)
    assert difference(merged, want) < 1e-6
    assert all(isinstance(d, Dense) for d in merged.tensors.values())


SPARSE = [
    ("magnitude", {"density": 0.3}),
    ("magnitude", {"density": 0.3, "scope": "tensor"}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.3, "scope": "tensor"}),
    ("breadcrumbs", {"density": 0.6, "gamma": 0.1}),
    ("breadcrumbs", {"density": 0.6, "gamma": 0.1, "scope": "global", "inner": "ties"}),
    ("dare", {"density": 0.4}),
    ("dare", {"density": 0.4, "inner": "ties"}),
]


@pytest.mark.parametrize(("method", "parameters"), SPARSE)
@settings(max_examples=5)
@given(seed=st.integers(0, 999), factor=st.sampled_from([0.25, 2.0, -1.0, -8.0]))
def test_laws_of_sparse_methods(method: str, parameters: dict[str, float], seed: int, factor: float) -> None:
    kinds = ("lLdb", "dL-b", "l-d-", "--db")
    vectors = [vector(seed + i, k) for i, k in enumerate(kinds)]
    weights = [1.0, 0.5, 2.0, -0.5]
    merged = merge(vectors, method, weights, **parameters)
    assert same(merge([v * factor for v in vectors], method, weights, **parameters), merged, factor) < 1e-6
    if method != "dare":  # its masks belong to the vector's place
        order = [2, 0, 3, 1]
        turned = merge([vectors[i] for i in order], method, [weights[i] for i in order], **parameters)
        assert same(turned, merged) < 1e-6
    nothing = merge(
        [vectors[0], -vectors[0]],
        method,
        **(parameters | ({"density": 1.0, "gamma": 0.0} if method == "breadcrumbs" else {"density": 1.0})),
    )
    assert max(float(d.dense().abs().max()) for d in nothing.tensors.values()) == 0.0
    still = merge([*vectors, vectors[0] * 0.0], method, [*weights, 1.0], **parameters)
    assert same(still, merged) < 1e-6


@pytest.mark.parametrize("method", ["magnitude", "dare", "breadcrumbs"])
def test_density_one_is_the_sum(method: str) -> None:
    vectors = [vector(1), vector(2, "dL-b"), vector(3, "l-db")]
    gamma = {"gamma": 0.0} if method == "breadcrumbs" else {}
    assert (
        same(merge(vectors, method, [1.0, -2.0, 0.5], density=1.0, **gamma), merge(vectors, "sum", [1.0, -2.0, 0.5]))
        < 1e-6
    )


def test_ties_of_one_vector_and_of_copies() -> None:
    a = vector(5)
    assert same(merge([a], "ties", [0.3], density=1.0), a) < 1e-6  # a mean: the weight cancels
    assert same(merge([a], "ties", [-0.3], density=1.0), a, -1.0) < 1e-6
    trimmed = merge([a], "magnitude", density=0.2)
    assert same(merge([a, a, a], "ties", density=0.2), trimmed) < 1e-6
    assert same(merge([a], "ties", density=0.2), trimmed) < 1e-6


def test_ties_of_vectors_that_agree_is_their_mean() -> None:
    positive = [TaskVector(BASE, {"t": Dense(vector(i, "d").tensors["t0"].dense().abs())}) for i in range(3)]
    assert same(merge(positive, "ties", [1.0, 2.0, 3.0], density=1.0), merge(positive, "mean", [1.0, 2.0, 3.0])) < 1e-6


def test_small_tensors_are_never_emptied_tensor_by_tensor() -> None:
    tensors = {f"t{n}": Dense(torch.arange(1.0, n + 1)) for n in (1, 2, 3, 64)}
    tiny = TaskVector(BASE, tensors)
    for method, more in (("magnitude", {}), ("ties", {}), ("breadcrumbs", {"gamma": 0.5})):
        merged = merge([tiny, tiny], method, density=0.01, scope="tensor", **more)
        assert [int((d.dense() != 0).sum()) for d in merged.tensors.values()] == [1, 1, 1, 1]
    norm_weight = merge([TaskVector(BASE, {"t": tensors["t64"]})], "breadcrumbs", density=0.9, gamma=0.01)
    assert int((norm_weight.tensors["t"].dense() != 0).sum()) == 58  # gamma·n < 1 removes none; it must not remove all


def test_scope_decides_which_tensor_keeps_what() -> None:
    scales = {"a": 1.0, "b": 0.1, "c": 0.01}
    g = torch.Generator().manual_seed(0)
    one = TaskVector(BASE, {n: Dense(s * torch.randn(100, 10, generator=g)) for n, s in scales.items()})
    kept = {
        scope: [int((d.dense() != 0).sum()) for d in merge([one], "ties", scope=scope).tensors.values()]
        for scope in ("global", "tensor")
    }
    assert kept["tensor"] == [200, 200, 200]
    assert sum(kept["global"]) == 600
    assert kept["global"][0] > 590
    alone = TaskVector(BASE, {"a": one.tensors["a"]})
    pair = [merge([alone], "magnitude", scope=s, density=0.37) for s in ("global", "tensor")]
    assert pair[0].tensors["a"].dense().equal(pair[1].tensors["a"].dense())


def test_transposed_and_convolution_layouts_are_kept() -> None:
    W = torch.randn(9, 8, generator=torch.Generator().manual_seed(3))
    plain_one, turned = TaskVector(BASE, {"t": Dense(W)}), TaskVector(BASE, {"t": Dense(W, transposed=True)})
    low = LowRank(torch.randn(4, 2), torch.randn(2, 12), weight_shape=(4, 3, 2, 2))
    kernels = [TaskVector(BASE, {"c": low}), TaskVector(BASE, {"c": Dense(torch.randn(4, 3, 2, 2))})]
    for method in ("ties", "dare", "breadcrumbs", "magnitude"):
        a, b = merge([plain_one] * 2, method).tensors["t"], merge([turned] * 2, method).tensors["t"]
        assert b.transposed
        assert b.in_base_layout().T.equal(a.in_base_layout())
        assert tuple(merge(kernels, method).tensors["c"].in_base_layout().shape) == (4, 3, 2, 2)
        assert tuple(merge(kernels[:1], method).tensors["c"].in_base_layout().shape) == (4, 3, 2, 2)


# -- DARE's masks ----------------------------------------------------------------------------------------------------


def test_dare_keeps_the_share_and_rescales_it() -> None:
    x = torch.randn(300, 400, generator=torch.Generator().manual_seed(0))
    one = TaskVector(BASE, {"t": Dense(x)})
    out = merge([one], "dare", density=0.25, seed=7).tensors["t"].dense()
    torch.testing.assert_close(out[out != 0], 4 * x[out != 0], rtol=1e-6, atol=0)
    share = float((out != 0).double().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / x.numel()) ** 0.5
    mean = sum(merge([one], "dare", density=0.25, seed=s).tensors["t"].dense() for s in range(200)) / 200
    standardised = (mean - x) / (x.abs() * (3 / 200) ** 0.5)
    assert abs(float(standardised.std()) - 1.0) < 0.05
    assert abs(float(standardised.mean())) < 5 / x.numel() ** 0.5


def test_dare_masks_are_independent_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a", "b", "c"]
    one = TaskVector(BASE, {n: Dense(torch.ones(40, 50)) for n in names})
    out = merge([one, one * 4.0], "dare", density=0.5, seed=3)
    masks = [(out.tensors[n].dense() / 2).int() & bit for n in names for bit in (1, 4)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            agree = float(((a > 0) == (b > 0)).double().mean())
            assert abs(agree - 0.5) < 5 * 0.5 / 2000**0.5
    only = merge([TaskVector(BASE, {"b": one.tensors["b"]}), one * 4.0], "dare", density=0.5, seed=3)
    assert only.tensors["b"].dense().equal(out.tensors["b"].dense())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 + threads % 2)
        monkeypatch.setattr(sparse, "BLOCK", 56)
        again = merge([one, one * 4.0], "dare", density=0.5, seed=3)
    finally:
        torch.set_num_threads(threads)
    assert all(again.tensors[n].dense().equal(out.tensors[n].dense()) for n in names)
    other = merge([one, one * 4.0], "dare", density=0.5, seed=4)
    assert not other.tensors["a"].dense().equal(out.tensors["a"].dense())


@settings(max_examples=30)
@given(start=st.integers(0, 200), length=st.integers(1, 200), seed=st.integers(0, 2**64 - 1))
def test_any_window_of_a_mask_is_the_same_mask(start: int, length: int, seed: int) -> None:
    keep = at_random(0.5, seed)(0, "t", torch.empty(0))
    assert keep(0, 400)[start : start + length].equal(keep(start, start + length))


def philox(counter: int, key: int) -> list[int]:
    """Philox-4×64 with ten rounds (Salmon et al. 2011): four words for one counter."""
    low, c, k = 2**64 - 1, [counter, 0, 0, 0], [key % 2**64, key >> 64]
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k[0], b & low, (a >> 64) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + 0x9E3779B97F4A7C15) & low, (k[1] + 0xBB67AE8584CAA73B) & low]
    return c


def test_masks_follow_from_their_definition_alone() -> None:
    key = int.from_bytes(hashlib.sha256(b"comgrad-mask/1/0/1/encoder.weight").digest()[:16], "little")
    words = [half for step in range(1, 5) for w in philox(step, key) for half in (w % 2**32, w >> 32)]
    mask = at_random(0.3, 0)(1, "encoder.weight", torch.empty(0))(0, 32)
    assert mask.tolist() == [w < 0.3 * 2**32 for w in words]
    frozen = "".join(str(int(b)) for b in at_random(0.5, 0)(1, "encoder.weight", torch.empty(0))(0, 32))
    assert frozen == "00100011100000000001011001111110"


# -- thresholds and memory -------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    parts=st.lists(
        st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0]), max_size=30),
        max_size=4,
    ),
    fine=st.booleans(),
    data=st.data(),
)
def test_streamed_ranks_are_exact(parts: list[list[float]], fine: bool, data: st.DataObject) -> None:
    dtype = torch.float64 if fine else torch.float32
    tensors = [torch.tensor(p, dtype=dtype) * (1 / 3 if fine else 1.0) for p in parts]
    everything = torch.cat([*tensors, torch.empty(0, dtype=dtype)])
    k = data.draw(st.integers(1, max(1, everything.numel())))
    search, walks = KthLargest(lambda _: k), 0
    while True:
        for x in tensors:
            search.feed(x)
        walks += 1
        if search.close():
            break
    if everything.numel() == 0:
        assert search.value == float("inf")
        return
    assert search.value == float(everything.abs().sort(descending=True).values[k - 1])
    assert search.value == kth_largest(everything, k)
    assert walks == (4 if fine else 2)


@pytest.mark.parametrize(("method", "parameters"), SPARSE)
def test_large_and_deferred_merges_are_computed_as_they_are_read(
    method: str, parameters: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = [vector(1), vector(2)]
    now = merge(vectors, method, **parameters)
    lazy = [TaskVector(BASE, Deferred(tuple(v.tensors), v.tensors.__getitem__)) for v in vectors]
    monkeypatch.setattr(common, "IN_MEMORY", 10)
    monkeypatch.setattr(sparse, "BLOCK", 17)
    for later in (merge(vectors, method, **parameters), merge(lazy, method, **parameters)):
        assert isinstance(later.tensors, Deferred)
        assert all(later.tensors[n].dense().equal(now.tensors[n].dense()) for n in reversed(tuple(now.tensors)))


# -- published tools -------------------------------------------------------------------------------------------------


def test_match_changes_what_the_tools_do_otherwise() -> None:
    a = TaskVector(BASE, {"t": Dense(torch.tensor([3.0, -1.0, 2.0, 0.0]))})
    b = TaskVector(BASE, {"t": Dense(torch.tensor([-3.0, 3.0, 2.0, 1.0]))})

    def out(match: str, weights: list[float]) -> list[float]:
        return merge([a, b], "ties", weights, density=1.0, match=match).tensors["t"].dense().tolist()

    assert out("none", [1.0, 1.0]) == [0, 3, 2, 1]
    assert out("mergekit", [1.0, 1.0]) == [3, 3, 2, 1]
    assert out("peft", [1.0, 1.0]) == [3, 3, 2, 1]
    assert out("none", [4.0, 1.0]) == [3, -1, 2, 1]
    assert out("mergekit", [4.0, 1.0]) == [3, -1, 2, 1]
    assert out("peft", [4.0, 1.0]) == [12, 3, 5, 1]
    with pytest.raises(ComgradError, match="two signs"):
        out("mergekit", [1.0, -1.0])
