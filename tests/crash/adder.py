"""One of several processes that add the same and different entries to one new registry at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from comgrad.errors import NameTaken
from comgrad.registry.card import Card
from comgrad.registry.models import Entry, Facts
from comgrad.registry.store import Store
from comgrad.types import BaseRef

SHARED, OWN = 15, 10
FACTS = Facts(BaseRef("m"), "lowrank", 1, 1.0)


def entries(worker: int) -> list[Entry]:
    """Fifteen that every process adds, each in another order; ten of its own; one name that all of them want."""
    shared = [Entry(f"shared {i}".encode() * 50, Card.make(name=f"shared {i}"), FACTS) for i in range(SHARED)]
    own = [Entry(f"own {worker} {i}".encode(), Card.make(name=f"of {worker} no {i}"), FACTS) for i in range(OWN)]
    wanted = Entry(f"wanted by {worker}".encode(), Card.make(name="Wanted"), FACTS)
    turn = worker % SHARED
    return [*shared[turn:], wanted, *own, *shared[:turn]]


def main() -> int:
    """Wait for the start, add everything, print how each entry ended."""
    folder, worker = Path(sys.argv[1]), int(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    with Store(folder) as store:
        results = list(store.add_many(entries(worker)))
    assert all(isinstance(result.error, NameTaken) for result in results if result.status == "refused")
    print(json.dumps([[r.status, r.record.digest if r.record else None] for r in results]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
