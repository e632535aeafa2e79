"""Credentials: a file that only its owner can read; each token belongs to one address and is sent nowhere else."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from comgrad import config
from comgrad.client.address import Address, address
from comgrad.errors import ComgradError, FileRefused, NotFound
from comgrad.registry import disk

SCHEMA = 1
FILE = "credentials.json"
_MOST_BYTES = 1_048_576


@dataclass(frozen=True)
class Credential:
    """A token for one address; neither printing nor logging it shows the token."""

    origin: str
    token: str = field(repr=False)
    handle: str = ""
    token_id: str = ""
    expires_at: str = ""


def found(where: Address) -> Credential | None:
    """The credential for exactly this scheme, host and port.

    `COMGRAD_TOKEN` counts for the address in `COMGRAD_SERVER` only. Raises FileRefused (`credentials`), StorageError.
    """
    token = os.environ.get("COMGRAD_TOKEN", "").strip()
    named = os.environ.get("COMGRAD_SERVER", "").strip()
    if token and named and address(named, insecure=True) == where:
        return Credential(where.origin, token)
    held = _read(_path())["hosts"].get(where.origin)
    return None if held is None else _credential(where.origin, held)


def current() -> str | None:
    """The address signed in to last, or `COMGRAD_SERVER`."""
    named = os.environ.get("COMGRAD_SERVER", "").strip()
    return named or _read(_path())["current"]


def keep(credential: Credential) -> Path:
    """Store it and make its address the current one; the file's path. Raises StorageError."""
    held = {k: v for k, v in credential.__dict__.items() if k != "origin"}

    def change(data: dict[str, Any]) -> None:
        data["hosts"][credential.origin] = held
        data["current"] = credential.origin

    return _changed(change)


def forget(where: Address) -> bool:
    """Remove the credential of an address; whether there was one. Raises StorageError."""
    gone: list[Any] = []

    def change(data: dict[str, Any]) -> None:
        gone.append(data["hosts"].pop(where.origin, None))
        if data["current"] == where.origin:
            data["current"] = next(iter(data["hosts"]), None)

    _changed(change)
    return gone[0] is not None


def _path() -> Path:
    return config.personal() / FILE


def _credential(origin: str, held: Mapping[str, Any]) -> Credential:
    token = held.get("token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
        raise _damaged(_path())
    texts = {k: str(held.get(k) or "") for k in ("handle", "token_id", "expires_at")}
    return Credential(origin, token, **texts)


def _read(path: Path) -> dict[str, Any]:
    """The file's contents; empty when there is none. A file that others can read is refused, not used."""
    try:
        fd = disk.open_regular(path, f"'{path}'")
    except NotFound:
        return {"schema": SCHEMA, "current": None, "hosts": {}}
    with os.fdopen(fd, "rb") as file:
        mode = os.fstat(fd)
        if sys.platform != "win32" and (stat.S_IMODE(mode.st_mode) & 0o077 or mode.st_uid != os.geteuid()):
            why = "others can read or change it, and it holds tokens"
            remedy = f"run: chmod 600 '{path}'; if somebody may have read it, revoke its tokens"
            raise FileRefused(f"'{path}'", why, remedy, code="credentials")
        raw = file.read(_MOST_BYTES)
    try:
        data = json.loads(raw)
    except ValueError as error:
        raise _damaged(path) from error
    whole = isinstance(data, dict) and data.get("schema") == SCHEMA and isinstance(data.get("hosts"), dict)
    if not whole or not all(isinstance(v, dict) for v in data["hosts"].values()):
        raise _damaged(path)
    named = data.get("current")
    return {"schema": SCHEMA, "current": named if isinstance(named, str) else None, "hosts": data["hosts"]}


def _damaged(path: Path) -> ComgradError:
    return FileRefused(f"'{path}'", "it is no file of credentials", "delete it and sign in again", code="credentials")


def _changed(change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the file under a lock, atomically, readable by its owner only from the first byte on."""
    path = _path()
    with disk.storage(f"'{path}'"):
        if not path.parent.is_dir():
            disk.make_parents(path.parent.parent)
            path.parent.mkdir(mode=0o700, exist_ok=True)
        with FileLock(f"{path}.lock"):
            data = _read(path)
            change(data)
            _write(path, json.dumps(data, indent=1).encode() + b"\n")
    return path


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(8).hex()}.part")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | disk.OPEN_FLAGS, 0o600)
    try:
        try:
            disk.write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    disk.sync_folder(path.parent)
