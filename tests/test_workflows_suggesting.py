"""Suggesting: the adapter is the combination it says it is, stock PEFT loads it, and nonsense is not answered."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from comgrad.describe.task import load_task
from comgrad.errors import BaseMismatch, ComgradError
from comgrad.evaluate.classifier import Bench, evaluate, shifted, with_adapter
from comgrad.predict.start import combination, predicted_start, zero_start
from comgrad.predict.trainable import trainable_set
from comgrad.types import BaseRef
from comgrad.vectors.delta import Dense, LowRank
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.atlas import Atlas
from comgrad.workflows.fewshot import chosen_examples, coefficients
from comgrad.workflows.gradients import read_gradient_file, write_gradient_file
from comgrad.workflows.known import Known
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection
from comgrad.workflows.suggesting import predict, suggest

TEXT = "Say which of fifteen things a user asks a voice assistant about their bank account."


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, zoo: list[Path]) -> Registry:
    made = Registry(tmp_path_factory.mktemp("registry"))
    assert all(a.status == "added" for a in add_paths(zoo, AddRequest(), registry=made))
    return made


@pytest.fixture(scope="module")
def known(registry: Registry) -> Known:
    return Known.of(collection(registry), cache=registry.store.cache_dir)


def test_a_described_task_gets_the_combination_it_names(known: Known) -> None:
    made = predict(known, TEXT, dare=True)
    assert not made.abstained
    assert made.sources[0].name.startswith("intent-")
    assert made.rule == "functional"
    assert made.expected_gain is not None
    nats, low, high = made.expected_gain
    assert nats > 0 and low < nats < high
    names = {m.name: v for m, v in zip(known.atlas.members, known.vectors, strict=True)}
    dense = sum(s.coefficient * names[s.name].tensors[next(iter(names[s.name].tensors))].dense() for s in made.sources)
    first = next(iter(made.vector.tensors))
    U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
    expected = (U[:, :8] * S[:8]) @ Vh[:8]
    torch.testing.assert_close(made.vector.tensors[first].dense(), expected, atol=1e-6, rtol=1e-4)
    assert 0 < made.energy_kept <= 1
    assert set(made.trainable.values()) == {8}


def test_more_rank_keeps_more_and_full_rank_keeps_all(known: Known) -> None:
    kept = [predict(known, TEXT, rank=r, dare=True).energy_kept for r in (2, 8, 64, 384)]
    assert kept == sorted(kept)
    assert kept[-1] == pytest.approx(1.0, abs=1e-9)


def test_factors_are_balanced(known: Known) -> None:
    for d in predict(known, TEXT, dare=True).vector.tensors.values():
        assert isinstance(d, LowRank)
        torch.testing.assert_close(d.B.norm(dim=0), d.A.norm(dim=1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "text", ["qwx zzv 81 jjk pqq", "Пирог с яблоками и корицей", "dogs;cats;bananas;", "0x00 0xff 0x17 0x2a"]
)
def test_nonsense_and_other_languages_are_not_answered(known: Known, text: str) -> None:
    made = predict(known, text)
    assert made.abstained
    assert "unlike the known ones" in made.reason
    assert made.sources == []
    assert made.vector.norm() == 0.0
    assert all(d.A.norm() > 0 for d in made.vector.tensors.values() if isinstance(d, LowRank))  # it can still train


def test_known_descriptions_are_answered(known: Known) -> None:
    made = [predict(known, m.description) for m in known.atlas.members[::5]]
    assert sum(not m.abstained for m in made) > len(made) / 2
    answered = [m.confidence for m in made if not m.abstained]
    assert min(answered) > 0.5


def test_what_is_held_back_and_why_is_said(known: Known) -> None:
    made = predict(known, "Tell whether a sentence about cooking is long, by its number of words.", rule="functional")
    dared = predict(known, "Tell whether a sentence about cooking is long, by its number of words.", dare=True)
    assert not dared.abstained and dared.vector.norm() > 0
    if made.abstained:
        assert "uncertainty" in made.reason or "unlike" in made.reason
    assert made.confidence == dared.confidence


@pytest.mark.parametrize("rule", ["ridge", "eq1", "softmax5", "mean"])
def test_a_rule_can_be_named(known: Known, rule: str) -> None:
    made = predict(known, TEXT, rule=rule)
    assert made.rule == rule and not made.abstained
    of = {x.id: x.coefficient for x in made.sources}
    c = np.array([of.get(m.id, 0.0) for m in known.atlas.members])
    assert made.scale == pytest.approx(known.norm(c) / known.usual_norm())


def test_an_unknown_rule_is_refused_with_the_known_ones(known: Known) -> None:
    with pytest.raises(ComgradError, match="the rule 'best'; there is no such rule; choose one of: zero, mean"):
        predict(known, TEXT, rule="best")


def test_stock_peft_loads_the_suggestion_and_computes_the_same(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tasks: list[Path]
) -> None:
    monkeypatch.setenv("COMGRAD_HOME", str(registry.store.path))
    made = suggest(TEXT, tmp_path / "start", dare=True)
    bench = Bench.open(resolve_base(made.base))
    task, encoder = load_task(tasks[2]), bench.encoder()
    examples = task.split("test")[:20]
    with shifted(encoder, made.vector):
        ours = evaluate(bench, bench.classifier(task, encoder), examples).loss
    theirs = evaluate(bench, bench.classifier(task, with_adapter(bench, tmp_path / "start")), examples).loss
    assert ours == pytest.approx(theirs, abs=1e-5)
    card = json.loads((tmp_path / "start" / "task_card.json").read_text())
    assert card["description"] == TEXT
    assert {p["role"] for p in card["parents"]} == {"suggest"}
    assert add_paths([tmp_path / "start"], AddRequest(name="mine"))[0].status == "added"  # and it can be shared
    Registry().remove("mine")


def few_of(folder: Path, out: Path, n: int) -> Path:
    """A task folder with the first n training examples of another."""
    out.mkdir()
    shutil.copy(folder / "task_card.json", out)
    lines = [{"text": e.text, "label": e.label} for e in load_task(folder).split("train")[:n]]
    (out / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def test_examples_lower_the_loss_and_on_texts_that_were_not_used_too(
    known: Known, tasks: list[Path], tmp_path: Path
) -> None:
    task = load_task(tasks[0])
    folder = few_of(tasks[0], tmp_path / "few", 48)
    made = predict(known, task.description, task_dir=folder)
    assert made.examples == 48
    assert made.rule == "functional + 48 examples"
    assert not made.abstained
    bench = Bench.open(resolve_base(known.traits.base.name))
    encoder = bench.encoder()
    model = bench.classifier(task, encoder)
    for examples in (chosen_examples(load_task(folder)), task.split("test")[:150]):
        base = evaluate(bench, model, examples).loss
        with shifted(encoder, made.vector):
            assert evaluate(bench, model, examples).loss < base - 0.05


def test_where_nothing_beats_the_base_the_coefficients_are_zero(known: Known, tasks: list[Path]) -> None:
    """Examples whose labels are the base's own answers: its loss there is as low as scaling can make it."""
    task = load_task(tasks[2])
    few = replace(known, atlas=known.atlas.subset([0]), evidence=known.evidence.subset([0]), footing=np.ones(1))
    c = coefficients(few, np.zeros(1), task, task.split("train")[:8])
    bench = Bench.open(resolve_base(known.traits.base.name))
    encoder = bench.encoder()
    model = bench.classifier(task, encoder)
    base = evaluate(bench, model, task.split("train")[:8]).loss
    if c.any():
        with shifted(encoder, combination(few.vectors, c.tolist())):
            assert evaluate(bench, model, task.split("train")[:8]).loss < base
    else:
        assert not c.any()


def test_a_checkpoint_among_the_sources_does_not_widen_the_adapter(known: Known) -> None:
    wide = TaskVector(
        known.traits.base, {**known.vectors[0].tensors, "embeddings.word_embeddings.weight": Dense(torch.ones(7, 5))}
    )
    assert set(known.trainable_part(wide).tensors) == set(known.vectors[0].tensors)


def test_examples_are_used_when_words_alone_would_not_do(known: Known, tasks: list[Path], tmp_path: Path) -> None:
    assert predict(known, "bank").abstained
    helped = predict(known, "bank", task_dir=few_of(tasks[2], tmp_path / "few", 16))
    assert not helped.abstained or "on the examples given" in helped.reason
    with pytest.raises(ComgradError, match="holds no task_card.json"):
        predict(known, "bank", task_dir=tmp_path)


def test_too_few_examples_are_refused(known: Known, tmp_path: Path, tasks: list[Path]) -> None:
    shutil.copy(tasks[0] / "task_card.json", tmp_path)
    (tmp_path / "examples.jsonl").write_text('{"text": "x", "label": 0}\n' * 3)
    with pytest.raises(ComgradError, match="3 training examples; coefficients chosen on fewer than 8 are noise"):
        predict(known, TEXT, task_dir=tmp_path)


@pytest.mark.parametrize("count", [1, 2])
def test_a_registry_of_one_or_two_abstains(zoo: list[Path], tmp_path: Path, count: int) -> None:
    add_paths(zoo[:count], AddRequest())
    made = suggest(TEXT, tmp_path / "start")
    assert made.abstained
    assert (tmp_path / "start" / "adapter_model.safetensors").exists()


def test_an_empty_registry_and_one_without_words_are_refused(zoo: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ComgradError, match="a registry with no vectors; there is nothing to work on"):
        suggest(TEXT, tmp_path / "start")
    bare = Path(shutil.copytree(zoo[0], tmp_path / "bare"))
    (bare / "task_card.json").unlink()
    add_paths([bare], AddRequest())
    with pytest.raises(ComgradError, match="a registry without descriptions"):
        suggest(TEXT, tmp_path / "start")
    assert not (tmp_path / "start").exists()


def test_two_bases_must_be_chosen_between(zoo: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(zoo[0], tmp_path / "other"))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "some/other-base"}))
    (other / "task_card.json").write_text(json.dumps({"schema": 1, "description": "Another task"}))
    add_paths([other, *zoo[1:5]], AddRequest())
    with pytest.raises(BaseMismatch, match="vectors over 2 bases.*choose one with --base"):
        suggest(TEXT, tmp_path / "start")
    assert suggest(TEXT, tmp_path / "start", base="all-MiniLM-L6-v2").base.endswith("all-MiniLM-L6-v2")


def test_a_gradient_of_a_thousand_times_the_usual_size_is_not_used(zoo: list[Path], tmp_path: Path) -> None:
    hostile = Path(shutil.copytree(zoo[0], tmp_path / "zoo" / zoo[0].name))
    gradient = read_gradient_file(hostile)
    assert gradient is not None
    write_gradient_file(hostile, replace(gradient, vector=gradient.vector * 1000.0))
    bare = Path(shutil.copytree(zoo[0], tmp_path / "bare" / zoo[0].name, ignore=shutil.ignore_patterns("task_grad*")))
    answers = []
    for first in (hostile, bare):
        registry = Registry(tmp_path / f"home-{first.parent.name}")
        add_paths([first, *zoo[1:20]], AddRequest(), registry=registry)
        answers.append(predict(Known.of(collection(registry)), TEXT, dare=True))
    bent, plain = answers
    assert [zoo[0].name in w for w in bent.warnings] == [True]
    assert plain.warnings == ()
    coefficients = {s.name: s.coefficient for s in plain.sources}
    assert {s.name: s.coefficient for s in bent.sources} == pytest.approx(coefficients)


def test_the_card_names_the_base_and_a_share_cuts_what_to_train(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMGRAD_HOME", str(registry.store.path))
    made = suggest(TEXT, tmp_path / "start", share=0.25, dare=True)
    card = json.loads((tmp_path / "start" / "task_card.json").read_text())
    assert card["extra"]["base_fingerprint"] == made.vector.base.fingerprint
    assert made.trainable == trainable_set(made.vector, 0.25)
    assert sum(made.trainable.values()) < sum(replace(made, share=1.0).trainable.values()) / 3
    with pytest.raises(ComgradError, match=r"the share 2\.0"):
        suggest(TEXT, tmp_path / "other", share=2.0)
    assert not (tmp_path / "other").exists()


def test_the_public_atlas_gives_the_same_answer(registry: Registry, known: Known) -> None:
    atlas = Atlas(registry)
    np.testing.assert_allclose(atlas.gram, known.atlas.gram)
    assert atlas.suggest(TEXT).sources == predict(known, TEXT).sources
    cards = [{"schema": 1, "description": m.description, "name": m.name} for m in known.atlas.members]
    loose = Atlas(known.vectors, cards).suggest(TEXT)  # vectors alone carry no gradients
    assert [round(s.coefficient, 9) for s in loose.sources] == [
        round(s.coefficient, 9) for s in predict(known, TEXT, rule="ridge").sources
    ]
    with pytest.raises(ComgradError, match="38 vectors and 1 cards"):
        Atlas(known.vectors, cards[:1])


def test_a_combination_with_dense_vectors_and_biases() -> None:
    base = BaseRef("tiny")
    low = TaskVector(base, {"w": LowRank(torch.randn(5, 2), torch.randn(2, 4))})
    full = TaskVector(base, {"w": Dense(torch.randn(5, 4)), "b": Dense(torch.randn(5))})
    mixed = combination([low, full, low], [0.5, 2.0, 0.0])
    expected = 0.5 * low.tensors["w"].dense() + 2 * full.tensors["w"].dense()
    torch.testing.assert_close(mixed.tensors["w"].dense(), expected)
    start = predicted_start(mixed, 4)
    assert "b" not in start.vector.tensors
    assert start.energy_kept == pytest.approx(float(expected.norm() ** 2) / mixed.norm() ** 2, rel=1e-5)
    with pytest.raises(ComgradError, match="all coefficients are zero"):
        combination([low], [0.0])


def test_a_zero_start_is_drawn_from_its_seed() -> None:
    shapes = {"w": LowRank(torch.zeros(6, 1), torch.zeros(1, 5))}
    a, b, c = (zero_start(BaseRef("x"), dict(shapes), 3, seed=s).vector.tensors["w"] for s in (0, 0, 1))
    assert isinstance(a, LowRank)
    assert isinstance(b, LowRank)
    assert isinstance(c, LowRank)
    assert torch.equal(a.A, b.A)
    assert not torch.equal(a.A, c.A)
    assert a.A.abs().max() <= 5**-0.5
    assert not a.B.any()
