"""The writer: canonical bytes that both readers accept, and nothing half written whatever happens."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from comgrad.errors import ComgradError, FileRefused, ShapeMismatch, StorageError
from comgrad.weights.reader import open_checkpoint, open_strict
from comgrad.weights.storage import atomic_directory, atomic_file, atomic_write_bytes
from comgrad.weights.writer import TensorPlan, plan_of, write_checkpoint, write_safetensors

NAMES = st.text("abcXYZ019_.-", min_size=1, max_size=12)
SHAPES = st.lists(st.integers(1, 3), max_size=8).map(tuple)
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
KINDS = st.sampled_from([*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool])
CONTENT = st.dictionaries(NAMES, st.tuples(KINDS, SHAPES, st.integers(0, 99)), min_size=1, max_size=5)


def content(spec: dict[str, tuple[torch.dtype, tuple[int, ...], int]]) -> dict[str, torch.Tensor]:
    return {
        n: torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for n, (dtype, shape, seed) in spec.items()
    }


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


@given(CONTENT, st.dictionaries(st.text(max_size=9), st.text(max_size=9)))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_round_trip_through_both_readers(tmp_path: Path, spec: dict[str, object], metadata: dict[str, str]) -> None:
    tensors, path = content(spec), tmp_path / "f.safetensors"
    digest = write_safetensors(path, tensors, metadata)
    data = path.read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    assert int.from_bytes(data[:8], "little") % 8 == 0
    library = load_file(path)
    with open_strict(path, refuse_zero=False) as f:
        assert f.metadata == metadata
        assert set(f.names) == set(tensors) == set(library)
        for name, t in tensors.items():
            assert f.get(name).dtype == t.dtype
            assert torch.equal(f.get(name), t)
            assert torch.equal(library[name], t)


@given(CONTENT, st.dictionaries(st.text(max_size=9), st.text(max_size=9)), st.randoms())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_same_content_gives_the_same_bytes(tmp_path: Path, spec: dict[str, object], metadata: dict, rng) -> None:
    tensors = content(spec)
    shuffled = dict(rng.sample(list(tensors.items()), len(tensors)))
    turned = {n: t.mT.contiguous().mT if t.ndim >= 2 else t for n, t in shuffled.items()}
    a = write_safetensors(tmp_path / "a", tensors, metadata)
    b = write_safetensors(tmp_path / "b", turned, dict(rng.sample(list(metadata.items()), len(metadata))))
    ordered = ((n, tensors[n]) for n in sorted(tensors))
    c = write_safetensors(tmp_path / "c", ordered, metadata, plan=plan_of(shuffled))
    assert a == b == c


def test_other_content_gives_other_bytes(tmp_path: Path) -> None:
    one = {"a": torch.ones(2, 2)}
    others = [{"b": one["a"]}, {"a": one["a"].reshape(4)}, {"a": one["a"].int()}, {"a": 2 * one["a"]}]
    digests = {write_safetensors(tmp_path / "f", t) for t in [one, *others]}
    digests.add(write_safetensors(tmp_path / "f", one, {"k": "v"}))
    assert len(digests) == 6


def test_an_independent_reference_of_the_bytes(tmp_path: Path) -> None:
    t = {"b": torch.tensor([1.5, -2.0]), "a": torch.tensor([[3]], dtype=torch.uint8)}
    write_safetensors(tmp_path / "f", t, {"k": "v"})
    header = (
        b'{"__metadata__":{"k":"v"},"a":{"data_offsets":[0,1],"dtype":"U8","shape":[1,1]},'
        b'"b":{"data_offsets":[1,9],"dtype":"F32","shape":[2]}}'
    )
    header += b" " * (-len(header) % 8)
    body = b"\x03" + b"\x00\x00\xc0\x3f" + b"\x00\x00\x00\xc0"
    assert (tmp_path / "f").read_bytes() == len(header).to_bytes(8, "little") + header + body


@pytest.mark.parametrize(
    ("tensors", "metadata", "code"),
    [
        ({}, {}, "no-tensors"),
        ({"a b": torch.ones(1)}, {}, "tensor-name"),
        ({"../x": torch.ones(1)}, {}, "tensor-name"),
        ({"a": torch.ones(0)}, {}, "zero-size"),
        ({"a": torch.ones([1] * 9)}, {}, "rank"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, {}, "dtype"),
        ({"a": torch.tensor([1.0, float("nan")])}, {}, "not-finite"),
        ({"a": torch.tensor([float("inf")], dtype=torch.bfloat16)}, {}, "not-finite"),
        ({"a": torch.ones(1)}, {"k": "x" * 70_000}, "metadata-too-large"),
        ({"a": torch.ones(1)}, {"k": "\ud800"}, "metadata"),
        ({f"{i:05d}": torch.ones(1) for i in range(1500)}, {}, "header-too-large"),
        ({f"{i:05d}": torch.ones(1) for i in range(20_001)}, {}, "too-many-tensors"),
    ],
)
def test_what_the_reader_would_refuse_is_not_written(tmp_path: Path, tensors: dict, metadata: dict, code: str) -> None:
    with pytest.raises(FileRefused, match="the strict reader would refuse the file") as caught:
        write_safetensors(tmp_path / "f", tensors, metadata)
    assert caught.value.code == code
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "pairs",
    [
        [("a", torch.ones(2))],
        [("b", torch.ones(2)), ("a", torch.ones(2))],
        [("a", torch.ones(2)), ("b", torch.ones(3))],
        [("a", torch.ones(2)), ("b", torch.ones(2).double())],
        [("a", torch.ones(2)), ("b", torch.ones(2)), ("c", torch.ones(2))],
    ],
)
def test_tensors_that_do_not_follow_the_plan(tmp_path: Path, pairs: list[tuple[str, torch.Tensor]]) -> None:
    plan = [TensorPlan("a", "F32", (2,)), TensorPlan("b", "F32", (2,))]
    with pytest.raises(ShapeMismatch, match="plan"):
        write_safetensors(tmp_path / "f", pairs, plan=plan)
    with pytest.raises(ShapeMismatch, match="plan"):
        write_checkpoint(tmp_path / "m", plan, pairs, max_shard_bytes=8)
    assert listing(tmp_path) == []


def test_a_failing_source_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    before = write_safetensors(path, {"a": torch.ones(2)})

    def source() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, source(), plan=[TensorPlan("a", "F32", (2,)), TensorPlan("b", "F32", (2,))])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert listing(tmp_path) == ["f"]


# -- checkpoints ------------------------------------------------------------------------------------------------------


@given(CONTENT, st.sampled_from([1, 30, 200, 10**9]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_shards(tmp_path: Path, spec: dict[str, object], limit: int) -> None:
    tensors, folder = content(spec), tmp_path / "m"
    pairs = ((n, tensors[n]) for n in sorted(tensors))
    write_checkpoint(folder, plan_of(tensors), pairs, max_shard_bytes=limit, metadata={"format": "pt"}, replace=True)
    with open_checkpoint(folder) as c:
        assert set(c.names) == set(tensors)
        assert all(torch.equal(c.get(n), t) for n, t in tensors.items())
        assert c.metadata == {"format": "pt"}
        assert sum(len(load_file(p)) for p in c.files) == len(tensors)
        for p in c.files:
            held = load_file(p).values()
            assert len(held) == 1 or sum(t.nbytes for t in held) <= limit
        sharded = len(c.files) > 1
    assert (folder / "model.safetensors").exists() != sharded
    if sharded:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert listing(tmp_path)[0] == "m"


def test_transformers_loads_the_shards(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=30,
        max_position_embeddings=16,
    )  # fmt: skip
    model = BertModel(config)
    state = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    pairs = ((n, state[n]) for n in sorted(state))
    extra = {"config.json": json.dumps(config.to_dict()).encode()}
    write_checkpoint(
        tmp_path / "m", plan_of(state), pairs, max_shard_bytes=1000, metadata={"format": "pt"}, extra=extra
    )
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    loaded = BertModel.from_pretrained(tmp_path / "m").state_dict()
    assert all(torch.equal(loaded[n], t) for n, t in state.items())


def test_streaming_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """120 MB in twelve tensors are written and read back with less than 60 MB more memory."""
    code = textwrap.dedent(f"""
        import sys, torch; from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent.parent / "attacks")!r}); import check
        from comgrad.weights.writer import TensorPlan, write_checkpoint
        from comgrad.weights.reader import open_checkpoint
        from comgrad.weights.values import check_values
        torch.set_num_threads(1); torch.isfinite(torch.ones(1000)).all()
        plan = [TensorPlan(f"t{{i:02d}}", "F32", (2_500_000,)) for i in range(12)]
        before = check.begin_peak()
        write_checkpoint(Path({str(tmp_path / "m")!r}), plan, ((p.name, torch.ones(p.shape)) for p in plan))
        open_checkpoint({str(tmp_path / "m")!r}).close()
        print(check.end_peak() - before)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (tmp_path / "m" / "model.safetensors").stat().st_size > 120e6
    assert float(done.stdout) < 60


# -- what the operating system refuses --------------------------------------------------------------------------------


def test_a_full_disk(tmp_path: Path) -> None:
    """A real limit of the operating system on file size, in a process of its own."""
    code = textwrap.dedent(f"""
        import resource, torch; from pathlib import Path
        from comgrad.errors import StorageError
        from comgrad.weights.storage import atomic_write_bytes
        from comgrad.weights.writer import plan_of, write_checkpoint, write_safetensors
        folder, tensors = Path({str(tmp_path)!r}), {{"a": torch.ones(500_000)}}
        (folder / "f").write_bytes(b"old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        for write in (
            lambda: write_safetensors(folder / "f", tensors),
            lambda: atomic_write_bytes(folder / "f", bytes(2_000_000)),
            lambda: write_checkpoint(folder / "m", plan_of(tensors), iter(tensors.items())),
        ):
            try:
                write()
            except StorageError as e:
                print(e.code, "|", e)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("disk-full | ") for line in lines)
    assert all("cannot be written; the file would be larger than the system allows; raise" in line for line in lines)
    assert listing(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def in_a_tiny_disk(options: str, code: str) -> str:
    """Run code in a user namespace with a small tmpfs at /mnt."""
    script = f"mount -t tmpfs -o size=1m none /mnt && mkdir /mnt/d && {options}; exec {sys.executable} -c '{code}'"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount" in done.stderr or "permission" in done.stderr.lower():
        pytest.skip("this system lets us mount no tmpfs")
    return done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux namespaces")
@pytest.mark.parametrize(
    ("options", "why"),
    [("true", "the disk is full; free some space"), ("mount -o remount,ro /mnt", "the file system is read-only")],
)
def test_a_small_and_a_read_only_disk(options: str, why: str) -> None:
    code = textwrap.dedent("""
        from pathlib import Path
        from comgrad.errors import StorageError
        from comgrad.weights.storage import atomic_directory, atomic_write_bytes
        try:
            atomic_write_bytes(Path("/mnt/d/f"), bytes(3_000_000))
        except StorageError as e:
            print(e)
        try:
            with atomic_directory(Path("/mnt/d/m")) as t:
                (t / "x").write_bytes(bytes(3_000_000))
        except StorageError as e:
            print(e)
        print(sorted(p.name for p in Path("/mnt").rglob("*")))
    """)
    lines = in_a_tiny_disk(options, code).splitlines()
    assert len(lines) == 3, lines
    assert why in lines[0]
    assert why in lines[1]
    assert lines[2] == "['d']"


def test_bad_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path, why in (
        (tmp_path / "none" / "f", "its folder does not exist"),
        (tmp_path / "file" / "f", "a part of its path is a file"),
        (tmp_path / "folder", "a folder of that name is there"),
    ):
        with pytest.raises(StorageError, match=why):
            atomic_write_bytes(path, b"x")
    assert listing(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StorageError, match="permission is denied"):
            atomic_write_bytes(tmp_path / "f", b"x")
    finally:
        tmp_path.chmod(0o755)


def test_file_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "f", b"x")
        with atomic_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750


# -- atomic folders ---------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with atomic_directory(target) as t:
        (t / "x").write_text("1")
        assert not target.exists()
    assert listing(target) == ["x"]
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "c") as t:
        (t / "x").write_text("1")
        1 / 0  # noqa: B018
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old").write_text("1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("1")
    (tmp_path / "link").symlink_to("full")
    for name in ("full", "file", "link"):
        with (
            pytest.raises(StorageError, match=r"not empty|is there") as caught,
            atomic_directory(tmp_path / name),
        ):
            pytest.fail("the block must not run")
        assert caught.value.code == "exists"
    for name, replace in (("empty", False), ("full", True)):
        with atomic_directory(tmp_path / name, replace=replace) as t:
            (t / "new").write_text("1")
        assert listing(tmp_path / name) == ["new"]
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "full", replace=True):
        1 / 0  # noqa: B018
    assert listing(tmp_path / "full") == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "full", "link"]


def test_errors_of_the_block_come_through(tmp_path: Path) -> None:
    with pytest.raises(ComgradError, match="mine"), atomic_file(tmp_path / "f"):
        raise ComgradError("mine", "b", "c")
    assert listing(tmp_path) == []


def test_killed_at_any_moment_leaves_no_half_folder(tmp_path: Path) -> None:
    """kill -9 while a checkpoint is replaced over and over: under its name there is always a whole one."""
    code = textwrap.dedent(f"""
        import torch; from pathlib import Path
        from comgrad.weights.writer import plan_of, write_checkpoint
        for k in range(1, 10**6):
            tensors = {{f"t{{i}}": torch.full((1000,), float(k)) for i in range(8)}}
            write_checkpoint(Path({str(tmp_path)!r}) / "m", plan_of(tensors), iter(tensors.items()),
                             max_shard_bytes=5000, replace=True)
            print("whole", flush=True)
    """)
    for trial in range(8):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "whole\n"
            time.sleep(0.003 * trial)
            process.send_signal(signal.SIGKILL)
            process.wait()
        with open_checkpoint(tmp_path / "m") as c:
            assert len(c.names) == 8
            assert len({float(c.get(n)[0]) for n in c.names}) == 1  # all shards of one write
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["m"]


def test_replacing_without_an_exchange_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comgrad.weights.storage._exchanged", lambda *_: False)
    for text in ("1", "2"):
        with atomic_directory(tmp_path / "d", replace=True) as t:
            (t / "x").write_text(text)
    assert (tmp_path / "d" / "x").read_text() == "2"
    assert listing(tmp_path) == ["d", "x"]
