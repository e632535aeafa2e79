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
    suite: str
    base: str | None
    recipes: tuple[str, ...]
    seeds: tuple[str, ...]
    steps: int | None
    quick: bool


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its run, which shows a table and returns what --json prints."""

    name: str
    meaning: str
    run: Callable[[Options, bool], dict[str, Any]]


def register(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    name: Annotated[str, typer.Argument(help="Which benchmark: descinit, addition, disentanglement.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with tasks/ (and zoo/, for descinit); default: what is shipped.")
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
    page: Annotated[Path | None, typer.Option(help="Write the results page here, its pictures beside it.")] = None,
    suite: Annotated[str, typer.Option(help="addition, disentanglement: the frozen tasks and sizes, text8.")] = "text8",
    base: Annotated[str | None, typer.Option(help="The same: a base model in the place of the suite's.")] = None,
    recipes: Annotated[Names, typer.Option(help="The same: recipes of comgrad train; default: the suite's.")] = None,
    seeds: Annotated[Names, typer.Option(help="The same: seeds of training, with commas; default: 0,1,2.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="The same: training steps of every recipe; default: 80.", min=1)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The same: three tasks, one seed, 30 steps, to see that it works.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a benchmark; stopped at any time, the same command goes on from there.

    descinit: how much of the gap to a task's own adapter is recovered from its description, before any training,
    against the mean, nearest neighbours, LoraHub-like search and ceilings. Writes results.csv (one row per task and
    method), summary.csv, waterfall.png and waterfall.html.

    addition, disentanglement: task arithmetic with every recipe of comgrad train on a suite's tasks, and which orderings
    of the linear-layers paper hold. The first: single tasks, sums, negation, merging methods, cost; the second:
    disentanglement errors, cosines, Proposition 1. Both share what is trained in --out. With --tasks, on tasks of your
    own: learning rates are tuned on others, and others are the control tasks. Write results.csv and pictures.

    Examples:

      comgrad bench descinit -o bench-out

      comgrad bench descinit --data data --jobs 2 --growth 10,20,40,80,all --page docs/descinit.md

      comgrad bench addition --data data -o arithmetic --jobs 2 --page docs/arithmetic.md

      comgrad bench disentanglement --data data -o arithmetic --jobs 2 --recipes nonlinear,ntk,attention-linear
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
        test_examples, examples, jobs, seed, with_training, with_long, kept, page, suite, base, _names(recipes),
        _names(seeds), steps, quick,
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


def _arithmetic(what: str) -> Callable[[Options, bool], dict[str, Any]]:
    """The benchmark of that name of `workflows.bench_arithmetic`."""

    def run_it(options: Options, show: bool) -> dict[str, Any]:
        from comgrad.workflows.bench_arithmetic.plan import Request
        from comgrad.workflows.bench_arithmetic.run import run

        request = Request(
            what=what,
            data=options.data,
            out=options.out,
            suite=options.suite,
            tasks=options.tasks,
            base=options.base,
            recipes=options.recipes,
            seeds=tuple(_seed(s) for s in options.seeds),
            steps=options.steps,
            jobs=options.jobs,
            quick=options.quick,
            kept=options.kept,
        )
        command = shlex.join(["comgrad", *sys.argv[1:]])
        with progress("learning rates, trainings, recipes measured") as update:
            found = run(
                request, page_file=options.page, command=command, tell=lambda _what, done, total: update(done, total)
            )
        if show:
            claims = [(o["where"], o["claim"], o["mean"], o["verdict"]) for o in found.orderings]
            table(("where", "the paper's ordering", "difference", "here"), claims)
            for path in found.files:
                say(f"wrote {path}")
        return found.as_dict()

    return run_it


def _seed(text: str) -> int:
    if not text.isdigit():
        raise ComgradError(f"--seeds {text}", "it is no seed", "give whole numbers with commas", code="bad-options")
    return int(text)


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
    b.name: b
    for b in (
        Benchmark("descinit", "from a description to a better start, before any training", _descinit),
        Benchmark("addition", "sums, negations and merges of trained vectors", _arithmetic("addition")),
        Benchmark("disentanglement", "how far vectors leave each other's tasks alone", _arithmetic("disentanglement")),
    )
}
