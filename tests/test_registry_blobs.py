"""Blobs: addressed by content, whole or absent, never through a link."""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import ComgradError, FileRefused, NotFound, StorageError
from comgrad.registry import disk
from comgrad.registry.blobs import FolderBlobs

DATA = b"some bytes" * 1_000


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    store = FolderBlobs(tmp_path / "blobs")
    store.prepare()
    return store


def left(blobs: FolderBlobs) -> list[Path]:
    return [path for path in blobs.root.rglob("*") if not path.is_dir()]


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=3_000))
def test_what_is_put_comes_back_under_its_hash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    blobs = FolderBlobs(tmp_path_factory.mktemp("b"))
    blobs.prepare()
    digest = blobs.put_bytes(data)
    assert digest == hashlib.sha256(data).hexdigest()
    with blobs.open(digest) as file:
        assert file.read() == data
    assert (blobs.measure(data), list(blobs.digests()), blobs.verify(digest)) == ((digest, len(data)), [digest], "ok")


def test_a_file_is_copied_read_only_and_again_changes_nothing(blobs: FolderBlobs, tmp_path: Path) -> None:
    source = tmp_path / "x"
    source.write_bytes(DATA)
    digest = blobs.put_file(source)
    path = blobs.path(digest)
    assert path == blobs.root / digest[:2] / digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert source.read_bytes() == DATA
    assert blobs.put_file(source) == blobs.put_bytes(DATA) == digest
    assert left(blobs) == [path]
    assert blobs.delete(digest)
    assert not blobs.delete(digest)
    assert not blobs.exists(digest)
    assert blobs.verify(digest) == "missing"
    with pytest.raises(NotFound, match="there is no such file"):
        blobs.open(digest)


def test_a_wrong_declared_digest_is_refused_and_nothing_stored(blobs: FolderBlobs) -> None:
    with pytest.raises(FileRefused, match="its bytes hash to") as caught:
        blobs.put(DATA, declared="0" * 64)
    assert caught.value.code == "digest-mismatch"
    assert left(blobs) == []


def test_links_pipes_and_folders_are_refused_as_sources(blobs: FolderBlobs, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_bytes(DATA)
    (tmp_path / "soft").symlink_to(real)
    with pytest.raises(FileRefused, match="it is a symbolic link"):
        blobs.put(tmp_path / "soft")
    os.link(real, tmp_path / "hard")
    with pytest.raises(FileRefused, match="one of several hard links"):
        blobs.put(tmp_path / "hard")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(FileRefused, match="it is not a regular file"):
            blobs.put(path)
    assert left(blobs) == []


def test_links_in_the_store_are_never_followed(blobs: FolderBlobs, tmp_path: Path) -> None:
    digest = blobs.put_bytes(DATA)
    path = blobs.path(digest)
    outside = tmp_path / "outside"
    outside.write_bytes(DATA)
    path.unlink()
    path.symlink_to(outside)
    assert not blobs.exists(digest)
    assert blobs.verify(digest) == "linked"
    with pytest.raises(FileRefused, match="symbolic link"):
        blobs.open(digest)
    assert blobs.put_bytes(DATA) == digest  # the link is replaced, its target is not touched
    assert blobs.verify(digest) == "ok"
    assert not path.is_symlink()
    os.link(path, tmp_path / "second name")
    assert blobs.verify(digest) == "linked"
    assert not blobs.exists(digest)


def test_a_linked_folder_is_refused(blobs: FolderBlobs, tmp_path: Path) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    (tmp_path / "elsewhere").mkdir()
    (blobs.root / digest[:2]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="a symbolic link, which is never followed"):
        blobs.put_bytes(DATA)
    (tmp_path / "elsewhere" / digest).write_bytes(DATA)
    assert not blobs.exists(digest)
    with pytest.raises(FileRefused, match="a symbolic link"):
        blobs.open(digest)
    assert list(blobs.digests()) == []


def test_changed_bytes_are_found_and_repaired_by_putting_again(blobs: FolderBlobs) -> None:
    digest = blobs.put_bytes(DATA)
    path = blobs.path(digest)
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + b"!")
    assert blobs.verify(digest) == "corrupt"
    blobs.put_bytes(DATA)
    assert blobs.verify(digest) == "ok"


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 62 + "/."])
def test_only_digests_reach_the_file_system(blobs: FolderBlobs, bad: str) -> None:
    for use in (blobs.exists, blobs.path, blobs.open, blobs.delete, blobs.verify):
        with pytest.raises(ComgradError, match="it is not a SHA-256 in hex"):
            use(bad)


def test_strange_files_are_not_blobs(blobs: FolderBlobs) -> None:
    digest = blobs.put_bytes(DATA)
    (blobs.root / "ab").mkdir(exist_ok=True)
    (blobs.root / "ab" / "notes.txt").write_text("x")
    (blobs.root / "ab" / ("cd" * 32)).write_text("in the wrong folder")
    (blobs.root / "ab" / ("ab" * 32)).mkdir()
    assert list(blobs.digests()) == [digest]


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system allows no file over 4 KiB: writing one fails as a full disk does, for root too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_half_file(blobs: FolderBlobs, small_files: None) -> None:
    with pytest.raises(StorageError, match=r"storing a blob in .*; the file would be larger") as caught:
        blobs.put_bytes(DATA)
    assert caught.value.code == "disk-full"
    assert left(blobs) == []
    assert blobs.verify(blobs.put_bytes(b"small")) == "ok"


@pytest.mark.parametrize(
    ("number", "code"), [("ENOSPC", "disk-full"), ("EROFS", "read-only"), ("EACCES", "permission"), ("EIO", "storage")]
)
@pytest.mark.parametrize("call", ["write", "fsync", "replace", "fchmod"])
def test_an_error_of_any_call_removes_the_temporary_file(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch, number: str, code: str, call: str
) -> None:
    import errno

    def failing(*args: object, **kwargs: object) -> None:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        with pytest.raises(StorageError) as caught:
            blobs.put_bytes(DATA)
    assert caught.value.code == code
    assert left(blobs) == []


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a part of the path is not a folder") as caught:
        FolderBlobs(tmp_path / "file" / "blobs").prepare()
    assert caught.value.code == "not-a-folder"


def test_sweep_spares_the_living_and_the_young(blobs: FolderBlobs) -> None:
    held, dead, young = (blobs.temp / name for name in ("1-held.part", "2-dead.part", "3-young.part"))
    for path in (held, dead, young):
        path.write_bytes(b"half")
    hour_ago = time.time() - 3_600
    for path in (held, dead):
        os.utime(path, (hour_ago, hour_ago))
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert blobs.sweep(1_800) == 1
        assert sorted(path.name for path in blobs.temp.iterdir()) == ["1-held.part", "3-young.part"]
        assert blobs.sweep(0) == 1
    assert blobs.sweep(0) == 1
    assert list(blobs.temp.iterdir()) == []


def test_a_writer_holds_its_temporary_file(blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[int] = []
    write_all = disk.write_all

    def slow(fd: int, data: bytes | memoryview) -> None:
        swept.append(blobs.sweep(0))  # another process opens the registry at this moment
        write_all(fd, data)

    monkeypatch.setattr(disk, "write_all", slow)
    digest = blobs.put_bytes(DATA)
    assert (swept, blobs.verify(digest)) == ([0], "ok")
