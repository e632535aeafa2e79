"""One more vector in a registry: the time until predictions use it, against building everything anew; and `suggest` itself.

    python benchmarks/growing.py ZOO [--repeats 5]

ZOO is a folder of adapters with descriptions, and with gradients where they carry them (the default is the shipped zoo).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from comgrad.describe.encoder import load_encoder
from comgrad.workflows.adding import AddRequest, add_one, add_paths, fine_tunes
from comgrad.workflows.demo import starter
from comgrad.workflows.known import Known
from comgrad.workflows.registry import Registry
from comgrad.workflows.resolve import collection
from comgrad.workflows.suggesting import predict

TEXT = "Tell which of several things a customer of a bank asks about in a short message."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, nargs="?", default=starter("zoo"))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    paths = fine_tunes(options.zoo, AddRequest())
    repeats = min(options.repeats, len(paths) - 1)
    load_encoder().encode(["warm"])
    grown = []
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(folder)
        add_paths(paths[:-repeats], AddRequest(), registry=registry)
        ready(registry, cached=True)
        for path in paths[-repeats:]:
            add_one(registry, path, AddRequest())
            grown.append(seconds(lambda: ready(registry, cached=True)))
        rebuilt = [seconds(lambda: ready(registry, cached=False)) for _ in range(repeats)]
        known = ready(registry, cached=True)
        suggested = [seconds(lambda: predict(ready(registry, cached=True), TEXT, dare=True)) for _ in range(repeats)]
        cold = [seconds(lambda: command(folder)) for _ in range(repeats)]
        again = [predict(known, TEXT, dare=True).as_dict() for _ in range(2)]
    a, b, c, d = (statistics.median(x) for x in (grown, rebuilt, suggested, cold))
    print(f"{len(paths)} vectors, {int(known.evidence.with_gradient.sum())} with gradients; medians of {repeats}")
    print(f"after one more vector, until predictions use it: {a:.2f} s")
    print(f"the same from nothing (embeddings, Gram, gains, head): {b:.2f} s, {b / a:.1f} times as long")
    print(f"one suggestion from the registry, encoder loaded: {c:.2f} s; twice the same: {again[0] == again[1]}")
    print(f"the same by `comgrad suggest`, from the start of the program: {d:.2f} s")


def ready(registry: Registry, *, cached: bool) -> Known:
    """Everything a prediction needs, fitted."""
    if not cached:
        for file in registry.store.cache_dir.glob("*.npz"):
            file.unlink()
    known = Known.of(collection(registry), cache=registry.store.cache_dir)
    if known.functional is not None:
        _ = known.functional.threshold
    return known


def command(folder: str) -> None:
    """`comgrad suggest` in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        program = [sys.executable, "-c", "from comgrad.cli.main import main; main()"]
        asked = [*program, "suggest", TEXT, "-o", f"{out}/start"]
        subprocess.run(asked, env={**os.environ, "COMGRAD_HOME": folder}, check=True, capture_output=True)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
