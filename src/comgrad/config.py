"""Where comgrad keeps its registry and how it finds things: a few environment variables, nothing else."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The registry's folder: `COMGRAD_HOME`, else the platform's user data folder."""
    given = os.environ.get("COMGRAD_HOME")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_data_path  # only the default needs it

    return user_data_path("comgrad")
