"""What the study is asked, and the frozen list of pairs and triples that it is about."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from comgrad.errors import ComgradError

DEVELOPMENT, TEST = "development", "test"


@dataclass(frozen=True)
class Request:
    """One run of the study.

    Args:
        data: folder with tasks/ and zoo/; what is shipped when None.
        out: folder for the results.
        randoms: random adapters of the null, at least 2.
        draws: of every bootstrap.
    """

    data: Path | None = None
    out: Path = Path("bench-out")
    randoms: int = 25
    draws: int = 2000
    seed: int = 0

    def check(self) -> None:
        """Raises ComgradError for numbers that mean nothing."""
        if self.randoms < 2 or self.draws < 100:
            raise ComgradError(
                f"{self.randoms} random adapters and {self.draws} draws",
                "a null needs a spread, and an interval draws",
                "use at least 2 and 100",
                code="bad-options",
            )


@dataclass(frozen=True)
class Pair:
    """An ordered pair: `general` contains `contained`, in the sense of `kind`, for `reason`."""

    general: str
    contained: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Triple:
    """The slides' three tasks: a general one, one it contains, and a control; `reason` says why the control is one."""

    general: str
    contained: str
    control: str
    reason: str


@dataclass(frozen=True)
class Study:
    """The frozen list."""

    statement: str
    meaning: str
    protocol: tuple[str, ...]
    pairs: tuple[Pair, ...]
    triples: tuple[Triple, ...]

    @cached_property
    def halves(self) -> dict[str, str]:
        """General task → `development` or `test`: pairs of one general task are never divided.

        In the order of the SHA-256 of their ids, each goes to the half with fewer pairs so far, development first.
        Decided on the whole list, so that a run on fewer tasks has each pair on the same side.
        """
        count = Counter(p.general for p in self.pairs)
        size = {DEVELOPMENT: 0, TEST: 0}
        out = {}
        for general in sorted(count, key=lambda g: hashlib.sha256(g.encode()).hexdigest()):
            out[general] = DEVELOPMENT if size[DEVELOPMENT] <= size[TEST] else TEST
            size[out[general]] += count[general]
        return out

    def on(self, ids: Collection[str]) -> Study:
        """The same, with the pairs and triples whose tasks are all among `ids`, and the halves of the whole list."""
        pairs = tuple(p for p in self.pairs if p.general in ids and p.contained in ids)
        triples = tuple(t for t in self.triples if {t.general, t.contained, t.control} <= set(ids))
        out = Study(self.statement, self.meaning, self.protocol, pairs, triples)
        out.__dict__["halves"] = self.halves  # the cached property of the whole list
        return out


def load_study(file: Path | None = None) -> Study:
    """The frozen list of the package, or one of the same form.

    Raises:
        ComgradError: the file does not hold one; a pair occurs twice or in both orders.
    """
    path = Path(str(files("comgrad.workflows.bench_spectral") / "pairs.json")) if file is None else file
    try:
        value = json.loads(path.read_text("utf-8"))
        pairs = tuple(Pair(**p) for p in value["pairs"])
        triples = tuple(Triple(**t) for t in value["triples"])
        study = Study(value["statement"], value["meaning"], tuple(value["protocol"]), pairs, triples)
    except (ValueError, KeyError, TypeError) as error:
        raise _bad(path, f"it is no list of pairs ({error})") from error
    _check(path, pairs, triples)
    return study


def _check(path: Path, pairs: Sequence[Pair], triples: Sequence[Triple]) -> None:
    seen: set[tuple[str, str]] = set()
    for p in pairs:
        if p.general == p.contained or (p.general, p.contained) in seen or (p.contained, p.general) in seen:
            raise _bad(path, f"'{p.general}' and '{p.contained}' are in it twice, or are one task")
        seen.add((p.general, p.contained))
    for t in triples:
        both = {(t.general, t.control), (t.control, t.general), (t.contained, t.control), (t.control, t.contained)}
        if (t.general, t.contained) not in seen or both & seen:
            raise _bad(path, f"the triple of '{t.general}' and '{t.contained}' is of no pair, or its control is in one")


def _bad(path: Path, why: str) -> ComgradError:
    return ComgradError(f"'{path.name}'", why, "mend the list", code="bad-pairs")
