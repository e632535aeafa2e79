"""What keeps a service of thousands of vectors quick: scopes that follow changes, neighbours by sketches, bounded waits."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comgrad.errors import NotFound, StorageError
from comgrad.registry.names import name_key
from comgrad.service.auth.identity import ANONYMOUS, Principal
from comgrad.service.errors import Busy
from comgrad.service.files import Files
from comgrad.service.insight import Insight
from comgrad.service.jobs.analysis import Analysis
from comgrad.service.nearness import CANDIDATES, Nearness
from comgrad.service.scope import Group, Scope, described
from comgrad.service.sketches import Sketches
from comgrad.service.store import things
from comgrad.service.warm import Geometry
from comgrad.service.web.limits import kind_of
from comgrad.vectors import peft_write
from comgrad.workflows.searching import Counted, nearest, settled
from service_site import Site, running

API = "/api/v1"
COUNT = 12


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, zoo: list[Path]) -> Iterator[Site]:
    """Twelve public vectors, related and embedded; jobs run when the test says so."""
    folder = tmp_path_factory.mktemp("scale")
    with running(folder, vectors=zoo[:COUNT], workers="none", publish_unowned=True, pages=True) as made:
        job = made.service.jobs.submit("relate", {}, key="relate")
        made.service.jobs.run(job.id)
        yield made


def reader(site: Site, role: str) -> Principal:
    return Principal(site.ids[role], role, scopes=frozenset({"read"}))


# -- scopes that follow changes ----------------------------------------------------------------------------------------
def test_a_scope_that_follows_changes_is_the_one_made_anew(site: Site) -> None:
    scopes, store = site.service.scopes, site.service.registry.store
    ids, draw = [r.id for r in store.list()], random.Random(0)
    for step in range(40):
        identity, role = draw.choice(ids), draw.choice(["owner", "other"])
        with site.service.database.write() as rows:
            known = things.listing(rows, identity, site.ids[role])
            if known is None:
                record = store.get(identity)
                row = np.full(384, step / 100, dtype="<f4").tobytes()
                things.put_listing(
                    rows, vector_id=identity, owner_id=site.ids[role], name=f"n{step}", name_key=name_key(f"n{step}"),
                    digest=record.digest, visibility=draw.choice(["public", "private"]), state="active",
                    card=record.card.to_dict(), tags=[], size_bytes=1, uploaded_by=site.ids[role],
                    embedding=draw.choice([None, row]), encoder="e",
                )  # fmt: skip
            else:
                change = draw.choice([{"visibility": "public"}, {"visibility": "private"}, {"state": "removed"}, {}])
                things.change_listing(rows, identity, site.ids[role], **({"state": "active"} | change))
        for who in (ANONYMOUS, reader(site, "owner"), reader(site, "other")):
            followed = scopes.scope(who)
            anew = scopes._made(frozenset(scopes._private) & who.owner_ids)
            assert followed.listings == anew.listings
            assert [x.id for x in followed.described.listings] == [x.id for x in anew.described.listings]
            assert np.array_equal(followed.described.rows, anew.described.rows)
            assert followed.before is None  # no older rows are held
            assert [g.digest for g in followed.groups] == [g.digest for g in anew.groups]
        assert scopes.scope(ANONYMOUS) is scopes.scope(ANONYMOUS)
    with site.service.database.write() as rows:
        for identity in ids:
            for role in ("owner", "other"):
                things.change_listing(rows, identity, site.ids[role], state="removed")


def test_a_private_change_leaves_the_public_scope_as_it_is(site: Site) -> None:
    before = site.service.scopes.scope(ANONYMOUS)
    identity = before.listings[0].id
    site.share(identity, "site-admin", "mine alone", "private")
    assert site.service.scopes.scope(ANONYMOUS) is before
    assert site.service.scopes.scope(reader(site, "site-admin")) is not before
    assert site.service.listings.get(reader(site, "site-admin"), "ann/mine alone").id == identity


def test_the_best_few_are_those_of_a_whole_sort(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    finding, scope = site.service.insight.finding, site.service.scopes.scope(ANONYMOUS)
    ids = [x.id for x in scope.described.listings]
    assert len(ids) == COUNT
    counted = Counted({ids[0]: 2}, {ids[1]: "it is odd", ids[5]: "so is this"}, {ids[2], ids[3]})
    monkeypatch.setattr(finding, "_counted", lambda scope: (counted, False))
    text = "decide whether a sentence is acceptable"
    entries = [x.entry for x in scope.described.listings]
    whole = settled(nearest(text, entries, scope.described.rows), counted)
    assert len(whole) == COUNT - 2
    for most in (1, 3, 7, 9, 10, 12, 50):
        found = finding.search(ANONYMOUS, text, limit=most)
        assert [(h.listing.id, h.copies, h.doubt) for h in found] == [
            (f.entry.id, f.copies, f.doubt) for f in whole[:most]
        ]
        assert np.allclose([h.score for h in found], [f.score for f in whole[:most]])


def test_embeddings_are_taken_over_and_those_of_another_encoder_are_not(site: Site) -> None:
    listings = site.service.scopes.scope(ANONYMOUS).listings
    first = described(listings)
    again = described(listings[3:], first)
    assert np.array_equal(again.rows, first.rows[3:])
    assert again.row(listings[0].id) is None
    assert Scope.of(listings).nearest_in_words(listings[4], Group(listings), 5) == Group(
        x for x in listings if x.id in {first.listings[int(i)].id for i in _near(first.rows, 4, 5)}
    )


def _near(rows: np.ndarray[Any, Any], at: int, most: int) -> list[int]:
    order = np.argsort(-(rows @ rows[at]), kind="stable").tolist()
    return sorted([at, *[i for i in order if i != at][: most - 1]])


# -- neighbours of a large scope ---------------------------------------------------------------------------------------
def test_neighbours_in_a_large_scope_are_the_nearest_and_read_a_few_vectors(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = site.service
    small = service.settings.model_copy(update={"whole_scope": 6})
    geometry = Geometry(service.registry, small)
    group = service.scopes.scope(ANONYMOUS).groups[0]
    nearness = Nearness(geometry, small)
    nearness.prepare(group)
    read: list[str] = []
    real = geometry.vector
    monkeypatch.setattr(geometry, "vector", lambda entry: (read.append(entry.id), real(entry))[1])
    monkeypatch.setattr("comgrad.service.nearness.CANDIDATES", 8)
    atlas = geometry.warm(group).atlas
    cosine, centred = atlas.cosine(), atlas.centred_cosine()
    hits = 0
    for at, x in enumerate(group):
        read.clear()
        found = nearness.surroundings(x, group)
        assert len(read) <= 8 + 1 < len(group)
        assert found["copy_of"] is None and x.id not in found["about"]
        best = np.argsort(-np.where(np.arange(len(group)) == at, -2.0, centred[at]))[:3]
        hits += len({group[int(i)].id for i in best} & {n["id"] for n in found["neighbours"]})
        for n in found["neighbours"]:
            assert n["cosine"] == pytest.approx(centred[at, group.place[n["id"]]], abs=0.1)
    assert hits >= 0.9 * 3 * len(group)
    assert CANDIDATES >= 8
    near = nearness._exact(group[0], list(range(1, 6)), nearness._crowd(group, 1.0))
    assert np.allclose([n.cosine for n in near], cosine[0, 1:6], atol=1e-5)


def test_a_page_in_a_large_scope_reads_no_other_vector(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    service = site.service
    large = service.settings.model_copy(update={"whole_scope": 6})
    insight = Insight(service.scopes, service.listings, Nearness(service.scopes.geometry, large), large)
    group = service.scopes.scope(ANONYMOUS).groups[0]
    exact = {x.id: [n["listing"].id for n in service.insight.neighbours(ANONYMOUS, x.id, 5)] for x in group}
    monkeypatch.setattr(service.scopes.geometry, "vector", lambda entry: pytest.fail("it is read"))
    for x in group:
        found = insight.neighbours(ANONYMOUS, x.id, 10)
        assert [n["cosine"] for n in found] == sorted([n["cosine"] for n in found], reverse=True)
        assert x.id not in {n["listing"].id for n in found}
        assert set(exact[x.id]) <= {n["listing"].id for n in found}  # all of them were related at once here
    hidden = group[0]
    with service.database.write() as rows:
        things.change_listing(rows, hidden.id, hidden.owner_id, visibility="private")
    try:
        for x in group[1:]:
            assert hidden.id not in {n["listing"].id for n in insight.neighbours(ANONYMOUS, x.id, 10)}
    finally:
        with service.database.write() as rows:
            things.change_listing(rows, hidden.id, hidden.owner_id, visibility="public")


def test_doubts_in_a_large_scope_are_those_of_a_small_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    service, words = site.service, "decide which of two things the very same words of many cards say"
    ids = [x.id for x in service.scopes.scope(ANONYMOUS).listings[-5:]]
    card = service.registry.store.get(ids[0]).card.replaced(description=words)
    for at, identity in enumerate(ids):
        site.share(identity, "member", f"same {at}", "private", card=card.replaced(name=f"same {at}").to_dict())
    small = service.settings.model_copy(update={"whole_scope": 6})
    scope = service.scopes.scope(reader(site, "member"))
    group, last = scope.groups[0], scope.by_id[ids[-1]]
    nearness = Nearness(Geometry(service.registry, small), small)
    try:
        found = nearness.surroundings(last, group)
        assert found["doubt"].startswith("its description repeats that of 'mia/same 0', which its weights do not")
        assert scope.by_id[ids[0]].id in found["about"]
        monkeypatch.setattr("comgrad.workflows.standing.CLAIM", -2.0)  # as if all were trainings of one task
        found = nearness.surroundings(last, group)
        assert found["doubt"] == "its owner shares 4 older ones of the same task, and no more of one account count"
        assert set(ids[:-1]) <= set(found["about"])
        assert nearness.surroundings(scope.by_id[ids[2]], group)["doubt"] == ""
    finally:
        with service.database.write() as rows:
            for identity in ids:
                things.change_listing(rows, identity, site.ids["member"], state="removed")


def test_sketches_are_kept_for_other_processes_and_torn_rows_are_made_again(site: Site, tmp_path: Path) -> None:
    geometry = site.service.scopes.geometry
    group = site.service.scopes.scope(ANONYMOUS).groups[0]
    first = Sketches(tmp_path)
    places = first.places(group, geometry)
    file = next(tmp_path.iterdir())
    data = bytearray(file.read_bytes())
    data[100] ^= 255  # of the first row
    file.write_bytes(bytes(data[:-50]))  # and the last one is cut
    second = Sketches(tmp_path)
    again = second.places(group, geometry)
    assert np.allclose(second.rows()[again], first.rows()[places], atol=1e-3)
    assert np.allclose(np.linalg.norm(second.rows()[again], axis=1), 1.0, atol=1e-2)


def test_a_torn_row_costs_no_later_row_and_what_is_gone_leaves_the_file(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = site.service.scopes.geometry
    group = site.service.scopes.scope(ANONYMOUS).groups[0]
    Sketches(tmp_path).places(group[:3], geometry)
    file = next(tmp_path.iterdir())
    row = file.stat().st_size // 3
    with file.open("r+b") as torn:
        torn.truncate(3 * row - 50)
    Sketches(tmp_path).places(group, geometry)
    monkeypatch.setattr(geometry, "vector", lambda entry: pytest.fail("it is read"))
    third = Sketches(tmp_path)
    assert (third.places(group, geometry) >= 0).all()
    assert file.stat().st_size == row * (len(group) + 1)
    gone = Sketches(tmp_path)
    gone.prune(group.ids - {group[4].id})
    assert file.stat().st_size == row * (len(group) - 1)
    assert group[4].id.encode() not in file.read_bytes()
    kept = gone.places([x for x in group if x is not group[4]], geometry)
    whole = third.places([x for x in group if x is not group[4]], geometry)
    assert np.allclose(gone.rows()[kept], third.rows()[whole])


AWAY = StorageError("the object store", "it does not answer", "try again later", code="unavailable")
LOST = StorageError("the file", "it is missing", "add the same file again", code="blob-missing")


def test_only_a_lost_vector_is_left_out_of_the_sketches(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = site.service.scopes.geometry
    group = site.service.scopes.scope(ANONYMOUS).groups[0][:2]

    def failing(error: Exception) -> None:
        def vector(entry: object) -> None:
            raise error

        monkeypatch.setattr(geometry, "vector", vector)

    sketches = Sketches(tmp_path)
    for lost in (LOST, MemoryError()):
        failing(lost)
        assert sketches.places(group, geometry).tolist() == [-1, -1]
    failing(AWAY)
    with pytest.raises(StorageError, match="does not answer"):
        sketches.places(group, geometry)


@pytest.mark.parametrize("error", [AWAY, Busy("the question", "it is being computed", "ask again"), LOST])
def test_a_hiccup_of_the_storage_is_not_kept_as_having_no_neighbours(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    service = site.service

    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(service.insight._nearness, "surroundings", failing)
    analysis = Analysis(
        service.database, service.scopes, service.insight._nearness, service.uploads, service.jobs, service.settings
    )
    scope = service.scopes.scope(ANONYMOUS)
    if error is LOST:
        assert analysis._surroundings(scope.listings[0], scope)["neighbours"] == []
    else:
        with pytest.raises(type(error)):
            analysis._surroundings(scope.listings[0], scope)


def test_a_hiccup_of_the_storage_hides_copies_and_doubts_as_their_admission_found_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = site.service
    finding, geometry = service.insight.finding, service.scopes.geometry
    first, copy, odd = service.scopes.scope(ANONYMOUS).groups[0][:3]
    found = [
        (copy, {"neighbours": [], "copy_of": first.id}),
        (odd, {"neighbours": [], "doubt": "it is odd", "about": [first.id]}),
    ]
    try:
        with service.database.write() as rows:
            for x, related in found:
                things.change_listing(rows, x.id, x.owner_id, related=related)

        def failing(*_: object) -> None:
            raise AWAY

        with monkeypatch.context() as patch:
            patch.setattr(geometry, "_built", failing)
            geometry._whole.clear()
            counted, whole = finding._counted(service.scopes.scope(ANONYMOUS))
        assert counted.hidden == {copy.id} and counted.copies == {first.id: 1}
        assert counted.doubt == {odd.id: "it is odd"}
        assert not whole
    finally:
        with service.database.write() as rows:
            for x, _ in found:
                things.change_listing(rows, x.id, x.owner_id, related=x.row.related)


def test_without_an_encoder_a_search_is_by_words(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from comgrad.describe import encoder

    real, finding = encoder.load_encoder, site.service.insight.finding
    monkeypatch.setattr(encoder, "load_encoder", lambda: real("nobody/no-such-encoder"))
    monkeypatch.setattr(finding, "_meant", type(finding._meant)())
    text = "decide whether a sentence is acceptable"
    with pytest.raises(NotFound):
        finding.meaning(text)
    found = finding.search(ANONYMOUS, text, limit=3)
    assert found and found == finding.search(ANONYMOUS, text, limit=3, words=True)


def test_older_trends_stand_in_while_the_newest_window_slides(site: Site) -> None:
    service = site.service
    settings = service.settings.model_copy(update={"whole_scope": 10})
    insight = Insight(service.scopes, service.listings, Nearness(service.scopes.geometry, settings), settings)
    group = service.scopes.scope(ANONYMOUS).groups[0]
    assert len(group) == COUNT

    def seen(at: int, visibility: str) -> None:
        with service.database.write() as rows:
            things.change_listing(rows, group[at].id, group[at].owner_id, visibility=visibility)

    def weighed() -> set[str]:
        (key,) = [k for k, v in insight._older.items() if v[1]["lonely"] == insight.trends(ANONYMOUS)["lonely"]][-1:]
        return set(insight._older[key][0])

    try:
        seen(-1, "private")
        before = insight.trends(ANONYMOUS)
        first = weighed()
        assert before["left_out"] == 1
        seen(-1, "public")
        during = insight.trends(ANONYMOUS)
        assert during["lonely"] == before["lonely"]
        assert (during["left_out"], during["vectors"]) == (2, COUNT)  # growth is of all at once
        until = time.monotonic() + 120
        while len(insight._older) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        seen(5, "private")  # of both windows
        insight.trends(ANONYMOUS)
        assert group[5].content in first and group[5].content not in weighed()
    finally:
        seen(-1, "public")
        seen(5, "public")


def test_what_computes_is_not_cheap() -> None:
    for path in ("/vectors/tv-1/neighbours", "/vectors/tv-1/profile", "/map", "/trends", "/compare"):
        assert kind_of("GET", f"{API}{path}") == "computed"
    assert kind_of("GET", "/map") == kind_of("POST", f"{API}/suggestions") == "computed"
    assert kind_of("GET", f"{API}/vectors/tv-1/files") == kind_of("GET", f"{API}/search") == "read"


# -- bounded waits -----------------------------------------------------------------------------------------------------
def test_the_first_search_of_a_scope_waits_for_no_geometry(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, over, asked = site.service.scopes.geometry, threading.Event(), threading.Event()

    def never(*_: object) -> None:
        asked.set()
        over.wait(120)

    monkeypatch.setattr(geometry, "_built", never)
    monkeypatch.setattr("comgrad.service.finding.PATIENCE", 0.1)
    geometry._whole.clear()
    site.service.insight.turns._answers.clear()
    try:
        began = time.monotonic()
        found = site.client.get(f"{API}/search", params={"q": "decide whether a sentence is acceptable"})
        assert found.status_code == 200 and len(found.json()["items"]) >= COUNT - 1
        assert asked.is_set()
        assert time.monotonic() - began < 60
    finally:
        over.set()


def test_a_mistake_in_the_background_is_logged_and_no_searchs_mistake(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    geometry, began = site.service.scopes.geometry, threading.Event()

    def odd(*_: object) -> None:
        assert began.wait(120)
        raise ValueError("an odd matrix")

    monkeypatch.setattr(geometry, "_built", odd)
    geometry._whole.clear()
    group = site.service.scopes.scope(ANONYMOUS).groups[0]
    with caplog.at_level(logging.ERROR, logger="comgrad.service"):
        future = geometry.prepare(group)
        threading.Timer(0.2, began.set).start()
        with pytest.raises(Busy, match="could not be computed"):
            geometry.warm(group, patience=120)
        assert isinstance(future.exception(), ValueError)
        assert geometry.soon(group, 120) is None
        done = threading.Event()
        geometry.later(done.set)
        assert done.wait(120)
    assert "an odd matrix" in caplog.text


def test_nobody_waits_at_the_end_for_what_is_being_made(tmp_path: Path, zoo: list[Path]) -> None:
    over = threading.Event()
    try:
        with running(tmp_path, vectors=zoo[:2], workers="none", publish_unowned=True) as site:
            geometry = site.service.scopes.geometry
            geometry.later(lambda: over.wait(120))
            began = time.monotonic()
        assert time.monotonic() - began < 60
    finally:
        over.set()


PROGRAM = """
import sys, time
from pathlib import Path
from comgrad.service.insight import Insight
from comgrad.service.jobs.analysis import Analysis
from comgrad.service.serve import serve
from comgrad.service.settings import Settings
def stuck(self, *_):
    print("computing", flush=True)
    time.sleep(600)
Insight.map = stuck
serve(Settings.from_environment(data=Path(sys.argv[1]), pages=False, preload=False, stop_seconds=1.0), port=0)
"""


def test_a_server_ends_in_bounded_time_whatever_it_computes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(
        command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        never = threading.Timer(300, process.kill)  # a question that does not arrive ends the test, not the patience
        never.start()
        try:
            assert process.stderr is not None and process.stdout is not None
            port = int(process.stderr.readline().strip().rpartition(":")[2])
            ask = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}{API}/map').read()"
            with subprocess.Popen([sys.executable, "-c", ask], stderr=subprocess.DEVNULL) as client:
                assert any(line.strip() == "computing" for line in process.stdout)
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=120) == 3
                client.wait(timeout=120)
        finally:
            never.cancel()
            process.kill()


# -- adapters in the cache ---------------------------------------------------------------------------------------------
def test_what_an_adapter_cannot_hold_is_tried_once(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comgrad.errors import UnsupportedAdapter

    calls = []

    def refused(*_: object, **__: object) -> None:
        calls.append(1)
        raise UnsupportedAdapter("it", "no adapter holds it", "merge it", code="peft-write-vector")

    monkeypatch.setattr(peft_write, "write_peft", refused)
    files = Files(site.service.registry.store, tmp_path)
    x = site.service.scopes.scope(ANONYMOUS).listings[0]
    for _ in range(3):
        assert "adapter_model.safetensors" not in {f.name for f in files.of(x)}
    assert len(calls) == 1


def test_two_processes_that_write_one_folder_both_serve_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real, inside = site.service.registry.store, peft_write.write_peft, []
    one, two = Files(store, tmp_path), Files(store, tmp_path)
    x = site.service.scopes.scope(ANONYMOUS).listings[0]

    def meanwhile(*arguments: Any, **more: Any) -> None:
        if not inside:
            inside.append(1)
            inside.append({f.name: f.sha256 for f in two.of(x)})  # the other process is faster
            real(*arguments, **more)
            assert two.open(x, "adapter_model.safetensors").size > 0
        else:
            real(*arguments, **more)

    monkeypatch.setattr(peft_write, "write_peft", meanwhile)
    assert {f.name: f.sha256 for f in one.of(x)} == inside[1]
    assert [p.name for p in tmp_path.iterdir()] == [x.id]
