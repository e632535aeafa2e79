"""Adding: every kind of bad input is one clear refusal that stores nothing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from comgrad.atlas.duplicates import DUPLICATE
from comgrad.errors import ComgradError
from comgrad.workflows.adding import AddRequest, add_one, add_paths
from comgrad.workflows.registry import Registry

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def adapter(zoo: list[Path], tmp_path: Path) -> Path:
    """A copy of a real adapter, to be spoiled."""
    return Path(shutil.copytree(zoo[0], tmp_path / "adapter"))


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def poison(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def put(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values()))[0, 0] = value

    return put


def cut_columns(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if "lora_A" in name:
            tensors[name] = tensors[name][:, :100].contiguous()


def to_zero(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name].zero_()


SPOILERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04\x95"), "pickle"),
    "zip": (lambda f: (f / WEIGHTS).write_bytes(b"PK\x03\x04" + bytes(100)), "zip|archive"),
    "truncated": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]),
        "hole|truncated|past|cover|end",
    ),
    "nan": (lambda f: change_weights(f, poison(float("nan"))), "finite|NaN"),
    "inf": (lambda f: change_weights(f, poison(float("inf"))), "finite|NaN"),
    "wrong shapes": (lambda f: change_weights(f, cut_columns), "384"),
    "zero vector": (lambda f: change_weights(f, to_zero), "zero"),
    "no config": (lambda f: (f / CONFIG).unlink(), "adapter_config.json"),
    "broken config": (lambda f: (f / CONFIG).write_text("{"), "JSON"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "adapter_model.safetensors"),
    "weights as pickle": (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), "pickle|adapter_model"),
    "dora without magnitudes": (lambda f: change_config(f, use_dora=True), "lora_magnitude_vector"),
    "pissa": (lambda f: change_config(f, init_lora_weights="pissa"), "pissa|PiSSA"),
    "ia3": (lambda f: change_config(f, peft_type="IA3"), "IA3"),
    "card with escapes": (
        lambda f: (f / "task_card.json").write_text('{"schema": 1, "name": "a\\u001b[31m"}'),
        "control|character",
    ),
    "linked weights": (lambda f: ((f / WEIGHTS).rename(f / "x"), (f / WEIGHTS).symlink_to(f / "x")), "link"),
}


@pytest.mark.parametrize("kind", SPOILERS)
def test_bad_input_is_refused_and_stores_nothing(kind: str, adapter: Path) -> None:
    spoil, message = SPOILERS[kind]
    spoil(adapter)
    registry = Registry()
    with pytest.raises(ComgradError, match=message) as refusal:
        add_one(registry, adapter, AddRequest())
    assert refusal.value.code
    assert all((refusal.value.given, refusal.value.why, refusal.value.remedy))
    assert registry.list() == []
    assert list(registry.store.blobs.digests()) == []


def test_a_base_of_other_shapes_is_refused(adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "other-base"
    base.mkdir()
    names = [
        k.removeprefix("base_model.model.").replace("lora_A.", "")
        for k in load_file(adapter / WEIGHTS)
        if "lora_A" in k
    ]
    save_file({n: torch.ones(100, 100) for n in names}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ComgradError, match=r"384.*100|100.*384"):
        add_one(Registry(), adapter, AddRequest(base=str(base)))
    assert Registry().list() == []


def test_an_unknown_base_is_kept_as_declared_and_kept_apart(adapter: Path, zoo: list[Path]) -> None:
    change_config(adapter, base_model_name_or_path="no-such/base")
    (adapter / "task_card.json").unlink()
    results = add_paths([adapter, zoo[1]], AddRequest())
    assert [r.status for r in results] == ["added", "added"]
    assert [len(r.neighbours) for r in results] == [0, 0]  # vectors of two bases are never compared
    entry = Registry().get(results[0].id or "")
    assert entry.as_dict()["base_status"] == "declared"
    with pytest.raises(ComgradError, match="different bases"):
        _ = entry.vector() + Registry().get(results[1].id or "").vector()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = add_paths([tmp_path / "empty"], AddRequest())[0]
    assert (result.status, (result.error or {})["code"]) == ("refused", "empty-directory")


def test_one_missing_path_does_not_keep_the_others_out(zoo: list[Path], tmp_path: Path) -> None:
    results = add_paths([tmp_path / "nope", zoo[0]], AddRequest())
    assert [r.status for r in results] == ["refused", "added"]


def test_a_card_of_another_base_than_the_configuration_is_refused(adapter: Path) -> None:
    change_config(adapter, base_model_name_or_path="bert-base-uncased")
    with pytest.raises(ComgradError, match="names the base 'bert-base-uncased' and its card names") as refusal:
        add_one(Registry(), adapter, AddRequest())
    assert refusal.value.code == "base-contradiction"
    assert Registry().list() == []


def test_a_new_name_for_known_bytes_is_not_taken_silently(zoo: list[Path]) -> None:
    add_paths([zoo[0]], AddRequest())
    again = add_paths([zoo[0]], AddRequest(name="another"))[0]
    assert (again.status, again.name) == ("exists", zoo[0].name)
    assert any("its name and description were kept" in w for w in again.warnings)


def test_one_name_for_many_is_refused(zoo: list[Path]) -> None:
    with pytest.raises(ComgradError, match="one name or description for 2 fine-tunes"):
        add_paths(zoo[:2], AddRequest(name="x"))


def test_a_scaled_copy_is_called_what_it_is(zoo: list[Path], tmp_path: Path) -> None:
    change = Path(shutil.copytree(zoo[0], tmp_path / "copy"))
    (change / "task_card.json").unlink()
    change_config(change, lora_alpha=24)
    results = add_paths([zoo[0], zoo[1], zoo[2], change], AddRequest())
    assert any(f"nearly the same vector as '{results[0].name}'" in w for w in results[3].warnings)
    assert any("no description" in w for w in results[3].warnings)
    cosine = Registry().get(results[0].id or "").vector().cosine(Registry().get(results[3].id or "").vector())
    assert cosine > DUPLICATE


def test_what_is_stored_is_the_same_vector(zoo: list[Path]) -> None:
    from comgrad.vectors.task_vector import TaskVector

    added = add_one(Registry(), zoo[0], AddRequest())
    stored, source = Registry().get(added.id or "").vector(), TaskVector.from_peft(zoo[0])
    assert list(stored.tensors) == list(source.tensors)
    for name in stored.tensors:
        assert torch.equal(stored.tensors[name].dense(), source.tensors[name].dense())


FULL_DISK = """
import resource, sys, signal
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.registry import Registry
Registry()  # the database is there already
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
result = add_paths([Path(sys.argv[1])], AddRequest())
print(result[0].status, result[0].error)
"""


def test_a_full_disk_is_one_clear_error_and_nothing_is_stored(zoo: list[Path], home: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] in (resource.RLIM_INFINITY, -1)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL_DISK, str(zoo[0])],
        capture_output=True,
        text=True,
        env={**os.environ, "COMGRAD_HOME": str(home)},
        check=False,
    )
    assert done.stdout.startswith("refused {'code': "), done.stderr
    assert Registry().list() == []
    assert list(Registry().store.blobs.digests()) == []


def test_a_registry_that_cannot_be_made_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, zoo: list[Path]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMGRAD_HOME", str(tmp_path / "file" / "registry"))
    with pytest.raises(ComgradError, match="file"):
        add_paths([zoo[0]], AddRequest())


def test_a_base_named_here_and_seen_there_is_one_base(zoo: list[Path], tmp_path: Path) -> None:
    from comgrad.types import BaseRef
    from comgrad.vectors.task_vector import TaskVector
    from comgrad.workflows.mapping import draw_map

    seen = TaskVector.from_peft(zoo[0])
    named = TaskVector(BaseRef(seen.base.name), TaskVector.from_peft(zoo[1]).tensors)
    (tmp_path / "named").mkdir()
    named.save(tmp_path / "named" / "vector.safetensors")
    results = add_paths([zoo[0], zoo[2], tmp_path / "named"], AddRequest())
    assert [r.status for r in results] == ["added"] * 3
    assert all(len(r.neighbours) == 2 for r in results)
    assert len(draw_map(tmp_path / "map.svg")["points"]) == 3


def test_another_vectors_damage_does_not_hide_a_successful_add(zoo: list[Path]) -> None:
    registry = Registry()
    first = add_one(registry, zoo[0], AddRequest())
    blob = registry.store.blob_path(first.id or "")
    blob.unlink()
    results = add_paths([zoo[1]], AddRequest())
    assert results[0].status == "added"
    assert any("its neighbours are not known" in w for w in results[0].warnings)
