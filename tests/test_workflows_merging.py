"""The merge journey on real adapters and tiny checkpoints: what is written, in which form, and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from comgrad.errors import ComgradError
from comgrad.registry.card import Card
from comgrad.vectors.delta import Dense
from comgrad.vectors.merge import METHODS, merge
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.reader import open_checkpoint
from comgrad.workflows.merging import MergeRequest, merge_to
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import open_vector
from vectors_models import llama, save_base

Run = Callable[..., tuple[int, str, str]]

LOW = {"sum", "mean", "tsv-m", "iso-c", "knots"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_what_it_computes(method: str, zoo: list[Path], tmp_path: Path) -> None:
    refs = [str(p) for p in zoo[:3]]
    weights = (1.0, 0.5, 2.0)
    done = merge_to(refs, tmp_path / "out", MergeRequest(method=method, weights=weights, scale=0.5))
    assert (done.kind, done.energy_kept) == ("lowrank" if method in LOW else "dense", 1.0)
    assert done.parameters == METHODS[method].default_values
    back, want = open_vector(done.path), merge([open_vector(r) for r in refs], method, weights) * 0.5
    assert back.kind == done.kind
    assert (back - want).norm() <= 1e-6 * want.norm()
    card = json.loads((tmp_path / "out" / "task_card.json").read_text())
    Card.model_validate_json(json.dumps(card))
    assert card["notes"].startswith(f"merged by {method}")
    ids = [r.id for r in (Registry().add(p) for p in zoo[:3])]
    assert [p["id"] for p in card["parents"]] == ids  # the same ids for folders, here and on every service
    assert all(("coefficient" in p) == (method in {"sum", "mean"}) for p in card["parents"])


def test_a_dense_merge_becomes_an_adapter_with_a_rank(zoo: list[Path], tmp_path: Path) -> None:
    refs = [str(p) for p in zoo[:2]]
    request = MergeRequest(method="ties", rank=4, parameters={"density": 0.3, "scope": "tensor"})
    done = merge_to(refs, tmp_path / "out", request)
    assert (done.kind, done.rank) == ("lowrank", 4)
    whole = merge([open_vector(r) for r in refs], "ties", density=0.3, scope="tensor")
    lost = (TaskVector.from_peft(tmp_path / "out") - whole).norm() ** 2 / whole.norm() ** 2
    assert 0 < done.energy_kept < 1
    assert 1 - done.energy_kept == pytest.approx(lost, rel=1e-4)


def test_full_checkpoints_in_and_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llama()
    base = save_base(model, tmp_path / "base")
    tuned = []
    for i in range(2):
        torch.manual_seed(i + 1)
        other = llama()
        tuned.append(str(save_base(other, tmp_path / f"tuned{i}")))
    done = merge_to(tuned, tmp_path / "out", MergeRequest(method="ties", base=str(base), to=str(base)))
    assert done.kind == "checkpoint"
    vectors = [TaskVector.from_checkpoints(base, t) for t in tuned]
    want, out, start = merge(vectors, "ties"), open_checkpoint(tmp_path / "out"), open_checkpoint(base)
    names = set(want.tensors)
    assert len(names) > 10
    for n in names:
        expected = start.get(n).double() + want.tensors[n].in_base_layout().double()
        torch.testing.assert_close(out.get(n), expected.float(), rtol=0, atol=1e-7)
    for c in (out, start):
        c.close()


def test_what_is_said_of_zeros(tmp_path: Path) -> None:
    from comgrad.types import BaseRef

    for i, factor in enumerate((1.0, -1.0)):
        tensors = {"a": Dense(torch.randn(9, 9) * 100), "b": Dense(torch.ones(5, 5) * factor)}
        (tmp_path / str(i)).mkdir()
        TaskVector(BaseRef("b"), tensors).save(tmp_path / str(i) / "vector.safetensors")
    refs = [str(tmp_path / str(i)) for i in range(2)]
    done = merge_to(refs, tmp_path / "ties", MergeRequest(method="ties"))
    assert any("1 of 2 tensors of the merge are zero; the scope 'tensor'" in w for w in done.warnings)
    cancelled = merge_to([refs[0]] * 2, tmp_path / "sum", MergeRequest(weights=(1.0, -1.0)))
    assert cancelled.warnings == ["the merge is zero: its vectors cancel"]


def test_nothing_is_read_or_written_for_a_wrong_parameter(tmp_path: Path) -> None:
    with pytest.raises(ComgradError, match="the density 2"):
        merge_to(["no such", "vectors"], tmp_path / "out", MergeRequest(method="ties", parameters={"density": 2.0}))
    assert not (tmp_path / "out").exists()


# -- the command -----------------------------------------------------------------------------------------------------


def test_methods_are_listed(run: Run) -> None:
    code, out, _ = run("merge", "--methods")
    assert code == 0
    for name, row in METHODS.items():
        assert f"{name}  {row.source}" in out
        assert row.meaning in out
    assert "--density (default 0.2)" in out
    code, out, _ = run("merge", "--help")
    assert code == 0
    assert all(name in out.replace("\n", " ") for name in METHODS)


def test_the_command_passes_every_parameter(run: Run, zoo: list[Path], tmp_path: Path) -> None:
    given = {
        "ties": {"density": 0.4, "scope": "tensor", "match": "mergekit"},
        "breadcrumbs": {"density": 0.5, "gamma": 0.1, "scope": "global", "inner": "ties"},
        "dare": {"density": 0.3, "seed": 5, "inner": "ties"},
    }
    for method, parameters in given.items():
        options = [x for name, value in parameters.items() for x in (f"--{name}", value)]
        code, out, err = run("merge", *zoo[:2], "--method", method, *options, "-o", tmp_path / method, "--json")
        assert code == 0, err
        said = json.loads(out)
        assert {"path", "energy_kept", "method", "kind", "rank", "warnings"} <= set(said)
        assert (said["method"], said["parameters"]) == (method, parameters)
        want = merge([open_vector(str(p)) for p in zoo[:2]], method, **parameters)  # type: ignore[arg-type]
        assert (open_vector(str(tmp_path / method)) - want).norm() == 0.0


def test_mistakes_are_one_line(run: Run, zoo: list[Path], tmp_path: Path) -> None:
    for options, words in (
        (["--method", "ties", "--density", "0"], "the density 0;"),
        (["--method", "mean", "--seed", "1"], "the method does not read it"),
        (["--method", "love"], "no merging method has that name"),
    ):
        code, out, err = run("merge", *zoo[:2], *options, "-o", tmp_path / "x")
        assert (code, out) == (1, "")
        assert words in err
        assert err.count("\n") == 1
        assert not (tmp_path / "x").exists()
