"""`comgrad bench spectral`."""

from __future__ import annotations

from typing import Annotated

import typer

from comgrad.cli.bench.common import DEFAULT_OUT, Data, Draws, Out, Page, Seed, answer, command
from comgrad.cli.output import AsJson, progress


def register(app: typer.Typer) -> None:
    app.command("spectral")(spectral)


def spectral(
    data: Data = None,
    out: Out = DEFAULT_OUT,
    randoms: Annotated[int, typer.Option(help="Random adapters of the null.", min=2)] = 25,
    draws: Draws = 2000,
    seed: Seed = 0,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Spectral projection: the slides' two tables on pairs where one task contains the other, and an inclusion score.

    The list of pairs and the rule that tests the score were frozen before any figure. Takes about a minute.

    Examples:

      comgrad bench spectral --data data -o spectral --page docs/spectral.md
    """
    from comgrad.workflows.bench_spectral.plan import Request
    from comgrad.workflows.bench_spectral.run import run

    with progress("tensors") as update:
        request = Request(data=data, out=out, randoms=randoms, draws=draws, seed=seed)
        found = run(request, page_file=page, command=command(), progress=update)
    lines = [(c["claim"], f"{c['n']} {c['where']}", c["difference"], c["verdict"]) for c in found.claims]
    answer(found.as_dict(), ("the slides' statement", "on", "difference", "here"), lines, as_json=as_json)
