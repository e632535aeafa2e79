"""The whole benchmark on the shipped adapters and two shipped tasks, killed on the way and taken up again."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from comgrad.cli.main import app
from comgrad.errors import ComgradError, NotFound
from comgrad.predict.start import combination
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.bench import page
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.corpus import Corpus, open_corpus
from comgrad.workflows.bench.fold import fold_of
from comgrad.workflows.bench.model import Model
from comgrad.workflows.bench.plan import Cell, Request, cells
from comgrad.workflows.bench.prepare import Sizes, chosen, file_of, load
from comgrad.workflows.bench.run import Result, run
from comgrad.workflows.bench.score import gap_recovered
from comgrad.workflows.bench.search import lorahub
from comgrad.workflows.bench.tables import Group, losses
from comgrad.workflows.bench.work import Worker

TASKS = ("abstract-sentence-role", "acceptability-irregular-forms")
KNOWN = ("acceptability-binding", "acceptability-ellipsis", "causal-news-sentence", "intent-banking", "probe-voice",
         "probe-sentence-length", "sensible-statement", "hate-offensive-neither")  # fmt: skip
METHODS = (
    "zero",
    "mean",
    "mean-scaled",
    "nearest",
    "ridge",
    "functional",
    "random-lora",
    "ours+16",
    "own",
)
SIZES = Sizes(test=24, train=16)


def request(out: Path, **changes: object) -> Request:
    asked = Request(
        None, out, only=TASKS + KNOWN, splits=("losgo",), methods=METHODS, variants=("given", "shuffled"), sizes=SIZES
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("bench")
    return out, run(request(out), page_file=out / "page.md")


def test_every_cell_has_its_row(finished: tuple[Path, Result]) -> None:
    out, result = finished
    rows = result.rows
    assert {(r["task"], r["method"]) for r in rows if r["variant"] == "given"} == {
        (t, m) for t in TASKS for m in METHODS if m != "own"
    }  # these two tasks have no adapter of their own
    assert {r["method"] for r in rows if r["variant"] == "shuffled"} == {"ridge", "functional"}
    by_method = {(r["task"], r["method"]): r for r in rows if r["variant"] == "given"}
    for task in TASKS:
        zero = by_method[task, "zero"]
        assert zero["loss"] == zero["loss0"]
        assert zero["accuracy"] == zero["accuracy0"]
        assert by_method[task, "mean"]["loss"] != zero["loss"]
        ours = by_method[task, "ours+16"]
        assert ours["loss"] == ours["loss0"] if ours["abstained"] else ours["loss"] != ours["loss0"]
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    for name in ("summary.csv", "seconds.csv", "page.md"):
        assert (out / name).stat().st_size > 0
    assert not list(out.glob(".*.part"))


def test_losses_are_those_of_the_merged_model(finished: tuple[Path, Result]) -> None:
    """The mean's loss again, by merging dense weights into a fresh model and scoring texts one at a time."""
    _, result = finished
    corpus = open_corpus(None).only(TASKS + KNOWN)
    item = corpus.get(TASKS[1])
    allowed = [k for k in corpus.known if k.source_group != item.source_group]
    model = Model(corpus)
    prompts = model.prompts(item)
    parameters = dict(model.encoder.named_parameters())
    for name in corpus.vectors[0].tensors:
        parameters[name].data += sum(k.vector().tensors[name].dense() for k in allowed) / len(allowed)
    losses = []
    for e in chosen(item, "test", SIZES):
        hidden = model.encoder(**model.bench.tokens([e.text])).last_hidden_state.mean(dim=1)
        z = 20.0 * torch.nn.functional.cosine_similarity(hidden, prompts)
        losses.append(float(torch.logsumexp(z, 0) - z[e.label]))
    row = next(r for r in result.rows if (r["task"], r["method"]) == (item.id, "mean"))
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert len(allowed) == row["vectors"]


def test_the_encoder_comes_back_to_the_base() -> None:
    corpus = open_corpus(None).only(TASKS + KNOWN)
    model = Model(corpus)
    before = {n: p.clone() for n, p in model.encoder.named_parameters()}
    with model.at(np.full(len(corpus.known), 0.3)):
        assert any(not torch.equal(before[n], p) for n, p in model.encoder.named_parameters())
    with pytest.raises(ZeroDivisionError), model.along(combination(corpus.vectors, [1.0] * len(corpus.known))):
        raise ZeroDivisionError
    assert all(torch.equal(before[n], p) for n, p in model.encoder.named_parameters())


def stopping(after: int) -> Callable[[Worker, Cell], None]:
    whole, count = Worker.cell, 0

    def cell(self: Worker, cell: Cell) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        whole(self, cell)

    return cell


def test_killed_between_cells_it_goes_on_to_the_same_rows(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, result = finished
    shutil.copytree(done / "tasks", tmp_path / "tasks")  # what was prepared depends on nothing of the run
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "cell", stopping(7))
        with pytest.raises(KeyboardInterrupt):
            run(request(tmp_path))
    assert not (tmp_path / "results.csv").exists()
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("cells/*/*.json")}
    assert len(kept) == 7
    again = run(request(tmp_path))
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert again.rows == result.rows
    assert (tmp_path / "results.csv").read_bytes() == (done / "results.csv").read_bytes()


def test_lorahub_searches_on_the_true_loss_of_its_examples(finished: tuple[Path, Result]) -> None:
    done, _ = finished
    worker = Worker(request(done))
    item = worker.corpus.get(TASKS[1])
    fold = fold_of(worker.board, item, "losgo", item.description)
    aid = Aid(worker.model, item, fold, SIZES, "16 examples", done)
    found = lorahub(fold, aid, start="nearest", budget=8)
    assert found.note["evaluations"] == 8
    assert found.coefficients is not None
    c = found.coefficients
    examples = aid.shots()
    assert examples.loss(c) + 0.05 * np.abs(c).mean() <= examples.loss(0.0 * c)
    assert examples.loss(0.0 * c) == pytest.approx(examples.tangent.loss(), rel=0.02)
    step = 1e-3 * np.eye(len(c))[2]  # and the linearisation is the true loss's, there too
    slope = (examples.loss(c + step) - examples.loss(c - step)) / 2e-3
    assert -examples.tangent_at(c).gains[2] == pytest.approx(slope, rel=0.1, abs=1e-3)


def test_two_processes_find_the_same_rows(finished: tuple[Path, Result], tmp_path: Path) -> None:
    done, result = finished
    shutil.copytree(done / "tasks", tmp_path / "tasks")
    few = ("mean", "nearest", "random-lora")
    found = run(request(tmp_path, methods=few, jobs=2))
    wanted = {(r["task"], r["method"]): r["loss"] for r in result.rows if r["method"] in few}
    assert {(r["task"], r["method"]): pytest.approx(r["loss"], rel=1e-6) for r in found.rows} == wanted


def test_a_split_that_leaves_out_the_same_is_not_done_twice(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, _ = finished
    shutil.copytree(done, tmp_path / "copy")
    monkeypatch.setattr(Model, "losses", stopping(0))  # nothing is evaluated any more
    asked = request(tmp_path / "copy", tasks=TASKS[:1], methods=("mean", "nearest", "ours+16"), splits=("losgo", "loo"))
    rows = run(asked).rows
    pairs: dict[str, set[float]] = {}
    for r in rows:
        pairs.setdefault(r["method"], set()).add(r["loss"])
    assert len(rows) == 6
    assert all(len(losses) == 1 for losses in pairs.values())


def test_a_finished_run_does_nothing_again(finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    done, result = finished
    monkeypatch.setattr(Worker, "cell", stopping(0))
    monkeypatch.setattr(Worker, "prepare", stopping(0))
    before = (done / "results.csv").read_bytes()
    assert run(request(done)).rows == result.rows
    assert (done / "results.csv").read_bytes() == before


def test_kept_reports_what_is_there_and_computes_nothing(
    finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, result = finished
    monkeypatch.setattr(Worker, "cell", stopping(0))
    more = request(done, methods=(*METHODS, "softmax10"), kept=True)
    assert run(more).rows == result.rows
    with pytest.raises(KeyboardInterrupt):
        run(replace(more, kept=False))


def test_growth_compares_the_same_tasks(finished: tuple[Path, Result]) -> None:
    rows = [r for r in finished[1].rows if r["method"] == "functional" and r["variant"] == "given"]
    few = {**rows[0], "known": 4, "draw": 0, "loss": rows[0]["loss0"]}  # at four vectors only one task was done
    text = page.page([*rows, few], finished[1].environment, request(finished[0]), "")
    growth = text.split("## Growth")[1].split("##")[0]
    assert "on the same 1 tasks" in growth
    at_all = next(line for line in growth.splitlines() if line.startswith("| functional | all |"))
    own = gap_recovered(losses([rows[0]])[Group("functional", "losgo")])
    assert f"| {own:.2f} |" in at_all.replace("–", "nan")


def test_a_damaged_cell_is_done_again(finished: tuple[Path, Result], tmp_path: Path) -> None:
    done, result = finished
    shutil.copytree(done, tmp_path / "copy")
    victim = tmp_path / "copy" / "cells" / TASKS[0] / "mean--losgo--given.json"
    victim.write_text(victim.read_text()[:40])
    assert run(request(tmp_path / "copy")).rows == result.rows
    assert json.loads(victim.read_text())["loss"] > 0


def test_other_examples_mean_other_numbers(finished: tuple[Path, Result]) -> None:
    done, _ = finished
    corpus = open_corpus(None).only(TASKS + KNOWN)
    item = corpus.get(TASKS[0])
    assert load(file_of(done, corpus, item, SIZES)) is not None
    for other in (Sizes(test=25, train=16), Sizes(test=24, train=17), Sizes(test=24, train=16, seed=1)):
        assert load(file_of(done, corpus, item, other)) is None
    fewer = corpus.only(TASKS + KNOWN[1:])
    assert load(file_of(done, fewer, fewer.get(item.id), SIZES)) is None


def test_examples_are_nested_and_never_seen_in_the_test() -> None:
    item = open_corpus(None).get(TASKS[1])
    few, many = (chosen(item, "train", Sizes(train=n)) for n in (16, 160))
    assert many[:16] == few
    assert not {e.text for e in many} & {e.text for e in item.task.examples if e.split == "test"}
    assert chosen(item, "train", Sizes(train=16, seed=1)) != few


def test_the_command_prints_rows_and_environment(finished: tuple[Path, Result]) -> None:
    done, result = finished
    words = ["bench", "descinit", "-o", str(done), "--only", ",".join(TASKS + KNOWN), "--splits", "losgo"]
    words += [
        "--methods",
        ",".join(METHODS),
        "--descriptions",
        "given,shuffled",
        "--test-examples",
        "24",
        "--examples",
        "16",
    ]
    found = CliRunner().invoke(app, [*words, "--json"])
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert len(answer["rows"]) == len(result.rows)
    assert {"torch", "numpy", "cpu", "seed", "tasks_digest", "vectors_digest"} <= set(answer["environment"])
    shown = CliRunner().invoke(app, words)
    assert "functional" in shown.stdout
    assert "results.csv" in shown.stdout


def test_the_page_says_what_the_rows_say(finished: tuple[Path, Result]) -> None:
    done, result = finished
    text = (done / "page.md").read_text()
    for heading in ("Headline", "Paired comparisons", "Descriptions", "By family", "Methods", "Environment"):
        assert f"## {heading}" in text
    zero = next(f for f in result.figures if f["method"] == "mean" and f["pool"] == "all")
    line = next(line for line in text.splitlines() if line.startswith("| mean |"))
    assert f"| {zero['harmed']:.2f} [" in line
    assert f"`{result.environment['vectors_digest']}`" in text
    assert str(done) not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": ("losgo", "lopo")}, "the split 'lopo'.*losgo, loo, lofo"),
        ({"methods": ("mean", "magic")}, "the method 'magic'.*mean-scaled"),
        ({"variants": ("upside-down",)}, "description variant 'upside-down'"),
        ({"methods": ("ours+160",)}, "16 training examples; the method 'ours\\+160' uses 160"),
        ({"jobs": 0}, "a run needs"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ComgradError, match=message):
        request(tmp_path, **changes)


def test_missing_data_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no folders 'tasks' and 'zoo'"):
        run(Request(tmp_path, tmp_path / "out"))
    with pytest.raises(NotFound, match="the task 'tax-fraud'"):
        run(request(tmp_path / "out", tasks=("tax-fraud",)))
    assert not (tmp_path / "out").exists()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "zoo").mkdir()
    with pytest.raises(NotFound, match="0 adapters and 0 tasks"):
        run(Request(tmp_path, tmp_path / "out"))


def test_an_index_is_read_as_well_as_directories(tmp_path: Path) -> None:
    """The same tasks written as an index with one file each."""
    import gzip

    shipped = open_corpus(None).only(TASKS + KNOWN)
    (tmp_path / "tasks").mkdir()
    lines = []
    for item in shipped.items:
        card = {"task_id": item.id, "name": item.name, "description": item.description, "family": item.family}
        card |= {
            "source_group": item.source_group,
            "label_names": item.label_names,
            "label_prompts": item.label_prompts,
        }
        lines.append(json.dumps(card | {"file": f"{item.id}.jsonl.gz"}))
        if item.examples is not None:
            rows = [json.dumps({"text": e.text, "label": e.label, "split": e.split}) for e in item.task.examples]
            (tmp_path / "tasks" / f"{item.id}.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
        if item.adapter is not None:
            shutil.copytree(item.adapter, tmp_path / "zoo" / item.id)
    (tmp_path / "tasks" / "index.jsonl").write_text("\n".join(lines))
    second = tmp_path / "zoo_seeds" / "other_a_seed" / KNOWN[0]
    shutil.copytree(tmp_path / "zoo" / KNOWN[0], second)
    found = open_corpus(tmp_path)
    assert [i.id for i in found.items] == [i.id for i in shipped.items]
    assert [i.id for i in found.known] == [i.id for i in shipped.known]
    assert [i.task.examples for i in found.tested] == [i.task.examples for i in shipped.tested]
    assert found.second_runs == {"other_a_seed": {KNOWN[0]: second}}
    assert TaskVector.from_peft(second).norm() > 0
    (tmp_path / "tasks" / "index.jsonl").write_text(lines[0] + "\n{}\n")
    with pytest.raises(ComgradError, match="line 2.*no task's card"):
        open_corpus(tmp_path)


def test_cells_put_every_method_in_the_headline(tmp_path: Path) -> None:
    corpus: Corpus = open_corpus(None).only(TASKS + KNOWN)
    asked = Request(None, tmp_path, only=TASKS + KNOWN, growth=(4, 0, 99), sizes=Sizes())
    found = cells(asked, corpus)
    assert len(set(found)) == len(found)
    assert len({c.name for c in found if c.task == TASKS[0]}) == len(found) / 2
    headline = {c.method for c in found if c.split == "losgo"}
    assert {m.name for m in asked.chosen} == headline
    assert "lorahub-random20-40+16" not in {c.method for c in found if c.split == "loo"}
    assert {c.known for c in found} == {0, 4}  # all are in the headline already; 99 there are not
    assert {c.draw for c in found if c.known} == {0, 1, 2}
    assert not any(m.long or m.group == "trained" for m in asked.chosen)
