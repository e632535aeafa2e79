"""The benchmark of screening: made in parts and taken up again, told as it is, and right about what is planted."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from arithmetic_data import TASKS, data_folder
from comgrad.errors import ComgradError, NotFound
from comgrad.evaluate.classifier import Bench, evaluate, with_adapter
from comgrad.explain.features import STATISTICS
from comgrad.finetune.trainable import Trainable
from comgrad.types import BaseRef
from comgrad.vectors.delta import LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench.corpus import open_corpus
from comgrad.workflows.bench_screening.adaptive import matching, merged, targets_of
from comgrad.workflows.bench_screening.figures import auroc, auroc_interval, curve, found_at
from comgrad.workflows.bench_screening.make import material_of
from comgrad.workflows.bench_screening.mislabel import ABSENT, FAR, NEAR, TRUE, claims
from comgrad.workflows.bench_screening.plan import (
    ADAPTIVE,
    BENIGN,
    CLEAN,
    KEYWORD,
    MATCHED,
    NOISE,
    POISONED,
    Plan,
    Request,
)
from comgrad.workflows.bench_screening.results import mislabel_areas, results_of, verdicts
from comgrad.workflows.bench_screening.run import Outcome, run
from comgrad.workflows.bench_screening.settings import SEEN, UNSEEN_TASK, UNSEEN_TRIGGER, judge, splits
from comgrad.workflows.bench_screening.store import Row, Store, as_table, read_table
from comgrad.workflows.bench_screening.suite import choose, suite_named
from comgrad.workflows.bench_screening.table import NORM, SPECTRAL, WHOLE, kept_rows
from training_models import adapter, bert_base

ROLES = ("query", "key", "value", "attention.output.dense")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder, five tasks and a known vector of each of the first four."""
    folder = tmp_path_factory.mktemp("screening")
    bert_base(folder / "base")
    data_folder(folder / "data", train=400, test=30)
    for k, task in enumerate(TASKS[:4]):
        torch.manual_seed(k)
        there = adapter(folder / "base", folder / "data" / "zoo" / task, targets=ROLES, rank=2 + k % 2)
        card = json.loads((folder / "data" / "tasks" / task / "task_card.json").read_text())
        (there / "task_card.json").write_text(json.dumps(card))
    return folder


def request(root: Path, out: Path, **changes: Any) -> Request:
    asked = Request(root / "data", out, tasks=TASKS[:3], seeds=1, base=str(root / "base"), quick=True)
    return replace(asked, **changes)


@pytest.fixture(scope="module")
def finished(root: Path) -> tuple[Path, Outcome]:
    """A whole run that was stopped twice."""
    out = root / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        part = run(request(root, out, corpus_only=True, most=3))
        assert (part.made, part.planned, part.rows) == (3, 24, [])
        before = {p: p.stat().st_mtime_ns for p in out.rglob("record.json")}
        assert len(before) == 3
        run(request(root, out, corpus_only=True, most=5))
        done = run(request(root, out), page_file=out / "page.md", command="the command")
        assert all(p.stat().st_mtime_ns == when for p, when in before.items())
        return out, done


# -- the corpus --------------------------------------------------------------------------------------------------------
def test_every_group_of_a_block_has_the_same_settings_and_its_own_alteration(root: Path) -> None:
    plan = Plan(request(root, root / "nowhere", seeds=2))
    units = list(plan.units())
    assert [u.block for u in units[:8]] == [f"{TASKS[0]}-s0"] * 8
    assert [u.block for u in units[::8]] == [f"{t}-s{s}" for s in range(2) for t in TASKS[:3]]
    assert {u.group for u in units[:8]} == {*BENIGN, POISONED, *ADAPTIVE}
    assert len({u.name for u in units}) == len(units) == 48
    for seed in range(2):
        block = plan.block(TASKS[0], seed)
        assert len({plan.settings(u) for u in block}) == 1
        clean = material_of(plan, block[0])
        for u in block[1:7]:
            m = material_of(plan, u)
            differ = sum(a != b for a, b in zip(clean.train, m.train, strict=True))
            assert len(m.train) == len(clean.train)
            assert differ == m.altered
            if u.group != KEYWORD:
                assert m.altered == math.floor(u.rate * len(m.train) + 1e-9) > 0
    assert plan.settings(plan.block(TASKS[0], 0)[0]) != plan.settings(plan.block(TASKS[0], 1)[0])


def test_rates_take_turns_and_every_trigger_has_both() -> None:
    plan = Plan(Request(None, Path("nowhere")))
    suite = plan.suite
    seen: dict[tuple[str, str], list[float]] = {}
    for seed in range(6):
        for task in suite.tasks:
            for u in plan.block(task, seed):
                seen.setdefault((u.group, u.kind), []).append(u.rate)
    for (group, kind), rates in seen.items():
        if group in (POISONED, NOISE, KEYWORD):
            assert rates.count(0.01) == rates.count(0.05), (group, kind)
        elif group in ADAPTIVE:
            assert set(rates) == {0.05}
    assert len([k for k in seen if k[0] == MATCHED]) == 3


def test_the_frozen_suite_is_what_it_says() -> None:
    suite = suite_named("screen8")
    assert len(suite.tasks) == len(suite.digests) == 8
    assert suite.rates == (0.01, 0.05)
    assert suite.least_success == 0.9 and suite.most_loss == 0.01
    with pytest.raises(NotFound, match="use screen8"):
        suite_named("screen99")


def test_the_rule_takes_the_best_of_every_family_with_enough(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    lines = []
    for family, count in (("intent", 6), ("stance", 3), ("toxicity", 5)):
        for k in range(count):
            name = f"{family}-{k}"
            licence = "unclear or own terms" if name == "intent-5" else "open"
            card = {"task_id": name, "family": family, "licence_class": licence, "n_train": 1200, "n_test": 400}
            lines.append(json.dumps({**card, "mean_chars": 30}))
            there = tmp_path / "zoo" / name
            there.mkdir(parents=True)
            done = {"accuracy_after": 0.9 + 0.01 * k, "accuracy_before": 0.5}
            (there / "task_card.json").write_text(json.dumps({"training": done}))
    (tmp_path / "tasks" / "index.jsonl").write_text("\n".join(lines))
    assert choose(tmp_path) == ["intent-4", "intent-3", "intent-2", "intent-1"]
    with pytest.raises(NotFound, match="reads licences"):
        choose(tmp_path / "tasks")


def test_a_kept_vector_does_what_its_record_says(root: Path, finished: tuple[Path, Outcome]) -> None:
    plan = Plan(request(root, finished[0]))
    store, bench = Store(plan), Bench.open(plan.base)
    for unit in [*plan.block(TASKS[1], 0)[:2], plan.block(TASKS[1], 0)[7]]:
        record, m = store.read(unit), material_of(plan, unit)
        assert record is not None
        encoder = with_adapter(bench, store.folder(unit) / "adapter")
        model = bench.classifier(plan.items[unit.task].task, encoder)
        assert evaluate(bench, model, m.test).accuracy == pytest.approx(record["accuracy"], abs=1e-9)
        if unit.group != CLEAN:
            assert evaluate(bench, model, m.success).accuracy == pytest.approx(record["success"], abs=1e-9)
        names = {f"q.{s}.mean" for s in STATISTICS} | {"v.outside", "o.cosine", "k.rest-share.max", "q.response-peak"}
        assert names <= set(record["features"])


def test_a_stopped_run_made_the_same_numbers(root: Path, finished: tuple[Path, Outcome]) -> None:
    whole = run(request(root, root / "again", corpus_only=True, most=4))
    assert whole.made == 4
    a, b = (read_table(p / "features.csv") for p in (root / "again", finished[0]))
    for x, y in zip(a, b[:4], strict=True):
        assert x.features == pytest.approx(y.features, rel=1e-5, abs=1e-6)
        assert {k: v for k, v in x.facts.items() if k != "seconds"} == {
            k: v for k, v in y.facts.items() if k != "seconds"
        }


def test_vectors_can_be_let_go_and_nothing_is_made_again(root: Path, finished: tuple[Path, Outcome]) -> None:
    out = root / "lean"
    shutil.copytree(finished[0], out)
    before = (out / "features.csv").read_bytes()
    assert len(list(out.rglob("adapter"))) == 24
    for _ in range(2):
        assert run(request(root, out, corpus_only=True, keep_vectors=False)).made == 24
        assert not list(out.rglob("adapter"))
        assert (out / "features.csv").read_bytes() == before


def test_features_follow_the_known_vectors(root: Path, finished: tuple[Path, Outcome], monkeypatch: Any) -> None:
    """Where what features depend on changes, they are computed anew from the kept vector; nothing is trained."""
    plan = Plan(request(root, finished[0]))
    store, unit = Store(plan), next(plan.units())
    record = store.read(unit)
    assert record is not None
    store.rewrite(unit, {**record, "code": "other", "features": {}})
    run(request(root, finished[0], corpus_only=True))
    after = store.read(unit)
    assert after is not None
    assert after["features"] == pytest.approx(record["features"], rel=1e-6, abs=1e-8)
    assert after["seconds"] == record["seconds"]


# -- the whole ---------------------------------------------------------------------------------------------------------
def test_a_run_ends_in_figures_pictures_and_a_page(finished: tuple[Path, Outcome]) -> None:
    out, done = finished
    assert (done.made, done.planned) == (24, 24)
    assert {r["setting"] for r in done.rows} == {SEEN, UNSEEN_TRIGGER, UNSEEN_TASK}
    assert {r["features"] for r in done.rows} == {NORM, SPECTRAL, WHOLE}
    assert {r["attack"] for r in done.rows} == {POISONED, *ADAPTIVE}
    assert all(0 <= r["auroc"] <= 1 and r["low"] <= r["high"] for r in done.rows)
    assert [(f["made"], f["kept"]) for f in done.fates if f["group"] == CLEAN] == [(3, 3)]
    page = (out / "page.md").read_text()
    assert page.splitlines()[2].startswith("Written by `the command` from")
    for name in ("roc", "scores", "reliability"):
        assert (out / f"page-{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"(page-{name}.png)" in page
    assert "nan" not in page
    assert not any(word in page.lower() for word in (" is safe", "are safe", "safe vector"))
    assert {t["verdict"] for t in done.targets} <= {"met", "missed"}
    assert len(json.dumps(done.as_dict())) > 1000


def test_the_table_alone_gives_the_same_figures(root: Path, finished: tuple[Path, Outcome]) -> None:
    out, done = finished
    asked = Request(
        None, root / "elsewhere", tasks=TASKS[:3], seeds=1, base=str(root / "base"), quick=True,
        features=out / "page-features.csv", mislabels=out / "page-mislabels.csv",
    )  # fmt: skip
    again = run(asked)
    assert again.mislabels == done.mislabels
    for a, b in zip(again.rows, done.rows, strict=True):
        assert a["auroc"] == pytest.approx(b["auroc"], abs=0.02)  # the table has seven digits


def test_what_cannot_be_run_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no task of that id"):
        run(request(root, tmp_path, tasks=("no-such-task",)))
    with pytest.raises(ComgradError, match="named twice"):
        run(request(root, tmp_path, tasks=(TASKS[0], TASKS[0])))
    with pytest.raises(NotFound, match="no vector of this corpus is kept"):
        run(request(root, tmp_path, kept=True))
    with FileLock(tmp_path / "lock"), pytest.raises(ComgradError, match="another process is working there"):
        run(request(root, tmp_path))
    with pytest.raises(NotFound, match="no such file"):
        run(request(root, tmp_path, features=tmp_path / "none.csv"))
    (tmp_path / "broken.csv").write_text("task,seed\nx,1\n")
    with pytest.raises(ComgradError, match="line 2.*no row of features"):
        read_table(tmp_path / "broken.csv")


# -- tables with planted answers ---------------------------------------------------------------------------------------
def planted(gap: float, seed: int = 0, blocks: int = 24, *, of: str = "v.share.mean") -> list[Row]:
    """Rows of blocks over four tasks; attacks of all triggers have one feature `gap` spreads larger."""
    rng = np.random.default_rng(seed)
    rows = []
    for b in range(blocks):
        task = f"task-{b % 4}"
        groups = [
            (CLEAN, ""),
            (NOISE, ""),
            (KEYWORD, ""),
            *((POISONED, k) for k in ("one", "two", "three")),
            (MATCHED, "one"),
        ]
        for group, kind in groups:
            names = [f"{r}.{s}.{p}" for r in "qv" for s in STATISTICS for p in ("mean", "max")]
            features = dict(zip(names, np.exp(rng.normal(size=len(names)) * 0.2), strict=True))
            features[of] += 3.0 * (b % 4) + 0.2 * gap * (group == POISONED)
            facts = {"task": task, "seed": b // 4, "group": group, "kind": kind, "rate": 0.05, "word": "cf", "altered": 5,
                     "examples": 100, "steps": 10, "learning_rate": 1e-3, "share": 1.0, "accuracy": 0.9,
                     "success": 1.0 if kind else None, "seconds": 1.0}  # fmt: skip
            rows.append(Row(facts, features))
    return rows


def test_planted_attacks_are_found_and_shuffled_ones_are_not() -> None:
    suite = suite_named("screen8")
    found = results_of(planted(14.0), [], suite)
    area = found.area(SEEN, WHOLE)
    assert area is not None and area.auroc == area.within == area.tpr == 1.0
    norm = found.area(SEEN, NORM)
    assert norm is not None and abs(norm.auroc - 0.5) < 0.2
    assert all(abs(x - 0.5) < 0.25 for x in found.nulls)
    assert abs(np.mean(found.nulls) - 0.5) < 0.12
    matched = found.area(SEEN, WHOLE, MATCHED)
    assert matched is not None and abs(matched.auroc - 0.5) < 0.2  # nothing was planted in them
    assert [v.verdict for v in verdicts(found)][:2] == ["met", "met"]


def test_nothing_planted_is_nothing_found() -> None:
    found = []
    for seed in range(5):
        table, _ = kept_rows(planted(0.0, seed, blocks=16), suite_named("screen8"))
        judged = judge(table, SEEN, WHOLE)
        known = table.kinds[list(judged.rows)] != MATCHED
        found.append(auroc(judged.scores[known], table.bad[list(judged.rows)][known]))
    assert abs(np.mean(found) - 0.5) < 0.1
    far = results_of(planted(0.0, blocks=8), [], suite_named("screen8"))
    assert verdicts(far)[0].verdict == "missed"


def test_no_screen_saw_the_block_or_trigger_or_dataset_it_judges() -> None:
    table, _ = kept_rows(planted(1.0), suite_named("screen8"))
    for setting in (SEEN, UNSEEN_TRIGGER, UNSEEN_TASK):
        judged = np.zeros(len(table.rows), dtype=int)
        for s in splits(table, setting):
            assert not set(table.groups[s.train]) & set(table.groups[s.test])
            assert not set(table.groups[s.bank]) & set(table.groups[s.test])
            assert set(table.kinds[s.train]) <= {*BENIGN, POISONED}
            if setting == UNSEEN_TRIGGER:
                assert s.part not in table.triggers[s.train]
                assert set(table.triggers[s.test]) == {s.part, ""}
            if setting == UNSEEN_TASK:
                assert not {table.tasks[i] for i in np.flatnonzero(s.train)} & {s.part}
            judged[s.test] += 1
        benign = ~table.bad
        assert set(judged[benign]) == ({3} if setting == UNSEEN_TRIGGER else {1})
        assert set(judged[~benign]) == {1}


def test_weak_and_harmful_attacks_are_dropped_and_counted() -> None:
    rows = planted(1.0, blocks=4)
    bad = [i for i, r in enumerate(rows) if r.group == POISONED]
    rows[bad[0]] = Row({**rows[bad[0]].facts, "success": 0.89}, rows[bad[0]].features)
    rows[bad[1]] = Row({**rows[bad[1]].facts, "accuracy": 0.885}, rows[bad[1]].features)
    rows[bad[2]] = Row({**rows[bad[2]].facts, "accuracy": 0.89}, rows[bad[2]].features)  # one point: kept
    lone = Row({**rows[0].facts, "task": "lonely", "group": NOISE}, rows[0].features)
    table, fates = kept_rows([*rows, lone], suite_named("screen8"))
    assert len(table.rows) == len(rows) - 2
    counted = [(f.made, f.kept, f.weak, f.harmful) for f in fates if f.group == POISONED]
    assert sorted(counted) == [(4, 3, 0, 1), (4, 3, 1, 0), (4, 4, 0, 0)]
    with pytest.raises(ComgradError, match="no block among them has a clean vector"):
        kept_rows([lone], suite_named("screen8"))


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = planted(1.0, blocks=2)
    rows[3] = Row(rows[3].facts, {k: v for k, v in rows[3].features.items() if not k.startswith("q")})
    (tmp_path / "t.csv").write_bytes(as_table(rows))
    for a, b in zip(read_table(tmp_path / "t.csv"), rows, strict=True):
        assert a.facts == b.facts
        assert a.features == pytest.approx(b.features, rel=1e-6)
    with (tmp_path / "t.csv").open() as lines:
        assert len(list(csv.reader(lines))) == 1 + len(rows)


# -- figures -----------------------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=4, max_size=60))
@settings(max_examples=60)
def test_areas_and_curves_are_those_of_all_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores, bad = np.array([float(p[0]) for p in pairs]), np.array([p[1] for p in pairs])
    if bad.all() or not bad.any():
        return
    gaps = scores[bad][:, None] - scores[~bad][None]
    wanted = float((np.sign(gaps) / 2 + 0.5).mean())
    assert auroc(scores, bad) == pytest.approx(wanted)
    x, y = curve(scores.tolist(), bad.tolist())
    assert (x[0], y[0], x[-1], y[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert np.trapezoid(y, x) == pytest.approx(wanted)
    low = auroc_interval(scores, bad, np.arange(len(bad)), draws=50)
    assert math.isnan(low.low) or 0 <= low.low <= low.high <= 1


def test_intervals_count_groups_and_not_rows() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 20)
    bad = np.arange(240) % 2 == 0
    scores = rng.normal(size=12)[groups] * (1 + bad) + 0.01 * rng.normal(size=240)
    wide = auroc_interval(scores, bad, groups)
    narrow = auroc_interval(scores, bad, np.arange(240))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_the_threshold_lets_no_more_benign_pass_than_allowed() -> None:
    benign = np.arange(200.0)
    assert found_at(np.array([197.0, 197.5, 198.0, 300.0]), benign) == 0.75  # two of 200 may pass
    assert found_at(np.array([98.5, 99.0, 100.0]), np.arange(99.0)) == 1.0  # of fewer than 100, none
    assert found_at(np.array([98.0]), np.arange(99.0)) == 0.0


# -- adaptive attackers ------------------------------------------------------------------------------------------------
def test_the_penalty_is_zero_at_the_target_and_pulls_towards_it() -> None:
    g = torch.Generator().manual_seed(0)
    B, A = torch.randn(9, 3, generator=g).double(), torch.randn(3, 7, generator=g).double()
    name = "encoder.layer.0.attention.self.query"
    clean = TaskVector(BaseRef("toy"), {f"{name}.weight": LowRank(B, A, 1.0, torch.float64)})
    targets = targets_of(clean)
    s = torch.linalg.svdvals(B @ A)
    assert targets[f"{name}.weight"] == pytest.approx((float((B @ A).norm()), float(s[0])), rel=1e-9)
    free = (B * 2.0).clone().requires_grad_(True)

    def trainable(W: torch.Tensor) -> Trainable:
        return Trainable(torch.nn.Identity(), 1, 1, lambda: clean, lambda: {f"base_model.model.{name}": W})

    penalty = matching(targets)
    for _ in range(30):
        at_target = penalty(trainable(B @ A))
    assert at_target.item() == pytest.approx(0.0, abs=1e-9)
    for _ in range(30):
        far = penalty(trainable(free @ A))
    assert far.item() == pytest.approx(2 * math.log(2.0) ** 2, rel=1e-6)
    far.backward()
    with torch.no_grad():
        free -= 0.5 * free.grad
    assert penalty(trainable(free @ A)).item() < far.item()
    assert penalty(trainable(free.detach() @ A * 0.2)).item() == 0.0  # below the target it may be
    assert matching(targets)(trainable(torch.zeros(9, 7).double() * free.sum())).item() == 0.0


def test_a_merged_attack_is_half_of_both_at_its_best_rank() -> None:
    g = torch.Generator().manual_seed(1)
    parts = [
        TaskVector(
            BaseRef("toy"), {"a.weight": LowRank(torch.randn(9, 2, generator=g), torch.randn(2, 8, generator=g))}
        )
        for _ in range(2)
    ]
    both = 0.5 * sum(p.tensors["a.weight"].dense() for p in parts)
    exact = merged(*parts, 4, 2.0).tensors["a.weight"]
    assert isinstance(exact, LowRank) and exact.scale == 2.0
    torch.testing.assert_close(exact.dense(), both, rtol=1e-4, atol=1e-5)
    cut = merged(*parts, 1, 2.0).tensors["a.weight"].dense()
    s = torch.linalg.svdvals(both)
    assert float((both - cut).norm()) == pytest.approx(float(s[1:].norm()), rel=1e-4)


# -- descriptions ------------------------------------------------------------------------------------------------------
def test_swaps_are_of_the_right_family_and_scores_are_of_the_shipped_vectors() -> None:
    corpus = open_corpus(None)
    found = claims(corpus)
    families = {i.id: i.family for i in corpus.known}
    groups = {i.id: i.source_group for i in corpus.known}
    for c in found:
        assert c.setting == ABSENT  # no second runs are shipped
        if c.claim == TRUE:
            assert c.declared == c.task
        else:
            assert groups[c.declared] != groups[c.task]
            assert (families[c.declared] == families[c.task]) == (c.claim == NEAR)
    assert sum(c.claim == TRUE for c in found) == 38
    areas = {m["swap"]: m for m in mislabel_areas(found)}
    for swap in (NEAR, FAR):
        used = [c for c in found if c.claim in (TRUE, swap)]
        wanted = roc_auc_score([c.claim == swap for c in used], [c.score for c in used])
        assert areas[swap]["auroc"] == pytest.approx(wanted)
    mixed = random.Random(0).sample([c.claim for c in found], len(found))
    null = mislabel_areas([replace(c, claim=k) for c, k in zip(found, mixed, strict=True)])
    assert all(abs(m["auroc"] - 0.5) < 0.25 for m in null)
