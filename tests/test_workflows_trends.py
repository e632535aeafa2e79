"""Trends end to end on the starter zoo: planted growth, copies, merges and gaps are told, on the page and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from comgrad.cli import trends_cmd
from comgrad.errors import ComgradError, NotFound
from comgrad.vectors.delta import LowRank
from comgrad.vectors.peft_write import write_peft
from comgrad.vectors.task_vector import TaskVector
from comgrad.workflows.adding import AddRequest, add_paths
from comgrad.workflows.registry import Registry
from comgrad.workflows.trends import Trends, parsed_day, trends, wanted_texts

START = datetime(2026, 1, 1, tzinfo=UTC)
APP = typer.Typer()
trends_cmd.register(APP)
APP.callback()(lambda: None)


def dated(registry: Registry, names: Sequence[str], first_day: int) -> None:
    """Give entries the times at which they would have been added, one a day."""
    with registry.store.catalogue.writing() as rows:
        for day, name in enumerate(names):
            rows._change(registry.get(name).id, {"created_at": START + timedelta(days=first_day + day)})


def upload(vector: TaskVector, folder: Path, name: str, registry: Registry, **card: object) -> None:
    words = {"schema": 1, "name": name, "description": f"what {name} does", "family": "uploads", **card}
    write_peft(vector, folder / name, extra_files={"task_card.json": json.dumps(words).encode()})
    assert add_paths([folder / name], AddRequest(), registry=registry)[0].status == "added"


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, zoo: list[Path]) -> Registry:
    """Twenty honest vectors over a year, five of one family in the last month, then a copy, a merge and a mean."""
    folder = tmp_path_factory.mktemp("grown")
    registry = Registry(folder / "home")
    intents = [p for p in zoo if p.name.startswith("intent-")][:6]
    others = [p for p in zoo if not p.name.startswith("intent-")][:15]
    add_paths([*others, *intents], AddRequest(), registry=registry)
    for i, p in enumerate(others):
        dated(registry, [p.name], 20 * i)
    dated(registry, [p.name for p in intents], 330)
    a, b = TaskVector.from_peft(others[0]), TaskVector.from_peft(others[1])
    turned = {
        n: replace(d, B=(d.B.flip(1) * 2.0), A=(d.A.flip(0) * 0.5))
        for n, d in a.tensors.items()
        if isinstance(d, LowRank)
    }
    upload(TaskVector(a.base, turned), folder, "a-copy", registry)
    upload(a * 3.0, folder, "a-longer-copy", registry)
    parents = [{"id": others[i].name, "role": "merge"} for i in (0, 1)]
    upload(a * 0.5 + b * 0.6, folder, "a-merge", registry, parents=parents)
    dated(registry, ["a-copy", "a-longer-copy", "a-merge"], 340)
    return registry


@pytest.fixture(scope="module")
def made(grown: Registry) -> Trends:
    return trends(registry=grown, since="2026-11-20")


def test_copies_count_once_and_are_listed_with_what_they_are(made: Trends, grown: Registry) -> None:
    assert (made.vectors, made.counted) == (24, 22)
    oldest = grown.list()[0].name
    assert {c["name"]: (c["of"], c["kind"]) for c in made.copies} == {
        "a-copy": (oldest, "same, in other factors"),
        "a-longer-copy": (oldest, "scaled"),
    }
    assert made.copies[1]["length"] == pytest.approx(3.0, rel=1e-4)
    assert made.growth.total[:, -1].sum() == 22


def test_a_merge_is_told_with_its_parents(made: Trends, grown: Registry) -> None:
    (merge,) = made.mixtures
    assert merge["name"] == "a-merge" and merge["mixture"] and merge["as_declared"]
    assert {p["name"]: pytest.approx(p["coefficient"], rel=1e-3) for p in merge["parents"]} == {
        grown.list()[0].name: 0.5,
        grown.list()[1].name: 0.6,
    }
    assert merge["residual"] < 1e-4 < 0.9 < made.usual_residual


def test_a_family_added_in_the_last_month_is_emerging(made: Trends) -> None:
    assert [r.label for r in made.families if r.emerging] == ["intent"]
    assert (made.families[0].before, made.families[0].after) == (1, 6)  # one of the others is of that family too
    assert made.growth.unit == "month" and len(made.growth.starts) == 12
    assert made.drift is not None and made.drift.common == 15
    assert 0.0 < made.drift.overall < made.drift.shuffled
    assert len(made.drift.points) == 15


def test_nothing_recent_nothing_drifted(grown: Registry) -> None:
    later = trends(registry=grown, since="2030-01-01")
    assert later.drift is None and later.families == () and "nothing was added since 2030" in later.notes[0]
    earlier = trends(registry=grown, since="2000-01-01")
    assert earlier.drift is None and "everything was added since 2000" in earlier.notes[0]
    assert not any(r.emerging for r in earlier.families)


def test_the_default_is_the_last_quarter(grown: Registry) -> None:
    found = trends(registry=grown)
    assert found.since is not None
    assert sum(r.after for r in found.families) == 22 // 4


def test_what_nobody_offers_is_lacking(grown: Registry, tmp_path: Path) -> None:
    asked = tmp_path / "asked.txt"
    known = grown.list()[4].description.replace("\n", " ")
    asked.write_text(f"{known}\n\nПирог с яблоками и корицей\n", "utf-8")
    found = trends(registry=grown, wanted=asked).lacking
    assert [g["lacking"] for g in found] == [True, False]
    assert found[1]["nearest"] == grown.list()[4].name and found[1]["cosine"] == pytest.approx(1.0, abs=1e-3)
    assert trends(registry=grown).lacking == ()


def test_the_page_is_whole_and_escapes_what_uploaders_wrote(grown: Registry, tmp_path: Path, zoo: list[Path]) -> None:
    home = Path(shutil.copytree(grown.store.path, tmp_path / "home"))
    registry = Registry(home)
    evil = "<script>alert(1)</script>"
    upload(TaskVector.from_peft(zoo[-1]), tmp_path, "evil", registry, family=evil, description=evil)
    trends(registry=registry, out=tmp_path / "page.html", since="2026-06-01")
    page = (tmp_path / "page.html").read_text()
    assert evil not in page and "<script src" not in page
    for words in ("a-merge", "same, in other factors", "emerging", "Procrustes", "names these parents"):
        assert words in page


def test_the_command_prints_a_table_and_json(grown: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMGRAD_HOME", str(grown.store.path))
    shown = CliRunner().invoke(APP, ["trends", "--since", "2026-11-20"])
    assert shown.exit_code == 0, shown.output
    assert "24 vectors, 22 when near-duplicates count once" in shown.output
    assert "a-merge" in shown.output and "emerging" in shown.output
    page = tmp_path / "t.html"
    plain = CliRunner().invoke(APP, ["trends", "--json", "-o", str(page), "--since", "2026-11-20"])
    found = json.loads(plain.stdout)
    assert found["path"] == str(page) and page.is_file()
    assert sum(row[-1] for row in found["growth"]["total"].values()) == found["counted"] == 22
    assert [r["label"] for r in found["families"] if r["emerging"]] == ["intent"]


def test_a_registry_filled_in_a_minute_says_so(zoo: list[Path], tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    add_paths(zoo[:2], AddRequest(), registry=registry)
    found = trends(registry=registry)
    assert found.since is None and found.layout is None and "within one day" in found.notes[0]
    trends(registry=registry, out=tmp_path / "two.html")


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ComgradError, match="trends are written as .html"):
        trends(out=tmp_path / "x.pdf")
    with pytest.raises(ComgradError, match="the date 'soon'; it is no date; write it as"):
        trends(since="soon")
    with pytest.raises(ComgradError, match="a registry with no vectors"):
        trends()
    with pytest.raises(NotFound, match="there is no such file"):
        wanted_texts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(NotFound, match="it holds none"):
        wanted_texts(tmp_path / "empty.txt")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(ComgradError, match="no JSON"):
        wanted_texts(tmp_path / "bad.jsonl")


def test_wanted_from_cards_and_task_folders(tmp_path: Path, tasks: list[Path]) -> None:
    (tmp_path / "w.jsonl").write_text('{"description": "one thing"}\n"another"\n{"other": 1}\n')
    assert wanted_texts(tmp_path / "w.jsonl") == ["one thing", "another"]
    assert len(wanted_texts(tasks[0].parent)) == 3
    assert len(wanted_texts(tasks[0])) == 1


def test_a_day_is_in_utc_unless_it_says_otherwise() -> None:
    assert parsed_day("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    assert parsed_day("2026-01-31T10:00:00+02:00") == datetime(2026, 1, 31, 8, tzinfo=UTC)
