"""Journey: bench descinit. Prepare the tasks, do the cells, write rows, summaries, pictures and the page."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from comgrad.atlas.collection import Collection, Member
from comgrad.describe.encoder import DEFAULT_ENCODER, load_encoder
from comgrad.describe.memory import encode_cached
from comgrad.errors import ComgradError
from comgrad.weights.derived import read_arrays, write_arrays
from comgrad.weights.storage import atomic_write_bytes, storage_error
from comgrad.workflows.bench import page, picture, tables
from comgrad.workflows.bench.corpus import Corpus, file_digest
from comgrad.workflows.bench.keep import Keep
from comgrad.workflows.bench.methods import METHODS
from comgrad.workflows.bench.plan import Cell, Request, cells
from comgrad.workflows.bench.prepare import file_of, load
from comgrad.workflows.bench.words import texts
from comgrad.workflows.bench.work import board_file, corpus_of, do_all, prepare_all

PACKAGES = ("comgrad", "torch", "numpy", "scipy", "scikit-learn", "transformers", "sentence-transformers", "peft")
Say = Callable[[str], Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """Everything a run found.

    Args:
        rows: one per task, method, split and description.
        figures: one per method, split and description.
        files: what was written.
    """

    rows: list[dict[str, Any]]
    figures: list[dict[str, Any]]
    environment: dict[str, Any]
    files: list[str]

    def as_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "summary": self.figures, "environment": self.environment, "files": self.files}


def run(
    request: Request,
    *,
    page_file: Path | None = None,
    command: str = "comgrad bench descinit",
    preparing: Progress = lambda _d, _t: None,
    doing: Progress = lambda _d, _t: None,
) -> Result:
    """The whole benchmark; what an earlier run of the same folder finished is not done again.

    Args:
        page_file: where to write the results page, with its picture beside it.
        command: what the page tells the reader to run.
        preparing, doing: called with (done, all) tasks and cells.

    Raises:
        ComgradError: options that mean nothing; (`busy`) another process works in the folder. NotFound: no such data.
        StorageError: the folder cannot be written.
    """
    corpus = corpus_of(request)
    wanted = cells(request, corpus)
    try:
        for part in ("cache", "tasks"):
            (request.out / part).mkdir(parents=True, exist_ok=True)
        lock = FileLock(request.out / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise ComgradError(
            f"'{request.out}'", "another process is working there", "wait for it, or choose another --out", code="busy"
        ) from None
    except OSError as error:
        raise storage_error(request.out, error) from error
    try:
        _prepare(request, corpus, preparing)
        _board(request, corpus)
        records = _cells(request, corpus, wanted, doing)
        return _write(request, corpus, records, page_file, command)
    finally:
        lock.release()


def _prepare(request: Request, corpus: Corpus, progress: Progress) -> None:
    """Every task with examples, tested or not: the others' gradients are evidence."""
    missing = [i.id for i in corpus.tested if load(file_of(request.out, corpus, i, request.sizes)) is None]
    if missing:
        prepare_all(request, missing, progress)


def _board(request: Request, corpus: Corpus) -> None:
    """The Gram matrix and all embeddings, once for all processes."""
    asked = {i.description for i in corpus.items}
    for variant in request.variants:
        asked |= set(texts(corpus, variant, request.sizes.seed).values())
    wanted = sorted(asked)
    ids = [file_digest(i.adapter).hex() for i in corpus.known]
    there = read_arrays(board_file(request))
    made_from = [DEFAULT_ENCODER, *ids]
    same = there is not None and list(map(str, there["made_from"])) == made_from
    if there is not None and same and set(wanted) <= set(map(str, there["texts"])):
        return
    members = [
        Member(identity, item.name, item.description, item.family, item.vector)
        for identity, item in zip(ids, corpus.known, strict=True)
    ]
    gram = Collection.build(members, cache=request.out / "cache").gram
    rows = encode_cached(load_encoder(), wanted, request.out / "cache").astype(np.float64)
    write_arrays(board_file(request), made_from=np.array(made_from), gram=gram, texts=np.array(wanted), rows=rows)


def _cells(request: Request, corpus: Corpus, wanted: list[Cell], progress: Progress) -> list[dict[str, Any]]:
    keep = Keep(request, corpus)
    missing = [c for c in wanted if keep.read(c, METHODS[c.method]) is None]
    if missing and not request.kept:
        done = len(wanted) - len(missing)
        do_all(request, missing, lambda d, _t: progress(done + d, len(wanted)))
    found = [keep.read(c, METHODS[c.method]) for c in wanted]
    return [f for f in found if f is not None]


# -- results -----------------------------------------------------------------------------------------------------------
def _write(
    request: Request, corpus: Corpus, records: list[dict[str, Any]], page_file: Path | None, command: str
) -> Result:
    rows = tables.rows_of(records, corpus)
    figures = tables.summary(rows, seed=request.sizes.seed)
    seconds = [{k: r[k] for k in ("task", "method", "split", "variant", "seconds")} for r in records if "loss" in r]
    files = {
        request.out / "results.csv": tables.as_csv(rows),
        request.out / "summary.csv": tables.as_csv(figures),
        request.out / "seconds.csv": tables.as_csv(seconds),
    }
    bars = picture.steps(rows, request.splits[0], seed=request.sizes.seed)
    title = "How much of the gap to a task's own adapter is recovered before training"
    if bars:
        files[request.out / "waterfall.html"] = picture.as_html(bars, title)
        files[request.out / "waterfall.png"] = picture.as_png(bars, title)
    environment = _environment(request, corpus, command)
    if page_file is not None:
        beside = page_file.with_name(f"{page_file.stem}-waterfall.png")
        if bars:
            files[beside] = files[request.out / "waterfall.png"]
        text = page.page(rows, environment, request, beside.name if bars else "")
        files[page_file] = text.encode()
    for path, data in files.items():
        atomic_write_bytes(path, data)
    return Result(rows, figures, environment, [str(p) for p in files])


def _environment(request: Request, corpus: Corpus, command: str) -> dict[str, Any]:
    return machine() | {
        "base": f"{corpus.base.name} {corpus.base.fingerprint.root[:16]}",
        "tasks_digest": corpus.digests["tasks"],
        "vectors_digest": corpus.digests["vectors"],
        "known_vectors": len(corpus.known),
        "tasks_with_examples": len(corpus.tested),
        "test_examples": request.sizes.test,
        "training_examples": request.sizes.train,
        "seed": request.sizes.seed,
        "command": command,
    }


def machine() -> dict[str, Any]:
    """Versions of what computes, the processor, and whether there is a GPU."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"python": platform.python_version(), **versions, "cpu": _cpu(), "device": device}


def _cpu() -> str:
    """The processor's model, where the system tells."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
