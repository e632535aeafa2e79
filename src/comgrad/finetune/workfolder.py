"""The folder beside a result in which its training is kept until the result is whole: one run, one specification."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from comgrad.errors import ComgradError, StorageError
from comgrad.finetune.checkpoints import last_whole, step_of
from comgrad.weights.storage import atomic_write_bytes, storage_error

SPEC, READINGS, LOCK = "run.json", "readings.json", "lock"


def partial_path(out: Path) -> Path:
    """`DIR.partial` beside DIR."""
    return out.with_name(out.name + ".partial")


def digest_of(spec: Mapping[str, Any]) -> str:
    """SHA-256 of a run's specification, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def kept(out: Path) -> str:
    """What an interrupted run leaves behind, in words."""
    folder = partial_path(out)
    whole = last_whole(folder / "checkpoints")
    if whole is None:
        return "nothing is trained yet; run the same command to start again"
    return f"'{folder}' keeps the training up to step {step_of(whole)}; run the same command to go on from there"


def remove_finished(out: Path, digest: str) -> None:
    """Remove the work folder of a finished result, when it is of the very run that the digest names."""
    path = partial_path(out)
    there = json.loads((path / SPEC).read_bytes())
    if there.get("digest") == digest:
        with FileLock(path / LOCK, timeout=0):
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class WorkFolder:
    """The work folder of one run, locked while it is open."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def remembered(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result computed once per run, even when the run is interrupted and taken up again."""
        file = self.path / READINGS
        known: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
        if name not in known:
            known[name] = compute()
            atomic_write_bytes(file, json.dumps(known, indent=1).encode())
        found: dict[str, Any] = known[name]
        return found

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def work_folder(out: Path, spec: Mapping[str, Any]) -> Iterator[WorkFolder]:
    """Open the work folder of a result, new or left by an interrupted run of the same specification.

    Raises:
        ComgradError: (`other-run`) it holds a run of another specification; (`busy`) a run that is going on; (`no-work-
            folder`) something else.
        StorageError: it cannot be written.
    """
    path = partial_path(out)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise ComgradError(
            f"'{path}'", "another process is training there", "wait for it, or choose another -o", code="busy"
        ) from None
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        _claim(path, spec)
        yield WorkFolder(path)
    finally:
        lock.release()


def _claim(path: Path, spec: Mapping[str, Any]) -> None:
    wanted = {"digest": digest_of(spec), "spec": dict(spec)}
    if not (path / SPEC).exists():
        strangers = sorted(p.name for p in path.iterdir() if p.name != LOCK and not p.name.startswith("."))
        if strangers:
            (path / LOCK).unlink(missing_ok=True)
            raise ComgradError(
                f"'{path}' holds '{strangers[0]}'",
                "it is no work folder of comgrad train",
                "move it away, or choose another -o",
                code="no-work-folder",
            )
        atomic_write_bytes(path / SPEC, json.dumps(wanted, indent=1, ensure_ascii=False).encode())
        return
    try:
        there = json.loads((path / SPEC).read_bytes())
        known, before = str(there["digest"]), dict(there["spec"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"'{path / SPEC}'", f"it cannot be read ({error})", f"remove '{path}'") from error
    if known == wanted["digest"]:
        return
    other = sorted(k for k in {*before, *spec} if before.get(k) != spec.get(k))
    shown = ", ".join(f"{k} ({_short(before.get(k))}, now {_short(spec.get(k))})" for k in other[:4])
    raise ComgradError(
        f"'{path}' holds an unfinished run with another {shown}",
        "going on from its checkpoints would mix two runs",
        f"repeat the first command, choose another -o, or remove '{path}'",
        code="other-run",
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"
