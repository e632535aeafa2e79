import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import BaseMismatch, ComgradError, ShapeMismatch
from comgrad.geometry.gram import centred, cosine_from_gram, distance_from_gram, gram, gram_by_tensor, gram_rows
from comgrad.types import BaseRef
from comgrad.vectors.delta import Delta, Dense, LowRank
from comgrad.vectors.task_vector import Deferred, TaskVector

BASE = BaseRef("tiny")
SHAPES = {"a": (9, 7), "b": (5, 11), "bias": (6,)}


def make(kinds: dict[str, int | str], seed: int, dtype: torch.dtype = torch.float64) -> TaskVector:
    """One vector: tensor → rank, or 'dense'."""
    g = torch.Generator().manual_seed(seed)
    tensors: dict[str, Delta] = {}
    for name, kind in kinds.items():
        shape = SHAPES[name]
        if isinstance(kind, str) or len(shape) == 1:
            tensors[name] = Dense(torch.randn(*shape, generator=g, dtype=dtype), stored=dtype)
        else:
            B = torch.randn(shape[0], kind, generator=g, dtype=dtype)
            A = torch.randn(kind, shape[1], generator=g, dtype=dtype)
            tensors[name] = LowRank(B, A, scale=0.5 + seed % 3, stored=dtype)
    return TaskVector(BASE, tensors)


def flat(v: TaskVector) -> np.ndarray:
    parts = []
    for name, shape in SHAPES.items():
        d = v.tensors.get(name)
        parts.append(np.zeros(int(np.prod(shape))) if d is None else d.dense().double().numpy().ravel())
    return np.concatenate(parts)


collections = st.lists(
    st.fixed_dictionaries(
        {"a": st.sampled_from([1, 2, 3, 6, "dense"])},
        optional={"b": st.sampled_from([1, 4, "dense"]), "bias": st.just("dense")},
    ),
    min_size=1,
    max_size=5,
)


@given(collections)
@settings(max_examples=40, deadline=None)
def test_gram_equals_that_of_the_flattened_vectors(kinds: list[dict[str, int | str]]) -> None:
    vectors = [make(k, seed) for seed, k in enumerate(kinds)]
    X = np.stack([flat(v) for v in vectors])
    G = gram(vectors)
    np.testing.assert_allclose(G.numpy(), X @ X.T, rtol=1e-12, atol=1e-11)
    assert torch.equal(G, G.T)
    assert float(torch.linalg.eigvalsh(G).min()) >= -1e-12 * float(G.trace())
    parts = gram_by_tensor(vectors)
    assert torch.equal(parts.total, parts.per_tensor.sum(0))
    assert parts.tensors == tuple(sorted({n for k in kinds for n in k}))


@given(collections, st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_new_rows_are_the_rows_of_the_larger_gram(kinds: list[dict[str, int | str]], seed: int) -> None:
    old = [make(k, s) for s, k in enumerate(kinds)]
    new = make({"a": 2, "b": "dense"}, 90 + seed)
    row = gram_rows([new], old)
    whole = gram([new, *old])
    torch.testing.assert_close(row.total, whole[:1, 1:], rtol=1e-12, atol=1e-12)
    assert row.per_tensor.shape == (len(row.tensors), 1, len(old))


def test_gram_is_bilinear_and_agrees_with_inner() -> None:
    u, v, w = (make({"a": 2, "b": 3, "bias": "dense"}, s) for s in range(3))
    G = gram([2.5 * u + v, w, u, v])
    assert float(G[0, 1]) == pytest.approx(2.5 * float(G[2, 1]) + float(G[3, 1]), rel=1e-12)
    assert float(G[0, 1]) == pytest.approx((2.5 * u + v).inner(w), rel=1e-12)


def test_workers_do_not_change_a_bit() -> None:
    vectors = [make({"a": 1 + s % 3, "b": "dense" if s % 2 else 2}, s) for s in range(6)]
    assert torch.equal(gram(vectors, workers=1), gram(vectors, workers=3))


def test_deferred_vectors_in_small_blocks_give_the_same_and_hold_few_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = [make({"a": "dense", "b": "dense"}, s) for s in range(5)]
    asked: list[str] = []

    def deferred(v: TaskVector) -> TaskVector:
        def get(name: str) -> Delta:
            asked.append(name)
            return v.tensors[name]

        return TaskVector(BASE, Deferred(tuple(v.tensors), get))

    from comgrad.geometry import gram as module

    monkeypatch.setattr(module, "MEMORY_BUDGET", 2 * 2 * 8 * 63)  # two vectors of tensor 'a' at a time
    found = gram([deferred(v) for v in vectors], workers=1)
    np.testing.assert_allclose(found.numpy(), gram(vectors).numpy(), rtol=1e-12)
    assert len(asked) > 10  # blocks were read again instead of kept


def test_centring_is_that_of_the_vectors() -> None:
    X = np.random.default_rng(0).normal(size=(6, 40))
    Y = X - X.mean(0)
    G = torch.from_numpy(X @ X.T)
    np.testing.assert_allclose(centred(G).numpy(), Y @ Y.T, atol=1e-12)
    norms = np.linalg.norm(Y, axis=1)
    np.testing.assert_allclose(cosine_from_gram(centred(G)).numpy(), Y @ Y.T / np.outer(norms, norms), atol=1e-12)
    gaps = np.linalg.norm(X[:, None] - X[None], axis=2)
    np.testing.assert_allclose(distance_from_gram(G).numpy(), gaps, atol=1e-6)


def test_a_zero_vector_has_no_cosine_and_never_wins() -> None:
    u, v = make({"a": 2}, 0), make({"a": 2}, 1)
    zero = TaskVector(BASE, {"a": Dense(torch.zeros(9, 7))})
    cosine = cosine_from_gram(gram([u, v, zero]))
    assert cosine[2].isnan().all() and cosine[:, 2].isnan().all()
    assert cosine[:2, :2].isfinite().all()
    assert torch.equal(cosine[:2, :2].diagonal(), torch.ones(2).double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["lowrank", "dense"])
def test_non_finite_numbers_are_refused_by_tensor_and_vector(bad: float, kind: str) -> None:
    good = make({"a": 2}, 0)
    W = torch.ones(9, 7)
    W[3, 3] = bad
    B = torch.ones(9, 2)
    B[1, 1] = bad
    broken = Dense(W) if kind == "dense" else LowRank(B, torch.ones(2, 7))
    with pytest.raises(ComgradError, match="tensor 'a' of vector 1 holds NaN") as refused:
        gram([good, TaskVector(BASE, {"a": broken}), good])
    assert refused.value.code == "not-finite"


def test_two_bases_and_two_shapes_are_refused_by_name() -> None:
    u = make({"a": 2}, 0)
    other = TaskVector(BaseRef("huge"), dict(u.tensors))
    with pytest.raises(BaseMismatch, match=r"vectors 0 and 1 come from different bases .*'tiny'.*'huge'"):
        gram([u, other])
    with pytest.raises(BaseMismatch, match="different bases"):
        gram_rows([u], [other])
    wide = TaskVector(BASE, {"a": Dense(torch.ones(9, 8))})
    for call in (lambda: gram([u, wide]), lambda: gram_rows([u], [wide])):
        with pytest.raises(ShapeMismatch, match=r"tensor 'a' has shape \(9, 7\) in vector 0 and \(9, 8\) in vector 1"):
            call()
    with pytest.raises(ComgradError, match="empty collection"):
        gram([])
