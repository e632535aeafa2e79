"""Mutate valid uploads and read them as the service's job does: a task vector and a card, or a refusal, nothing else.

    python attacks/fuzz_upload.py --n 1000000 [--seed 0] [--processes 2] [--log FILE] [--json]

An upload is an adapter's two files and a card, or a container and a card. One to three of its files are mutated: bytes
as in `fuzz.py`, JSON also as values (other types, deep nesting, huge and odd numbers, odd text). What is accepted is written
again in the service's own bytes, which must be read back as the same vector. An upload that breaks this is kept in
`fuzz-failure/`.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from safetensors.numpy import save

from comgrad.errors import ComgradError
from comgrad.service.jobs.admission import read_upload
from comgrad.vectors.task_vector import TaskVector
from fuzz import command, mutant

WEIGHTS, CONFIG, CARD, CONTAINER = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "task_card.json",
    "vector.safetensors",
)
BASE = "attack/none"
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 10**400, 1e308, -0.0, "", "x" * 3000, "\x00", "\u202e", "\ud800", "../../etc/passwd", "file:///x",
    [], {}, [[]], {"a": {"b": {}}}, ["x"] * 200, {"": 1}, "NaN", [0.5, None],
)  # fmt: skip


def seeds() -> list[dict[str, bytes]]:
    """A valid adapter with its card, and the same as a container."""
    rng = np.random.default_rng(0)
    prefix = "base_model.model.encoder.layer.{}.attention.self.query.lora_{}.weight"
    shapes = {"A": (2, 6), "B": (6, 2)}
    state = {prefix.format(i, s): rng.normal(size=shapes[s]).astype("f4") for i in range(2) for s in "AB"}
    config = {
        "peft_type": "LORA", "base_model_name_or_path": BASE, "r": 2, "lora_alpha": 4, "target_modules": ["query"],
        "bias": "none", "use_dora": False, "use_rslora": False, "modules_to_save": None, "task_type": None,
        "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False,
    }  # fmt: skip
    card = {
        "schema": 1, "name": "fuzz", "description": "a task", "base_model": BASE, "label_names": ["a", "b"],
        "training": {"rank": 2, "steps": 9, "learning_rate": 0.1}, "metrics": {"x": 0.5},
        "parents": [{"id": "tv-1", "role": "merge", "coefficient": 0.5}], "extra": {"k": [1, {"z": None}]},
    }  # fmt: skip
    adapter = {
        WEIGHTS: save(state, {"format": "pt"}),
        CONFIG: json.dumps(config).encode(),
        CARD: json.dumps(card).encode(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in (WEIGHTS, CONFIG):
            (Path(folder) / name).write_bytes(adapter[name])
        path = Path(folder) / CONTAINER
        TaskVector.from_peft(folder).save(path)
        container = {CONTAINER: path.read_bytes(), CARD: adapter[CARD]}
    return [adapter, container]


def odd_value(rng: random.Random, data: bytes) -> bytes:
    """The JSON with one value, key or item exchanged, removed, repeated or wrapped."""
    try:
        value = json.loads(data)
    except ValueError:
        return data
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(value)
    if places:
        node, key = rng.choice(places)
        what = rng.randrange(4)
        if what == 0:
            node[key] = rng.choice(ODD)
        elif what == 1:
            del node[key]
        elif what == 2:
            node[key] = [node[key]] * rng.choice((1, 2, 50))
        elif isinstance(node, dict):
            node[str(rng.choice(ODD))[:200]] = node[key]
    text = json.dumps(value)
    if rng.random() < 0.1:
        text = text[:-1] + "," + text[1:]  # every key twice
    return text.encode("utf-8", "replace")


def mutated(rng: random.Random, upload: dict[str, bytes]) -> dict[str, bytes]:
    """The upload with one to three of its files mutated."""
    out = dict(upload)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(sorted(out))
        if name.endswith(".json") and rng.random() < 0.7:
            out[name] = odd_value(rng, out[name])
        else:
            out[name] = mutant(rng, [out[name]]) if len(out[name]) > 16 else b"{}"
    return out


def verdict(folder: Path, upload: dict[str, bytes], own: Path) -> str:
    """`accepted`, or the refusal's code. Any other exception comes through."""
    for name in (WEIGHTS, CONFIG, CARD, CONTAINER):
        if name in upload:
            (folder / name).write_bytes(upload[name])
        else:
            (folder / name).unlink(missing_ok=True)
    uploads = SimpleNamespace(folder=folder.parent)
    row = SimpleNamespace(id=folder.name, parts=[{"name": n} for n in upload], request={"card": None, "base": None})
    try:
        tau, card = read_upload(uploads, row)  # type: ignore[arg-type]
        tau.save(own)
    except ComgradError as error:
        assert str(folder) not in str(error), "the refusal tells the server's paths"
        return error.code
    again = TaskVector.load(own)
    assert set(again.tensors) == set(tau.tensors), "the service's bytes hold other tensors"
    assert card.from_dict(card.to_dict()) == card, "the card is another after a round trip"
    return "accepted"


def run(n: int, seed: str | int, place: Path) -> Counter[str]:
    """Read `n` mutated uploads; how often each verdict was given."""
    rng, known, seen = random.Random(seed), seeds(), Counter[str]()
    folder = place / "upload"
    folder.mkdir()
    for valid in known:
        assert verdict(folder, valid, place / CONTAINER) == "accepted"  # the seeds are good: refusals mean something
    for _ in range(n):
        upload = mutated(rng, rng.choice(known))
        try:
            seen[verdict(folder, upload, place / CONTAINER)] += 1
        except BaseException:
            shutil.copytree(folder, "fuzz-failure", dirs_exist_ok=True)
            raise
    return seen


if __name__ == "__main__":
    command("Mutate valid uploads and read them as the service does.", run, "uploads")
