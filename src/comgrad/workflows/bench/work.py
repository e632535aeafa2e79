"""The work itself, in this process or in several: prepare a task, do a cell."""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from comgrad.engine.local import one_thread_per_task
from comgrad.errors import NotFound
from comgrad.weights.derived import read_arrays
from comgrad.workflows.bench.aid import Aid
from comgrad.workflows.bench.corpus import Corpus, Item, open_corpus
from comgrad.workflows.bench.fold import SPLITS, Board, Fold, fold_of, growing
from comgrad.workflows.bench.keep import Keep
from comgrad.workflows.bench.methods import METHODS, Method
from comgrad.workflows.bench.model import Model, Texts
from comgrad.workflows.bench.outcome import Outcome
from comgrad.workflows.bench.plan import Cell, Request
from comgrad.workflows.bench.prepare import chosen, file_of, load, prepare
from comgrad.workflows.bench.words import texts

T = TypeVar("T")
Progress = Callable[[int, int], None]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def corpus_of(request: Request) -> Corpus:
    """The corpus that a run is about. Raises as `corpus.open_corpus`."""
    whole = open_corpus(request.data)
    return whole.only(request.only) if request.only else whole


@dataclass
class Worker:
    """One process's view of a run; what is read, is read once."""

    request: Request
    _last: tuple[str, Texts] | None = None

    @cached_property
    def corpus(self) -> Corpus:
        return corpus_of(self.request)

    @cached_property
    def model(self) -> Model:
        return Model(self.corpus)

    @cached_property
    def keep(self) -> Keep:
        return Keep(self.request, self.corpus)

    @cached_property
    def board(self) -> Board:
        data = read_arrays(board_file(self.request))
        if data is None:
            raise NotFound(f"'{board_file(self.request)}'", "it cannot be read", "run the command again")
        rows = dict(zip(map(str, data["texts"]), data["rows"], strict=True))
        found = {i.id: load(file_of(self.request.out, self.corpus, i, self.request.sizes)) for i in self.corpus.tested}
        return Board(self.corpus, data["gram"], rows, {k: v for k, v in found.items() if v is not None})

    @cached_property
    def asked(self) -> dict[str, dict[str, str]]:
        return {v: texts(self.corpus, v, self.request.sizes.seed) for v in self.request.variants}

    # -- tasks ---------------------------------------------------------------------------------------------------------
    def prepare(self, identity: str) -> None:
        """A task's numbers, on disk."""
        item = self.corpus.get(identity)
        prepare(self.model, item, self.request.sizes, file_of(self.request.out, self.corpus, item, self.request.sizes))

    # -- cells ---------------------------------------------------------------------------------------------------------
    def cell(self, cell: Cell) -> None:
        """A cell's record, on disk."""
        began = time.perf_counter()
        item, method = self.corpus.get(cell.task), METHODS[cell.method]
        fold = self._fold(cell, item)
        twin = self._twin(cell, method, fold)
        if twin is not None:
            self.keep.write(cell, method, twin)
            return
        if len(fold.allowed):
            work = self.request.out / "trained"
            aid = Aid(self.model, item, fold, self.request.sizes, method.needs, work)
            found = method.function(fold, aid)
        else:
            found = Outcome(reason="no vector is known that the split allows.")
        record = self._record(cell, item, method, fold, found) if not found.missing else {"missing": found.missing}
        self.keep.write(cell, method, record | {"seconds": time.perf_counter() - began})

    def _twin(self, cell: Cell, method: Method, fold: Fold) -> dict[str, Any] | None:
        """The cell of another split that leaves out the very same vectors, under this split's name."""
        for split in SPLITS:
            found = self.keep.read(replace(cell, split=split), method) if split != cell.split else None
            if found is not None and found.get("fold") == _digest(fold):
                return found | {"split": cell.split}
        return None

    def _fold(self, cell: Cell, item: Item) -> Fold:
        seed = self.request.sizes.seed
        text = self.asked[cell.variant][item.id] if cell.variant != "given" else item.description
        among = growing(len(self.corpus.known), cell.known, cell.draw) if cell.known else None
        return fold_of(self.board, item, cell.split, text, seed=seed + cell.draw, among=among)

    def _record(self, cell: Cell, item: Item, method: Method, fold: Fold, found: Outcome) -> dict[str, Any]:
        prepared = self.board.prepared[item.id]
        loss, accuracy = self._score(item, fold, found)
        if not math.isfinite(loss):
            loss = math.inf
        return {
            **cell.as_dict(),
            "vectors": len(fold.allowed),
            "loss": loss,
            "accuracy": accuracy,
            "loss0": float(prepared.loss0.mean()),
            "accuracy0": float(prepared.right0.mean()),
            "loss_own": float(prepared.loss_own.mean()) if len(prepared.loss_own) else None,
            "gap_error": prepared.gap_error if len(prepared.loss_own) else None,
            "abstained": bool(found.reason),
            "reason": found.reason,
            "strength": found.strength,
            "expected_gain": found.expected_gain,
            "note": dict(found.note),
            "coefficients": None if found.coefficients is None else [float(c) for c in found.coefficients],
            "needs": method.needs,
            "fold": _digest(fold),
        }

    def _score(self, item: Item, fold: Fold, found: Outcome) -> tuple[float, float]:
        """Test loss and accuracy; an abstention costs nothing."""
        if found.score is not None:
            return found.score
        prepared = self.board.prepared[item.id]
        if found.reason or (found.vector is None and not np.any(found.coefficients)):
            return float(prepared.loss0.mean()), float(prepared.right0.mean())
        if found.vector is not None:
            texts = self._texts(item)
            with self.model.along(found.vector):
                losses, right = self.model.losses(texts)
            return float(losses.mean()), float(right.mean())
        everywhere = np.zeros(len(self.corpus.known))
        everywhere[fold.allowed] = found.coefficients
        path, known = self.keep.score(item, everywhere)
        if known is not None:
            return known
        texts = self._texts(item)
        with self.model.at(everywhere):
            losses, right = self.model.losses(texts)
        self.keep.write_score(path, float(losses.mean()), float(right.mean()))
        return float(losses.mean()), float(right.mean())

    def _texts(self, item: Item) -> Texts:
        """The test texts of the last task asked for stay tokenised."""
        if self._last is None or self._last[0] != item.id:
            self._last = (item.id, self.model.texts(item, chosen(item, "test", self.request.sizes)))
        return self._last[1]


def _digest(fold: Fold) -> str:
    """Which vectors and which examples of other tasks are in the fold, and what it is asked."""
    parts = [fold.query.text, str(fold.seed), str(fold.allowed.tolist()), *(i.id for i in fold.other_items)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def board_file(request: Request) -> Path:
    """The Gram matrix and the embeddings, for the workers."""
    return request.out / "cache" / "board.npz"


# -- in one process or several -----------------------------------------------------------------------------------------
_worker: Worker | None = None


def _start(request: Request) -> None:
    global _worker
    warnings.simplefilter("ignore", FutureWarning)  # as the command line does
    torch.set_num_threads(1)
    _worker = Worker(request)


def _prepare(identity: str) -> None:
    assert _worker is not None
    _worker.prepare(identity)


def _cell(cell: Cell) -> None:
    assert _worker is not None
    _worker.cell(cell)


def prepare_all(request: Request, ids: Sequence[str], progress: Progress) -> None:
    """Prepare the tasks."""
    _each(request, ids, Worker.prepare, _prepare, progress)


def do_all(request: Request, cells: Sequence[Cell], progress: Progress) -> None:
    """Do the cells."""
    _each(request, cells, Worker.cell, _cell, progress)


def _each(
    request: Request,
    things: Sequence[T],
    here: Callable[[Worker, T], None],
    there: Callable[[T], None],
    progress: Progress,
) -> None:
    """Every thing once, in `jobs` processes of one thread; what is done stays done when one fails."""
    if request.jobs == 1 or len(things) < 2:
        worker = Worker(request)
        with one_thread_per_task():
            for done, thing in enumerate(things, 1):
                here(worker, thing)
                progress(done, len(things))
        return
    with (
        _single_threaded_children(),
        ProcessPoolExecutor(request.jobs, get_context("spawn"), _start, (request,)) as pool,
    ):
        futures = [pool.submit(there, thing) for thing in things]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                progress(done, len(things))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
