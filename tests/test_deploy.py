"""The files for running the larger size: readable, without a secret or a default password, naming what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from comgrad.cli.main import app
from comgrad.service.settings import Settings

DEPLOY = Path(__file__).parents[1] / "deploy"
SECRETS = ("POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def test_the_compose_file_needs_every_secret_and_sets_no_default() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    found = yaml.safe_load(text)
    assert set(found) == {"name", "x-comgrad", "services", "volumes"}
    assert set(found["services"]) == {"database", "objects", "bucket", "service", "worker"}
    for name in SECRETS:
        uses = re.findall(r"\$\{" + name + r"[^}]*\}", text)
        assert uses
        assert all(":?" in use for use in uses)
    for service in found["services"].values():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in found["services"]
            known = {"service_started", "service_healthy", "service_completed_successfully"}
            assert how["condition"] in known
            assert how["condition"] != "service_healthy" or "healthcheck" in found["services"][needed]
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in found["volumes"]
    assert found["services"]["service"]["ports"] == [
        "127.0.0.1:${COMGRAD_PORT:-8000}:8000"
    ]  # nothing is open to others
    assert [name for name, service in found["services"].items() if "ports" in service] == ["service"]


def test_the_example_holds_no_secret() -> None:
    lines = (DEPLOY / "environment.example").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert values == dict.fromkeys(SECRETS, "")


def test_no_remark_becomes_part_of_a_value() -> None:
    lines = (DEPLOY / "environment.example").read_text().splitlines()
    values = [m[1] for line in lines if (m := re.fullmatch(r"(?:# )?[A-Z_]+=(.*)", line))]
    assert len(values) > len(SECRETS)
    assert not any(re.search(r"\s", value) for value in values)


def test_the_service_is_given_the_time_it_takes_to_stop() -> None:
    needed = Settings().stop_seconds
    for name in ("comgrad.service", "comgrad-worker@.service"):
        [given] = re.findall(r"TimeoutStopSec=(\d+)\n", (DEPLOY / "systemd" / name).read_text())
        assert int(given) > needed
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert all(int(services[name]["stop_grace_period"].rstrip("s")) > needed for name in ("service", "worker"))


def test_what_the_files_start_exists() -> None:
    units = sorted((DEPLOY / "systemd").glob("comgrad*"))
    assert len(units) == 4
    text = "".join(path.read_text() for path in (*units, DEPLOY / "Dockerfile", DEPLOY / "compose.yaml"))
    commands = set(re.findall(r"bin/comgrad (\w+)|\"comgrad\", \"(\w+)\"", text))
    assert {a or b for a, b in commands} == {"serve", "backup"}
    for command in ("serve", "backup", "restore"):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
    modules = set(re.findall(r"-m\W+(comgrad[\w.]+\w)", text))
    assert modules == {"comgrad.service.worker"}
    assert all(find_spec(module) for module in modules)


def test_the_units_pass_systemds_own_check(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze")
    for unit in sorted((DEPLOY / "systemd").glob("comgrad*")):
        copy = tmp_path / unit.name.replace("@.", "@1.")
        copy.write_text(re.sub(r"/opt/comgrad/\.venv/bin/\w+", "/bin/true", unit.read_text()))
    done = subprocess.run(
        [program, "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if "comgrad" in line]
    assert complaints == []
