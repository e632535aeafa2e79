"""`comgrad bench screening`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.bench.common import DEFAULT_OUT, Data, Kept, Names, Out, Page, answer, command, names
from comgrad.cli.output import AsJson, progress


def register(app: typer.Typer) -> None:
    app.command("screening")(screening)


def screening(
    data: Data = None,
    out: Out = DEFAULT_OUT,
    suite: Annotated[str, typer.Option(help="The frozen datasets and settings: screen8.")] = "screen8",
    tasks: Annotated[Names, typer.Option(help="Datasets in the place of the suite's, with commas.")] = None,
    base: Annotated[str | None, typer.Option(help="A base model in the place of the suite's.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Blocks per dataset; default: the suite's.", min=1)] = None,
    corpus_only: Annotated[bool, typer.Option("--corpus-only", help="Train vectors, and write no results.")] = False,
    most: Annotated[int | None, typer.Option(help="Train so many more vectors at most.", min=0)] = None,
    features: Annotated[
        Path | None, typer.Option(help="Evaluate this table of features of an earlier run; train nothing.")
    ] = None,
    mislabels: Annotated[Path | None, typer.Option(help="The same, of the table of mislabelled descriptions.")] = None,
    drop_vectors: Annotated[
        bool, typer.Option("--drop-vectors", help="Delete vectors when their features are taken.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Two datasets and few steps, to see that it works.")] = False,
    kept: Kept = False,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Screening for poisoned vectors: a corpus trained here (clean, two controls, three triggers), and how well a score
    from weights alone tells them apart, for seen and unseen triggers and datasets.

    The corpus takes hours; stopped at any time, the same command goes on, and what there is can be evaluated on the way.
    A score ranks; it never says that a vector is safe.

    Examples:

      comgrad bench screening --data data -o screening --corpus-only

      comgrad bench screening --data data -o screening --kept --page docs/screening.md
    """
    from comgrad.workflows.bench_screening.plan import Request
    from comgrad.workflows.bench_screening.run import run

    request = Request(
        data=data,
        out=out,
        suite=suite,
        tasks=names(tasks),
        base=base,
        seeds=seeds,
        corpus_only=corpus_only,
        features=features,
        mislabels=mislabels,
        keep_vectors=not drop_vectors,
        most=most,
        quick=quick,
        kept=kept,
    )
    with progress("vectors, then fits") as update:
        found = run(request, page_file=page, command=command(), tell=lambda _what, done, total: update(done, total))
    lines = [(t["setting"], t["target"], t["verdict"]) for t in found.targets]
    answer(found.as_dict(), ("setting", "target", "verdict"), lines, as_json=as_json)
