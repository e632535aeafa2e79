"""Journey: bench spectral. Measure all pairs of the zoo once; rows of the frozen triples and pairs, verdicts, page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comgrad.errors import NotFound
from comgrad.geometry.gram import Progress
from comgrad.weights.storage import atomic_write_bytes, storage_error
from comgrad.workflows.bench.corpus import Corpus, open_corpus
from comgrad.workflows.bench.run import machine
from comgrad.workflows.bench.tables import as_csv
from comgrad.workflows.bench_spectral.direction import (
    as_dict,
    better_than_chance,
    choose,
    chosen_rows,
    direction_rows,
    learnt_tasks,
    signed_scores,
)
from comgrad.workflows.bench_spectral.measure import measure
from comgrad.workflows.bench_spectral.page import page
from comgrad.workflows.bench_spectral.pictures import pictures
from comgrad.workflows.bench_spectral.plan import Request, Study, load_study
from comgrad.workflows.bench_spectral.rows import (
    Row,
    carried,
    claim_rows,
    null_rows,
    pair_rows,
    summary,
    triple_rows,
)
from comgrad.workflows.bench_spectral.task_or_run import own_rows


@dataclass(frozen=True)
class Outcome:
    """Everything the study found.

    Args:
        rows: two per listed pair of tasks (frame of either).
        triples: six per triple; `summary` their means.
        claims: the slides' statements with verdicts.
        nulls: listed pairs against their nulls.
        directions: every candidate score; `chosen` and `tested` the one chosen on the development half.
        own: entropy, stable rank and norm against the number of labels and second runs.
        carried: correlation of L₁ and REC with what they are against random adapters in the same frame.
        files: what was written.
    """

    rows: list[Row]
    triples: list[Row]
    summary: list[Row]
    claims: list[Row]
    nulls: list[Row]
    directions: list[Row]
    chosen: Row | None
    tested: list[Row]
    own: list[Row]
    carried: dict[str, float]
    environment: dict[str, Any]
    files: list[str]

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def run(
    request: Request,
    *,
    page_file: Path | None = None,
    command: str = "comgrad bench spectral",
    progress: Progress | None = None,
) -> Outcome:
    """The study on the tasks that the data has; seconds to minutes, so nothing is kept between runs.

    Args:
        page_file: where to write the results page, with its pictures beside it.
        command: what the page tells the reader to run.
        progress: called with (tensors done, tensors in all).

    Raises:
        ComgradError: options that mean nothing. NotFound: no such data, or no listed pair in it.
        StorageError: the folder cannot be written.
    """
    request.check()
    corpus = open_corpus(request.data)
    study = load_study().on({i.id for i in corpus.known})
    if not study.pairs:
        raise NotFound(
            "the listed pairs of tasks", "this data holds both tasks of none", "use the data the list was made for"
        )
    found = _found(corpus, study, request, command, progress)
    return _write(found, study, request, page_file)


def _found(corpus: Corpus, study: Study, request: Request, command: str, progress: Progress | None) -> Outcome:
    board = measure(corpus, request.randoms, request.seed, progress)
    pairs, triples = pair_rows(board, study, request), triple_rows(board, study, request)
    signed = signed_scores(board, study, {i.id: len(i.label_names) for i in corpus.known})
    choice = choose(study, signed, request)
    checked = [{**r, "better_than_chance": better_than_chance(r)} for r in chosen_rows(study, signed, choice, request)]
    return Outcome(
        rows=pairs,
        triples=triples,
        summary=summary(triples, request) if triples else [],
        claims=claim_rows(triples, pairs, request),
        nulls=null_rows(pairs, request),
        directions=direction_rows(study, signed, request, learnt_tasks(corpus)),
        chosen=as_dict(choice),
        tested=checked,
        own=own_rows(board, corpus),
        carried=carried(board),
        environment=_environment(corpus, request, study, len(board.found.names), command),
        files=[],
    )


def _write(found: Outcome, study: Study, request: Request, page_file: Path | None) -> Outcome:
    out = request.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out, error) from error
    images = pictures(found.triples, found.rows, found.directions)
    tables = {
        "pairs": found.rows, "triples": found.triples, "summary": found.summary, "claims": found.claims,
        "nulls": found.nulls, "directions": found.directions, "own": found.own,
    }  # fmt: skip
    files = {out / f"spectral-{name}.csv": as_csv(rows) for name, rows in tables.items() if rows}
    files |= {out / f"spectral-{name}.png": data for name, data in images.items()}
    choice = {"chosen": found.chosen, "tested": found.tested, "carried": found.carried}
    files[out / "spectral-direction.json"] = (json.dumps(choice, indent=1) + "\n").encode()
    if page_file is not None:
        names = {name: f"{page_file.stem}-{name}.png" for name in images}
        files |= {page_file.with_name(names[name]): data for name, data in images.items()}
        files[page_file] = page(vars(found), study, names).encode()
    for path, data in files.items():
        atomic_write_bytes(path, data)
    return Outcome(**{**vars(found), "files": [str(p) for p in files]})


def _environment(corpus: Corpus, request: Request, study: Study, tensors: int, command: str) -> dict[str, Any]:
    return machine() | {
        "base": corpus.vectors[0].base.label,
        "vectors_digest": corpus.digests["vectors"],
        "vectors": len(corpus.known),
        "tensors": tensors,
        "pairs": len(study.pairs),
        "triples": len(study.triples),
        "random_adapters": request.randoms,
        "bootstrap_draws": request.draws,
        "seed": request.seed,
        "command": command,
    }
