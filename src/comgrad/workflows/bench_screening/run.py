"""Journey: bench screening. Make what is missing of the corpus; evaluate what there is; write tables, pictures, the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from comgrad.engine.local import one_thread_per_task
from comgrad.errors import ComgradError, NotFound
from comgrad.weights.storage import atomic_write_bytes, storage_error
from comgrad.workflows.bench.run import machine
from comgrad.workflows.bench_screening.make import Maker
from comgrad.workflows.bench_screening.mislabel import Claim, as_csv, claims, read_claims
from comgrad.workflows.bench_screening.page import page
from comgrad.workflows.bench_screening.pictures import pictures
from comgrad.workflows.bench_screening.plan import MERGED, Plan, Request
from comgrad.workflows.bench_screening.results import results_of, verdicts
from comgrad.workflows.bench_screening.store import Store, as_table, read_table

Tell = Callable[[str, int, int], None]
"""What is done, how many of it, of how many."""
FEATURES, MISLABELS, RESULTS = "features.csv", "mislabels.csv", "results.json"


@dataclass(frozen=True)
class Outcome:
    """Everything found so far in a folder.

    Args:
        made, planned: vectors of the corpus.
        rows: areas under ROC curves; empty for a run of the corpus alone.
        files: what was written.
    """

    made: int
    planned: int
    environment: dict[str, Any]
    files: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    mislabels: list[dict[str, Any]] = field(default_factory=list)
    fates: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def run(
    request: Request,
    *,
    page_file: Path | None = None,
    command: str = "comgrad bench screening",
    tell: Tell = lambda _w, _d, _t: None,
) -> Outcome:
    """The benchmark; a vector that an earlier run of the same folder finished is not made again.

    Args:
        page_file: where to write the results page, with its pictures and tables beside it.
        command: what the page tells the reader to run.
        tell: called with what is done, how many, of how many.

    Raises:
        ComgradError: options that mean nothing, other data than the suite's, (`busy`) another process works in the
            folder, (`too-few`) vectors to evaluate. NotFound: no such data, or nothing kept. StorageError.
    """
    plan = Plan(request)
    if request.features is not None:
        return _evaluated(plan, page_file, command, tell)
    plan.check()
    if not request.kept:
        with _locked(request.out):
            _make(plan, tell)
    if request.corpus_only:
        return _corpus(plan, command)
    return _evaluated(plan, page_file, command, tell)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One process at a time makes vectors in a folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise ComgradError(
            f"'{out}'", "another process is working there", "wait for it, or choose another --out", code="busy"
        ) from None
    except OSError as error:
        raise storage_error(out, error) from error
    try:
        yield
    finally:
        lock.release()


def _make(plan: Plan, tell: Tell) -> None:
    """What the plan still lacks, in its order; the table of features is written after every vector."""
    store, units = Store(plan), list(plan.units())
    maker, fresh = Maker(plan, store), 0
    with one_thread_per_task():
        for done, unit in enumerate(units, 1):
            if not maker.is_done(unit):
                if plan.request.most is not None and fresh >= plan.request.most:
                    return
                maker.make(unit)
                fresh += 1
                atomic_write_bytes(plan.request.out / FEATURES, as_table(store.rows()))
            if unit.group == MERGED and not plan.request.keep_vectors:  # the last of its block
                store.forget_vectors(plan.block(unit.task, unit.seed))
            tell("vectors", done, len(units))


def _corpus(plan: Plan, command: str) -> Outcome:
    store, file = Store(plan), plan.request.out / FEATURES
    rows = store.rows()
    atomic_write_bytes(file, as_table(rows))
    return Outcome(len(rows), len(list(plan.units())), _environment(plan, command), [str(file)])


def _evaluated(plan: Plan, page_file: Path | None, command: str, tell: Tell) -> Outcome:
    request = plan.request
    rows = read_table(request.features) if request.features is not None else Store(plan).rows()
    if not rows:
        raise NotFound(f"'{request.out}'", "no vector of this corpus is kept there", "make some, or name the folder")
    found = _claims(plan)
    results = results_of(rows, found, plan.suite, progress=lambda d, t: tell("fits", d, t))
    environment, images = _environment(plan, command), pictures(results)
    bars = [{"setting": v.setting, "target": v.target, "verdict": v.verdict, "sure": v.sure} for v in verdicts(results)]
    outcome = {
        "rows": [a.as_dict() for a in results.areas],
        "answers": [a.as_dict() for a in results.answers],
        "mislabels": results.mislabels,
        "fates": [vars(f) for f in results.fates],
        "targets": bars,
    }
    out = request.out
    files = {out / FEATURES: as_table(rows), out / MISLABELS: as_csv(found)}
    files[out / RESULTS] = (json.dumps({**outcome, "nulls": results.nulls}, indent=1) + "\n").encode()
    files |= {out / f"{name}.png": data for name, data in images.items()}
    if page_file is not None:
        names = {name: f"{page_file.stem}-{name}.png" for name in images}
        files |= {page_file.with_name(names[name]): data for name, data in images.items()}
        tables = {n: f"{page_file.stem}-{n}" for n in (FEATURES, MISLABELS)}
        files[page_file.with_name(tables[FEATURES])] = as_table(rows)
        files[page_file.with_name(tables[MISLABELS])] = as_csv(found)
        files[page_file] = page(plan.suite, results, environment, names, tables).encode()
    out.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        atomic_write_bytes(path, data)
    planned = plan.suite.seeds * len(plan.suite.tasks) * len(plan.block(plan.suite.tasks[0], 0))
    return Outcome(len(rows), planned, environment, [str(p) for p in files], **outcome)


def _claims(plan: Plan) -> list[Claim]:
    """From the file that was named, or from the known vectors; none where a file of features was named alone."""
    if plan.request.mislabels is not None:
        return read_claims(plan.request.mislabels)
    return [] if plan.request.features is not None else claims(plan.corpus)


def _environment(plan: Plan, command: str) -> dict[str, Any]:
    return machine() | {"suite": plan.suite.name, "base": plan.base.name, "command": command}
