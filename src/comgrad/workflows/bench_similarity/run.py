"""Journey: bench similarity. Tables, figures, pictures and the page; what an earlier run left is not computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout

from comgrad.errors import ComgradError
from comgrad.weights.storage import atomic_write_bytes, storage_error
from comgrad.workflows.bench.run import machine
from comgrad.workflows.bench.tables import as_csv
from comgrad.workflows.bench_similarity.maps import pictures
from comgrad.workflows.bench_similarity.page import page
from comgrad.workflows.bench_similarity.plan import NEARNESS, Request, Study
from comgrad.workflows.bench_similarity.pool import Pools
from comgrad.workflows.bench_similarity.score import Row, Scores
from comgrad.workflows.bench_similarity.tables import tables

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """Rows of figures, what they were computed with and from, and the files written."""

    rows: list[Row]
    environment: dict[str, Any]
    files: list[str]

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def run(request: Request, progress: Progress = lambda _d, _t: None) -> Outcome:
    """The study.

    Args:
        progress: called with (done, all) tables, then figures.

    Raises:
        ComgradError: (`busy`) another process works in the folder, (`too-few`) vectors, vectors of another base.
        NotFound: no such data, or nothing kept. StorageError: the folder cannot be written.
    """
    study = Study.open(request)
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
        pools = Pools(study, tables(study, progress=progress), tables(study, random=True, progress=progress))
        return _write(study, pools, Scores(pools).rows(progress))
    finally:
        lock.release()


def _write(study: Study, pools: Pools, rows: list[Row]) -> Outcome:
    request, environment, images = study.request, _environment(study), pictures(pools, rows)
    files = {request.out / "results.csv": as_csv(rows), request.out / "pairs.csv": as_csv(_pairs(pools))}
    files |= {request.out / f"{name}.png": data for name, data in images.items()}
    if request.page is not None:
        beside = {name: request.page.with_name(f"{request.page.stem}-{name}.png") for name in images}
        files |= {beside[name]: data for name, data in images.items()}
        text = page(study, rows, environment, {name: path.name for name, path in beside.items()})
        files[request.page] = text.encode()
    for path, data in files.items():
        atomic_write_bytes(path, data)
    return Outcome(rows, environment, [str(p) for p in files])


def _pairs(pools: Pools) -> list[dict[str, Any]]:
    """T̄ of every two zoo vectors, larger is nearer, every measure a column."""
    zoo = pools.study.zoo
    found = {m: pools.among_zoo(m) for m in NEARNESS}
    return [
        {"one": a.id, "other": b.id, "families": f"{a.family}/{b.family}"}
        | {m: float(S[i, j]) for m, S in found.items()}
        for i, a in enumerate(zoo)
        for j, b in enumerate(zoo[:i])
    ]


def _environment(study: Study) -> dict[str, Any]:
    request, base = study.request, study.corpus.vectors[0].base
    return machine() | {
        "base": f"{base.name} {(base.fingerprint or '')[:16]}",
        "vectors_digest": study.digest,
        "zoo_vectors": len(study.zoo),
        "further_vectors": ", ".join(f"{k} {len(study.rows(k))}" for k in study.kinds),
        "further_vectors_of_tasks_not_in_the_zoo": study.strangers,
        "tensors": len(study.tensors),
        "families": len(set(study.families.tolist())),
        "source_groups": len(set(study.groups.tolist())),
        "draws": request.draws,
        "seed": request.seed,
        "command": request.command,
    }
