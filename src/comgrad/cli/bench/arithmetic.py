"""`comgrad bench addition` and `comgrad bench disentanglement`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comgrad.cli.bench.common import DEFAULT_OUT, Data, Jobs, Kept, Names, Out, Page, answer, command, names
from comgrad.cli.output import AsJson, progress
from comgrad.errors import ComgradError

Tasks = Annotated[
    Names,
    typer.Option(
        help="Tasks in the place of the suite's, with commas: learning rates are tuned on others, and others are controls."
    ),
]
Suite = Annotated[
    str,
    typer.Option(help="The frozen tasks and sizes: text8, or vision8 of images, whose --data has one folder per task."),
]
Base = Annotated[str | None, typer.Option(help="A base model in the place of the suite's.")]
Recipes = Annotated[Names, typer.Option(help="Recipes of comgrad train, with commas; default: the suite's.")]
Seeds = Annotated[Names, typer.Option(help="Seeds of training, with commas; default: the suite's, 0,1,2.")]
Steps = Annotated[int | None, typer.Option(help="Training steps of every recipe; default: the suite's, 80.", min=1)]
Quick = Annotated[bool, typer.Option("--quick", help="Three tasks, one seed, 30 steps, to see that it works.")]


def register(app: typer.Typer) -> None:
    app.command("addition")(addition)
    app.command("disentanglement")(disentanglement)


def addition(
    data: Data = None,
    out: Out = DEFAULT_OUT,
    tasks: Tasks = None,
    suite: Suite = "text8",
    base: Base = None,
    recipes: Recipes = None,
    seeds: Seeds = None,
    steps: Steps = None,
    jobs: Jobs = 1,
    quick: Quick = False,
    kept: Kept = False,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Sums, negations and merges of vectors trained with every recipe, and which of the paper's orderings hold.

    The tables of the linear-layers paper on a suite's tasks: single tasks, task addition and negation, merging methods,
    cost. What is trained in --out serves disentanglement too. Writes results.csv and pictures.

    Examples:

      comgrad bench addition --quick -o try

      comgrad bench addition --data data -o arithmetic --jobs 2 --page docs/arithmetic.md

      comgrad bench addition --suite vision8 --data images --base clip-folder -o vision8
    """
    options = (data, out, tasks, suite, base, recipes, seeds, steps, jobs, quick, kept, page)
    _run("addition", *options, as_json=as_json)


def disentanglement(
    data: Data = None,
    out: Out = DEFAULT_OUT,
    tasks: Tasks = None,
    suite: Suite = "text8",
    base: Base = None,
    recipes: Recipes = None,
    seeds: Seeds = None,
    steps: Steps = None,
    jobs: Jobs = 1,
    quick: Quick = False,
    kept: Kept = False,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """How far vectors leave each other's tasks alone: disentanglement errors, cosines, Proposition 1.

    The figures of the linear-layers paper on a suite's tasks, with the vectors that `addition` trained in --out (or
    trained now). Writes results.csv and heat maps.

    Examples:

      comgrad bench disentanglement --data data -o arithmetic --jobs 2 --recipes nonlinear,ntk,attention-linear
    """
    options = (data, out, tasks, suite, base, recipes, seeds, steps, jobs, quick, kept, page)
    _run("disentanglement", *options, as_json=as_json)


def _run(
    what: str,
    data: Path | None,
    out: Path,
    tasks: str | None,
    suite: str,
    base: str | None,
    recipes: str | None,
    seeds: str | None,
    steps: int | None,
    jobs: int,
    quick: bool,
    kept: bool,
    page: Path | None,
    *,
    as_json: bool,
) -> None:
    from comgrad.workflows.bench_arithmetic.plan import Request
    from comgrad.workflows.bench_arithmetic.run import run

    request = Request(
        what=what,
        data=data,
        out=out,
        suite=suite,
        tasks=names(tasks),
        base=base,
        recipes=names(recipes),
        seeds=tuple(_seed(s) for s in names(seeds)),
        steps=steps,
        jobs=jobs,
        quick=quick,
        kept=kept,
    )
    with progress("learning rates, trainings, recipes measured") as update:
        found = run(request, page_file=page, command=command(), tell=lambda _what, done, total: update(done, total))
    lines = [(o["where"], o["claim"], o["mean"], o["verdict"]) for o in found.orderings]
    answer(found.as_dict(), ("where", "the paper's ordering", "difference", "here"), lines, as_json=as_json)


def _seed(text: str) -> int:
    if not text.isdigit():
        raise ComgradError(f"--seeds {text}", "it is no seed", "give whole numbers with commas", code="bad-options")
    return int(text)
