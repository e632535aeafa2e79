"""Mutate valid files and read them: the strict reader returns or raises FileRefused, nothing else.

    python attacks/fuzz.py --n 100000 [--seed 0]

Bits are flipped, bytes overwritten, removed, inserted and repeated, files cut and spliced, header numbers changed and
the length field shifted. A reader that returns has its tensors compared with what the safetensors library loads from
the same bytes. An input that breaks this is written to `fuzz-failure.safetensors`.
"""

from __future__ import annotations

import argparse
import random
import re
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from comgrad.errors import FileRefused
from comgrad.weights.reader import open_strict

Mutation = Callable[[random.Random, bytearray, list[bytes]], bytearray]


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


def run(n: int, seed: int, folder: Path) -> Counter[str]:
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


def command(what: str, run: Callable[[int, int, Path], Counter[str]], given: str) -> None:
    """The command line of a fuzzer: so many inputs from a seed, how often each verdict was given, and the time."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if sys.platform == "linux" else None) as folder:
        seen = run(args.n, args.seed, Path(folder))
    for code, count in seen.most_common():
        print(f"{count:>9,}  {code}")
    print(f"{args.n:,} {given} in {time.perf_counter() - begin:.1f} s; every one was read or refused")


if __name__ == "__main__":
    command("Mutate valid files and read them strictly.", run, "inputs")
