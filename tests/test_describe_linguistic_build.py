"""Task directories from corpora: form, split by document, determinism, and that the trainers' readers take them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from comgrad.cli.build_tasks_cmd import register
from comgrad.describe.linguistic.build import NAMES, Options, build_tasks, split_of
from comgrad.describe.linguistic.completions import load_completions
from comgrad.describe.task import load_task
from comgrad.errors import ComgradError, NotFound, StorageError
from comgrad.evaluate.causal import AnswerModel, CausalBench
from comgrad.weights.bases import BaseModel
from training_models import gpt2_base, task_folder

NOUNS = ("sun", "lava", "fire", "ice", "snow", "frost", "desert", "summer", "winter", "arctic")


def ontonotes(folder: Path, documents: int = 6, start: int = 0) -> Path:
    """Documents of one to four sentences 'NOUN warms NAME .' and a pronoun, with every annotation."""
    lines = []
    for d in range(start, start + documents):
        lines.append(f"#begin document (made/{d:03d}); part 000")
        for s in range(1 + d % 4):
            noun = NOUNS[(d + s) % len(NOUNS)]
            rows = [(noun, "NN", "*", "(ARG0*)", "-"), ("warms", "VBZ", "*", "(V*)", "-"),
                    ("Mia" if s == 0 else "her", "NNP" if s == 0 else "PRP", "(PERSON)" if s == 0 else "*", "(ARG1*)", "(1)"),
                    (".", ".", "*", "*", "-")]  # fmt: skip
            for i, (word, tag, entity, role, chain) in enumerate(rows):
                lemma = "warm 01 1" if tag == "VBZ" else "- - -"
                lines.append(f"made/{d:03d} 0 {i} {word} {tag} * {lemma} - {entity} {role} {chain}")
            lines.append("")
        lines.append("#end document")
    path = folder / f"made{start}_conll"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def treebank(folder: Path, documents: int = 8) -> Path:
    """Documents of a singular present and a plural past sentence each."""
    lines = []
    for d in range(documents):
        noun = NOUNS[d % len(NOUNS)]
        lines += [f"# newdoc id = tree-{d}",
                  f"1\t{noun}\t{noun}\tNOUN\tNN\tNumber=Sing\t2\tnsubj\t_\t_",
                  "2\twarms\twarm\tVERB\tVBZ\tTense=Pres|VerbForm=Fin\t0\troot\t_\t_", "",
                  f"1\t{noun}s\t{noun}\tNOUN\tNNS\tNumber=Plur\t3\tnsubj:pass\t_\t_",
                  "2\twere\tbe\tAUX\tVBD\tTense=Past|VerbForm=Fin\t3\taux:pass\t_\t_",
                  "3\twarmed\twarm\tVERB\tVBN\tTense=Past|VerbForm=Part\t0\troot\t_\t_", ""]  # fmt: skip
    path = folder / "made.conllu"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "examples.jsonl").read_text("utf-8").splitlines()]


@given(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=30, unique=True), st.integers(0, 9))
def test_every_document_is_on_one_side_and_both_sides_have_some(names: list[str], seed: int) -> None:
    split = split_of([*names, *names], 0.2, seed)
    assert set(split) == set(names) and set(split.values()) == {"train", "test"}
    assert split == split_of(names[::-1], 0.2, seed)
    tested = sum(s == "test" for s in split.values())
    assert tested == max(1, round(0.2 * len(names)))


def test_all_tasks_from_both_kinds_of_corpora(tmp_path: Path) -> None:
    built = build_tasks([ontonotes(tmp_path, 40), treebank(tmp_path)], tmp_path / "out", Options(licence="CC BY 4.0"))
    why = {b.name: b.why_not for b in built if b.why_not}
    assert [b.name for b in built] == list(NAMES)
    assert set(why) == {"subject-count", "tree-depth", "object-number"}  # all sentences here have one label
    assert why["tree-depth"] == "all training examples have one label"
    assert why["object-number"] == "no document of the train split has an answer"
    assert next(b for b in built if b.name == "count-words").left_out > 0  # texts repeat after twenty documents
    for b in built:
        if b.why_not:
            assert not (tmp_path / "out" / b.name).exists()
            continue
        rows = rows_of(tmp_path / "out" / b.name)
        card = json.loads((tmp_path / "out" / b.name / "task_card.json").read_text("utf-8"))
        assert card["counts"] == b.counts == {s: sum(r["split"] == s for r in rows) for s in ("train", "test")}
        assert card["licence"] == "CC BY 4.0" and len(card["source"]) == 2 and card["kind"] == b.form
        sides = {(r["document"], r["split"]) for r in rows}
        assert len({d for d, _ in sides}) == len(sides)
        key = "prompt" if b.form == "completion" else "text"
        assert not {r[key] for r in rows if r["split"] == "train"} & {r[key] for r in rows if r["split"] == "test"}


def test_prompts_and_completions_are_read_back(tmp_path: Path) -> None:
    build_tasks([ontonotes(tmp_path, 12)], tmp_path / "out")
    task = load_completions(tmp_path / "out" / "semantic-roles")
    assert task.name == "Who does what, and when" and task.split("train")
    e = next(e for e in task.examples if "Document: sun warms Mia.\n" in e.prompt)
    assert e.prompt.splitlines()[-1] == "### Answer:" and e.completion == "Sun warms Mia."
    with pytest.raises(ComgradError, match="task_card.json' key 'label_names'; it must be a list"):
        load_task(tmp_path / "out" / "semantic-roles")


def test_counting_tasks_are_also_classification_tasks(tmp_path: Path) -> None:
    build_tasks([ontonotes(tmp_path, 12)], tmp_path / "out", Options(("count-sentences",)))
    folder = tmp_path / "out" / "count-sentences"
    task, completions = load_task(folder), load_completions(folder)
    assert task.label_names == ("1", "2", "3", "4") == task.label_prompts
    for e, c in zip(task.examples, completions.examples, strict=True):
        assert (e.text, task.label_names[e.label], e.split) == (c.prompt, c.completion, c.split)


def test_encoder_tasks_are_read_by_the_ordinary_reader(tmp_path: Path) -> None:
    build_tasks([treebank(tmp_path)], tmp_path / "out", Options(("main-tense", "voice")))
    task = load_task(tmp_path / "out" / "main-tense")
    by_label = {task.label_names[e.label] for e in task.examples if e.text.endswith("warmed")}
    assert by_label == {"past"} and {e.split for e in task.examples} == {"train", "test"}


def test_a_causal_model_takes_prompt_and_completion_as_text_and_answer(tmp_path: Path) -> None:
    """The loss of `evaluate.causal` on a completion is the plain formula over its tokens."""
    build_tasks([ontonotes(tmp_path, 6)], tmp_path / "out", Options(("first-sentences",)))
    example = load_completions(tmp_path / "out" / "first-sentences").examples[0]
    bench = CausalBench.open(BaseModel("tiny", gpt2_base(tmp_path / "base")), load_task(task_folder(tmp_path / "task")))
    lm = bench.model()
    text = bench.tokenizer(example.prompt)["input_ids"][-16:]
    answer = bench.tokenizer("\n" + example.completion, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        found = AnswerModel(lm)(**bench.collate([{"text": text, "answer": answer}]))["loss"]
        log_p = lm(torch.tensor([[*text, *answer]])).logits[0].log_softmax(dim=-1)
    plain = -sum(float(log_p[len(text) - 1 + t, token]) for t, token in enumerate(answer)) / len(answer)
    assert len(answer) > 2 and float(found) == pytest.approx(plain, rel=1e-5)


def test_the_same_files_give_the_same_bytes_and_seeds_other_splits(tmp_path: Path) -> None:
    corpus = ontonotes(tmp_path, 12)
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_tasks([corpus], tmp_path / out, Options(("count-sentences",), seed=seed))
    read = {out: (tmp_path / out / "count-sentences" / "examples.jsonl").read_bytes() for out in "abc"}
    assert read["a"] == read["b"] != read["c"]


def test_most_examples_and_passages(tmp_path: Path) -> None:
    corpus = ontonotes(tmp_path, 12)
    (whole,) = build_tasks([corpus], tmp_path / "whole", Options(("count-words",)))
    (cut,) = build_tasks([corpus], tmp_path / "cut", Options(("count-words",), longest=4, most=3))
    assert sum(whole.counts.values()) == 12 and cut.counts["train"] == 3
    assert {r["completion"] for r in rows_of(tmp_path / "cut" / "count-words")} == {"3"}
    assert "label_names" not in json.loads((tmp_path / "cut" / "count-words" / "task_card.json").read_text())


def test_what_cannot_be_built_is_refused(tmp_path: Path) -> None:
    corpus = ontonotes(tmp_path, 6)
    with pytest.raises(ComgradError, match="the task 'count-tables'; none is called so; choose from: coreference"):
        build_tasks([corpus], tmp_path / "out", Options(("count-tables",)))
    with pytest.raises(ComgradError, match="the task 'voice'; the corpora have no trees; give other corpora"):
        build_tasks([corpus], tmp_path / "out", Options(("voice",)))
    with pytest.raises(ComgradError, match="1 document; examples of one document must not be on both sides"):
        build_tasks([ontonotes(tmp_path, 1, start=50)], tmp_path / "out")
    with pytest.raises(ComgradError, match=r"a file is given twice"):
        build_tasks([corpus, corpus], tmp_path / "out")
    with pytest.raises(ComgradError, match=r"a test share of 1.0"):
        build_tasks([corpus], tmp_path / "out", Options(test_share=1.0))
    with pytest.raises(NotFound, match="it is no file or folder with .conllu or _conll files"):
        build_tasks([tmp_path / "none"], tmp_path / "out")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ComgradError, match="its name ends neither in .conllu nor in _conll"):
        build_tasks([tmp_path / "x.txt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_the_way_stops_everything(tmp_path: Path) -> None:
    corpus = ontonotes(tmp_path, 6)
    (tmp_path / "out" / "semantic-roles").mkdir(parents=True)
    (tmp_path / "out" / "semantic-roles" / "mine").write_text("x")
    with pytest.raises(StorageError, match="semantic-roles'; the folder is not empty"):
        build_tasks([corpus], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["semantic-roles"]


@pytest.mark.parametrize(
    ("card", "line", "why"),
    [
        ({"kind": "classification"}, "{}", "has kind 'classification'; its examples are no prompts and completions"),
        ({"kind": "completion", "description": "d"}, "{}", "a description or an instruction is missing"),
        ({}, '{"prompt": "p"}', r"line 1; it is no prompt with its completion \('completion'\)"),
        ({}, '{"prompt": "p", "completion": ""}', "line 1; a prompt, a completion and a split are words"),
        ({}, "[1]", "line 1; it is no prompt with its completion"),
    ],
)
def test_broken_completion_tasks_are_refused(tmp_path: Path, card: dict[str, str], line: str, why: str) -> None:
    whole = card or {"kind": "completion", "description": "d", "instruction": "i"}
    (tmp_path / "task_card.json").write_text(json.dumps(whole))
    (tmp_path / "examples.jsonl").write_text(line + "\n")
    with pytest.raises(ComgradError, match=why):
        load_completions(tmp_path)


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    corpus = ontonotes(tmp_path, 12)
    shown = CliRunner().invoke(app, ["build-tasks", str(corpus), "-o", str(tmp_path / "a")])
    assert shown.exit_code == 0 and "not made: voice (the corpora have no trees)" in shown.output
    assert "wrote 9 task directories" in shown.output
    args = ["build-tasks", str(corpus), "-o", str(tmp_path / "b"), "--tasks", "count-verbs,first-sentences", "--json"]
    told = json.loads(CliRunner().invoke(app, args).stdout)
    assert [t["name"] for t in told["tasks"]] == ["count-verbs", "first-sentences"]
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["count-verbs", "first-sentences"]
