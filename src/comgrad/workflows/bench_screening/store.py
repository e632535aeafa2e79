"""What is kept of the corpus: a folder for every vector, which takes its name when it is whole, and one table of features."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comgrad.errors import ComgradError, NotFound
from comgrad.vectors.task_vector import TaskVector
from comgrad.weights.storage import atomic_directory, atomic_write_bytes
from comgrad.workflows.bench_screening.plan import Plan, Unit

RECORD, VECTOR = "record.json", "adapter"
FACTS = ("task", "seed", "group", "kind", "rate", "word", "altered", "examples", "steps", "learning_rate", "share",
         "accuracy", "success", "seconds")  # fmt: skip
NUMBERS = ("rate", "learning_rate", "share", "accuracy", "success", "seconds")
COUNTS = ("seed", "altered", "examples", "steps")
DIGITS = 7  # of a feature in the table: more than the fit can use, and the table stays small


@dataclass(frozen=True)
class Row:
    """One vector of the table: what is known of it, and its features by name (of those it has)."""

    facts: Mapping[str, Any]
    features: Mapping[str, float]

    @property
    def block(self) -> str:
        return f"{self.facts['task']}-s{self.facts['seed']}"

    @property
    def group(self) -> str:
        return str(self.facts["group"])


@dataclass(frozen=True)
class Store:
    """The run's folder."""

    plan: Plan

    def folder(self, unit: Unit) -> Path:
        """Where a vector is kept."""
        return self.plan.request.out / "vectors" / unit.block / f"{unit.name}-{self.plan.digest(unit)[:12]}"

    def read(self, unit: Unit) -> dict[str, Any] | None:
        """A finished vector's record."""
        path = self.folder(unit) / RECORD
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def vector(self, unit: Unit) -> TaskVector:
        """A finished vector. Raises NotFound where it was not made, or not kept."""
        path = self.folder(unit) / VECTOR
        if not path.is_dir():
            raise NotFound(f"the vector '{unit.name}'", "it is not kept", "make its block again with vectors kept")
        return TaskVector.from_peft(path, base=self.plan.base.path)

    def write(self, unit: Unit, record: Mapping[str, Any], vector: TaskVector) -> None:
        """Keep a vector with its record: both, or nothing."""
        folder = self.folder(unit)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(folder, replace=True) as there:
            vector.save_peft(there / VECTOR)
            atomic_write_bytes(there / RECORD, json.dumps(record).encode())

    def rewrite(self, unit: Unit, record: Mapping[str, Any]) -> None:
        """Another record of a finished vector."""
        atomic_write_bytes(self.folder(unit) / RECORD, json.dumps(record).encode())

    def has_vector(self, unit: Unit) -> bool:
        """Whether the vector itself is kept."""
        return (self.folder(unit) / VECTOR).is_dir()

    def forget_vectors(self, units: Iterable[Unit]) -> None:
        """Delete vectors whose records stay."""
        for unit in units:
            shutil.rmtree(self.folder(unit) / VECTOR, ignore_errors=True)

    def rows(self) -> list[Row]:
        """All finished vectors in the plan's order."""
        found = (self.read(u) for u in self.plan.units())
        return [Row({k: r[k] for k in FACTS}, r["features"]) for r in found if r is not None]


# -- the table ---------------------------------------------------------------------------------------------------------
def as_table(rows: Sequence[Row]) -> bytes:
    """CSV, one line a vector; a feature that a vector has not is an empty field."""
    names = sorted({n for r in rows for n in r.features})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*FACTS, *names])
    for r in rows:
        facts = ["" if r.facts[k] is None else r.facts[k] for k in FACTS]
        writer.writerow([*facts, *(f"{r.features[n]:.{DIGITS}g}" if n in r.features else "" for n in names)])
    return out.getvalue().encode()


def read_table(path: Path) -> list[Row]:
    """The rows of a table. Raises NotFound; ComgradError (`bad-table`) with the line."""
    if not path.is_file():
        raise NotFound(f"'{path}'", "there is no such file", "name the table that an earlier run wrote")
    out = []
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        for number, line in enumerate(reader, 2):
            try:
                out.append(_row(line))
            except (KeyError, ValueError, TypeError) as error:
                raise ComgradError(
                    f"'{path}' line {number}", f"it is no row of features ({error})", "write the table again",
                    code="bad-table",
                ) from error  # fmt: skip
    return out


def _row(line: Mapping[str, str]) -> Row:
    facts: dict[str, Any] = {k: line[k] for k in FACTS}
    facts |= {k: float(line[k]) if line[k] else None for k in NUMBERS}
    facts |= {k: int(line[k]) for k in COUNTS}
    features = {k: float(v) for k, v in line.items() if k not in FACTS and v}
    if not all(map(math.isfinite, features.values())):
        raise ValueError("a feature is no number")
    return Row(facts, features)
