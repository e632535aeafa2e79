"""Mutate valid files and read them: the strict reader returns or raises FileRefused, nothing else.

    python attacks/fuzz.py --n 100000 [--seed 0] [--processes 2] [--log FILE] [--json]

Bits are flipped, bytes overwritten, removed, inserted and repeated, files cut and spliced, header numbers changed and
the length field shifted. A reader that returns has its tensors compared with what the safetensors library loads from
the same bytes. An input that breaks this is written to `fuzz-failure.safetensors`. Several processes read pieces of
a few thousand inputs, each from a seed of its own; with `--log` an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from comgrad.errors import FileRefused
from comgrad.weights.reader import open_strict

Mutation = Callable[[random.Random, bytearray, list[bytes]], bytearray]
Run = Callable[[int, str | int, Path], Counter[str]]
CHUNK = 5_000


def seeds() -> list[bytes]:
    """Small valid files that between them use every allowed dtype but BF16, metadata and several ranks."""
    rng = np.random.default_rng(0)
    lora = {f"layers.{i}.lora_{s}.weight": rng.normal(size=(2, 4)).astype("f4") for i in range(3) for s in "AB"}
    kinds = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")
    mixed = {f"t.{k.strip('?') or 'bool'}": np.ones((1, 2, 3), dtype=k) for k in kinds}
    one = {"w": np.arange(1, 5, dtype="f4").reshape(2, 2)}
    return [save(one), save(lora), save(lora, {"format": "pt", "base": "tiny"}), save(mixed, {"note": '{"a": [1, 2]}'})]


def flip(rng: random.Random, b: bytearray, _: list[bytes]) -> bytearray:
    for _i in range(rng.randint(1, 4)):
        b[rng.randrange(len(b))] ^= 1 << rng.randrange(8)
    return b


def overwrite(rng: random.Random, b: bytearray, _: list[bytes]) -> bytearray:
    at = rng.randrange(len(b))
    b[at : at + rng.randint(1, 8)] = rng.randbytes(rng.randint(0, 8))
    return b


def cut(rng: random.Random, b: bytearray, _: list[bytes]) -> bytearray:
    return b[: rng.randrange(len(b) + 1)]


def splice(rng: random.Random, b: bytearray, others: list[bytes]) -> bytearray:
    other = rng.choice(others)
    return b[: rng.randrange(len(b) + 1)] + other[rng.randrange(len(other) + 1) :]


def repeat(rng: random.Random, b: bytearray, _: list[bytes]) -> bytearray:
    at = rng.randrange(len(b))
    part = bytes(b[at : at + rng.randint(1, 64)])
    return b[:at] + part * rng.randint(1, 50) + b[at:]


def renumber(rng: random.Random, b: bytearray, _: list[bytes]) -> bytearray:
    """Another number in the header, the length field kept true: gets past the JSON parser."""
    end = 8 + int.from_bytes(b[:8], "little")
    header = bytes(b[8:end])
    found = list(re.finditer(rb"\d+", header))
    if not found:
        return b
    hit = rng.choice(found)
    number = rng.choice([b"0", b"1", b"-1", b"4", b"8", b"1e3", b"true", b"null", b"1" * 30, str(2**63).encode()])
    header = header[: hit.start()] + number + header[hit.end() :]
    return bytearray(struct.pack("<Q", len(header)) + header + b[end:])


def reword(rng: random.Random, b: bytearray, _: list[bytes]) -> bytearray:
    """A piece of the header replaced by a piece that means something, the length field kept true."""
    end = 8 + int.from_bytes(b[:8], "little")
    header = bytes(b[8:end])
    pieces = (
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\u0000",
        b"\\ud800",
        b"NaN",
        b"null",
        b" ",
        b"\xff",
        b"[" * 3000,
    )
    at = rng.randrange(len(header) + 1)
    header = header[:at] + rng.choice(pieces) + header[at + rng.randint(0, 3) :]
    return bytearray(struct.pack("<Q", len(header)) + header + b[end:])


def relength(rng: random.Random, b: bytearray, _: list[bytes]) -> bytearray:
    true = int.from_bytes(b[:8], "little")
    b[:8] = struct.pack("<Q", rng.choice([true + rng.randint(-9, 9), 0, len(b), 2**63, 2**64 - 1]) % 2**64)
    return b


MUTATIONS: tuple[Mutation, ...] = (flip, overwrite, cut, splice, repeat, renumber, reword, relength)


def mutant(rng: random.Random, files: list[bytes]) -> bytes:
    """One of the files after one to three mutations."""
    b = bytearray(rng.choice(files))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if len(b) > 8:
            b = rng.choice(MUTATIONS)(rng, b, files)
    return bytes(b)


def verdict(path: Path) -> str:
    """`accepted`, or the refusal's code. Any other exception, or a differing library, comes through."""
    try:
        file = open_strict(path)
    except FileRefused as e:
        return e.code
    with file:
        library = load_file(path)
        if set(library) != set(file.names):
            raise AssertionError(f"the library sees other tensors: {sorted(library)} and {file.names}")
        data = path.read_bytes()
        for name, entry in file.entries.items():
            if library[name].shape != entry.shape or library[name].tobytes() != data[entry.begin : entry.end]:
                raise AssertionError(f"the library reads '{name}' differently")
    return "accepted"


def run(n: int, seed: str | int, folder: Path) -> Counter[str]:
    """Read `n` mutants; how often each verdict was given."""
    rng, files, seen = random.Random(seed), seeds(), Counter[str]()
    path = folder / "mutant.safetensors"
    for _ in range(n):
        data = mutant(rng, files)
        path.write_bytes(data)
        try:
            seen[verdict(path)] += 1
        except BaseException:
            Path("fuzz-failure.safetensors").write_bytes(data)
            raise
    return seen


def chunks(n: int) -> list[int]:
    """The sizes of the pieces that `n` inputs are read in."""
    return [min(CHUNK, n - at) for at in range(0, n, CHUNK)]


def piece(run: Run, size: int, seed: str) -> tuple[Counter[str], float]:
    """One piece in a folder in memory, where there is such: how often each verdict was given, and its CPU seconds."""
    begin = time.process_time()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if sys.platform == "linux" else None) as folder:
        return run(size, seed, Path(folder)), time.process_time() - begin


def earlier(path: Path | None, seed: int) -> dict[int, dict[str, Any]]:
    """The pieces of this seed that an earlier run wrote down whole, by their numbers."""
    if path is None or not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]  # the last may be cut
    found = [json.loads(line) for line in lines]
    return {row["piece"]: row for row in found if row["seed"] == seed}


def fuzzed(run: Run, n: int, seed: int, processes: int, log: Path | None, tell: Callable[[str], object]) -> list[Any]:
    """The rows of all pieces: those that are in the log, and those that several processes read now and add to it.

    Raises:
        Exception: whatever came out of the reader; BrokenProcessPool: it ended its process.
    """
    known = earlier(log, seed)
    sizes = dict(enumerate(chunks(n)))
    rows = [row for at, row in known.items() if sizes.get(at) == row["size"]]
    left = {at: size for at, size in sizes.items() if at not in {row["piece"] for row in rows}}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(piece, run, size, f"{seed}.{at}"): at for at, size in left.items()}
        try:
            for future in as_completed(waiting):
                seen, cpu = future.result()
                at = waiting[future]
                rows.append({"seed": seed, "piece": at, "size": sizes[at], "seen": dict(seen), "cpu_seconds": cpu})
                if log is not None:
                    with log.open("a") as out:
                        out.write(json.dumps(rows[-1]) + "\n")
                tell(f"{sum(row['size'] for row in rows):,} of {n:,}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            tell(f"piece '{seed}.{waiting[future]}' of {sizes[waiting[future]]} inputs broke it")
            raise
    return rows


def command(what: str, run: Run, given: str) -> None:
    """The command line of a fuzzer: so many inputs from a seed, how often each verdict was given, and the time."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", type=Path, help="keep what was done in this file; the same command goes on from there")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    begin = time.perf_counter()
    quiet = args.json or not sys.stderr.isatty()

    def tell(text: str) -> None:
        if not quiet:
            print(f"\r{text} ", end="", file=sys.stderr, flush=True)

    rows = fuzzed(run, args.n, args.seed, args.processes, args.log, tell)
    seconds, cpu = time.perf_counter() - begin, sum(row["cpu_seconds"] for row in rows)
    seen = Counter[str]()
    for row in rows:
        seen.update(row["seen"])
    assert seen.total() == args.n
    if args.json:
        figures = {"inputs": args.n, "seed": args.seed, "crashes": 0, "processes": args.processes}
        print(json.dumps({**figures, "seconds": seconds, "cpu_seconds": cpu, "verdicts": dict(seen.most_common())}))
        return
    for code, count in seen.most_common():
        print(f"{count:>9,}  {code}")
    print(
        f"{args.n:,} {given} by {args.processes} processes in {seconds:.1f} s ({cpu:.0f} s of CPU in all); "
        "every one was read or refused"
    )


if __name__ == "__main__":
    command("Mutate valid files and read them strictly.", run, "inputs")
