"""The attack files: every one refused with its documented code, in time and memory; the controls accepted."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comgrad.errors import FileRefused
from comgrad.weights import profile
from comgrad.weights.reader import open_strict

ATTACKS = Path(__file__).parent.parent / "attacks"


def _module(name: str) -> ModuleType:
    if str(ATTACKS) not in sys.path:
        sys.path.insert(0, str(ATTACKS))
    return __import__(name)


make = _module("make")
fuzz = _module("fuzz")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make.make(tmp_path_factory.mktemp("attacks"))


def test_there_are_43_files_and_two_controls(files: dict[str, Path]) -> None:
    hostile = [c for c in make.CASES if c.code is not None]
    assert len(hostile) == 43
    assert len(make.CASES) - len(hostile) == 2
    assert Counter(c.library for c in hostile) == {"rejects": 26, "accepts": 17}
    assert len({c.name for c in make.CASES}) == 45
    assert len({p.read_bytes() for p in files.values() if p.stat().st_size < 10**6}) == 42  # three are larger


def test_every_code_is_documented() -> None:
    assert {c.code for c in make.CASES if c.code} <= set(profile.REFUSALS)
    readme = (ATTACKS / "README.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| .* \| (?:`([a-z-]+)`|accepted) \| (accepts|rejects) \|$", readme, re.M)
    assert [(name, code or None, library) for name, code, library in rows] == [
        (c.name, c.code, c.library) for c in make.CASES
    ]


@pytest.mark.parametrize("case", [c for c in make.CASES if c.code], ids=lambda c: c.name)
def test_refused_with_its_code(case: object, files: dict[str, Path]) -> None:
    with pytest.raises(FileRefused, match=re.escape(profile.REFUSALS[case.code])) as caught:
        open_strict(files[case.name])
    assert caught.value.code == case.code
    assert str(files[case.name]) in caught.value.given
    assert caught.value.remedy


def test_no_untrusted_text_reaches_the_message(files: dict[str, Path]) -> None:
    for case in make.CASES:
        if case.code:
            with pytest.raises(FileRefused) as caught:
                open_strict(files[case.name])
            message = str(caught.value).replace(str(files[case.name]), "")
            assert message.isprintable()
            assert message.isascii()
            assert len(message) < 400


@pytest.mark.parametrize("name", [c.name for c in make.CASES if c.code is None])
def test_controls_are_accepted(name: str, files: dict[str, Path]) -> None:
    with open_strict(files[name]) as file:
        assert file.get("a.weight").tolist() == [[1.0, -2.0], [0.5, 4.0]]


def test_what_the_library_says(files: dict[str, Path]) -> None:
    """The table's last column, except for the file that costs the library ten seconds and a gigabyte."""
    check = _module("check")
    for case in make.CASES:
        if case.name != "header-70-mb":
            assert (check.with_library(files[case.name]) is None) == (case.library == "accepts"), case.name


def test_time_and_memory(files: dict[str, Path]) -> None:
    """In a process of its own, all files in sequence: under one second and 100 MB each."""
    folder = next(iter(files.values())).parent
    done = subprocess.run(
        [sys.executable, str(ATTACKS / "check.py"), "--measure", "comgrad", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    rows = json.loads(done.stdout)
    assert len(rows) == 45
    for case, row in zip(make.CASES, rows, strict=True):
        assert (row["name"], row["verdict"]) == (case.name, case.code)
        assert row["seconds"] < 1.0, row
        assert row["peak_mb"] < 100.0, row


def test_the_memory_gauge_can_fail(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ATTACKS)!r}); import check; before = check.begin_peak();"
        "x = bytes(range(256)) * 800_000; del x; print(check.end_peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 190


def test_refusing_loads_no_torch(files: dict[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from comgrad.weights.reader import open_strict\n"
        f"open_strict(Path({str(files['valid'])!r})).close(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- fuzzing: the reader returns or refuses, never anything else ------------------------------------------------------


def test_fuzz_seeds_are_valid(tmp_path: Path) -> None:
    for data in fuzz.seeds():
        path = tmp_path / "seed.safetensors"
        path.write_bytes(data)
        assert fuzz.verdict(path) == "accepted"


@pytest.mark.parametrize("seed", range(3))
def test_mutants_are_read_or_refused(seed: int, tmp_path: Path) -> None:
    seen = fuzz.run(1500, seed, tmp_path)
    assert seen.total() == 1500
    assert seen["accepted"] > 10  # else the mutations are too coarse to get anywhere
    assert len(seen) > 15  # and too few of the checks are reached


def test_the_fuzzer_notices_another_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proof that it can fail: a reader that lets a JSON error through is caught, and the input kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("comgrad.weights.header.refused", lambda code, *_: ValueError(code))
    with pytest.raises(ValueError, match=r"^[a-z0-9-]+$"):
        fuzz.run(500, 0, tmp_path)
    assert (tmp_path / "fuzz-failure.safetensors").stat().st_size > 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "I8", "BF16", "F8"]) | JSON},
    optional={
        "shape": st.lists(st.integers(-1, 2**64), max_size=10) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON,
    },
)


@given(
    header=st.dictionaries(st.sampled_from(["a", "b.weight", "__metadata__"]) | st.text(max_size=4), FIELDS | JSON),
    data=st.binary(max_size=64),
)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_json_header_is_read_or_refused(header: dict[str, object], data: bytes, tmp_path: Path) -> None:
    body = json.dumps(header).encode()
    path = tmp_path / "any.safetensors"
    path.write_bytes(len(body).to_bytes(8, "little") + body + data)
    assert fuzz.verdict(path) in {"accepted", *profile.REFUSALS}


def test_worst_header_within_the_limits(tmp_path: Path) -> None:
    """Eight megabytes of header made to cost the parser most, in a file large enough for it: still cheap to refuse."""
    rng = random.Random(0)
    room = profile.MAX_HEADER
    bodies = {
        "lists": b'{"a":' + b"[]," * (room // 3 - 9) + b"1}",
        "objects": b'{"a":[' + b"{}," * (room // 3 - 9) + b"1]}",
        "digits": b'{"a":' + b"9" * (room - 99) + b"}",
        "numbers": b'{"a":[' + b"1.5," * (room // 4 - 9) + b"1]}",
        "escapes": b'{"a":"' + b"\\u1234" * (room // 6 - 9) + b'"}',
        "open-text": b'{"' + b'\\"' * (room // 2 - 9),
        "keys": b"{" + b",".join(b'"%06x":1' % rng.getrandbits(24) for _ in range(room // 12)) + b"}",
        "open-brackets": b'{"a":' + b"[" * 100_000,
        "metadata": b'{"__metadata__":{"a":"' + b"[" * (room - 99) + b'"}}',
    }
    for name, body in bodies.items():
        path = tmp_path / f"{name}.safetensors"
        with path.open("wb") as out:
            out.write(len(body).to_bytes(8, "little") + body)
            out.truncate(profile.HEADER_SHARE * len(body) + 100)
    code = (
        f"import sys, time, json; sys.path.insert(0, {str(ATTACKS)!r}); import check, pathlib\n"
        "rows = []\n"
        f"for p in sorted(pathlib.Path({str(tmp_path)!r}).iterdir()):\n"
        "    before, begin = check.begin_peak(), time.process_time()\n"
        "    code = check.with_comgrad(p)\n"
        "    rows.append((p.stem, code, time.process_time() - begin, check.end_peak() - before))\n"
        "print(json.dumps(rows))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert len(rows) == len(bodies)
    for name, refusal, seconds, peak in rows:
        assert refusal is not None, name
        assert seconds < 1.0, (name, seconds)
        assert peak < 100.0, (name, peak)
