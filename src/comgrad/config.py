"""Where comgrad keeps its registry and how it finds things: a few environment variables, nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from comgrad.errors import ComgradError


def home() -> Path:
    """The registry's folder: `COMGRAD_HOME`, else the platform's user data folder."""
    given = os.environ.get("COMGRAD_HOME")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_data_path  # only the default needs it

    return user_data_path("comgrad")


def personal() -> Path:
    """The folder of this user's own settings and credentials: `COMGRAD_CONFIG`, else the platform's; never a registry's."""
    given = os.environ.get("COMGRAD_CONFIG")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_config_path

    return user_config_path("comgrad")


def downloads() -> Path:
    """The folder of downloaded vectors, safe to delete: `COMGRAD_CACHE`, else in the platform's cache folder."""
    given = os.environ.get("COMGRAD_CACHE")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("comgrad") / "downloads"


def served() -> tuple[str, str] | None:
    """The addresses of a registry in the larger size, `COMGRAD_DATABASE` and `COMGRAD_BLOBS`; None when neither is set.

    Raises:
        ComgradError: only one of them is set.
    """
    database, blobs = (os.environ.get(name, "").strip() for name in ("COMGRAD_DATABASE", "COMGRAD_BLOBS"))
    if bool(database) != bool(blobs):
        given, missing = ("COMGRAD_DATABASE", "COMGRAD_BLOBS") if database else ("COMGRAD_BLOBS", "COMGRAD_DATABASE")
        why = f"{missing} is not, and a registry needs both a database and a place for blobs"
        raise ComgradError(f"{given} is set", why, f"set {missing} too, or neither", code="bad-address")
    return (database, blobs) if database else None


def copies_bytes() -> int:
    """How much room local copies of remote blobs may take: `COMGRAD_COPIES_GIB`, 20 unless set.

    Raises:
        ComgradError: it is no number, or negative.
    """
    given = os.environ.get("COMGRAD_COPIES_GIB", "20")
    try:
        size = float(given)
        if not 0 <= size < 1e9:
            raise ValueError
    except ValueError as error:
        why = "it is not a number of gibibytes"
        raise ComgradError(
            f"COMGRAD_COPIES_GIB={given[:40]!a}", why, "give a number, 20 say", code="bad-setting"
        ) from error
    return int(size * 2**30)
