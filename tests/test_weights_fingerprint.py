"""The base fingerprint: the same weights give the same root however they are stored; any other weights another."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from comgrad.errors import FileRefused
from comgrad.weights.fingerprint import BaseManifest, TensorId, fingerprint, merkle_root
from comgrad.weights.writer import plan_of, write_checkpoint

# First digits of the root of `base()`: another value means that every stored vector loses its base.
GOLDEN = "eba30975a26331db"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMGRAD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def base() -> dict[str, torch.Tensor]:
    return {
        "embed_tokens.weight": torch.arange(12.0).reshape(4, 3),
        "layers.0.mlp.up_proj.weight": torch.ones(2, 3),
        "norm.weight": torch.tensor([1.0, 2.0, 3.0]).bfloat16(),
    }


def root(path: Path, tensors: dict[str, torch.Tensor], **options: object) -> str:
    save_file({n: t.clone() for n, t in tensors.items()}, path, **options)
    return fingerprint(path, cache=False).root


def reference(tensors: dict[str, torch.Tensor]) -> str:
    """The definition again, recursively, straight from the bytes."""
    words = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64", torch.float16: "F16"}

    def sha(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    def leaf(name: str) -> bytes:
        t = tensors[name]
        raw = t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        row = [name, words[t.dtype], list(t.shape), hashlib.sha256(raw).hexdigest()]
        return sha(b"\x00" + json.dumps(row, separators=(",", ":")).encode())

    def up(level: list[bytes]) -> bytes:
        if len(level) == 1:
            return level[0]
        return up(
            [sha(b"\x01" + b"".join(level[i : i + 2])) if level[i + 1 :] else level[i] for i in range(0, len(level), 2)]
        )

    names = sorted(tensors)
    return hashlib.sha256(
        b"\x02comgrad-base-1" + len(names).to_bytes(8, "big") + up([leaf(n) for n in names])
    ).hexdigest()


@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=5),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float16]),
            st.lists(st.integers(1, 3), max_size=3).map(tuple),
        ),
        min_size=1,
        max_size=9,
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_agrees_with_the_definition(tmp_path: Path, spec: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    tensors = {n: torch.randn(s).to(d) for n, (d, s) in spec.items()}
    assert root(tmp_path / "f", tensors) == reference(tensors)


def test_golden(tmp_path: Path) -> None:
    assert root(tmp_path / "f", base()).startswith(GOLDEN)
    assert len(root(tmp_path / "f", base())) == 64


def test_independent_of_storage(tmp_path: Path) -> None:
    want, tensors = root(tmp_path / "f", base()), base()
    assert root(tmp_path / "g", dict(reversed(tensors.items())), metadata={"format": "pt", "x": "y"}) == want
    pairs = ((n, tensors[n]) for n in sorted(tensors))
    write_checkpoint(tmp_path / "m", plan_of(tensors), pairs, max_shard_bytes=1)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == 3
    assert fingerprint(tmp_path / "m").root == want
    buffers = {"embeddings.position_ids": torch.arange(3), "attn.bias": torch.ones(2, 2).bool()}
    assert root(tmp_path / "h", {**tensors, **buffers}) == want
    head = {"lm_head.weight": tensors["embed_tokens.weight"]}
    assert root(tmp_path / "i", {**tensors, **head}) == want


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"norm.weight": t["norm.weight"] + 1},
        lambda t: t | {"norm.weight": t["norm.weight"].float()},
        lambda t: t | {"norm.weight": t["norm.weight"].reshape(3, 1)},
        lambda t: {n: x for n, x in t.items() if n != "norm.weight"},
        lambda t: t | {"extra": torch.ones(1)},
        lambda t: {("other" if n == "norm.weight" else n): x for n, x in t.items()},
        lambda t: t | {"lm_head.weight": t["embed_tokens.weight"] + 1},  # an untied head counts
        lambda t: t | {"score.weight": t["embed_tokens.weight"]},  # and so does another tensor of the same bytes
        lambda t: (
            t | {"norm.weight": t["layers.0.mlp.up_proj.weight"], "layers.0.mlp.up_proj.weight": t["norm.weight"]}
        ),
    ],
)
def test_any_other_weights_give_another_root(tmp_path: Path, change) -> None:
    assert root(tmp_path / "f", change(base())) != root(tmp_path / "g", base())


def test_leaves_and_nodes_cannot_be_confused() -> None:
    """Second pre-images by regrouping: a tree over fewer leaves never has the root of one over more."""
    ids = {n: TensorId("F32", (1,), hashlib.sha256(n.encode()).hexdigest()) for n in "abcdefgh"}
    roots = [merkle_root({n: ids[n] for n in "abcdefgh"[:k]}) for k in range(1, 9)]
    assert len(set(roots)) == 8


def test_tensor_ids(tmp_path: Path) -> None:
    save_file(base(), tmp_path / "f")
    ids = fingerprint(tmp_path / "f").tensors
    raw = base()["embed_tokens.weight"].numpy().tobytes()
    assert ids["embed_tokens.weight"] == TensorId("F32", (4, 3), hashlib.sha256(raw).hexdigest())
    assert set(ids) == set(base())


def test_nothing_to_identify(tmp_path: Path) -> None:
    save_file({"ids": torch.arange(3)}, tmp_path / "f")
    with pytest.raises(FileRefused, match="no float tensor"):
        fingerprint(tmp_path / "f")


# -- cache ------------------------------------------------------------------------------------------------------------


def settled(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the file look as if it had been there for a minute (its change time cannot be set back)."""
    now = path.stat().st_ctime + 60
    monkeypatch.setattr("comgrad.weights.fingerprint.time.time", lambda: now)
    return path


def test_cache_is_used_and_noticed_to_be_stale(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    save_file(base(), path)
    assert fingerprint(path).root  # too fresh to be cached
    assert not home.exists()
    first = fingerprint(settled(path, monkeypatch))
    entries = list((home / "cache" / "fingerprints").iterdir())
    assert len(entries) == 1
    planted = BaseManifest(
        "f", type(first)(merkle_root({"x": TensorId("F32", (1,), "0" * 64)}), {"x": TensorId("F32", (1,), "0" * 64)})
    )
    planted.save(entries[0])
    assert fingerprint(path) == planted.fingerprint  # so the cache is what was read
    assert fingerprint(path, cache=False) == first
    entries[0].write_text('{"schema": 1, "name": "f", "root": "00", "tensors": {"x": ["F32", [1], "00"]}}')
    assert fingerprint(path) == first  # a damaged entry is computed again
    assert fingerprint(path) == first
    save_file({**base(), "more": torch.ones(1)}, path)
    assert fingerprint(settled(path, monkeypatch)).root != first.root


def test_a_file_changed_in_place_with_its_time_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    save_file(base(), path)
    first, st_before = fingerprint(settled(path, monkeypatch)), path.stat()
    with path.open("r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\x41")
    os.utime(path, ns=(st_before.st_atime_ns, st_before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (st_before.st_size, st_before.st_mtime_ns)
    assert fingerprint(settled(path, monkeypatch)).root != first.root


def test_an_unwritable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").write_text("a file where the folder should be")
    monkeypatch.setenv("COMGRAD_HOME", str(tmp_path / "blocked"))
    save_file(base(), tmp_path / "f")
    assert fingerprint(settled(tmp_path / "f", monkeypatch)).root.startswith(GOLDEN)


# -- manifest ---------------------------------------------------------------------------------------------------------


def test_manifest_round_trip(tmp_path: Path) -> None:
    save_file(base(), tmp_path / "f")
    manifest = BaseManifest("tiny", fingerprint(tmp_path / "f"))
    manifest.save(tmp_path / "m.json")
    assert BaseManifest.load(tmp_path / "m.json") == manifest


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d | {"schema": 2}, "no base manifest of schema 1"),
        (lambda d: d | {"tensors": {}}, "no base manifest"),
        (lambda d: d | {"root": "0" * 64}, "its root is not that of its tensors"),
        (lambda d: d | {"tensors": d["tensors"] | {"norm.weight": ["F32", [4], "00"]}}, "its root is not"),
        (lambda d: d | {"tensors": {"a": ["F99", [1], "00"]}}, "its row for 'a' is malformed"),
        (lambda d: d | {"tensors": {"a": 3}}, "malformed"),
    ],
)
def test_manifest_refused(tmp_path: Path, change, why: str) -> None:
    save_file(base(), tmp_path / "f")
    BaseManifest("tiny", fingerprint(tmp_path / "f")).save(tmp_path / "m.json")
    data = json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps(change(data)))
    with pytest.raises(FileRefused, match=why) as caught:
        BaseManifest.load(tmp_path / "m.json")
    assert caught.value.code == "manifest"
