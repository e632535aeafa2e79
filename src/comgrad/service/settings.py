"""What an operator can set: one frozen value, read from `COMGRAD_SERVICE_*` where it is not given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from comgrad import config
from comgrad.errors import ComgradError

PREFIX = "COMGRAD_SERVICE_"
MiB = 2**20


class Settings(BaseModel):
    """The service's settings; every limit has a default that suits one machine.

    Args:
        data: the registry's folder; the service keeps its own files in `service/` below it.
        database: an SQLAlchemy URL of PostgreSQL; None keeps everything in SQLite below `data`.
        public_url: how browsers reach the service; https makes cookies secure.
        workers: where jobs run: threads of this process, or nowhere here (`comgrad.service.worker` runs them).
        publish_unowned: show vectors that the registry holds already, and nobody uploaded, to everybody.
        preload: load what questions need right after the start, not at the first question.
        pages: whether the web pages are served beside the API.
        screen: compare each new vector's weights with its description, slowly, in the background.
        signing_key: a key that signs the manifest of what is served; see `workflows.signing`.
        trusted_proxies: addresses whose X-Forwarded-For is believed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(default_factory=config.home)
    database: str | None = None
    public_url: str = "http://127.0.0.1:8000"
    workers: Literal["threads", "none"] = "threads"
    worker_threads: int = Field(2, ge=1, le=64)
    publish_unowned: bool = False
    open_sign_up: bool = False
    pages: bool = True
    preload: bool = True
    screen: bool = True
    metrics_token: str | None = Field(None, min_length=22)
    trusted_proxies: tuple[str, ...] = ()
    signing_key: Path | None = None
    signing_password: str | None = None

    # sizes
    max_upload_bytes: int = Field(512 * MiB, ge=1)
    max_chunk_bytes: int = Field(8 * MiB, ge=1)
    max_body_bytes: int = Field(256 * 1024, ge=1024)
    min_free_bytes: int = Field(256 * MiB, ge=0)

    # quotas for each account
    max_vectors: int = Field(10_000, ge=1)
    max_stored_bytes: int = Field(20 * 1024 * MiB, ge=1)
    suggestion_bytes: int = Field(4 * 1024 * MiB, ge=MiB)  # of all suggestions together; the oldest go first
    max_open_uploads: int = Field(32, ge=1)
    max_jobs: int = Field(200, ge=1)

    # seconds and hours
    body_seconds: float = Field(30.0, gt=0)
    chunk_idle_seconds: float = Field(15.0, gt=0)
    head_seconds: float = Field(20.0, gt=0)  # for the first line and the headers of a request
    unread_seconds: float = Field(120.0, gt=0)  # that an answer may wait for its reader
    upload_hours: float = Field(24.0, gt=0)
    session_days: float = Field(14.0, gt=0)
    suggestion_hours: float = Field(24.0, gt=0)
    job_stale_seconds: float = Field(60.0, gt=0)
    job_attempts: int = Field(3, ge=1)
    job_days: float = Field(30.0, gt=0)
    stop_seconds: float = Field(75.0, gt=0)  # after a signal, for what runs to end

    # connections of this process: in all, and of one address
    connections: int = Field(1_000, ge=1)
    connections_per_address: int = Field(256, ge=1)

    # requests per minute from one address or account
    reads_per_minute: int = Field(3_000, ge=1)
    writes_per_minute: int = Field(1_200, ge=1)
    computed_per_minute: int = Field(120, ge=1)
    logins_per_minute: int = Field(10, ge=1)

    # memory
    warm_scopes: int = Field(8, ge=1)
    warm_vectors_bytes: int = Field(512 * MiB, ge=MiB)
    whole_scope: int = Field(512, ge=4)  # up to this many vectors a suggestion weighs all of them
    neighbourhood: int = Field(48, ge=4)  # above it, this many nearest in words, or half where gains are not known
    beside: bool = True  # suggestions from neighbourhoods are made in a process beside this one
    map_points: int = Field(20_000, ge=4)  # on one map; above `whole_scope` most are placed by their sketches
    computing: int = Field(1, ge=1)  # suggestions, maps and trends at one time: each uses all cores by itself

    @property
    def folder(self) -> Path:
        """Where the service keeps its own files."""
        return self.data / "service"

    @property
    def secure(self) -> bool:
        """Whether browsers reach the service over https."""
        return self.public_url.startswith("https://")

    @classmethod
    def from_environment(cls, **given: Any) -> Settings:
        """The settings from the environment, `given` first. Raises ComgradError (`settings`)."""
        served = config.served()
        found: dict[str, Any] = {} if served is None else {"database": served[0]}
        for name in cls.model_fields:
            value = os.environ.get(f"{PREFIX}{name.upper()}")
            if value is not None:
                found[name] = tuple(filter(None, value.split(","))) if name == "trusted_proxies" else value
        return cls.checked(**{**found, **given})

    @classmethod
    def checked(cls, **given: Any) -> Settings:
        """Settings with a readable error. Raises ComgradError (`settings`)."""
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = ".".join(str(p) for p in first["loc"])
            raise ComgradError(
                f"the setting '{name}'", first["msg"], f"correct {PREFIX}{name.upper()}", code="settings"
            ) from error
