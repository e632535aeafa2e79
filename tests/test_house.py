"""The house's own rules: layers, shape checks, documentation that cannot go stale."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from comgrad.predict.ridge import fit

ROOT = Path(__file__).parents[1]


def lint_imports(source: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        capture_output=True,
        text=True,
        cwd=source,
        env={"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin"},
        check=False,
    )


def test_a_module_imports_only_lower_layers() -> None:
    done = lint_imports(ROOT / "src")
    assert done.returncode == 0, done.stdout
    assert "5 kept, 0 broken" in done.stdout


def test_the_layer_check_can_fail(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("zoo", "tasks", "__pycache__"))
    with (tmp_path / "src/comgrad/geometry/gram.py").open("a") as file:
        file.write("\nfrom comgrad.workflows import resolve\n")
    done = lint_imports(tmp_path / "src")
    assert done.returncode != 0
    assert "comgrad.geometry.gram -> comgrad.workflows.resolve" in done.stdout


def test_shapes_are_checked_under_pytest() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        fit(np.eye(4), np.eye(5))


def test_command_reference_is_what_the_program_says() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "typer",
            "comgrad.cli.main",
            "utils",
            "docs",
            "--name",
            "comgrad",
            "--title",
            "Command line",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ROOT / "docs/cli.md").read_text().rstrip() == done.stdout.rstrip(), "run: ./run docs"


def test_readme_names_every_package_and_existing_files() -> None:
    readme = (ROOT / "README.md").read_text()
    packages = sorted(
        p.name for p in (ROOT / "src/comgrad").iterdir() if (p / "__init__.py").exists() and any(p.glob("[!_]*.py"))
    )
    assert len(packages) >= 11
    missing = [p for p in packages if f"{p}/" not in readme]
    assert missing == []
    linked = re.findall(r"\]\(([^)#]+)\)", readme)
    assert linked
    assert [link for link in linked if "://" not in link and not (ROOT / link).exists()] == []


def test_every_document_is_reachable_from_the_readme_or_its_index() -> None:
    text = "".join(p.read_text() for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert [p.name for p in (ROOT / "docs").glob("*.md") if f"{p.name}" not in text] == []
