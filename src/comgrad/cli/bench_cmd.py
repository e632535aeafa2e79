"""`comgrad bench`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from comgrad.cli.output import AsJson, emit_json, progress, say, table
from comgrad.errors import ComgradError

Names = str | None  # names with commas


@dataclass(frozen=True)
class Options:
    """What every benchmark is asked with."""

    data: Path | None
    out: Path
    tasks: tuple[str, ...]
    only: tuple[str, ...]
    splits: tuple[str, ...]
    methods: tuple[str, ...]
    variants: tuple[str, ...]
    growth: tuple[str, ...]
    test_examples: int
    examples: int
    jobs: int
    seed: int
    with_training: bool
    with_long: bool
    kept: bool
    page: Path | None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its run, which shows a table and returns what --json prints."""

    name: str
    meaning: str
    run: Callable[[Options, bool], dict[str, Any]]


def register(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    name: Annotated[str, typer.Argument(help="Which benchmark: descinit.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with tasks/ and zoo/; default: the shipped starter zoo.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results and everything kept.")] = Path(
        "bench-out"
    ),
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
    jobs: Annotated[int, typer.Option(help="Processes, of one thread each.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of every choice of examples, and of bootstrap draws.", min=0)] = 0,
    with_training: Annotated[bool, typer.Option(help="Also methods that train.")] = False,
    with_long: Annotated[bool, typer.Option(help="Also methods that take minutes per task.")] = False,
    kept: Annotated[
        bool, typer.Option("--kept", help="Report what earlier runs left in --out; compute no more.")
    ] = False,
    page: Annotated[Path | None, typer.Option(help="Write the results page here, its picture beside it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a benchmark; stopped at any time, the same command goes on from there.

    descinit: how much of the gap to a task's own adapter is recovered from its description, before any training,
    against the mean, nearest neighbours, LoraHub-like search and ceilings. Writes results.csv (one row per task and
    method), summary.csv, waterfall.png and waterfall.html.

    Examples:

      comgrad bench descinit -o bench-out

      comgrad bench descinit --data data --jobs 2 --growth 10,20,40,80,all --page docs/descinit.md
    """
    chosen = BENCHMARKS.get(name)
    if chosen is None:
        raise ComgradError(
            f"the benchmark '{name}'",
            "there is none of that name",
            f"use one of: {', '.join(BENCHMARKS)}",
            code="bad-options",
        )
    options = Options(
        data, out, _names(tasks), _names(only), _names(splits), _names(methods), _names(descriptions), _names(growth),
        test_examples, examples, jobs, seed, with_training, with_long, kept, page,
    )  # fmt: skip
    result = chosen.run(options, not as_json)
    if as_json:
        emit_json(result)


def _descinit(options: Options, show: bool) -> dict[str, Any]:
    from comgrad.workflows.bench.fold import SPLITS
    from comgrad.workflows.bench.plan import Request
    from comgrad.workflows.bench.prepare import Sizes
    from comgrad.workflows.bench.run import run
    from comgrad.workflows.bench.words import VARIANTS

    request = Request(
        data=options.data,
        out=options.out,
        tasks=options.tasks,
        only=options.only,
        splits=options.splits or tuple(SPLITS),
        methods=options.methods,
        variants=options.variants or tuple(VARIANTS),
        growth=tuple(_number(n) for n in options.growth),
        sizes=Sizes(options.test_examples, options.examples, options.seed),
        jobs=options.jobs,
        with_training=options.with_training,
        with_long=options.with_long,
        kept=options.kept,
    )
    command = shlex.join(["comgrad", *sys.argv[1:]])
    with progress("tasks, then methods on tasks") as update:
        found = run(request, page_file=options.page, command=command, preparing=update, doing=update)
    if show:
        _show(found.figures, found.files, request.splits[0])
    return found.as_dict()


def _show(figures: list[dict[str, Any]], files: list[str], split: str) -> None:
    head = ("method", "tasks", "GR", "beyond mean", "better or abstains", "harmed", "abstains", "mean fall of loss")
    keys = ("method", "tasks", "gr", "gr_beyond", "improved_or_abstained", "harmed", "abstained", "rld")
    chosen = [f for f in figures if (f["pool"], f["split"], f["variant"], f["known"]) == ("all", split, "given", 0)]
    table(head, [tuple(None if f[k] != f[k] else f[k] for k in keys) for f in chosen])
    for path in files:
        say(f"wrote {path}")


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _number(text: str) -> int:
    if text == "all":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise ComgradError(
            f"--growth {text}", "it is no number of vectors", "give numbers with commas, or all", code="bad-options"
        )
    return int(text)


BENCHMARKS = {
    b.name: b for b in (Benchmark("descinit", "from a description to a better start, before any training", _descinit),)
}
