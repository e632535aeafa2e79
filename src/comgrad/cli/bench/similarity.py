"""`comgrad bench similarity` and `comgrad bench variants`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.bench.common import DEFAULT_OUT, Data, Draws, Kept, Names, Out, Page, Seed, answer, command, names
from comgrad.cli.output import AsJson, progress


def register(app: typer.Typer) -> None:
    app.command("similarity")(similarity)
    app.command("variants")(variants)


def similarity(
    data: Data = None,
    out: Out = DEFAULT_OUT,
    further: Annotated[
        Path | None,
        typer.Option("--variants", help="Further vectors of the zoo's tasks, as `comgrad bench variants` trains them."),
    ] = None,
    only: Annotated[Names, typer.Option(help="Cut the zoo down to these tasks, for a quick look.")] = None,
    draws: Draws = 1000,
    seed: Seed = 0,
    kept: Kept = False,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Which measure tells tasks apart: every measure on every pair and tensor; families, seeds, identification, maps.

    Examples:

      comgrad bench similarity -o similarity

      comgrad bench similarity --data data -o similarity --variants variants --page docs/similarity.md
    """
    from comgrad.workflows.bench_similarity.plan import Request
    from comgrad.workflows.bench_similarity.run import run

    request = Request(out, data, further, names(only), draws, seed, kept, page, command())
    with progress("tensors, then figures") as update:
        found = run(request, update)
    chosen = {"section": "families", "pooling": "mean", "scope": "all", "figure": "knn1-disjoint", "kind": "zoo"}
    lines = [
        (r["measure"], r["value"], r["low"], r["high"], r["null"], r["p"])
        for r in found.rows
        if chosen.items() <= r.items()
    ]
    head = ("measure", "nearest of another source has the task's family", "from", "to", "shuffled", "p")
    answer(found.as_dict(), head, lines, as_json=as_json)


def variants(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write KIND/TASK/ into.")] = Path("variants"),
    data: Data = None,
    tasks: Annotated[Names, typer.Option(help="Tasks, with commas; default: those with second runs.")] = None,
    kinds: Annotated[Names, typer.Option(help="Kinds, with commas; default: all.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of every training; default: what the zoo's card says.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the data.", min=0)] = 1,
    as_json: AsJson = False,
) -> None:
    """Train the hard cases of identification: the zoo's tasks again, with one thing other than in the zoo.

    Another rank, a tenth of the learning rate or of the data, dense attention weights in the place of LoRA, other texts of
    the same source. Stopped at any time, the same command goes on.

    Examples:

      comgrad bench variants --data data -o variants --kinds rank-4,attention-linear
    """
    from comgrad.workflows.bench_similarity.variants import KINDS, VariantsRequest, make_variants

    request = VariantsRequest(out, data, names(tasks), names(kinds) or tuple(KINDS), steps, seed)
    with progress("vectors") as update:
        made = make_variants(request, update)
    lines = [(m["kind"], m["task"], m["path"]) for m in made]
    answer({"rows": made, "files": []}, ("kind", "task", "path"), lines, as_json=as_json)
