"""The similarity study: its tables and poolings against direct computation, and a whole run on shipped adapters."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.describe.task import Example
from comgrad.errors import ComgradError, NotFound
from comgrad.geometry.measures import matrices
from comgrad.geometry.table import MEASURES
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench.corpus import open_corpus
from comgrad.workflows.bench_similarity.plan import NEARNESS, Request, Study
from comgrad.workflows.bench_similarity.pool import Pools, centred_cosine, is_whole
from comgrad.workflows.bench_similarity.run import run
from comgrad.workflows.bench_similarity.score import HONEST
from comgrad.workflows.bench_similarity.tables import randomised, tables
from comgrad.workflows.bench_similarity.variants import (
    LOOKED_AT,
    VariantsRequest,
    as_given,
    make_variants,
    swapped,
    training_of,
)

ONLY = (
    "intent-home", "intent-meta", "intent-utility", "intent-banking", "acceptability-binding", "acceptability-ellipsis",
    "acceptability-quantifiers", "probe-voice", "probe-tree-depth",
)  # fmt: skip
SEEDS = st.integers(0, 2**32 - 1)


# -- centring ----------------------------------------------------------------------------------------------------------
@given(SEEDS, st.integers(2, 6), st.integers(0, 4))
def test_centred_cosine_from_products_is_that_of_the_vectors(seed, K, extra):
    X = np.random.default_rng(seed).standard_normal((K + extra, 9)) * 3
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    centre = unit - unit[:K].mean(0)
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    assert np.allclose(centred_cosine(X @ X[:K].T, (X**2).sum(1)), centre @ centre[:K].T, atol=1e-7)


@given(st.integers(3, 9), st.floats(0, 30))
def test_centring_removes_a_common_vector(K, size):
    X = np.c_[np.eye(K), np.full(K, size)]
    found = centred_cosine(X @ X.T, (X**2).sum(1))
    assert np.allclose(found[~np.eye(K, dtype=bool)], -1 / (K - 1), atol=1e-6)


def test_a_zero_vector_has_no_centred_cosine_and_does_not_move_the_mean():
    X = np.random.default_rng(0).standard_normal((4, 5))
    Y = np.vstack([X, np.zeros(5)])
    found = centred_cosine(Y @ Y.T, (Y**2).sum(1))
    assert np.isnan(found[4]).all()
    assert np.allclose(found[:4, :4], centred_cosine(X @ X.T, (X**2).sum(1)))


# -- vectors that know nothing -----------------------------------------------------------------------------------------
@given(SEEDS, st.integers(1, 4), st.booleans())
@settings(max_examples=25)
def test_randomised_deltas_keep_singular_values_and_lose_directions(seed, rank, dense):
    generator = torch.Generator().manual_seed(seed % 2**31)
    low = LowRank(torch.randn(40, rank, generator=generator), torch.randn(rank, 50, generator=generator), 2.0)
    delta = Dense(low.dense()) if dense else low
    other = randomised(delta, np.random.SeedSequence(seed))
    assert type(other) is type(delta)
    whole = [torch.linalg.svdvals(d.W if isinstance(d, Dense) else d.dense())[:rank] for d in (delta, other)]
    assert torch.allclose(whole[0], whole[1], rtol=1e-4)
    again = randomised(delta, np.random.SeedSequence(seed))
    key = (lambda d: d.W) if dense else (lambda d: d.dense())
    assert torch.equal(key(other), key(again))
    assert abs(float((key(other) * key(delta)).sum() / key(delta).square().sum())) < 0.5


def test_a_randomised_bias_keeps_its_norm():
    bias = Dense(torch.arange(6.0))
    other = randomised(bias, np.random.SeedSequence(1))
    assert float(other.W.norm()) == pytest.approx(float(bias.W.norm()))


# -- tables and poolings -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Further vectors of the shipped zoo: noisy copies, as adapters and as dense vectors."""
    folder = tmp_path_factory.mktemp("variants")
    for item in open_corpus(None).only(ONLY).known:
        vector = item.vector()
        generator = torch.Generator().manual_seed(len(item.id))

        def noisy(d: LowRank, g: torch.Generator = generator) -> LowRank:
            return replace(d, B=d.B + 0.3 * d.B.std() * torch.randn(d.B.shape, generator=g))

        some = {n: noisy(d) for n, d in vector.tensors.items() if isinstance(d, LowRank)}
        near = TaskVector(vector.base, some)
        (folder / "noisy").mkdir(exist_ok=True)
        near.save_peft(folder / "noisy" / item.id)
        if item.id != ONLY[0]:
            continue  # one is enough: whole matrices take their time
        there = folder / "dense" / item.id
        there.mkdir(parents=True)
        TaskVector(vector.base, {n: Dense(d.dense()) for n, d in some.items()}).save(there / "vector.safetensors")
    return folder


@pytest.fixture(scope="module")
def request_(variants: Path, tmp_path_factory: pytest.TempPathFactory) -> Request:
    out = tmp_path_factory.mktemp("out")
    return Request(out=out, variants=variants, only=ONLY, draws=20, page=out / "similarity.md")


@pytest.fixture(scope="module")
def pools(request_: Request) -> Pools:
    study = Study.open(request_)
    return Pools(study, tables(study), tables(study, random=True))


def test_poolings_are_those_of_all_pairs_computed_at_once(pools: Pools):
    K = len(pools.study.zoo)
    found = matrices(pools.study.vectors[:K], list(NEARNESS))
    off = ~np.eye(K, dtype=bool)
    for name in NEARNESS:
        sign = 1.0 if MEASURES[name].higher_is_nearer else -1.0
        whole, parts = found[name].values.numpy(), found[name].per_tensor.numpy().mean(0)
        for pooling, M in (("mean", parts), ("whole", whole)):
            if pooling == "mean" or is_whole(name):
                expected = sign * (M + M.T) / 2
                assert np.allclose(pools.among_zoo(name, pooling)[off], expected[off], rtol=1e-4, atol=1e-5), name


def test_the_null_of_an_overlap_is_the_one_in_closed_form_and_z_has_no_unit(pools: Pools):
    rows = pools.study.rows("zoo")
    mean, spread = pools.null("overlap")
    assert mean[:, rows].mean() == pytest.approx(8 / 384, rel=0.03)
    z = (pools.blocks("overlap", random=True) - mean) / spread
    assert np.allclose(np.nanmean(z[:, rows], axis=(1, 2)), 0, atol=1e-9)
    assert np.allclose(np.nanstd(z[:, rows], axis=(1, 2)), 1)
    one, other = (
        pools.similarity(m, "null")[:9] for m in ("overlap", "overlap_z")
    )  # each the other, shifted and scaled
    assert np.allclose(one, other, rtol=1e-3, equal_nan=True)


def test_scopes_are_layers_and_roles_that_together_are_all(pools: Pools):
    scopes = pools.study.scopes
    assert list(scopes) == ["all", *(f"layer {i}" for i in range(6)), *(f"role {r}" for r in "qkvo")]
    for what in ("layer", "role"):
        assert sorted(t for s, at in scopes.items() if s.startswith(what) for t in at) == list(scopes["all"])
        parts = [pools.similarity("cosine", scope=s) * len(at) for s, at in scopes.items() if s.startswith(what)]
        assert np.allclose(sum(parts) / 24, pools.similarity("cosine"), equal_nan=True)


def test_a_zoo_vector_is_never_its_own_neighbour(pools: Pools):
    K = len(pools.study.zoo)
    for name, pooling in pools.combinations:
        assert np.isnan(pools.similarity(name, pooling)[np.arange(K), np.arange(K)]).all()


# -- the whole ---------------------------------------------------------------------------------------------------------
def test_a_run_reports_every_question_and_a_second_one_only_reads(pools: Pools, request_: Request):
    first = run(request_)  # the tables are there: the fixture made them
    rows = {(r["section"], r["figure"], r["measure"], r["pooling"], r["scope"], r["kind"]): r for r in first.rows}
    assert len(rows) == len(first.rows)
    for kind in ("dense", "noisy"):
        assert rows["identify", "top1", "cosine", "mean", "all", kind]["value"] == 1.0
        assert rows["seeds", "auc", "grassmann_l1", "mean", "layer 3", kind]["value"] == 1.0
    honest = rows["families", HONEST, "overlap", "mean", "all", "zoo"]
    assert honest["low"] <= honest["value"] <= honest["high"]
    assert rows["agreement", "spearman", "overlap_z", "mean", "all", "overlap"]["value"] == pytest.approx(1, abs=1e-6)
    page = request_.page.read_text() if request_.page else ""
    assert (
        page.splitlines()[2]
        == "Written by `comgrad bench similarity`; no figure and no verdict here was typed by hand."
    )
    for heading in (
        "Do families cluster",
        "Layers and roles",
        "Do measures agree",
        "How far do seeds",
        "Identification",
    ):
        assert f"## {heading}" in page
    for name in (
        "similarity-matrix.png",
        "similarity-profile.png",
        "similarity-identify.png",
        "similarity-map-cosine.png",
    ):
        assert f"({name})" in page
        assert (request_.out / name).read_bytes().startswith(b"\x89PNG")
    assert first.environment["further_vectors"] == "dense 1, noisy 9"
    again = run(replace(request_, kept=True))
    assert repr(again.rows) == repr(first.rows)


def test_tables_of_other_vectors_are_not_taken_for_kept(request_: Request):
    with pytest.raises(NotFound, match="is not kept there"):
        run(replace(request_, kept=True, variants=None))


def test_requests_that_mean_nothing_are_refused(tmp_path: Path):
    with pytest.raises(ComgradError, match="needs at least 20"):
        Request(out=tmp_path, draws=3)
    with pytest.raises(ComgradError, match="a study needs 4 at least"):
        run(Request(out=tmp_path, only=ONLY[:3]))
    with pytest.raises(NotFound, match="there is no such folder"):
        run(Request(out=tmp_path, variants=tmp_path / "none"))
    with pytest.raises(NotFound, match="no task of that id"):
        run(Request(out=tmp_path, only=("no-such-task",)))


# -- variants ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def data(tmp_path: Path, zoo: list[Path], tasks: list[Path]) -> Path:
    """A data folder with one small task that has both examples and an adapter."""
    source, root = tasks[0], tmp_path / "data"
    card = json.loads((source / "task_card.json").read_bytes())
    card["label_names"], card["label_prompts"] = ["good", "bad"], ["This is good.", "This is bad."]
    there = root / "tasks" / "small"
    there.mkdir(parents=True)
    (there / "task_card.json").write_text(json.dumps(card))
    rows = [{"text": f"number {i} is fine", "label": i % 2, "split": "train" if i < 60 else "test"} for i in range(90)]
    (there / "examples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    shutil.copytree(zoo[0], root / "zoo" / "small")
    return root


def test_variants_change_one_thing_of_the_zoos_recipe(data: Path, tmp_path: Path):
    corpus = open_corpus(data)
    request = VariantsRequest(variants=tmp_path / "v", data=data)
    made = {k: training_of(request, corpus, k, corpus.get("small")) for k in request.kinds}
    control = made["same-recipe"]
    assert (control.steps, control.batch_size, control.rank) == (80, 16, 8)
    assert (control.learning_rate, control.limit_examples) == (0.002, None)
    assert replace(made["rank-4"], rank=8) == control == replace(made["rank-16"], rank=8)
    assert made["learning-rate-tenth"].learning_rate == pytest.approx(2e-4)
    assert replace(made["data-tenth"], limit_examples=None) == control
    assert made["data-tenth"].limit_examples == 6
    assert made["attention-linear"].recipe == "attention-linear"
    assert made["other-subsample"] == control


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["train", "test"])), min_size=1, max_size=40))
def test_the_other_sub_sample_shares_no_text_with_the_zoos(drawn: list[tuple[int, str]]):
    examples = tuple(Example(str(n), 0, split) for n, split in drawn)
    own = {e.text for e in examples if e.split == "train"}
    found = swapped(examples)
    assert not own & {e.text for e in found if e.split == "train"}
    assert {e.text for e in found if e.split == "test"} <= own
    assert [e for e in as_given(examples) if e.split == "train"] == [e for e in examples if e.split == "train"]
    assert sum(e.split == "test" for e in as_given(examples)) <= LOOKED_AT


def test_a_variant_is_trained_once_and_one_made_otherwise_is_refused(data: Path, tmp_path: Path):
    request = VariantsRequest(variants=tmp_path / "v", data=data, tasks=("small",), kinds=("rank-4",), steps=1)
    made = make_variants(request)
    path = Path(made[0]["path"])
    assert TaskVector.from_peft(path).rank == 4
    before = (path / "adapter_model.safetensors").stat().st_mtime_ns
    assert make_variants(request) == [{"kind": "rank-4", "task": "small", "path": str(path)}]
    assert (path / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ComgradError, match="made from other data or with another recipe"):
        make_variants(replace(request, steps=2))


def test_variants_of_nothing_are_refused(data: Path, tmp_path: Path):
    request = VariantsRequest(variants=tmp_path / "v", data=data, tasks=("small",))
    with pytest.raises(ComgradError, match="the kind 'rank-5'"):
        make_variants(replace(request, kinds=("rank-5",)))
    with pytest.raises(NotFound, match="the data has no second runs"):
        make_variants(replace(request, tasks=()))
    card = data / "zoo" / "small" / "task_card.json"
    card.write_text(json.dumps({**json.loads(card.read_bytes()), "training": {"rank": 8}}))
    with pytest.raises(ComgradError, match="does not say its steps, batch_size, learning_rate"):
        make_variants(replace(request, kinds=("same-recipe",)))
