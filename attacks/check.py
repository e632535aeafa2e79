"""Read every attack file with comgrad and with the safetensors library, and print what each says, how long, how much.

    python attacks/check.py [FOLDER] [--json]

One process per reader, files in order, so that the peak memory is that of the reader and its worst file. Exits with 1
when a file is not refused with its documented code, or takes a second or 100 MB.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from make import CASES, make

MAX_SECONDS = 1.0
MAX_MB = 100.0
_STATUS = Path("/proc/self/status")


def _status_mb(field: str) -> float:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(field)) / 2**10


def begin_peak() -> float:
    """Forget the peak so far where the system can, and return the memory held now, in MB."""
    if not _STATUS.exists():
        return end_peak()
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def end_peak() -> float:
    """The most memory held since `begin_peak`, in MB.

    Linux: VmHWM. `ru_maxrss` would not do there, a child process starts with its parent's.
    """
    if _STATUS.exists():
        return _status_mb("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def with_comgrad(path: Path) -> str | None:
    """The code of the refusal, None when the file is accepted."""
    from comgrad.errors import FileRefused
    from comgrad.weights.reader import open_strict

    try:
        open_strict(path).close()
    except FileRefused as e:
        return e.code
    return None


def with_library(path: Path) -> str | None:
    """The first words of the library's refusal, None when it loads the file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        load_file(path)
    except (SafetensorError, ValueError, TypeError, OverflowError, RuntimeError) as e:
        return " ".join(str(e).split())[:60]
    return None


def measure(reader: str, folder: Path) -> list[dict[str, Any]]:
    """In this process: verdict, seconds and growth of the peak for every file. Imports are done before."""
    import numpy  # noqa: F401 - part of the reader's footing, not of a file's cost

    read = with_comgrad if reader == "comgrad" else with_library
    read(folder / "valid.safetensors")
    rows = []
    for case in CASES:
        before, begin = begin_peak(), time.perf_counter()
        verdict = read(folder / f"{case.name}.safetensors")
        seconds = time.perf_counter() - begin
        rows.append({"name": case.name, "verdict": verdict, "seconds": seconds, "peak_mb": end_peak() - before})
    return rows


def measured_apart(reader: str, folder: Path) -> list[dict[str, Any]]:
    """`measure` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", reader, str(folder)], capture_output=True, text=True, check=True
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What breaks the promise, in words."""
    out = []
    for case, row in zip(CASES, rows, strict=True):
        if row["verdict"] != case.code:
            out.append(f"{case.name}: expected {case.code}, got {row['verdict']}")
        if row["seconds"] >= MAX_SECONDS:
            out.append(f"{case.name}: {row['seconds']:.2f} s")
        if row["peak_mb"] >= MAX_MB:
            out.append(f"{case.name}: {row['peak_mb']:.0f} MB")
    return out


def report(folder: Path, as_json: bool) -> int:
    """Print both readers' verdicts; the exit code."""
    make(folder)
    ours, theirs = measured_apart("comgrad", folder), measured_apart("library", folder)
    wrong = failures(ours)
    if as_json:
        print(json.dumps({"comgrad": ours, "library": theirs, "failures": wrong}, indent=1))
        return bool(wrong)
    print(f"{'file':<29}{'expected':<18}{'comgrad':<18}{'s':>7}{'MB':>6}   safetensors library")
    for case, a, b in zip(CASES, ours, theirs, strict=True):
        says = "accepts" if b["verdict"] is None else f"rejects: {b['verdict']}"
        if b["seconds"] > 0.5:
            says += f" ({b['seconds']:.1f} s, {b['peak_mb']:.0f} MB)"
        ours_says = f"{a['verdict'] or '-':<18}{a['seconds']:7.3f}{a['peak_mb']:6.1f}"
        print(f"{case.name:<29}{case.code or '-':<18}{ours_says}   {says}")
    hostile = [(a, b) for case, a, b in zip(CASES, ours, theirs, strict=True) if case.code]
    print(
        f"\n{len(hostile)} hostile or odd files: comgrad refuses {sum(a['verdict'] is not None for a, _ in hostile)}, "
        f"the library {sum(b['verdict'] is not None for _, b in hostile)}; slowest refusal "
        f"{max(a['seconds'] for a, _ in hostile):.3f} s, most memory {max(a['peak_mb'] for a in ours):.1f} MB"
    )
    print("\n".join(wrong) if wrong else "every file as documented")
    return bool(wrong)


def main(args: list[str]) -> int:
    """Run as described above."""
    if args[:1] == ["--measure"]:
        print(json.dumps(measure(args[1], Path(args[2]))))
        return 0
    as_json = "--json" in args
    folders = [a for a in args if a != "--json"]
    if folders:
        return report(Path(folders[0]), as_json)
    with tempfile.TemporaryDirectory() as temporary:
        return report(Path(temporary), as_json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
