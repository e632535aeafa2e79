"""The strict reader: what passes is what the safetensors library reads; what is odd about a file on disk is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from comgrad.errors import FileRefused, NotFound
from comgrad.weights import profile
from comgrad.weights.reader import open_checkpoint, open_strict, read_json, weight_files

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def uint8(number: int, begin: int, count: int) -> str:
    return f'"{number:07d}":{{"dtype":"U8","shape":[{count}],"data_offsets":[{begin},{begin + count}]}}'


def sparse(path: Path, body: str, data: int) -> Path:
    """A file of this header and `data` zero bytes that take no room on disk."""
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(body)) + body.encode())
        out.truncate(8 + len(body) + data)
    return path


def refusal(path: Path, **options: bool) -> FileRefused:
    with pytest.raises(FileRefused) as caught:
        open_strict(path, **options)
    return caught.value


def file_of(path: Path, *tensors: torch.Tensor, metadata: dict[str, str] | None = None) -> Path:
    save_file({f"t{i}": t for i, t in enumerate(tensors)}, path, metadata)
    return path


def test_every_code_has_a_sentence() -> None:
    assert all(text[0].islower() and not text.endswith(".") for text in profile.REFUSALS.values())
    with pytest.raises(KeyError):
        profile.refused("no-such-code", "x")


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_reads_what_the_library_wrote(tmp_path: Path, data: st.DataObject) -> None:
    """All dtypes, ranks 0 to 8, any metadata: same names, shapes, dtypes, values and bytes."""
    shapes = st.lists(st.integers(1, 3), max_size=8).map(tuple)
    names = st.text("abcXYZ019_.-", min_size=1, max_size=20).filter(lambda n: n != "__metadata__")
    spec = data.draw(st.dictionaries(names, st.tuples(st.sampled_from(list(DTYPES)), shapes), min_size=1, max_size=5))
    metadata = data.draw(st.none() | st.dictionaries(st.text(max_size=9), st.text(max_size=9), min_size=1))
    tensors = {n: torch.randint(0, 2, s).to(d) + (d != torch.bool) for n, (d, s) in spec.items()}
    tensors = {n: t.to(spec[n][0]) for n, t in tensors.items()}
    path = tmp_path / "f.safetensors"
    save_file(tensors, path, metadata)
    with open_strict(path) as f:
        assert f.metadata == (metadata or {})
        assert f.names == tuple(sorted(tensors))
        for name, t in tensors.items():
            got, entry = f.get(name), f.entries[name]
            assert torch.equal(got, t)
            assert (got.dtype, entry.dtype, entry.shape) == (t.dtype, DTYPES[t.dtype], tuple(t.shape))
            raw = t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert f.sha256(name) == hashlib.sha256(raw).hexdigest()


def test_agrees_with_the_library_on_the_starter_zoo() -> None:
    import comgrad.starter

    adapters = sorted(Path(comgrad.starter.__file__).parent.glob("zoo/*/adapter_model.safetensors"))
    assert len(adapters) >= 36
    for path in adapters:
        whole = load_file(path)
        with open_strict(path) as f:
            assert set(f.names) == set(whole)
            assert all(torch.equal(f.get(n), whole[n]) for n in f.names)


# -- values -----------------------------------------------------------------------------------------------------------

SPECIAL = [
    (d, v) for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16) for v in ("nan", "inf", "-inf")
]


@pytest.mark.parametrize(("dtype", "value"), SPECIAL)
def test_not_finite_in_every_dtype(tmp_path: Path, dtype: torch.dtype, value: str) -> None:
    t = torch.ones(5, 7, dtype=dtype)
    t[3, 2] = float(value)
    path = file_of(tmp_path / "f.safetensors", torch.ones(3, dtype=dtype), t)
    error = refusal(path)
    assert error.code == "not-finite"
    assert "'t1', element 23" in error.why
    open_strict(path, check_finite=False).close()


def test_not_finite_is_found_across_blocks(tmp_path: Path) -> None:
    t = torch.zeros(profile.BLOCK // 4 * 2 + 5)
    t[0], t[-1] = 1.0, float("nan")
    assert f"element {t.numel() - 1:,}" in refusal(file_of(tmp_path / "f.safetensors", t)).why


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_largest_and_smallest_numbers_pass(tmp_path: Path, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    file_of(tmp_path / "f.safetensors", torch.tensor([info.max, info.min, info.tiny, -0.0], dtype=dtype))
    open_strict(tmp_path / "f.safetensors").close()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("scale", "code"), [(0.0, "all-zero"), (0.5, "denormals")])
def test_nothing_but_zero_or_denormals(tmp_path: Path, dtype: torch.dtype, scale: float, code: str) -> None:
    tiny = torch.tensor([0.0, -torch.finfo(dtype).tiny], dtype=torch.float64) * scale
    path = file_of(tmp_path / "f.safetensors", tiny.to(dtype), torch.zeros(3, dtype=dtype), torch.ones(2).int())
    assert refusal(path).code == code
    assert refusal(path, check_finite=False).code == code
    open_strict(path, refuse_zero=False).close()
    file_of(path, tiny.to(dtype), torch.ones(1, dtype=dtype))  # one real number is enough
    open_strict(path).close()


def test_booleans_other_than_0_and_1(tmp_path: Path) -> None:
    blob = bytearray(save({"b": torch.tensor([True, False, True])}))
    blob[-1] = 2
    (tmp_path / "f.safetensors").write_bytes(blob)
    assert refusal(tmp_path / "f.safetensors").code == "bool-value"


# -- the header -------------------------------------------------------------------------------------------------------


def test_the_one_percent_rule(tmp_path: Path) -> None:
    def made(header: int, size: int) -> Path:
        count = size - 8 - header
        body = f'{{"a":{{"dtype":"U8","shape":[{count}],"data_offsets":[0,{count}]}},"__metadata__":{{"x":"'
        body += "x" * (header - len(body) - 3) + '"}}'
        return sparse(tmp_path / "f.safetensors", body, count)

    floor = profile.HEADER_FLOOR
    open_strict(made(floor, 100_000)).close()
    assert refusal(made(floor + 1, 6_500_000)).code == "header-too-large"
    assert (
        refusal(made(80_000, 8_000_000)).code == "metadata-too-large"
    )  # the header's size is right, the text's is not
    assert refusal(made(80_001, 8_000_000)).code == "header-too-large"


def test_too_many_tensors(tmp_path: Path) -> None:
    def made(count: int, each: int = 8000) -> Path:
        body = "{" + ",".join(uint8(i, each * i, each) for i in range(count)) + "}"
        return sparse(tmp_path / "f.safetensors", body, each * count)

    open_strict(made(20_000)).close()
    assert refusal(made(20_001)).code == "too-many-tensors"
    assert refusal(made(90_000)).code == "too-many-tensors"
    assert refusal(made(2_000, each=200)).code == "header-too-large"  # mostly header


@pytest.mark.parametrize("spaces", [0, 7, 63, 64])
def test_padding(tmp_path: Path, spaces: int) -> None:
    body = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + b" " * spaces
    path = tmp_path / "f.safetensors"
    path.write_bytes(struct.pack("<Q", len(body)) + body + struct.pack("<f", 1.0))
    if spaces < 64:
        open_strict(path).close()
    else:
        assert refusal(path).code == "header-padding"
    body = body.rstrip() + b"\n"
    path.write_bytes(struct.pack("<Q", len(body)) + body + struct.pack("<f", 1.0))
    assert refusal(path).code == "header-padding"


@pytest.mark.parametrize("length", [640, 0x088B1F])
def test_a_length_that_looks_like_another_formats_magic(tmp_path: Path, length: int) -> None:
    """640 begins with pickle's 80 02, 559,903 with gzip's 1f 8b 08: both are good lengths."""
    entries: list[str] = []
    while sum(map(len, entries)) + len(entries) + 200 < length:
        entries.append(uint8(len(entries), 10 * len(entries), 10))
    begin, count = 10 * len(entries), 200 * length
    body = "{" + ",".join([*entries, uint8(9_999_999, begin, count)]) + ',"__metadata__":{"x":"'
    body += "x" * (length - len(body) - 3) + '"}}'
    path = sparse(tmp_path / "f.safetensors", body, begin + count)
    with path.open("rb") as f:
        assert f.read(2) in (b"\x80\x02", b"\x1f\x8b")
    open_strict(path).close()


FOREIGN = [
    (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}", "pickle"),
    (b"PK\x03\x04" + bytes(60), "zip"),
    (b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc", "archive"),
    (b"7z\xbc\xaf\x27\x1c" + bytes(60), "archive"),
    (b"BZh91AY&SY" + bytes(60), "archive"),
    (b"\x28\xb5\x2f\xfd" + bytes(60), "archive"),
    (b"\xfd7zXZ\0" + bytes(60), "archive"),
    (b"Rar!\x1a\x07" + bytes(60), "archive"),
    (b"<!DOCTYPE html><html></html>", "html"),
    (b"\xef\xbb\xbf\n <HTML><body>", "html"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "lfs-pointer"),
    (b"GGUF\x03" + bytes(60), "other-format"),
    (b"\x93NUMPY\x01" + bytes(60), "other-format"),
    (b"\x89HDF\r\n\x1a\n" + bytes(60), "other-format"),
]


@pytest.mark.parametrize(("start", "code"), FOREIGN)
def test_other_formats_by_their_first_bytes(tmp_path: Path, start: bytes, code: str) -> None:
    (tmp_path / "f.safetensors").write_bytes(start)
    assert refusal(tmp_path / "f.safetensors").code == code


def test_what_torch_save_writes(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "new.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    assert refusal(tmp_path / "new.safetensors").code == "zip"
    assert refusal(tmp_path / "old.safetensors").code == "pickle"


def test_a_zip_hidden_in_the_last_tensor(tmp_path: Path) -> None:
    inner = tmp_path / "inner.zip"
    with zipfile.ZipFile(inner, "w") as z:
        z.writestr("payload.py", "print('hello')")
    data = torch.frombuffer(bytearray(inner.read_bytes()), dtype=torch.uint8)
    path = tmp_path / "f.safetensors"
    save_file({"a": torch.ones(2), "z": data}, path)
    assert zipfile.is_zipfile(path)
    assert refusal(path).code == "polyglot"
    save_file({"a": torch.ones(2), "z": torch.cat([data, torch.ones(1, dtype=torch.uint8)])}, path)
    assert zipfile.is_zipfile(path)  # Python's reader allows bytes after the archive
    assert refusal(path).code == "polyglot"
    data[-22:] = 0  # without its end record it is no archive
    save_file({"a": torch.ones(2), "z": data}, path)
    open_strict(path).close()


# -- the file on disk -------------------------------------------------------------------------------------------------


def good(path: Path) -> Path:
    return file_of(path, torch.ones(2, 2))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no such file"):
        open_strict(tmp_path / "none.safetensors")
    with pytest.raises(FileRefused) as caught:
        open_strict(Path("a\0b"))
    assert caught.value.code == "unreadable"


def test_not_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    begin = time.monotonic()
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        assert refusal(path).code == "not-a-file"
    assert time.monotonic() - begin < 1  # a pipe without a writer would block a plain open for ever


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    good(tmp_path / "f.safetensors").chmod(0)
    assert refusal(tmp_path / "f.safetensors").code == "unreadable"


def test_links(tmp_path: Path) -> None:
    good(tmp_path / "f.safetensors")
    (tmp_path / "soft").symlink_to("f.safetensors")
    assert refusal(tmp_path / "soft").code == "symlink"
    (tmp_path / "dangling").symlink_to("nothing")
    assert refusal(tmp_path / "dangling").code == "symlink"
    (tmp_path / "hard").hardlink_to(tmp_path / "f.safetensors")
    open_strict(tmp_path / "hard").close()
    assert refusal(tmp_path / "hard", untrusted=True).code == "hard-link"


COMMIT, BLOB = "0123456789" * 4, "ab" * 32


def hub_cache(root: Path) -> tuple[Path, Path]:
    """A repository folder as the hub client lays it out: (snapshot folder, blob)."""
    repo = root / "models--tiny--model"
    snapshot, blob = repo / "snapshots" / COMMIT, repo / "blobs" / BLOB
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    good(blob)
    return snapshot, blob


def test_cache_links_are_followed(tmp_path: Path) -> None:
    snapshot, blob = hub_cache(tmp_path)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{BLOB}")
    (snapshot / "sub").mkdir()
    (snapshot / "sub" / "model.safetensors").symlink_to(f"../../../blobs/{BLOB}")
    for path in (snapshot / "model.safetensors", snapshot / "sub" / "model.safetensors"):
        with open_strict(path) as f:
            assert f.get("t0").sum() == 4
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.names == ("t0",)
    shared = tmp_path / "blobs" / "cd" / ("cd" * 32)  # the cache's store of blobs that several repositories share
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(f"../../blobs/cd/{'cd' * 32}")
    open_strict(snapshot / "model.safetensors").close()


@pytest.mark.parametrize(
    "target",
    [
        "../../../other/blobs/" + BLOB,
        "../../blobs/../../../secret",
        "../blobs/" + BLOB,
        "../../../blobs/" + BLOB,
        "../../blobs/" + "zz" * 32,
        "/etc/passwd",
    ],
)
def test_other_links_in_a_cache_are_refused(tmp_path: Path, target: str) -> None:
    snapshot, _ = hub_cache(tmp_path)
    (snapshot / "model.safetensors").symlink_to(target)
    assert refusal(snapshot / "model.safetensors").code == "symlink"


def test_a_cache_blob_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    snapshot, blob = hub_cache(tmp_path)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{BLOB}")
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    assert refusal(snapshot / "model.safetensors").code == "symlink"


def touch(path: Path) -> None:
    with path.open("r+b") as f:
        f.seek(-4, os.SEEK_END)
        f.write(struct.pack("<f", 9.0))
    os.utime(path, ns=(1, 1))


def swap(path: Path) -> None:
    good(path.with_name("new"))
    path.with_name("new").replace(path)


def cut(path: Path) -> None:
    os.truncate(path, 20)


@pytest.mark.parametrize("change", [touch, swap, cut, Path.unlink])
@pytest.mark.parametrize("use", [lambda f: f.get("t0"), lambda f: f.sha256("t0")])
def test_a_file_that_changes_after_the_check(
    tmp_path: Path, change: Callable[[Path], None], use: Callable[[object], object]
) -> None:
    path = good(tmp_path / "f.safetensors")
    for warm in (False, True):
        good(path)
        with open_strict(path) as f:
            if warm:
                use(f)
            change(path)
            with pytest.raises(FileRefused, match="changed between its check and its use") as caught:
                use(f)
            assert caught.value.code == "changed-while-reading"


def test_tensors_do_not_follow_the_file(tmp_path: Path) -> None:
    path = good(tmp_path / "f.safetensors")
    with open_strict(path) as f:
        t = f.get("t0")
        touch(path)
    assert t.sum() == 4


def test_closing_twice_and_unknown_names(tmp_path: Path) -> None:
    f = open_strict(good(tmp_path / "f.safetensors"))
    with pytest.raises(NotFound, match="holds no tensor of that name"):
        f.get("nope")
    f.close()
    f.close()


def test_no_file_is_left_open(tmp_path: Path) -> None:
    fds = Path("/proc/self/fd")
    if not fds.exists():
        pytest.skip("no /proc here")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x10\0\0\0\0\0\0\0garbage and more")
    before = len(list(fds.iterdir()))
    for _ in range(20):
        refusal(bad)
        open_strict(good(tmp_path / "f.safetensors")).close()
    assert len(list(fds.iterdir())) == before


# -- checkpoints ------------------------------------------------------------------------------------------------------


def sharded(folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    tensors = {n: torch.randn(3, 2) for n in "abcd"}
    save_file({n: tensors[n] for n in "ab"}, folder / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in "cd"}, folder / "model-00002-of-00002.safetensors")
    write_index(folder, {n: f"model-0000{1 + (n > 'b')}-of-00002.safetensors" for n in "abcd"})
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return tensors


def write_index(folder: Path, weight_map: dict[str, object]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_sharded_checkpoint(tmp_path: Path) -> None:
    tensors = sharded(tmp_path / "m")
    with open_checkpoint(tmp_path / "m") as c:
        assert c.names == ("a", "b", "c", "d")
        assert c.config == {"model_type": "tiny"}
        assert [p.name for p in c.files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        assert weight_files(tmp_path / "m") == c.files
        assert all(torch.equal(c.get(n), t) for n, t in tensors.items())
        assert c.sha256("d") == hashlib.sha256(tensors["d"].numpy().tobytes()).hexdigest()
        assert c.entries["d"].shape == (3, 2)
        with pytest.raises(NotFound):
            c.get("e")


def test_single_file_checkpoint(tmp_path: Path) -> None:
    path = good(tmp_path / "model.safetensors")
    for where in (path, tmp_path, str(tmp_path)):
        with open_checkpoint(where) as c:
            assert (c.names, c.config, c.files) == (("t0",), None, [path])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"a": "model-00002-of-00002.safetensors"}, "index"),  # it is in the other
        ({"e": "model-00002-of-00002.safetensors"}, "index"),  # it is in none
        ({"a": "../m/model-00001-of-00002.safetensors"}, "index"),
        ({"a": "/etc/passwd"}, "index"),
        ({"a": "sub/x.safetensors"}, "index"),
        ({"a": ".hidden.safetensors"}, "index"),
        ({"a": "weights.bin"}, "index"),
        ({"a": 3}, "index"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, change: dict[str, object], code: str) -> None:
    sharded(tmp_path / "m")
    truth = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())["weight_map"]
    write_index(tmp_path / "m", {**truth, **change})
    with pytest.raises(FileRefused, match="shard index disagrees") as caught:
        open_checkpoint(tmp_path / "m")
    assert caught.value.code == code


def test_index_without_an_entry_or_a_file(tmp_path: Path) -> None:
    sharded(tmp_path / "m")
    write_index(tmp_path / "m", {n: f"model-0000{1 + (n > 'b')}-of-00002.safetensors" for n in "abc"})
    with pytest.raises(FileRefused, match="disagree on 'd'"):
        open_checkpoint(tmp_path / "m")
    (tmp_path / "m" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFound):
        open_checkpoint(tmp_path / "m")
    write_index(tmp_path / "m", {})
    with pytest.raises(FileRefused, match="no weight_map"):
        open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "model.pt", "last.ckpt"])
def test_a_folder_with_pickles_only(tmp_path: Path, name: str) -> None:
    torch.save({}, tmp_path / name)
    with pytest.raises(FileRefused, match=r"pickle.*convert it to safetensors") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == "pickle"
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(FileRefused, match="no safetensors weights"):
        open_checkpoint(tmp_path)


# -- small JSON files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b'{"a": 1, "a": 2}', "duplicate-key"),
        (b'{"x": [{"a": 1, "a": 2}]}', "duplicate-key"),
        (b'{"a": NaN}', "json"),
        (b'{"a": -Infinity}', "json"),
        (b"[1]", "json"),
        (b"", "json"),
        (b'{"a": "\xff"}', "json"),
        (b'\xef\xbb\xbf{"a": 1}', "json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "json"),
        (b'{"a": ' + b"[" * 100_000, "json"),
        (b'{"a": "' + b"x" * 1_000_000 + b'"}', "json-too-large"),
    ],
)
def test_json_refused(tmp_path: Path, text: bytes, code: str) -> None:
    (tmp_path / "f.json").write_bytes(text)
    with pytest.raises(FileRefused) as caught:
        read_json(tmp_path / "f.json")
    assert caught.value.code == code


def test_json_read(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"r": 8, "é": [1.5, null, true], "n": {"a": {"a": 1}}}')
    assert read_json(tmp_path / "f.json") == {"r": 8, "é": [1.5, None, True], "n": {"a": {"a": 1}}}
    (tmp_path / "link.json").symlink_to("f.json")
    with pytest.raises(FileRefused, match="symbolic link"):
        read_json(tmp_path / "link.json")


def test_many_threads_may_read_one_file(tmp_path: Path) -> None:

    tensors = {
        f"t{i}": torch.full((300, 1000), float(i + 1)) for i in range(40)
    }  # 48 MB: the map is renewed on the way
    save_file(tensors, tmp_path / "f.safetensors")
    with open_strict(tmp_path / "f.safetensors") as file, ThreadPoolExecutor(8) as pool:
        read = list(pool.map(file.get, [f"t{i % 40}" for i in range(400)]))
    assert all(torch.equal(x, tensors[f"t{i % 40}"]) for i, x in enumerate(read))
