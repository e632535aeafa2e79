"""Attacks on what lies under the service: links in folders, packages that were exchanged, backups that were damaged."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service import CONFIG, CONTAINER, WEIGHTS, ZOO, Site, code, row

Got = tuple[str, bool]
ROOT = Path(__file__).parents[1]
# another build, hence other hashes, per platform and accelerator: pinned by version alone
PLATFORM = {"torch", "torchvision", "triton"}


@row(
    "25",
    "links in what is added or pushed, in place of a stored vector and of an upload's part",
    "refused; what they point to is neither read nor written",
)
def links(site: Site) -> Got:
    from comgrad.workflows.adding import AddRequest, add_one
    from comgrad.workflows.registry import Registry

    said: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        zoo = sorted(p for p in ZOO.iterdir() if p.is_dir())[13]
        for kind, make in (("soft", Path.symlink_to), ("hard", Path.hardlink_to)):
            folder, own = place / kind, place / f"{kind}-own"
            folder.mkdir()
            shutil.copyfile(zoo / WEIGHTS, own)
            shutil.copyfile(zoo / CONFIG, folder / CONFIG)
            make(folder / WEIGHTS, own)
            said.append(f"push {kind} {_refusal(lambda folder=folder: _push(site, folder, place))}")
            if kind == "soft":  # a user's own caches share files by hard links; what is added is written anew anyway
                registry = Registry(place / "registry")
                said.append(f"add {kind} {_refusal(lambda: add_one(registry, folder, AddRequest()))}")  # noqa: B023
                registry.store.close()
        secret = place / "secret"
        secret.write_bytes(b"of somebody else " * 99)
        leaks = [*_stored(site, secret), *_part(site, secret, said)]
        untouched = secret.read_bytes() == b"of somebody else " * 99
    refused = [s.rsplit(" ", 1)[1] for s in said]
    good = not leaks and untouched and refused == ["linked", "symlink", "linked", "refused"]
    return f"{'; '.join(said)}; leaks: {leaks or 'none'}; target {'as it was' if untouched else 'WRITTEN'}", good


def _refusal(act: Callable[[], object]) -> str:
    """The code of a refusal, or `accepted`."""
    from comgrad.errors import ComgradError

    try:
        act()
    except ComgradError as error:
        return error.code
    return "accepted"


def _push(site: Site, folder: Path, cache: Path) -> None:
    import comgrad as cg

    with cg.Client(site.origin, token=site.tokens["eve"], cache=cache / "cache") as client:
        client.push(folder, name="linked")


def _stored(site: Site, secret: Path) -> list[str]:
    """What of a secret comes out when a stored vector's file is exchanged for a link to it."""
    made = site.share(site.adapter(13), name="linked-store", visibility="public").json()["job"]["result"]
    blob = site.folder / "data" / "blobs" / made["digest"][:2] / made["digest"]
    kept, leaks = blob.read_bytes(), []
    for make in (Path.symlink_to, Path.hardlink_to):
        blob.unlink()
        make(blob, secret)
        answer = site.call("GET", f"/api/v1/vectors/{made['vector']}/files/{CONTAINER}")
        if answer.status_code < 400 or b"somebody" in answer.content:
            leaks.append(f"{make.__name__}: {answer.status_code}")
    blob.unlink()
    blob.write_bytes(kept)
    blob.chmod(0o444)
    whole = site.call("GET", f"/api/v1/vectors/{made['vector']}/files/{CONTAINER}")
    if hashlib.sha256(whole.content).hexdigest() != made["digest"]:
        leaks.append(f"not served again: {code(whole)}")
    return leaks


def _part(site: Site, secret: Path, said: list[str]) -> list[str]:
    """What happens to a secret that an upload's part is a link to."""
    parts = site.adapter(13)
    upload = site.begin(parts, name="linked-part").json()["upload"]["id"]
    part = site.folder / "data" / "service" / "uploads" / upload / WEIGHTS
    part.symlink_to(secret)
    answer = site.send(upload, WEIGHTS, parts[WEIGHTS], at=len(secret.read_bytes()))
    said.append(f"part {'refused' if answer.status_code >= 400 else answer.status_code}")
    site.call("DELETE", f"/api/v1/uploads/{upload}", who="bob")
    return [] if secret.exists() else ["the target was deleted"]


@row(
    "49",
    "a package exchanged on its way; an unpinned one; an action or image step that takes what comes",
    "every package has its hashes; pip refuses other bytes; set-up and image install from the lock alone",
)
def supply_chain(site: Site) -> Got:
    del site
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^([A-Za-z0-9_.\-]+)(\[[^\]]*\])?==(\S+)[^\n]*((?:\n    --hash=\S+(?: \\)?)*)", lock, re.M)
    loose = [name for name, _, _, hashes in entries if "--hash=sha256:" not in hashes]
    foreign = re.findall(r"^(?:-e|--|git\+|https?:|.* @ ).*", lock, re.M)
    locked = {name.lower().replace("_", "-") for name, *_ in entries}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *(d for ds in project["optional-dependencies"].values() for d in ds)}
    names = {re.split(r"[\[<>=!~ ;]", d)[0].lower().replace("_", "-") for d in wanted} - PLATFORM - {"comgrad"}
    steps = [(ROOT / "run").read_text(), (ROOT / "deploy" / "Dockerfile").read_text()]
    hashed = [("--require-hashes" in step and "requirements.lock" in step) for step in steps]
    actions = re.findall(r"uses:\s*\S+@(?![0-9a-f]{40}\b)\S+", "".join(_texts(ROOT / ".github")))
    tampered = _tampered()
    good = len(entries) > 50 and not (loose or foreign or names - locked or actions) and all(hashed) and tampered
    return (
        f"{len(entries)} packages, without hashes {loose or 'none'}, from elsewhere {foreign or 'none'}, not in the lock "
        f"{sorted(names - locked) or 'none'}; by hash: set-up {hashed[0]}, image {hashed[1]}; loose actions "
        f"{actions or 'none'}; exchanged package {'refused' if tampered else 'INSTALLED'}",
        good,
    )


def _texts(folder: Path) -> list[str]:
    return [p.read_text() for p in folder.rglob("*.y*ml")] if folder.exists() else []


def _wheel(text: str) -> bytes:
    """A package of one line."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("exchanged.py", text)
        made.writestr("exchanged-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: exchanged\nVersion: 1\n")
        made.writestr("exchanged-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr("exchanged-1.dist-info/RECORD", "")
    return out.getvalue()


def _tampered() -> bool:
    """Whether pip, called as the set-up calls it, takes a package that is as locked and refuses one that is not."""
    good, bad = _wheel("word = 'good'\n"), _wheel("word = 'evil'\n")
    outcomes = []
    for data in (good, bad):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "exchanged-1-py3-none-any.whl").write_bytes(data)
            (folder / "lock").write_text(f"exchanged==1 --hash=sha256:{hashlib.sha256(good).hexdigest()}\n")
            command = [sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--no-index"]
            command += ["--find-links", temporary, "-r", str(folder / "lock"), "--target", str(folder / "out")]
            done = subprocess.run(
                [*command, "--disable-pip-version-check"], capture_output=True, text=True, timeout=300, check=False
            )
            outcomes.append((done.returncode == 0, (folder / "out" / "exchanged.py").exists()))
    return outcomes == [(True, True), (False, False)]


@row(
    "50",
    "a backup of the running service, restored; one byte, and one row, of it changed",
    "every blob audited by its digest, both times; each damage is refused by name",
)
def restore_drill(site: Site) -> Got:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        made = _comgrad(site.folder / "data", "backup", "-o", str(place / "backup"))
        back = _comgrad(place / "restored", "restore", str(place / "backup"))
        whole = made["ok"] and back["ok"] and made["checked"] == made["blobs"] == back["checked"] == back["blobs"] > 0
        kinds = ("vectors", "removed", "gradients")
        same = all(made[k] == back[k] for k in kinds)
        blobs = {p.name for p in (place / "backup" / "blobs").rglob("*") if re.fullmatch("[0-9a-f]{64}", p.name)}
        held = {p.name: p for p in (place / "restored" / "blobs").rglob("*") if p.name in blobs}
        audited = blobs == set(held) and all(hashlib.sha256(p.read_bytes()).hexdigest() == n for n, p in held.items())
        told = []
        victim = sorted((place / "backup" / "blobs").glob("??/*"))[0]
        for damaged in (victim, place / "backup" / "catalogue.jsonl"):
            kept = damaged.read_bytes()
            damaged.chmod(0o644)
            damaged.write_bytes(
                bytes([kept[len(kept) // 2] ^ 1]).join((kept[: len(kept) // 2], kept[len(kept) // 2 + 1 :]))
            )
            refused = _comgrad(place / f"of-{damaged.name[:8]}", "restore", str(place / "backup"))
            told.append(str((refused.get("error") or {}).get("code", "ACCEPTED")))
            damaged.write_bytes(kept)
    return (
        f"{made.get('checked')} of {made.get('blobs')} audited, restored {back.get('checked')} of {back.get('blobs')}; "
        f"rows alike {same}; changed: {told}",
        bool(whole and same and audited and told == ["backup-damaged"] * 2),
    )


def _comgrad(home: Path, *arguments: str) -> dict[str, Any]:
    """The program with `--json` in a registry's folder."""
    environment = {k: v for k, v in os.environ.items() if k not in ("COMGRAD_DATABASE", "COMGRAD_BLOBS")}
    command = [sys.executable, "-c", "from comgrad.cli.main import main; main()", *arguments, "--json"]
    done = subprocess.run(
        command,
        env={**environment, "COMGRAD_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    for text in (done.stdout, done.stderr):
        with contextlib.suppress(ValueError):
            found: dict[str, Any] = json.loads(text)
            return found
    return {"ok": False, "said": (done.stdout + done.stderr)[-300:]}
