"""A disk that is full: refused in words, nothing half-written, and all is well once there is room again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comgrad as cg
from comgrad.client.wire import Patience
from comgrad.errors import ComgradError
from crash import Acknowledged, check
from faults_people import variant
from faults_site import Site, running

DISK = 96 << 20
ROOMS = (
    0,
    16 << 10,
    100 << 10,
    330 << 10,
    500 << 10,
    650 << 10,
    1 << 20,
)  # an upload's way, from its row to its vector


@contextlib.contextmanager
def small_disk(folder: Path, size: int = DISK) -> Iterator[Path]:
    """A file system of its own, in memory; only root may mount one."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(ballast: Path, room: int) -> None:
    """Make a file so large that only so many bytes are free."""
    for _ in range(100):  # the service writes meanwhile
        free = os.statvfs(ballast.parent)
        wanted = free.f_bavail * free.f_frsize - room
        try:
            with ballast.open("wb") as out:
                if wanted > 0:
                    os.posix_fallocate(out.fileno(), 0, wanted)
            return
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            ballast.unlink()
    raise SystemExit("the disk cannot be filled")


def full_disk(size: str, folder: Path) -> dict[str, Any]:
    """Push with less and less room, then with enough."""
    with small_disk(folder / "home"), running(size, folder) as site:
        return fill_up(site, folder)


def fill_up(site: Site, folder: Path) -> dict[str, Any]:
    """The pushes; the service is stopped by this."""
    problems: list[str] = []
    said, digests = Counter[str](), set()
    ballast = folder / "home" / "ballast"
    quick = Patience(attempts=3, longest=1.0)

    def push(number: int, patience: Patience | None = None) -> str:
        name = f"full-{number}"
        with cg.Client(site.origin, token=site.token, cache=folder / "cache", patience=patience) as client:
            digests.add(client.push(variant(number, folder / name), name=name, public=True).digest)
        return "taken in"

    push(0)
    for number, room in enumerate(ROOMS, start=1):
        problems += site.idle()
        fill(ballast, room)
        try:
            said[push(number, quick)] += 1
        except ComgradError as error:
            said[error.code] += 1
            if error.code != "disk-full" or not error.remedy:
                problems.append(f"with {room} bytes of room: {error.code}: {error}")
        problems += _reads(site)
        ballast.unlink()
        if len(digests) != number + 1:
            try:
                push(number)
            except ComgradError as error:
                problems.append(f"with room again after {room} bytes: {error.code}: {error}")
    problems += site.idle()
    listed, _, _ = site.listed()
    if {row[2] for row in listed} != digests or len(listed) != len(ROOMS) + 1:
        problems.append(f"{len(listed)} listed, {len(digests)} taken in")
    site.stop()
    wrong, _, _ = check(site.place, Acknowledged(added=digests))
    problems += wrong
    return {"harm": len(ROOMS), "acknowledged": len(digests), "answers": dict(said), "problems": problems}


def _reads(site: Site) -> list[str]:
    """What is listed can be read, also on a full disk, and is whole."""
    answer = site.call("GET", "/vectors?limit=200")
    if answer.status_code != 200:
        return [f"the catalogue on a full disk: {answer.status_code} {answer.text[:200]}"]
    problems = []
    for row in answer.json()["items"]:
        found = site.call("GET", f"/vectors/{row['id']}/files/vector.safetensors")
        if found.status_code != 200 or hashlib.sha256(found.content).hexdigest() != row["digest"]:
            problems.append(f"{row['full_name']} on a full disk: {found.status_code} {found.text[:200]}")
    return problems
