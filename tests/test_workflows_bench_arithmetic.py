"""The benchmarks of task arithmetic on tiny tasks and a tiny encoder: stopped, taken up again, and told as it is."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from arithmetic_data import TASKS, data_folder
from comgrad.cli.main import app
from comgrad.errors import ComgradError, NotFound
from comgrad.evaluate.classifier import Bench
from comgrad.workflows.bench_arithmetic import work
from comgrad.workflows.bench_arithmetic.keep import Kept, Outcomes
from comgrad.workflows.bench_arithmetic.measure import KINDS, Stage, measured
from comgrad.workflows.bench_arithmetic.orderings import verdicts
from comgrad.workflows.bench_arithmetic.plan import Cell, Plan, Request, Training
from comgrad.workflows.bench_arithmetic.rows import by_seed, spread
from comgrad.workflows.bench_arithmetic.run import Result, run
from comgrad.workflows.bench_arithmetic.train import folder_of, is_trained, rate_of, train_one, tried
from comgrad.workflows.bench_arithmetic.work import Worker
from training_models import bert_base

RECIPES = ("lora", "nonlinear", "ntk")
COST = "cost-"


def request(root: Path, out: Path, what: str = "addition", **changes: Any) -> Request:
    asked = Request(
        what, root / "data", out, tasks=TASKS[:3], base=str(root / "base"), recipes=RECIPES, steps=3, quick=True
    )
    return replace(asked, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arithmetic")
    bert_base(folder / "base")
    data_folder(folder / "data")
    return folder


@pytest.fixture(scope="module")
def finished(root: Path) -> tuple[Path, Result]:
    """Both benchmarks in one folder."""
    out = root / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        run(request(root, out), page_file=out / "page.md")
        return out, run(request(root, out, "disentanglement"), page_file=out / "page.md")


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without times and memory, which no two runs share."""
    return [r for r in rows if not r["measure"].startswith(COST)]


def test_every_measure_has_its_rows(finished: tuple[Path, Result]) -> None:
    out, result = finished
    count: dict[tuple[str, str], int] = {}
    for r in result.rows:
        key = (r["measure"], r["recipe"])
        count[key] = count.get(key, 0) + 1
    for recipe in RECIPES:
        assert count["accuracy", recipe] == count["negation-satisfied", recipe] == 3
        assert count["cosine", recipe] == 3
        assert count["interference-loss", recipe] == count["inputs-other", recipe] == 6
        assert count["xi-unit-kl", recipe] == count["xi-whole-disagreement", recipe] == 1  # three tasks make one pair
        assert count["cost-seconds", recipe] == 1
    assert count["accuracy", "pre-trained"] == 3
    assert {r["method"] for r in result.rows if r["measure"] == "addition-absolute" and r["recipe"] == "lora"} == {
        "sum", "mean", "ties",
    }  # fmt: skip
    assert {r["method"] for r in result.rows if r["measure"] == "addition-absolute" and r["recipe"] == "ntk"} == {"sum"}
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(result.rows)
    assert {p.name for p in out.glob("*.png")} == {
        "xi-1-kl.png", "xi-1-disagreement.png", "cosine.png", "single.png", "page-xi-1-kl.png",
        "page-xi-1-disagreement.png", "page-cosine.png", "page-single.png",
    }  # fmt: skip
    assert not list(out.glob("**/*.partial")) + list(out.glob("**/.*.part"))


def test_figures_are_those_of_the_merged_model(root: Path, finished: tuple[Path, Result]) -> None:
    """The sum's accuracy again, by adding dense weights to a fresh model and reading texts one at a time."""
    out, result = finished
    plan = Plan(request(root, out))
    stage = Stage(plan, "nonlinear", 0, Bench.open(plan.base), {})
    alpha = next(r["value"] for r in result.rows if (r["measure"], r["recipe"]) == ("addition-alpha", "nonlinear"))
    encoder = stage.bench.encoder()
    parameters = dict(encoder.named_parameters())
    heads = {t: stage.bench.prompts(plan.tasks[t]) for t in TASKS[:3]}
    with torch.no_grad():
        for v in stage.vectors:
            for name, d in v.tensors.items():
                parameters[name].add_(alpha * d.in_base_layout())
        for task in TASKS[:3]:
            right = []
            for e in plan.tasks[task].split("test"):
                h = encoder(**stage.bench.tokens([e.text])).last_hidden_state.mean(dim=1)
                right.append(int((h @ heads[task].T).argmax()) == e.label)
            rows = [r for r in result.rows if r["measure"] == "added-accuracy" and r["task"] == task]
            row = next(r for r in rows if (r["recipe"], r["method"]) == ("nonlinear", "sum"))
            assert row["value"] == pytest.approx(np.mean(right))
            assert row["n"] == len(right)


def test_ntk_vectors_are_read_by_the_linearised_model(root: Path, finished: tuple[Path, Result]) -> None:
    """h(θ₀ + ατ) − h(θ₀) is linear in α for the vectors of ntk, and for no others."""
    plan = Plan(request(root, finished[0]))
    card = json.loads((folder_of(plan, Training("ntk", TASKS[0], 0, 1.0)) / "task_card.json").read_text())
    assert card["training"]["linearised"] is True
    bench, bends = Bench.open(plan.base), {}
    for recipe in ("ntk", "nonlinear"):
        stage = Stage(plan, recipe, 0, bench, {})
        problem = stage.few[TASKS[0]]
        seen = []
        for alpha in (0.0, 20.0, 40.0):
            with stage.predictor.at([(alpha, stage.vectors[0])]) as model:
                seen.append(torch.cat([h for h, _, _ in stage.predictor.passes(model, problem, "test")]))
        bends[recipe] = float((seen[2] - 2 * seen[1] + seen[0]).norm() / (seen[2] - seen[0]).norm())
    assert bends["ntk"] < 1e-4
    assert bends["nonlinear"] > 1e-3


def test_alpha_never_looks_at_test_data(root: Path, finished: tuple[Path, Result], tmp_path: Path) -> None:
    data_folder(tmp_path / "data", flipped_test=True)
    shutil.copytree(root / "base", tmp_path / "base")
    plan = Plan(request(tmp_path, tmp_path / "out", recipes=("lora",)))
    for task in TASKS[:3]:
        train_one(plan, Training("lora", task, 0, 1.0))
    stage = Stage(plan, "lora", 0, Bench.open(plan.base), {})
    before = measured(Plan(request(root, finished[0])), Cell("lora", 0, "addition", ("sum",)))
    after = KINDS["addition"](stage, ("sum",))
    assert before is not None
    assert after["curve"] == before["curve"]
    assert after["alpha"] == before["alpha"]
    assert [t["accuracy"] for t in after["tasks"]] == pytest.approx([1 - t["accuracy"] for t in before["tasks"]])
    negated = KINDS["negation"](stage, (TASKS[0],))
    known = measured(Plan(request(root, finished[0])), Cell("lora", 0, "negation", (TASKS[0],)))
    assert known is not None
    assert (negated["alpha"], negated["curve"]) == (known["alpha"], known["curve"])


def stopping(whole: Callable[..., Any], after: int) -> Callable[..., Any]:
    count = 0

    def wrapped(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        return whole(*args)

    return wrapped


def test_killed_twice_it_goes_on_to_the_same_rows(
    root: Path, finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(root, tmp_path / "out", recipes=("lora",))
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "train", stopping(Worker.train, 2))
        with pytest.raises(KeyboardInterrupt):
            run(asked)
    vectors = {p: p.stat().st_mtime_ns for p in asked.out.glob("vectors/lora/*/adapter_model.safetensors")}
    assert len(vectors) == 2
    with monkeypatch.context() as patch:
        patch.setattr(work, "measure", stopping(work.measure, 3))
        with pytest.raises(KeyboardInterrupt):
            run(asked)
    cells = {p: p.stat().st_mtime_ns for p in asked.out.glob("cells/*/*.json")}
    assert len(cells) == 3
    assert not (asked.out / "results.csv").exists()
    again = run(asked)
    assert {p: p.stat().st_mtime_ns for p in (*vectors, *cells)} == vectors | cells
    there = run(request(root, finished[0], recipes=("lora",), kept=True))
    addition = [
        r for r in plain(there.rows) if not r["measure"].startswith(("cosine", "xi", "inputs", "inter", "assoc"))
    ]
    assert plain(again.rows) == addition
    with monkeypatch.context() as patch:  # nothing is left to do
        for name in ("attempt", "train", "measure"):
            patch.setattr(Worker, name, stopping(getattr(Worker, name), 0))
        assert run(asked).rows == again.rows


def test_several_processes_give_the_same_rows(root: Path, finished: tuple[Path, Result], tmp_path: Path) -> None:
    shutil.copytree(finished[0] / "vectors", tmp_path / "vectors")
    asked = request(root, tmp_path, "disentanglement", recipes=("lora", "nonlinear"), jobs=2)
    found = [r for r in run(asked).rows if r["measure"].startswith(("cosine", "xi", "interference"))]
    known = [r for r in finished[1].rows if r["measure"].startswith(("cosine", "xi", "interference"))]
    assert found == [r for r in known if r["recipe"] in asked.recipes]


def test_learning_rates_come_from_development_tasks_alone(root: Path, tmp_path: Path) -> None:
    plan = Plan(request(root, tmp_path, recipes=("lora",)))
    plan.suite = replace(plan.suite, rates=(0.001, 1.0, 5.0), development=(TASKS[3],))
    trials = plan.trials("lora")
    assert {t.task for t in trials} == {TASKS[3]}
    assert rate_of(plan, "lora") is None
    worker = Worker(plan.request)
    worker.plan = plan
    for trial in trials:
        worker.attempt(trial)
    losses = {t.rate: tried(plan, t) for t in trials}
    chosen = rate_of(plan, "lora")
    assert chosen is not None
    assert chosen["factor"] == min(losses, key=lambda r: losses[r])  # type: ignore[arg-type,return-value]
    assert chosen["edge"] == (chosen["factor"] != 1.0)
    assert len(set(losses.values())) == 3
    assert not list(tmp_path.glob("vectors/**/*")) + list(tmp_path.glob("tuning/*/"))  # thrown away
    assert not is_trained(plan, trials[0])


def test_the_page_says_what_the_rows_say(finished: tuple[Path, Result]) -> None:
    out, result = finished
    text = (out / "page.md").read_text()
    for recipe in RECIPES:
        mean = sum(by_seed(result.rows, "addition-absolute", recipe).values())
        assert re.search(rf"\| {recipe} \| {mean:.3f} \|", text), recipe
        (xi,) = by_seed(result.rows, "xi-unit-kl", recipe).values()
        assert f"| {xi:.4f} |" in text
    assert "76.26 / 85.82" in text  # published, beside ours
    assert len(result.orderings) == 5  # of NTK, non-linear and pre-trained alone
    for o in result.orderings:
        line = next(x for x in text.splitlines() if o["claim"] in x)
        assert o["verdict"] == "undecided"  # one seed
        assert f"**undecided** (difference {o['mean']:+.4g}, one seed, so no interval)" in line
    for image in re.findall(r"\]\(([^)]+\.png)\)", text):
        assert (out / image).stat().st_size > 1000


def test_a_kept_cell_of_other_settings_is_not_used(root: Path, finished: tuple[Path, Result]) -> None:
    cell = Cell("lora", 0, "addition", ("sum",))
    assert measured(Plan(request(root, finished[0])), cell) is not None
    assert measured(Plan(request(root, finished[0], steps=4)), cell) is None
    assert measured(Plan(request(root, finished[0], tasks=TASKS[1:4])), cell) is None


# -- the command -------------------------------------------------------------------------------------------------------
def command(root: Path, out: Path, *more: str) -> Any:
    words = ["bench", "addition", "--data", str(root / "data"), "-o", str(out), "--base", str(root / "base"), "--quick",
             "--tasks", ",".join(TASKS[:3]), "--recipes", ",".join(RECIPES), "--steps", "3"]  # fmt: skip
    return CliRunner().invoke(app, [*words, *more])


def test_command_prints_what_is_kept(root: Path, finished: tuple[Path, Result]) -> None:
    out, result = finished
    done = command(root, out, "--kept", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found) == {"rows", "orderings", "rates", "environment", "files"}
    assert len(found["rows"]) == len(result.rows)
    assert found["environment"]["seeds"] == "0"
    shown = command(root, out, "--kept")
    assert "undecided" in shown.stdout
    assert "results.csv" in shown.stdout


def test_nothing_kept(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing of this run is kept there"):
        run(request(root, tmp_path, kept=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"suite": "vision8"}, "its tasks are of kind 'image', which this base does not read"),
        ({"suite": "text9"}, "the suite 'text9'; there is none of that name"),
        ({"tasks": ()}, "of the suite 'text8, quick'; the data has no task"),
        ({"tasks": TASKS[:1]}, "vectors of at least two tasks are added"),
        ({"tasks": (*TASKS[:2], "unknown")}, "the task 'unknown'"),
        ({"recipes": ("lora", "lora")}, "one of them is named twice"),
        ({"recipes": ("magic",)}, "the recipe 'magic'"),
        ({"recipes": ("qlora",)}, "qlora"),
        ({"base": "nowhere/no-such-model"}, "base model 'nowhere/no-such-model'"),
    ],
)
def test_refused_before_anything_is_made(root: Path, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ComgradError) as caught:
        run(request(root, tmp_path / "out", **changes))
    assert match in str(caught.value)
    assert not (tmp_path / "out").exists()


# -- parts -------------------------------------------------------------------------------------------------------------
def test_spread_is_the_t_interval() -> None:
    values = [0.5, 0.7, 0.9, 0.4]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = spread(values)
    assert (found.mean, found.low, found.high, found.seeds) == (
        pytest.approx(0.625), pytest.approx(low), pytest.approx(high), 4,
    )  # fmt: skip
    assert math.isnan(spread([0.5]).low)


def test_orderings_hold_or_not_by_their_intervals_over_seeds() -> None:
    """Table 1 made up: attention-linear above NTK in every seed, NTK below non-linear, the normalised ones mixed."""
    figures = {
        "addition-absolute": {"attention-linear": (0.80, 0.82, 0.81), "ntk": (0.70, 0.71, 0.72), "nonlinear": (0.75, 0.76, 0.77)},
        "addition-normalised": {"attention-linear": (0.80, 0.82, 0.81), "ntk": (0.90, 0.71, 0.80)},
        "xi-unit-kl": {"attention-linear": (0.1, 0.2, 0.3), "nonlinear": (0.2, 0.3, 0.4), "ntk": (0.4, 0.2, 0.3)},
    }  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"measure": m, "recipe": r, "seed": s, "method": "sum" if m.startswith("add") else None, "value": v}
        for m, recipes in figures.items()
        for r, values in recipes.items()
        for s, v in enumerate(values)
    ]
    rows += [{"measure": "accuracy", "recipe": "pre-trained", "seed": None, "method": None, "value": 0.5}]
    rows += [
        {
            "measure": "cost-seconds",
            "recipe": r,
            "seed": None,
            "method": None,
            "value": v,
            "low": v - 0.1,
            "high": v + 0.1,
        }
        for r, v in (("attention-linear", 1.0), ("nonlinear", 1.1), ("ntk", 3.0))
    ]
    found = {v.claim: v for v in verdicts(rows)}
    said = {claim: v.verdict for claim, v in found.items()}
    assert said["attention-linear adds better than NTK, absolute"] == "holds"
    assert said["NTK adds better than non-linear, absolute"] == "does not hold"
    assert said["attention-linear adds better than NTK, normalised"] == "undecided"
    assert said["adding non-linear vectors is better than the pre-trained model"] == "holds"
    assert said["attention-linear is more disentangled than non-linear (representations)"] == "holds"  # lower is better
    assert said["attention-linear is more disentangled than NTK (representations)"] == "undecided"
    cost = {c.split(" (")[0]: v for c, v in said.items() if c.startswith("an attention")}
    assert cost["an attention-linear step takes less time than a non-linear one"] == "undecided"  # quartiles overlap
    assert cost["an attention-linear step takes less time than an NTK one"] == "holds"
    d = found["attention-linear adds better than NTK, absolute"].difference
    low, high = stats.t.interval(0.95, 2, loc=0.1, scale=stats.sem([0.10, 0.11, 0.09]))
    assert (d.low, d.high) == (pytest.approx(low), pytest.approx(high))


def test_kept_records_and_outcomes(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "cells")
    kept.write("a", ["x", 1], {"value": 2})
    assert kept.read("a", ["x", 1]) == {"value": 2}
    assert kept.read("a", ["x", 2]) is None
    (tmp_path / "cells" / "a.json").write_text("{")
    assert kept.read("a", ["x", 1]) is None
    first, second = Outcomes(tmp_path), Outcomes(tmp_path)
    first["ab12"] = {"n": 3}
    assert "ab12" in second
    assert second["ab12"] == {"n": 3}
    assert list(second) == ["ab12"]
    assert "cd34" not in second
    del second["ab12"]
    assert len(Outcomes(tmp_path)) == 0
