"""Real clients that share real adapters without end, and a reader who believes nothing: what `faults.py` disturbs."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
from safetensors.numpy import load_file, save_file

import comgrad as cg
from comgrad.client.errors import Remote, Unreachable
from comgrad.client.results import Pushed
from comgrad.client.wire import Patience
from comgrad.errors import ComgradError
from crash import zoo
from faults_site import Site

CONFIG, CARD, WEIGHTS = "adapter_config.json", "task_card.json", "adapter_model.safetensors"


def variant(number: int, folder: Path) -> Path:
    """A folder with a real adapter whose factors are a little other than those of any other number."""
    source = zoo()[number % len(zoo())].parent
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, CARD):
        shutil.copyfile(source / name, folder / name)
    rng = np.random.default_rng(number)
    state = load_file(source / WEIGHTS)
    turned = {k: (v * (1 + 0.05 * rng.standard_normal(v.shape))).astype(v.dtype) for k, v in state.items()}
    save_file(turned, folder / WEIGHTS, {"format": "pt"})
    return folder


@dataclass(eq=False)
class Person(threading.Thread):
    """A thread that pushes one adapter after the other through `cg.Client`, and does nothing else about faults.

    Where the client gives up, the same call is made again, as its message says. `phase` is what it waits for.
    """

    site: Site
    name_: str
    numbers: Iterator[int]
    over: threading.Event
    origin: str = ""
    patience: Patience | None = None
    phase: str = "between"
    kept: dict[str, Pushed] = field(default_factory=dict)
    again: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(name=self.name_, daemon=True)

    def run(self) -> None:
        """Push until it is over, and end what was begun."""
        folder = self.site.folder / self.name_
        while not self.over.is_set():
            name = f"variant-{next(self.numbers)}"
            source = variant(int(name.rsplit("-", 1)[1]), folder / name)
            pushed = self._pushed(source, name, folder / "cache")
            shutil.rmtree(source)
            if pushed is not None:
                self.kept[name] = pushed

    def _pushed(self, source: Path, name: str, cache: Path) -> Pushed | None:
        for _ in range(20):
            try:
                with cg.Client(
                    self.origin or self.site.origin, token=self.site.token, cache=cache, patience=self.patience
                ) as client:
                    self.phase = "upload"
                    return client.push(source, name=name, public=True, progress=self._seen)
            except Unreachable:
                self.again["client gave up"] += 1
            except Remote as error:
                if "ended its worker" not in error.why:
                    self.problems.append(f"{name}: {error.code}: {error}")
                    return None
                self.again["job killed three times"] += 1
            except ComgradError as error:
                self.problems.append(f"{name}: {error.code}: {error}")
                return None
            finally:
                self.phase = "between"
        self.problems.append(f"{name}: still not taken in after twenty calls")
        return None

    def _seen(self, done: int, total: int) -> None:
        self.phase = "job" if done == total else "upload"


@dataclass(eq=False)
class Reader(threading.Thread):
    """A thread that looks at the newest vectors: what is listed must be there whole, whatever just happened."""

    site: Site
    over: threading.Event
    looked: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(name="reader", daemon=True)

    def run(self) -> None:
        """Look until it is over."""
        with httpx2.Client(base_url=f"{self.site.origin}/api/v1", timeout=120, trust_env=False) as http:
            while not self.over.wait(0.3):
                try:
                    for row in self._json(http, "/vectors?sort=newest&limit=2").get("items", []):
                        self._check(http, row["id"], row["digest"])
                except httpx2.TransportError:
                    continue  # killed just now

    def _get(self, http: httpx2.Client, path: str) -> httpx2.Response | None:
        answer = http.get(path)
        self.statuses[answer.status_code] += 1
        if answer.status_code not in (200, 503):
            self.problems.append(f"reading {path}: {answer.status_code} {answer.text[:200]}")
        return answer if answer.status_code == 200 else None

    def _json(self, http: httpx2.Client, path: str) -> dict[str, list[dict[str, str]]]:
        answer = self._get(http, path)
        found: dict[str, list[dict[str, str]]] = answer.json() if answer is not None else {}
        return found

    def _check(self, http: httpx2.Client, identity: str, digest: str) -> None:
        for f in self._json(http, f"/vectors/{identity}/files").get("items", []):
            answer = self._get(http, f"/vectors/{identity}/files/{f['name']}")
            if answer is None:
                continue
            self.looked += 1
            found = hashlib.sha256(answer.content).hexdigest()
            if found != f["sha256"] or (f["name"] == "vector.safetensors" and found != digest):
                self.problems.append(f"half an entry: {identity} {f['name']}")


@dataclass
class Crowd:
    """Some people and a reader at one site."""

    people: list[Person]
    reader: Reader
    over: threading.Event

    @classmethod
    def at(cls, site: Site, many: int, patience: Patience | None = None) -> Crowd:
        """Everybody, at work."""
        over, numbers = threading.Event(), itertools.count()
        people = [Person(site, f"person-{i}", numbers, over, patience=patience) for i in range(many)]
        crowd = cls(people, Reader(site, over), over)
        for thread in (*people, crowd.reader):
            thread.start()
        return crowd

    def wait_for(self, phase: str, seconds: float = 120.0) -> None:
        """Wait until somebody is in that phase; the time is not exceeded by much."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not any(p.phase == phase for p in self.people):
            time.sleep(0.01)

    def end(self, seconds: float = 900.0) -> list[str]:
        """Let everybody end what was begun; what went wrong for whom."""
        self.over.set()
        until = time.monotonic() + seconds
        problems = []
        for thread in (*self.people, self.reader):
            thread.join(max(1.0, until - time.monotonic()))
            if thread.is_alive():
                problems.append(f"{thread.name} did not come to an end")
            problems += thread.problems
        return problems

    @property
    def kept(self) -> dict[str, Pushed]:
        """Name → what was acknowledged."""
        return {name: pushed for p in self.people for name, pushed in p.kept.items()}

    @property
    def again(self) -> Counter[str]:
        """Why how many calls had to be made again."""
        return sum((p.again for p in self.people), Counter[str]())
