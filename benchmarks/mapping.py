"""The map of thousands in a real browser: seconds to the first map, what an answer costs, and frames while one moves about.

    python benchmarks/mapping.py --out map --points 10000
    python benchmarks/mapping.py --out map --points 10000 --vectors 512 --landmarks 128 --json

OUT/data holds real adapters derived from the shipped ones, as those of load.py (a folder that load.py made is taken as it
is). Listings beyond these stand for further vectors by made-up sketches: each a stored vector's, with as much noise. The
service and its pages are the real ones; needs Chromium and the extra `dev`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from playwright.sync_api import Page, sync_playwright

from comgrad.service.app import create_app
from comgrad.service.auth.identity import ANONYMOUS
from comgrad.service.core import Service
from comgrad.service.scope import Scope
from comgrad.service.settings import Settings
from comgrad.workflows.registry import Registry
from load_data import prepare

MOVES = """async ([kind, times]) => {
  const canvas = document.querySelector(".map canvas"), box = canvas.getBoundingClientRect(), frames = [];
  const at = (type, x, y) => canvas.dispatchEvent(
    type === "wheel" ? new WheelEvent(type, { clientX: x, clientY: y, deltaY: 40, bubbles: true, cancelable: true })
                     : new PointerEvent(type, { clientX: x, clientY: y, pointerId: 1, bubbles: true }));
  canvas.setPointerCapture = () => {};
  const x = box.x + box.width / 2, y = box.y + box.height / 2, frame = () => new Promise((wake) => requestAnimationFrame(wake));
  if (kind === "pan") at("pointerdown", x, y);
  let before = await frame();
  for (let i = 0; i < times; i++) {
    const dx = 160 * Math.sin(i / 9), dy = 90 * Math.cos(i / 7);
    at(kind === "zoom" ? "wheel" : "pointermove", x + dx, y + dy);
    const now = await frame();
    frames.push(now - before);
    before = now;
  }
  at("pointercancel", x, y);
  return frames;
}"""


def main() -> None:
    """Prepare, serve, look, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where vectors are kept")
    parser.add_argument("--points", type=int, default=10_000, help="on the map (10000)")
    parser.add_argument("--vectors", type=int, default=1_000, help="of them at least so many stored vectors (1000)")
    parser.add_argument("--landmarks", type=int, default=512, help="laid out by exact distances (512)")
    parser.add_argument("--frames", type=int, default=120, help="of each kind of moving (120)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    asked = parser.parse_args()
    prepare(asked.out / "data", asked.vectors)
    told = {"points": asked.points, "landmarks": asked.landmarks, "cores": len(os.sched_getaffinity(0))}
    with serving(asked.out / "data", asked) as (service, address):
        told["load_before"] = os.getloadavg()[0]
        told |= made(service, asked.points) | looked(address, asked.frames)
    print(json.dumps(told, indent=1) if asked.json else "\n".join(f"{k:<28}{_shown(v)}" for k, v in told.items()))


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def serving(data: Path, asked: argparse.Namespace) -> Iterator[tuple[Service, str]]:
    """The service and its address."""
    registry = Registry(data)
    settings = {"data": data, "workers": "none", "preload": False, "publish_unowned": True, "min_free_bytes": 0}
    settings |= {"whole_scope": asked.landmarks, "map_points": asked.points, "computed_per_minute": 10**6}
    app = create_app(Settings.checked(**settings), registry=registry)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield app.state.service, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=60)
    registry.store.close()


def made(service: Service, points: int) -> dict[str, Any]:
    """The scope of so many points, and how long its map takes: first, then after one vector more."""
    stored = service.scopes.scope(ANONYMOUS).group(None)[:points]
    began = time.monotonic()
    rows, _ = service.nearness.sketched(stored, 3600.0)
    sketching = time.monotonic() - began
    draw = np.random.default_rng(0)
    sketches, extra, listings = service.nearness._opened(), [], list(stored)
    for i in range(points + 1 - len(stored)):
        x = stored[i % len(stored)]
        identity = f"tv-made-up-{i:08d}"
        numbers = rows[i % len(stored)] + draw.standard_normal(rows.shape[1]).astype(np.float32) / rows.shape[1] ** 0.5
        extra.append((identity, numbers / np.linalg.norm(numbers)))
        when = stored[-1].row.created_at
        listings.append(replace(x, row=replace(x.row, vector_id=identity, created_at=when), content=identity))
    for identity, numbers in extra:
        sketches.remember(identity, numbers)
    fewer, whole = Scope.of(listings[:-1]), Scope.of(listings)
    service.scopes.scope = lambda _who: fewer  # type: ignore[method-assign]
    fewer.__dict__["groups"] = [_group(fewer)]
    whole.__dict__["groups"] = [_group(whole)]
    began = time.monotonic()
    service.insight.planes.prepare(fewer.groups[0])
    first = time.monotonic() - began
    service.insight.map(ANONYMOUS)
    service.scopes.scope = lambda _who: whole  # type: ignore[method-assign]
    began = time.monotonic()
    service.insight.map(ANONYMOUS)
    following = time.monotonic() - began
    service.scopes.scope = lambda _who: fewer  # type: ignore[method-assign]
    return {
        "stored vectors": len(stored),
        "sketching them, s": sketching,
        "first map, s": first,
        "with one vector more, ms": 1000 * following,
    }


def _group(scope: Scope) -> Any:
    from comgrad.service.scope import Group

    return Group(scope.listings)


def looked(address: str, frames: int) -> dict[str, Any]:
    """The page in Chromium."""
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(base_url=address, viewport={"width": 1280, "height": 860})
        page.set_default_timeout(300_000)
        told = _answers(page)
        began = time.monotonic()
        page.goto("/map")
        page.get_by_role("application").wait_for()
        told["page to drawn map, ms"] = 1000 * (time.monotonic() - began)
        for kind in ("pan", "hover", "zoom"):
            took = sorted(page.evaluate(MOVES, [kind, frames]))
            told[f"{kind}, frame p50 ms"] = statistics.median(took)
            told[f"{kind}, frame p95 ms"] = took[int(0.95 * len(took))]
        browser.close()
        return told


def _answers(page: Page) -> dict[str, Any]:
    took, size = [], 0
    for _ in range(7):
        began = time.monotonic()
        answer = page.request.get("/api/v1/map")
        size = len(answer.body())
        took.append(1000 * (time.monotonic() - began))
    return {"answer, MB": size / 1e6, "answer p50, ms": statistics.median(took)}


if __name__ == "__main__":
    main()
