"""`comgrad train`: the promised keys, a clean stdout, errors in one line, and an interruption that says what is kept."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from training_models import adapter, bert_base, task_folder

Run = Callable[..., tuple[int, str, str]]
PROMISED = {"loss_before", "loss_after", "accuracy_before", "accuracy_after", "steps", "path"}
MORE = {
    "loss_base",
    "accuracy_base",
    "evaluated_on",
    "examples",
    "trainable_parameters",
    "trainable_share",
    "share",
    "resumed_from",
    "seconds",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_base(tmp_path_factory.mktemp("bases") / "tiny-bert")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_folder(tmp_path_factory.mktemp("tasks") / "cold")


def test_json_has_the_promised_keys_and_nothing_else_is_on_stdout(
    run: Run, tmp_path: Path, base: Path, task: Path
) -> None:
    code, out, err = run("train", "--task", task, "--base", base, "--steps", 3, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert set(made) >= PROMISED | MORE
    assert (made["steps"], made["path"], made["resumed_from"]) == (3, str(tmp_path / "out"), None)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    code, out, _ = run("add", tmp_path / "out", "--base", base, "--json")
    assert code == 0
    assert [r["status"] for r in json.loads(out)] == ["added"]


def test_people_get_a_table_and_the_next_command(run: Run, tmp_path: Path, base: Path, task: Path) -> None:
    init = adapter(base, tmp_path / "start")
    code, out, err = run(
        "train", "--task", task, "--base", base, "--init", init, "--share", 0.5, "--steps", 2, "-o", tmp_path / "out"
    )
    assert code == 0, err
    for word in ("24 examples (test)", "base", "start", "after 2 steps", "(50% of the adapter, ", "comgrad add"):
        assert word in out
    assert "Error" not in err


def test_a_dense_recipe_prints_its_share_and_its_vector_can_be_added(
    run: Run, tmp_path: Path, base: Path, task: Path
) -> None:
    options = ("--task", task, "--base", base, "--steps", 2, "--recipe", "attention-linear", "--precision", "bf16")
    extra = ("--regulariser", "orthoreg", "--regulariser-weight", 0.01)
    code, out, err = run("train", *options, *extra, "-o", tmp_path / "out")
    assert code == 0, err
    assert "trained 4,608 parameters (" in out
    assert "% of the model) on 60 examples" in out
    assert "of the adapter" not in out
    code, out, _ = run("train", *options, "-o", tmp_path / "again", "--json")
    made = json.loads(out)
    assert set(made) >= PROMISED | MORE
    assert (made["trainable_parameters"], made["share"], made["linearised"]) == (4608, 1.0, False)
    assert 0.0 < made["trainable_share"] < 1.0
    code, out, _ = run("add", tmp_path / "out", "--json")
    assert [r["status"] for r in json.loads(out)] == ["added"]


def test_the_help_names_every_recipe_regulariser_and_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from comgrad.finetune.recipes import RECIPES
    from comgrad.finetune.regularisers import REGULARISERS
    from comgrad.finetune.spec import PRECISIONS

    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = run("train", "--help")
    assert code == 0
    shown = re.sub(r"[│\s]", "", out)  # a narrow terminal breaks words
    wanted = {*RECIPES, *REGULARISERS, *PRECISIONS}
    wanted |= {f"{r.spec.learning_rate:.15f}".rstrip("0") for r in RECIPES.values()}
    wanted |= {str(r.spec.warmup_steps) for r in RECIPES.values()} | {r.spec.schedule for r in RECIPES.values()}
    assert {w for w in wanted if w not in shown} == set()


def test_a_result_of_suggest_is_a_start(
    run: Run, tmp_path: Path, zoo: list[Path], tasks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("add", *zoo[:9], "--json")[0] == 0
    text = "Recognise the intent of a message to a voice assistant about the home."
    assert run("suggest", text, "-o", tmp_path / "start", "--json")[0] == 0
    code, out, err = run(
        "train", "--task", tasks[1], "--init", tmp_path / "start", "--steps", 1, "--share", 0.25,
        "--limit-examples", 16, "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0, err
    made = json.loads(out)
    assert made["examples"]["train"] == 16
    assert 0.2 < made["share"] <= 0.25
    assert made["base"] == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--recipe", "qlorb"), "error: the recipe 'qlorb'; there is none of that name; use one of: lora"),
        (("--share", "2"), "error: the share 2.0; a part of the parameters is more than 0 and at most 1"),
        (("--init", "nowhere"), "error: 'nowhere'; there is no such directory"),
        (("--learning-rate", "0"), "a positive learning rate"),
        (
            ("--recipe", "nonlinear", "--rank", "4"),
            "error: --rank with the recipe 'nonlinear'; it trains whole tensors",
        ),
        (("--regulariser", "orthoreg"), "error: --regulariser without --regulariser-weight, or the other way round"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    run: Run, tmp_path: Path, base: Path, task: Path, options: tuple[str, ...], words: str
) -> None:
    code, out, err = run("train", "--task", task, "--base", base, *options, "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    code, out, _ = run("train", "--task", task, "--base", base, *options, "-o", tmp_path / "out", "--json")
    assert set(json.loads(out)["error"]) == {"code", "given", "why", "remedy"}


@pytest.mark.slow
def test_an_interruption_says_what_is_kept(tmp_path: Path, base: Path, task: Path) -> None:
    options = ["train", "--task", task, "--base", base, "--steps", 2000, "-o", tmp_path / "out"]
    program = "from comgrad.cli.main import main; main()"
    command = [sys.executable, "-c", program, *map(str, options)]
    first = tmp_path / "out.partial" / "checkpoints" / "checkpoint-200" / "complete.json"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        give_up = time.monotonic() + 120
        while not first.exists() and running.poll() is None and time.monotonic() < give_up:
            time.sleep(0.005)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    assert "out.partial' keeps the training up to step" in err
    assert "run the same command to go on" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
