"""Journey: the main job on real adapters, from nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from comgrad.atlas.layout import Layout, lay_out
from comgrad.atlas.picture import Point
from comgrad.describe.task import Task, load_task
from comgrad.errors import NotFound
from comgrad.evaluate.classifier import Bench
from comgrad.finetune.loop import TrainSpec
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.bases import resolve_base
from comgrad.weights.storage import atomic_write_bytes, storage_error
from comgrad.workflows.adding import Added, AddRequest, add_paths
from comgrad.workflows.known import Known
from comgrad.workflows.mapping import write_picture
from comgrad.workflows.registry import Registry
from comgrad.workflows.report import write_report
from comgrad.workflows.resolve import collection
from comgrad.workflows.starting import Reading, run_starts
from comgrad.workflows.suggesting import Suggestion, predict

Say = Callable[[str], Any]
LOOK_AT = (1, 2, 5, 10, 20, 30, 40, 60, 80)


@dataclass(frozen=True)
class DemoResult:
    """All that the report shows."""

    task: Task
    added: list[Added]
    points: list[Point]
    layout: Layout
    suggestions: dict[str, Suggestion]
    curves: dict[str, list[Reading]]
    seconds: float


def starter(*parts: str) -> Path:
    """A path inside the starter zoo."""
    return Path(str(files("comgrad.starter").joinpath(*parts)))


def held_out_tasks() -> list[str]:
    """The shipped tasks that no adapter of the starter zoo was trained on."""
    return sorted(p.name for p in starter("tasks").iterdir() if p.is_dir())


def run_demo(out: Path, *, task_id: str = "banking-intent", steps: int = 40, say: Say = print) -> dict[str, Any]:
    """Registry, neighbours, map, suggestion, fine-tunes from zero and from the suggestion, report.

    Args:
        out: folder for everything the demo writes; its registry is `out/registry`, never the user's own.
        task_id: a shipped task that the zoo lacks.

    Raises:
        NotFound: no such task.
    """
    began = time.perf_counter()
    if task_id not in held_out_tasks():
        raise NotFound(
            f"the task '{task_id}'", "the demo has no such task", f"choose one of: {', '.join(held_out_tasks())}"
        )
    task = load_task(starter("tasks", task_id))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out, error) from error
    registry = Registry(out / "registry")
    added = _fill(registry, say)
    known = Known.of(collection(registry), cache=registry.store.cache_dir)
    points, layout = _map(known, out, say)
    suggestions = _suggest(known, task_id, task, out, say)
    curves = _train(known, task, suggestions, steps, say)
    result = DemoResult(task, added, points, layout, suggestions, curves, time.perf_counter() - began)
    report = out / "report.html"
    write_report(result, report)
    say(f"\nreport: {report}   map: {out / 'map.html'}, {out / 'map.png'}   ({result.seconds:.0f} s)")
    say(f"look around with: COMGRAD_HOME={registry.store.path} comgrad list")
    summary = _summary(result, report)
    atomic_write_bytes(out / "demo.json", (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    return summary


def _fill(registry: Registry, say: Say) -> list[Added]:
    began = time.perf_counter()
    added = add_paths([starter("zoo")], AddRequest(), registry=registry)
    seconds = time.perf_counter() - began
    fresh = sum(a.status == "added" for a in added)
    say(
        f"1. registry: {len(added)} real adapters ({fresh} new) in {seconds:.1f} s, {len(added) / seconds:.0f} per second\n"
    )
    say("2. neighbours: the nearest known task of each, by centred cosine of the weights alone")
    for a in added:
        say(f"   {a.name:42} {a.neighbours[0]['cosine']:6.3f}  {a.neighbours[0]['name']}")
    return added


def _map(known: Known, out: Path, say: Say) -> tuple[list[Point], Layout]:
    points = [Point(m.id, m.name, m.family, m.description) for m in known.atlas.members]
    layout = lay_out(known.atlas.centred_cosine())
    for name in ("map.html", "map.png"):
        write_picture(out / name, layout, points, f"Map of {len(points)} tasks by centred cosine")
    say(f"\n3. map: {len(points)} tasks, {int(layout.clusters.max()) + 1} clusters, stress {layout.stress:.2f}")
    return points, layout


def _suggest(known: Known, task_id: str, task: Task, out: Path, say: Say) -> dict[str, Suggestion]:
    say(f"\n4. a task that is not in the registry, in words:\n   “{task.description}”")
    helped = predict(known, task.description, task_dir=starter("tasks", task_id))
    made = {
        "from the description": predict(known, task.description),
        f"from the description and {helped.examples} examples": helped,
    }
    for name, s in made.items():
        best = ", ".join(f"{x.coefficient:+.3f} {x.name}" for x in s.sources[:3]) or "nothing"
        words = f"abstained: {s.reason}" if s.abstained else f"{best}, …"
        say(f"   {name}: {words} (confidence {s.confidence:.2f}, energy kept {s.energy_kept:.2f})")
    write_peft(made["from the description"].vector, out / "start", replace_existing=True)
    return made


def _train(
    known: Known, task: Task, suggestions: dict[str, Suggestion], steps: int, say: Say
) -> dict[str, list[Reading]]:
    zero = known.zero_start(known.traits.rank).vector
    starts: dict[str, TaskVector] = {"from zero": zero, **{n: s.vector for n, s in suggestions.items()}}
    bench = Bench.open(resolve_base(known.traits.base.name))
    say(f"\n5. fine-tune with {steps} steps from each start (test loss in nats, accuracy)")

    def watch(name: str, r: Reading) -> None:
        say(f"   {name:38} step {r.step:3}   loss {r.loss:.4f}   accuracy {r.accuracy:.3f}")

    look_at = sorted({s for s in LOOK_AT if s < steps} | {steps})
    return run_starts(bench, task, starts, TrainSpec(steps=steps), look_at, watch=watch)


def _summary(result: DemoResult, report: Path) -> dict[str, Any]:
    return {
        "task": result.task.name,
        "adapters": len(result.added),
        "report": str(report),
        "seconds": result.seconds,
        "stress": result.layout.stress,
        "suggestions": {n: s.as_dict() for n, s in result.suggestions.items()},
        "curves": {n: [dict(r.__dict__) for r in rs] for n, rs in result.curves.items()},
        "neighbours_of_same_family": _same_family(result),
    }


def _same_family(result: DemoResult) -> float:
    """Share of adapters whose nearest neighbour is of their own family."""
    family = {p.name: p.family for p in result.points}
    return float(np.mean([family[a.name] == family[a.neighbours[0]["name"]] for a in result.added]))
