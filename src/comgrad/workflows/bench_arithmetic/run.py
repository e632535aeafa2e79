"""Journey: bench addition, bench disentanglement. Train and measure what is missing; write rows, pictures and the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from comgrad.errors import ComgradError, NotFound
from comgrad.weights.storage import atomic_write_bytes, storage_error
from comgrad.workflows.bench.run import machine
from comgrad.workflows.bench.tables import as_csv
from comgrad.workflows.bench_arithmetic.orderings import verdicts
from comgrad.workflows.bench_arithmetic.page import page
from comgrad.workflows.bench_arithmetic.pictures import pictures
from comgrad.workflows.bench_arithmetic.plan import Plan, Request
from comgrad.workflows.bench_arithmetic.rows import Row, rows_of, seconds_of_all
from comgrad.workflows.bench_arithmetic.work import Tell, do_all, rates_of


@dataclass(frozen=True)
class Result:
    """Everything found so far in a folder.

    Args:
        rows: one figure each, of both benchmarks where both ran.
        orderings: the paper's, each with its verdict.
        rates: recipe → how its learning rate was chosen.
        files: what was written.
    """

    rows: list[Row]
    orderings: list[dict[str, Any]]
    rates: dict[str, dict[str, object]]
    environment: dict[str, Any]
    files: list[str]

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def run(
    request: Request,
    *,
    page_file: Path | None = None,
    command: str = "comgrad bench addition",
    tell: Tell = lambda _w, _d, _t: None,
) -> Result:
    """The benchmark; what an earlier run of the same folder finished is not done again.

    Args:
        page_file: where to write the results page, with its pictures beside it.
        command: what the page tells the reader to run.
        tell: called with what is done, how many, of how many.

    Raises:
        ComgradError: options that mean nothing, other data than the suite's, (`busy`) another process works in the
            folder. NotFound: no such data, or nothing kept. StorageError: the folder cannot be written.
    """
    plan = Plan(request)
    plan.check()
    if request.kept:
        return _write(plan, page_file, command)
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(request.out / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise ComgradError(
            f"'{request.out}'", "another process is working there", "wait for it, or choose another --out", code="busy"
        ) from None
    except OSError as error:
        raise storage_error(request.out, error) from error
    try:
        do_all(plan, tell)
        return _write(plan, page_file, command)
    finally:
        lock.release()


def _write(plan: Plan, page_file: Path | None, command: str) -> Result:
    rows = rows_of(plan)
    if not rows:
        raise NotFound(
            f"'{plan.request.out}'", "nothing of this run is kept there", "leave --kept out, or name the folder with -o"
        )
    rates, environment, images = rates_of(plan), _environment(plan, command), pictures(plan, rows)
    out = plan.request.out
    files = {out / "results.csv": as_csv(rows), out / "seconds.csv": as_csv(seconds_of_all(plan))}
    files |= {out / f"{name}.png": data for name, data in images.items()}
    if page_file is not None:
        names = {name: f"{page_file.stem}-{name}.png" for name in images}
        files |= {page_file.with_name(names[name]): data for name, data in images.items()}
        files[page_file] = page(plan, rows, rates, environment, names).encode()
    for path, data in files.items():
        atomic_write_bytes(path, data)
    orderings = [
        {"where": v.where, "claim": v.claim, "verdict": v.verdict, **vars(v.difference)} for v in verdicts(rows)
    ]
    return Result(rows, orderings, rates, environment, [str(p) for p in files])


def _environment(plan: Plan, command: str) -> dict[str, Any]:
    suite = plan.suite
    return machine() | {
        "suite": suite.name,
        "base": f"{plan.base.name} {plan.base.fingerprint.root[:16]}",
        "recipes": ", ".join(suite.recipes),
        "seeds": ", ".join(map(str, suite.seeds)),
        "steps": suite.steps,
        "command": command,
    }
