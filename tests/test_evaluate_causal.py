"""Causal models as classifiers: the plain formula, whatever the batches; and which bases are causal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from comgrad.describe.task import Task, load_task
from comgrad.errors import ComgradError
from comgrad.evaluate.causal import AnswerModel, CausalBench, evaluate_causal, is_causal
from comgrad.evaluate.harness import open_harness
from comgrad.weights.bases import BaseModel
from training_models import PROMPTS, bert_base, gpt2_base, llama_base, task_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel("tiny-llama", llama_base(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_task(task_folder(tmp_path_factory.mktemp("tasks") / "task"))


def test_loss_and_accuracy_are_the_plain_formula(base: BaseModel, task: Task) -> None:
    bench = CausalBench.open(base, task)
    lm, examples = bench.model(), task.split("test")
    losses, right = [], 0
    with torch.no_grad():
        for e in examples:  # one text and one label at a time, no padding
            scores = []
            for prompt in PROMPTS:
                text = bench.tokenizer(e.text)["input_ids"]
                answer = bench.tokenizer("\n" + prompt, add_special_tokens=False)["input_ids"]
                log_p = lm(torch.tensor([text + answer])).logits[0].log_softmax(dim=-1)
                each = [float(log_p[len(text) - 1 + t, token]) for t, token in enumerate(answer)]
                scores.append(sum(each) / len(each))
            losses.append(-scores[e.label])
            right += scores.index(max(scores)) == e.label
    for size in (64, 5):
        score = evaluate_causal(bench, AnswerModel(lm), examples, batch_size=size)
        assert score.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
        assert score.accuracy == right / len(examples)
        assert score.n == len(examples)


def test_the_training_loss_is_the_mean_of_the_same_quantity(base: BaseModel, task: Task) -> None:
    bench = CausalBench.open(base, task)
    model, examples = AnswerModel(bench.model()), task.split("test")[:9]
    with torch.no_grad():
        loss = float(model(**bench.collate(bench.rows(examples)))["loss"])
    assert loss == pytest.approx(evaluate_causal(bench, model, examples).loss, abs=1e-5)


def test_the_text_has_no_part_in_the_loss(base: BaseModel, task: Task) -> None:
    bench = CausalBench.open(base, task)
    batch = bench.collate(bench.rows(task.split("test")[:4]))
    for i, row in enumerate(bench.rows(task.split("test")[:4])):
        counted = batch["input_ids"][i][batch["answer_mask"][i].bool()].tolist()
        assert counted == row["answer"]


def test_long_texts_keep_their_beginning_and_the_whole_answer(base: BaseModel, task: Task) -> None:
    bench = CausalBench.open(base, task)
    row = bench.row("snow " * 500, 0)
    assert len(row["text"]) + len(row["answer"]) <= 32
    assert row["answer"] == list(bench.answers[0])


def test_which_bases_are_causal(tmp_path: Path) -> None:
    assert is_causal(llama_base(tmp_path / "llama"))
    assert is_causal(gpt2_base(tmp_path / "gpt2"))
    assert not is_causal(bert_base(tmp_path / "bert"))
    for kind, causal in (("llama", True), ("bert", False), ("gpt2", True)):
        folder = tmp_path / f"bare-{kind}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        assert is_causal(folder) is causal
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(ComgradError, match="it is an encoder-decoder"):
        is_causal(folder)


def test_labels_that_read_alike_are_refused(base: BaseModel, task: Task) -> None:
    twins = Task("t", "d", ("a", "b"), ("zebra", "giraffe"), task.examples)  # both unknown to the tokenizer
    with pytest.raises(ComgradError, match="the label 'b'; its prompt has the same tokens as that of 'a'"):
        CausalBench.open(base, twins)


def test_prompts_that_leave_no_room_are_refused(base: BaseModel, task: Task) -> None:
    long = Task("t", "d", ("a", "b"), ("it " * 40, "is"), task.examples)
    with pytest.raises(ComgradError, match="label prompts of up to 40 tokens; the base reads 32 tokens at most"):
        CausalBench.open(base, long)


def test_a_base_without_its_head_is_refused(tmp_path: Path, task: Task) -> None:
    folder = llama_base(tmp_path / "llama")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ComgradError, match="lacks 'lm_head.weight'; a weight that is not there would be random"):
        CausalBench.open(BaseModel("x", folder), task).model()


def test_a_base_without_tokenizer_is_refused(tmp_path: Path, task: Task) -> None:
    folder = bert_base(tmp_path / "bert")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ComgradError, match="it has no tokenizer, so texts cannot be read"):
        open_harness(BaseModel("x", folder), task)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ComgradError, match="its config or tokenizer cannot be read"):
        open_harness(BaseModel("x", folder), task)
