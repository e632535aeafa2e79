"""The spectral study: its frozen list, its statistics against plain references, and a run on shipped vectors."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import ComgradError, NotFound
from comgrad.explain.inclusion import CANDIDATES
from comgrad.geometry.rank import canonical
from comgrad.geometry.spectral import project_delta
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench.corpus import open_corpus
from comgrad.workflows.bench_spectral.direction import choose, chosen_rows, direction_rows, learnt_tasks
from comgrad.workflows.bench_spectral.measure import Board, measure, random_adapters
from comgrad.workflows.bench_spectral.plan import DEVELOPMENT, TEST, Request, Study, load_study
from comgrad.workflows.bench_spectral.rows import arrow_row, triple_rows
from comgrad.workflows.bench_spectral.run import Outcome, run
from comgrad.workflows.bench_spectral.stats import by_group, exact_share, flip_p, over, over_groups

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


# -- the frozen list ---------------------------------------------------------------------------------------------------
def test_the_list_says_when_it_was_written_and_divides_by_general_task() -> None:
    study = load_study()
    assert "before any figure" in study.statement and len(study.pairs) == 51 and len(study.triples) == 14
    assert all(p.reason and p.kind in ("texts", "labels", "texts and labels") for p in study.pairs)
    assert set(study.halves) == {p.general for p in study.pairs}
    size = {h: sum(study.halves[p.general] == h for p in study.pairs) for h in (DEVELOPMENT, TEST)}
    assert size == {DEVELOPMENT: 30, TEST: 21}


def test_fewer_tasks_leave_the_halves_as_they_are() -> None:
    study = load_study()
    part = study.on({"movie-review-stars", "movie-review-sentences", "tweet-hate"})
    assert [(p.general, p.contained) for p in part.pairs] == [("movie-review-stars", "movie-review-sentences")]
    assert part.halves == study.halves and part.triples == ()


def test_lists_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    pair = {"general": "a", "contained": "b", "kind": "texts", "reason": "r"}
    whole = {"statement": "s", "meaning": "m", "protocol": [], "pairs": [pair], "triples": []}
    file = tmp_path / "list.json"

    def write(**changes: object) -> None:
        file.write_text(json.dumps(whole | changes))

    write(pairs=[pair, {**pair, "general": "b", "contained": "a"}])
    with pytest.raises(ComgradError, match="'b' and 'a' are in it twice, or are one task; mend the list"):
        load_study(file)
    write(triples=[{"general": "a", "contained": "b", "control": "a", "reason": "r"}])
    with pytest.raises(ComgradError, match="or its control is in one"):
        load_study(file)
    write(triples=[{"general": "a", "contained": "c", "control": "d", "reason": "r"}])
    with pytest.raises(ComgradError, match="the triple of 'a' and 'c' is of no pair"):
        load_study(file)
    file.write_text("{}")
    with pytest.raises(ComgradError, match="it is no list of pairs"):
        load_study(file)


# -- statistics --------------------------------------------------------------------------------------------------------
@given(SHARES)
def test_flipped_p_against_its_definition(shares: list[float]) -> None:
    seen = abs(np.mean(shares) - 0.5)
    turned = [
        abs(np.mean([1 - s if turn else s for s, turn in zip(shares, turns, strict=True)]) - 0.5)
        for turns in itertools.product((False, True), repeat=len(shares))
    ]
    assert flip_p(shares) == pytest.approx(np.mean([t >= seen - 1e-12 for t in turned]), abs=1e-9)
    assert flip_p(shares) == pytest.approx(flip_p([1 - s for s in shares]))


def test_flipped_p_of_many_groups_is_drawn() -> None:
    assert flip_p([1.0] * 30) <= 2e-5 < flip_p([1.0] * 5) == pytest.approx(2 / 32)


@given(st.integers(1, 40), st.data())
def test_exact_share_against_the_binomial_sum(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    weights = [math.comb(n, i) / 2**n for i in range(n + 1)]
    share = exact_share(k, n)
    assert share.p == pytest.approx(sum(w for w in weights if w <= weights[k] * (1 + 1e-9)), abs=1e-9)
    assert share.low <= share.share <= share.high


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.integers(0, 9))
@settings(max_examples=30)
def test_intervals_hold_the_mean_and_move_with_the_values(values: list[float], seed: int) -> None:
    x = np.array(values)
    e, shifted = over(x, draws=200, seed=seed), over(x + 3.0, draws=200, seed=seed)
    assert e.mean == pytest.approx(x.mean()) and x.min() - 1e-9 <= e.low <= e.high <= x.max() + 1e-9
    assert shifted.low == pytest.approx(e.low + 3.0) and shifted.high == pytest.approx(e.high + 3.0)
    assert over(np.append(x, np.nan), draws=200, seed=seed) == e


def test_values_of_one_group_count_once() -> None:
    values, groups = [1.0] * 9 + [0.0], ["a"] * 9 + ["b"]
    assert by_group(values, groups) == {"a": 1.0, "b": 0.0}
    e = over_groups(values, groups, draws=500, seed=0)
    assert (e.mean, e.low, e.high) == (0.5, 0.0, 1.0)
    assert math.isnan(over(np.array([np.nan]), draws=100, seed=0).mean)


# -- direction ---------------------------------------------------------------------------------------------------------
def made_up(right: dict[str, float]) -> tuple[Study, dict[str, list[float]]]:
    """Scores that find the direction of a given share of the whole list's pairs, by candidate."""
    study = load_study()
    n = len(study.pairs)
    return study, {name: [1.0 if k < right.get(name, 0.5) * n else -1.0 for k in range(n)] for name in CANDIDATES}


def test_the_best_candidate_and_its_sign_are_chosen_on_development_alone() -> None:
    study, found = made_up({"norm": 0.0})
    development = [study.halves[p.general] == DEVELOPMENT for p in study.pairs]
    found["norm"] = [-1.0 if d else 1.0 for d in development]  # reversed on development, right on the test half
    choice = choose(study, found, Request(draws=100))
    assert choice is not None and (choice.candidate, choice.sign) == ("norm", -1)
    rows = {r["half"]: r for r in chosen_rows(study, found, choice, Request(draws=100))}
    assert rows[DEVELOPMENT]["accuracy"] == 1.0 and rows[TEST]["accuracy"] == 0.0
    assert rows[TEST]["p_generals"] == pytest.approx(2 / 2 ** rows[TEST]["generals"])


def test_of_equal_candidates_the_first_with_its_own_sign() -> None:
    study, found = made_up(dict.fromkeys(CANDIDATES, 1.0))
    choice = choose(study, found, Request(draws=100))
    assert choice is not None and (choice.candidate, choice.sign) == (next(iter(CANDIDATES)), 1)
    rows = direction_rows(study, found, Request(draws=100))
    assert all(r["accuracy"] == 1.0 == r["macro"] for r in rows)
    assert sum(r["pairs"] for r in rows if r["candidate"] == "rec" and r["half"].startswith("all, ")) == 51


def test_learnt_pairs_are_those_whose_both_cards_say_so() -> None:
    corpus = open_corpus(None)
    learnt = learnt_tasks(corpus)
    gains = {}
    for item in corpus.known:
        assert item.adapter is not None
        training = json.loads((item.adapter / "task_card.json").read_text("utf-8"))["training"]
        gains[item.id] = training["accuracy_after"] - training["accuracy_before"]
    assert learnt == {i for i, g in gains.items() if g >= 0.03} and 0 < len(learnt) < len(gains)
    study, found = made_up({})
    rows = direction_rows(study, found, Request(draws=100), learnt)
    expected = sum(p.general in learnt and p.contained in learnt for p in study.pairs)
    assert {r["pairs"] for r in rows if r["half"] == "both learnt"} == {expected}


def test_a_score_of_zero_is_wrong() -> None:
    study, found = made_up({})
    found["rec"] = [0.0] * len(study.pairs)
    rows = direction_rows(study, found, Request(draws=100))
    assert all(r["correct"] == 0 for r in rows if r["candidate"] == "rec")


# -- on shipped vectors ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small() -> tuple[Study, Board]:
    ids = ("assistant-request-domain", "intent-banking", "intent-home", "sexism-vector", "sexism-category",
           "medical-study-conclusion", "doctor-patient-dialogue-section")  # fmt: skip
    corpus = open_corpus(None).only(ids)
    study = load_study().on(set(ids))
    return study, measure(corpus, 3, 0)


def test_random_adapters_keep_spectra_and_share_nothing(zoo: list[Path]) -> None:
    v = TaskVector.from_peft(zoo[0])
    one, same = random_adapters([v], 2, 5), random_adapters([v], 2, 5)
    for name in list(v.tensors)[:3]:
        form, drawn = canonical(v.tensors[name]), canonical(one[0].tensors[name])
        torch.testing.assert_close(form.S, drawn.S, rtol=1e-6, atol=1e-9)
        assert torch.equal(one[1].tensors[name].dense(), same[1].tensors[name].dense())
        p = project_delta(v.tensors[name], one[0].tensors[name])
        assert p is not None and p.core_explained < 0.01


def test_a_row_is_the_mean_of_single_projections(small: tuple[Study, Board]) -> None:
    """Against geometry.spectral, tensor by tensor."""
    study, board = small
    a, b = "sexism-vector", "sexism-category"
    row = arrow_row(board, study, a, b, Request(draws=100))
    corpus = {i.id: i.vector() for i in open_corpus(None).known if i.id in (a, b)}
    found = [project_delta(corpus[a].tensors[n], corpus[b].tensors[n]) for n in sorted(corpus[a].tensors)]
    for key, value in (
        ("rec", [p.rec for p in found if p]), ("l1", [p.lp(1) for p in found if p]),
        ("explained", [p.explained for p in found if p]), ("core_explained", [p.core_explained for p in found if p]),
        ("entropy_1", [p.entropy_1 for p in found if p]), ("entropy_2", [p.entropy_2 for p in found if p]),
    ):  # fmt: skip
        assert len(value) == 24 and row[key] == pytest.approx(np.mean(value), rel=1e-9)
        assert row[f"{key}_low"] <= row[key] <= row[f"{key}_high"]
    assert row["explained"] > row["explained_random"] and 0 <= row["rec_above_zoo"] <= 1


def test_nulls_keep_the_frame(small: tuple[Study, Board]) -> None:
    study, board = small
    a, K = "sexism-vector", len(board.ids)
    row = arrow_row(board, study, a, "sexism-category", Request(draws=100))
    i, others = board.place(a), board.unrelated(a, set())
    assert set(others) == {k for k, family in enumerate(board.families) if family != board.families[i]}
    rec = board.found.pairs["rec"].nanmean(0)
    assert row["rec_random"] == pytest.approx(float(rec[i, K:].mean())) != pytest.approx(float(rec[K:, i].mean()))
    assert row["rec_zoo"] == pytest.approx(float(rec[i, others].mean()))
    assert row["rec_above_zoo"] == pytest.approx(float((rec[i, others] < row["rec"]).double().mean()))


def test_unrelated_tasks_are_of_another_family_and_source_and_in_no_pair(small: tuple[Study, Board]) -> None:
    board = Board(("a", "b", "c", "d", "e", "f"), ("1", "1", "2", "3", "4", "5"), ("x", "y", "x", "z", "z", "z"),
                  small[1].found, 3)  # fmt: skip
    assert board.unrelated("a", {("a", "d"), ("e", "a")}) == [5]
    assert board.unrelated("a", set()) == [3, 4, 5]


def test_triples_have_six_arrows_of_their_own_tasks(small: tuple[Study, Board]) -> None:
    study, board = small
    rows = triple_rows(board, study, Request(draws=100))
    assert len(rows) == 6 * len(study.triples) == 12
    first = {r["arrow"]: (r["from"], r["to"]) for r in rows if r["triple"] == 1}
    assert first["G→C"] == ("assistant-request-domain", "intent-banking")
    assert first["C→K"] == ("intent-banking", "doctor-patient-dialogue-section")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("spectral")
    return run(Request(out=out, randoms=3, draws=200), page_file=out / "p.md")


def test_a_run_writes_tables_pictures_and_a_page_from_its_rows(outcome: Outcome) -> None:
    files = {Path(f).name: Path(f) for f in outcome.files}
    assert all(f.is_file() for f in files.values())
    assert {"spectral-pairs.csv", "spectral-claims.csv", "spectral-direction.json", "p.md", "p-triples.png"} <= set(
        files
    )
    assert files["p-pairs.png"].read_bytes().startswith(b"\x89PNG")
    text = files["p.md"].read_text("utf-8")
    assert text.split("\n")[2].startswith("Written by `comgrad bench spectral`")
    listed = next(r for r in outcome.nulls if (r["way"], r["measure"], r["null"]) == ("forward", "rec", "zoo"))
    assert f"REC of a contained task in the frame of its general task, {listed['pairs']:.3g}, is" in text
    assert "one half of the pairs is empty here" in text  # no general task of the test half is shipped
    assert len(outcome.rows) == 2 * outcome.environment["pairs"] == 20
    assert outcome.chosen is not None and [r["half"] for r in outcome.tested] == [DEVELOPMENT]
    json.dumps(outcome.as_dict())


def test_the_same_run_gives_the_same_bytes(outcome: Outcome, tmp_path: Path) -> None:
    again = run(Request(out=tmp_path, randoms=3, draws=200), page_file=tmp_path / "p.md")
    for a, b in zip(outcome.files, again.files, strict=True):
        assert Path(a).read_bytes() == Path(b).read_bytes(), a


def test_data_without_listed_pairs_and_senseless_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ComgradError, match="1 random adapters and 2000 draws; a null needs a spread"):
        run(Request(out=tmp_path, randoms=1))
    starter = Path(__file__).parents[1] / "src" / "comgrad" / "starter"
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "probe-voice").symlink_to(starter / "zoo" / "probe-voice")
    (tmp_path / "tasks").symlink_to(starter / "tasks")
    with pytest.raises(NotFound, match="this data holds both tasks of none"):
        run(Request(data=tmp_path, out=tmp_path / "out"))
