"""`comgrad bench descinit`."""

from __future__ import annotations

from typing import Annotated

import typer

from comgrad.cli.bench.common import DEFAULT_OUT, Data, Jobs, Kept, Names, Out, Page, Seed, answer, command, names
from comgrad.cli.output import AsJson, progress
from comgrad.errors import ComgradError


def register(app: typer.Typer) -> None:
    app.command("descinit")(descinit)


def descinit(
    data: Data = None,
    out: Out = DEFAULT_OUT,
    tasks: Annotated[Names, typer.Option(help="Tasks to test, with commas; default: all that have examples.")] = None,
    only: Annotated[Names, typer.Option(help="Cut the data down to these tasks, for a quick look.")] = None,
    splits: Annotated[Names, typer.Option(help="losgo, loo, lofo; the first is the headline.")] = None,
    methods: Annotated[Names, typer.Option(help="Methods, with commas; default: those that take seconds.")] = None,
    descriptions: Annotated[
        Names, typer.Option(help="given, short, no-label-words, shuffled, random, empty; default: all.")
    ] = None,
    growth: Annotated[Names, typer.Option(help="Numbers of known vectors, such as 10,20,40,80,all.")] = None,
    test_examples: Annotated[int, typer.Option(help="Test examples per task.", min=1)] = 150,
    examples: Annotated[int, typer.Option(help="Training examples looked at per task.", min=1)] = 160,
    jobs: Jobs = 1,
    seed: Seed = 0,
    with_training: Annotated[bool, typer.Option(help="Also methods that train.")] = False,
    with_long: Annotated[bool, typer.Option(help="Also methods that take minutes per task.")] = False,
    kept: Kept = False,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """From a description to a better start: how much of the gap to a task's own adapter is recovered before any training.

    Against the mean, nearest neighbours, LoraHub-like search, training on the same examples, and ceilings. Writes
    results.csv (one row per task and method), summary.csv, waterfall.png and waterfall.html.

    Examples:

      comgrad bench descinit -o bench-out

      comgrad bench descinit --data data --jobs 2 --growth 10,20,40,80,all --page docs/descinit.md
    """
    from comgrad.workflows.bench.fold import SPLITS
    from comgrad.workflows.bench.plan import Request
    from comgrad.workflows.bench.prepare import Sizes
    from comgrad.workflows.bench.run import run
    from comgrad.workflows.bench.words import VARIANTS

    request = Request(
        data=data,
        out=out,
        tasks=names(tasks),
        only=names(only),
        splits=names(splits) or tuple(SPLITS),
        methods=names(methods),
        variants=names(descriptions) or tuple(VARIANTS),
        growth=tuple(_number(n) for n in names(growth)),
        sizes=Sizes(test_examples, examples, seed),
        jobs=jobs,
        with_training=with_training,
        with_long=with_long,
        kept=kept,
    )
    with progress("tasks, then methods on tasks") as update:
        found = run(request, page_file=page, command=command(), preparing=update, doing=update)
    head = ("method", "tasks", "GR", "beyond mean", "better or abstains", "harmed", "abstains", "mean fall of loss")
    keys = ("method", "tasks", "gr", "gr_beyond", "improved_or_abstained", "harmed", "abstained", "rld")
    headline = ("all", request.splits[0], "given", 0)
    chosen = [f for f in found.figures if (f["pool"], f["split"], f["variant"], f["known"]) == headline]
    lines = [tuple(None if f[k] != f[k] else f[k] for k in keys) for f in chosen]
    answer(found.as_dict(), head, lines, as_json=as_json)


def _number(text: str) -> int:
    if text == "all":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise ComgradError(
            f"--growth {text}", "it is no number of vectors", "give numbers with commas, or all", code="bad-options"
        )
    return int(text)
