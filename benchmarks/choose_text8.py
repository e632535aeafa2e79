"""Apply the rule of `comgrad.workflows.bench_arithmetic.suite` to a folder of tasks and compare with the frozen suite.

    python benchmarks/choose_text8.py DATA

prints the choice with what decided it, and ends with 1 where it is not that of the frozen file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from comgrad.evaluate.classifier import Bench
from comgrad.evaluate.predictor import Predictor, text_problem
from comgrad.evaluate.splits import three_way
from comgrad.weights.bases import resolve_base
from comgrad.workflows.bench.corpus import Item, open_tasks
from comgrad.workflows.bench_arithmetic.plan import SPLIT_SEED
from comgrad.workflows.bench_arithmetic.suite import (
    CHOSEN,
    CONTROLS,
    DEVELOPMENT,
    can_do,
    choose,
    contents,
    suite_named,
)


def able(items: Sequence[Item]) -> Iterator[str]:
    """Ids of those that the base model can do already."""
    bench = Bench.open(resolve_base(suite_named("text8").base))
    predictor = Predictor.open(bench)
    for item in items:
        task = three_way(item.task, SPLIT_SEED).as_task()
        accuracy = predictor.outcome(text_problem(bench, task, splits=("validation",)), "validation", []).accuracy
        print(f"{item.id}: the base's validation accuracy is {accuracy:.3f}", file=sys.stderr)
        if can_do(accuracy, task):
            yield item.id


def main(data: Path) -> int:
    items = {i.id: i for i in open_tasks(data)}
    ids = choose(list(items.values()))
    others = ids[CHOSEN:]
    possible = able([items[i] for i in others])
    controls = tuple(next(possible) for _ in range(CONTROLS))
    rest = tuple(i for i in others if i not in controls)
    found = {"tasks": ids[:CHOSEN], "development": rest[:DEVELOPMENT], "controls": controls}
    digests = {i: contents(items[i].task) for part in found.values() for i in part}
    print(json.dumps({**found, "digests": digests}, indent=1))
    frozen = suite_named("text8")
    same = found == {k: getattr(frozen, k) for k in found} and digests == dict(frozen.digests)
    print("this is the frozen suite" if same else "this is NOT the frozen suite", file=sys.stderr)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
