"""The command line: promised names and keys, one clear error for a mistake, nothing heavy at start."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comgrad.workflows.registry import Registry

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def filled(run: Run, zoo: list[Path]) -> Run:
    """The program with eight real adapters in its registry."""
    code, _, err = run("add", *zoo[1:9], "--json")
    assert code == 0, err
    return run


def keys(text: str) -> set[str]:
    return set(json.loads(text))


def test_add_twice_reports_added_then_exists(run: Run, zoo: list[Path]) -> None:
    code, out, _ = run("add", *zoo[:4], "--json")
    first = json.loads(out)
    assert code == 0
    assert [r["status"] for r in first] == ["added"] * 4
    assert all({"id", "name", "status", "neighbours", "warnings", "error"} <= set(r) for r in first)
    assert all(len(r["neighbours"]) == 3 for r in first)
    code, out, _ = run("add", *zoo[:4], "--json")
    assert code == 0
    assert [(r["status"], r["id"]) for r in json.loads(out)] == [("exists", r["id"]) for r in first]


def test_add_takes_a_folder_of_adapters_and_keeps_the_good_ones(run: Run, zoo: list[Path], tmp_path: Path) -> None:
    for source in zoo[:2]:
        shutil.copytree(source, tmp_path / "many" / source.name)
    bad = tmp_path / "many" / "bad"
    shutil.copytree(zoo[2], bad)
    (bad / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle")
    code, out, err = run("add", tmp_path / "many", "--json")
    rows = json.loads(out)
    assert code == 1
    assert sorted(r["status"] for r in rows) == ["added", "added", "refused"]
    refused = next(r for r in rows if r["status"] == "refused")
    assert refused["error"]["code"] == "pickle"
    assert err.count("error: ") == 1
    assert len(json.loads(run("list", "--json")[1])) == 2


def test_a_missing_path_is_a_refused_row(run: Run) -> None:
    code, out, err = run("add", "no/such/place", "--json")
    assert code == 1
    assert json.loads(out)[0]["status"] == "refused"
    assert err == "error: 'no/such/place'; there is nothing at that path; check the spelling\n"


def test_describe_and_name_are_kept(run: Run, zoo: list[Path]) -> None:
    assert run("add", zoo[0], "--describe", "Tell jokes from news", "--name", "jokes")[0] == 0
    shown = json.loads(run("show", "jokes", "--json")[1])
    assert (shown["name"], shown["description"], shown["kind"], shown["rank"]) == (
        "jokes",
        "Tell jokes from news",
        "lowrank",
        8,
    )
    assert {"id", "name", "description", "base", "kind", "rank", "norm", "digest"} <= set(shown)
    assert shown["base_status"] == "verified"
    code, _, err = run("add", zoo[1], "--name", "JOKES")
    assert code == 1
    assert "error: " in err


def test_list_search_show_remove(filled: Run, zoo: list[Path]) -> None:
    rows = json.loads(filled("list", "--json")[1])
    assert len(rows) == 8
    hits = json.loads(filled("search", "is every pronoun bound correctly", "--json")[1])
    assert hits[0]["score"] >= hits[-1]["score"]
    assert "acceptability" in hits[0]["name"]
    assert json.loads(filled("search", "agreement", "--words", "--json")[1])
    assert filled("remove", rows[0]["id"], "--reason", "test")[0] == 0
    assert len(json.loads(filled("list", "--json")[1])) == 7
    code, _, err = filled("show", rows[0]["id"])
    assert code == 1
    assert "removed" in err
    source = next(p for p in zoo if p.name == rows[0]["name"])
    code, _, err = filled("add", source)
    assert code == 1
    assert "--restore" in err
    back = json.loads(filled("add", source, "--restore", "--json")[1])[0]
    assert (back["status"], back["id"], back["name"]) == ("added", rows[0]["id"], rows[0]["name"])


def test_compare_has_every_promised_key(filled: Run, zoo: list[Path]) -> None:
    code, out, _ = filled("compare", zoo[1].name, zoo[2], "--json")
    result = json.loads(out)
    assert code == 0
    flat = {
        "cosine",
        "inner",
        "norms",
        "l2",
        "projection",
        "grassmann_l1",
        "geodesic",
        "chordal",
        "overlap",
        "overlap_z",
    }
    assert flat | {"spectral", "tensors"} <= set(result)
    for way in ("forward", "backward"):
        assert {"explained", "l1", "l2", "rec", "entropy_1", "entropy_2"} <= set(result["spectral"][way])
    assert len(result["tensors"]) == 24
    assert all(flat - {"norms"} <= set(t) for t in result["tensors"].values())
    assert -1 <= result["cosine"] <= 1


def test_matrix_and_map(filled: Run, tmp_path: Path) -> None:
    code, out, _ = filled("matrix", "--measure", "cosine", "-o", tmp_path / "m.npz", "--json")
    assert code == 0
    assert {"ids", "measure", "path"} <= keys(out)
    with np.load(tmp_path / "m.npz") as data:
        assert data["matrix"].shape == (8, 8)
        assert data["per_tensor"].shape == (24, 8, 8)
        assert len(data["ids"]) == 8
        assert len(data["tensors"]) == 24
        np.testing.assert_allclose(np.diag(data["matrix"]), 1.0, atol=1e-12)
    assert filled("matrix", "--measure", "grassmann_l1", "-o", tmp_path / "m.csv")[0] == 0
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 9
    for name in ("map.html", "map.png", "map.svg"):
        code, out, _ = filled("map", "-o", tmp_path / name, "--json")
        assert code == 0
        assert {"points", "clusters", "stress"} <= keys(out)
        assert (tmp_path / name).stat().st_size > 1000


def test_suggest_writes_an_adapter_with_its_card(filled: Run, tmp_path: Path) -> None:
    text = "Decide whether a sentence with a reflexive pronoun is grammatical English"
    code, out, err = filled("suggest", text, "-o", tmp_path / "start", "--json")
    assert code == 0, err
    assert {"abstained", "confidence", "scale", "sources", "trainable", "path"} <= keys(out)
    assert {p.name for p in (tmp_path / "start").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "task_card.json",
    }
    again = filled("suggest", text, "-o", tmp_path / "again", "--json")
    assert again[0] == 0
    first, second = ((tmp_path / d / "adapter_model.safetensors").read_bytes() for d in ("start", "again"))
    assert first == second


def test_merge_subtract_and_apply(filled: Run, zoo: list[Path], tmp_path: Path) -> None:
    names = [zoo[1].name, zoo[2].name]
    code, out, _ = filled("merge", *names, "--weights", "1,-1", "-o", tmp_path / "diff", "--json")
    assert code == 0
    assert {"path", "energy_kept", "method"} <= keys(out)
    assert json.loads(out)["energy_kept"] == 1.0
    norms = json.loads(filled("compare", tmp_path / "diff", names[0], "--json")[1])["norms"]
    a, b = (
        json.loads(filled("compare", *names, "--json")[1])["norms"],
        json.loads(filled("compare", *names, "--json")[1]),
    )
    expected = (a[0] ** 2 + a[1] ** 2 - 2 * b["inner"]) ** 0.5
    assert norms[0] == pytest.approx(expected, rel=1e-5)
    code, out, _ = filled("merge", *names, "--method", "mean", "--rank", "4", "-o", tmp_path / "mean", "--json")
    assert code == 0
    assert 0 < json.loads(out)["energy_kept"] < 1
    base = "sentence-transformers/all-MiniLM-L6-v2"
    code, out, _ = filled("apply", tmp_path / "mean", "--to", base, "-o", tmp_path / "full", "--json")
    assert code == 0
    assert {"path", "noise_floor", "tensors"} <= keys(out)
    code, out, _ = filled("extract", base, tmp_path / "full", "-o", tmp_path / "vector", "--json")
    assert code == 0
    assert {"path", "noise_floor", "tensors"} <= keys(out)
    cosine = json.loads(filled("compare", tmp_path / "vector", tmp_path / "mean", "--json")[1])["cosine"]
    assert cosine == pytest.approx(1.0, abs=1e-6)


def test_doctor_audits_every_blob(filled: Run, home: Path) -> None:
    code, out, _ = filled("doctor", "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True)
    assert any("16 of 16" in c["detail"] for c in report["checks"])
    vectors = {v["digest"] for v in json.loads(filled("list", "--json")[1])}
    blob = next(p for p in (home / "blobs").rglob("*") if p.name in vectors)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(bytes(data))
    code, out, _ = filled("doctor", "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    assert f"tv-{blob.name[:16]}" in next(c["detail"] for c in report["checks"] if c["name"] == "digests")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nothing"], "nothing"),
        (["compare", "a", "b"], "'a'"),
        (["map", "-o", "x.png"], "an empty registry|no vectors"),
        (["map", "-o", "x.bmp"], r"\.html, \.png or \.svg"),
        (["matrix", "-o", "x.npz", "--measure", "love"], "choose one of"),
        (["suggest", " ", "-o", "x"], "an empty description"),
        (["suggest", "a\x00b", "-o", "x"], "control characters"),
        (["suggest", "word " * 20_000, "-o", "x"], "100000 characters"),
        (["merge", "a", "b", "-o", "x", "--weights", "1,z"], "no list of numbers"),
        (["demo", "--task", "nope"], "banking-intent"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    run: Run, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err.split("; ")) >= 3
    assert re.search(message, err)
    assert list(tmp_path.iterdir()) == []
    error = json.loads(run(*arguments, "--json")[1])["error"]
    assert set(error) == {"code", "given", "why", "remedy"}


def test_usage_mistakes_exit_with_2(run: Run) -> None:
    assert run("compare", "only-one")[0] == 2
    assert run("nonsense")[0] == 2


def test_stopping_a_bulk_add_keeps_what_was_acknowledged(zoo: list[Path], home: Path) -> None:
    many = home.parent / f"{home.name}-many"
    for i in range(6):  # names differ, bytes do not matter: the same adapter under other α is another vector
        for source in zoo:
            copy = Path(shutil.copytree(source, many / f"{source.name}-{i}"))
            config = json.loads((copy / "adapter_config.json").read_text())
            (copy / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 16 + i}))
            (copy / "task_card.json").unlink()
    program = [sys.executable, "-c", "from comgrad.cli.main import main; main()", "add", str(many)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(list((home / "blobs").glob("??/*"))) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; what was finished is kept" in err
    registry = Registry()
    assert 0 < len(registry.list()) < 6 * len(zoo)
    assert registry.store.audit().ok


LAZY = """
import sys
{statement}
heavy = sorted({{"torch", "numpy", "transformers", "sqlalchemy", "sklearn", "pydantic", "plotly"}} & set(sys.modules))
print(heavy)
"""


def modules_loaded(statement: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LAZY.format(statement=statement)], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_import_and_help_load_nothing_heavy() -> None:
    assert modules_loaded("import comgrad") == "[]"
    assert (
        modules_loaded("import comgrad.cli.main as m\ntry:\n    m.app(['--help'])\nexcept SystemExit:\n    pass")
        == "[]"
    )


def test_the_check_for_heavy_imports_can_fail() -> None:
    assert modules_loaded("import comgrad; comgrad.TaskVector") != "[]"


def test_every_command_has_help_with_an_example(run: Run) -> None:
    from comgrad.cli.main import app

    names = [c.name for c in app.registered_commands]
    assert {
        "add",
        "list",
        "show",
        "search",
        "remove",
        "compare",
        "matrix",
        "map",
        "suggest",
        "merge",
        "extract",
    } <= set(names)
    assert {"apply", "doctor", "demo"} <= set(names)
    for name in names:
        code, out, _ = run(name, "--help")
        assert code == 0
        assert "comgrad " + str(name) in out
        assert "--json" in out


HOSTILE = "\x1b[2J=HYPERLINK(1)\u202e</script><script>alert(1)</script>"


def test_hostile_names_drive_neither_terminal_nor_spreadsheet_nor_report() -> None:
    from comgrad.atlas.layout import lay_out
    from comgrad.atlas.picture import Point, as_html
    from comgrad.cli.output import plain
    from comgrad.workflows.comparing import _csv

    shown = plain(HOSTILE)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    sheet = _csv(["a", "b"], ["=1+1", "@SUM(A1)"], np.eye(2)).decode()
    assert "'=1+1" in sheet
    assert ",=1+1" not in sheet
    assert ",@SUM" not in sheet
    points = [Point(f"i{i}", HOSTILE, HOSTILE, HOSTILE) for i in range(4)]
    assert "<script>alert(1)" not in as_html(lay_out(np.eye(4)), points, title=HOSTILE).decode()


def test_a_description_cannot_pretend_to_be_another_field(run: Run, zoo: list[Path]) -> None:
    assert run("add", zoo[0], "--name", "x", "--describe", "words\ndigest             0000")[0] == 0
    lines = run("show", "x")[1].splitlines()
    assert [line for line in lines if line.startswith("digest")] != []
    assert not any("0000" in line for line in lines if line.startswith("digest"))


@pytest.mark.parametrize("measure", ["cosine", "grassmann_l1", "overlap"])
def test_maps_of_other_measures(filled: Run, tmp_path: Path, measure: str) -> None:
    code, out, _ = filled("map", "--measure", measure, "-o", tmp_path / "m.svg", "--json")
    assert code == 0
    assert json.loads(out)["measure"] == measure
    code, _, err = filled("map", "--measure", "projection", "-o", tmp_path / "n.svg")
    assert code == 1
    assert "a map needs a symmetric measure" in err


def test_comparing_two_folders_makes_no_registry(run: Run, zoo: list[Path], home: Path) -> None:
    assert run("compare", zoo[0], zoo[1])[0] == 0
    assert not (home / "catalogue.sqlite").exists()
