"""Add blobs until the disk is full; print what was acknowledged and the error. Run on a small file system."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from comgrad.errors import StorageError
from comgrad.registry.card import Card
from comgrad.registry.models import Entry, Facts
from comgrad.registry.store import Store
from comgrad.types import BaseRef


def main() -> int:
    """Fill, then open again and look."""
    folder = Path(sys.argv[1])
    facts = Facts(BaseRef("m"), "lowrank", 1, 1.0)
    entries = (Entry(os.urandom(30_000), Card.make(name=f"no {i}"), facts) for i in range(1_000))
    acknowledged, error = [], None
    with Store(folder) as store:
        try:
            for result in store.add_many(entries):
                assert result.record is not None, result.error
                acknowledged.append(result.record.digest)
        except StorageError as caught:
            error = [caught.code, str(caught)]
    with Store(folder) as store:
        rows = [row.digest for row in store.list()]
        left = [path.name for path in (folder / "blobs" / "tmp").iterdir()]
        print(
            json.dumps(
                {
                    "error": error,
                    "lost": sorted(set(acknowledged) - set(rows)),
                    "extra": len(rows) - len(acknowledged),
                    "acknowledged": len(acknowledged),
                    "ok": store.audit().ok,
                    "left": left,
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
