"""The map and the trends of more vectors than are weighed together: all are shown and counted, and nothing known moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comgrad.errors import StorageError
from comgrad.service.auth.identity import ANONYMOUS
from comgrad.service.errors import Busy
from comgrad.service.insight import Insight
from comgrad.service.nearness import Nearness
from comgrad.service.planes import Planes
from comgrad.service.scope import Group
from comgrad.service.store import things
from service_site import Site, running

COUNT, WHOLE = 12, 7
API = "/api/v1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, zoo: list[Path]) -> Iterator[Site]:
    """Twelve public vectors, of which seven are weighed together."""
    folder = tmp_path_factory.mktemp("planes")
    more = {"workers": "none", "publish_unowned": True, "whole_scope": WHOLE, "pages": True}
    with running(folder, vectors=zoo[:COUNT], **more) as made:
        yield made


def group_of(site: Site) -> Group:
    return site.service.scopes.scope(ANONYMOUS).groups[0]


def places(found: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {p["id"]: (p["x"], p["y"]) for p in found["points"]}


def seen(site: Site, at: int, group: Group, visibility: str) -> None:
    with site.service.database.write() as rows:
        things.change_listing(rows, group[at].id, group[at].owner_id, visibility=visibility)


def test_all_are_on_the_map_and_the_oldest_are_as_they_would_be_alone(site: Site) -> None:
    from comgrad.atlas.layout import lay_out

    found, group = site.service.insight.map(ANONYMOUS), group_of(site)
    assert [p["id"] for p in found["points"]] == [x.id for x in group]
    assert (found["exact"], found["waiting"], found["left_out"]) == (WHOLE, 0, 0)
    assert sorted(i for c in found["clusters"] for i in c["ids"]) == sorted(group.ids)
    atlas = site.service.scopes.geometry.warm(group[:WHOLE]).atlas
    alone = lay_out(atlas.centred_cosine())
    drawn = np.array([places(found)[x.id] for x in group])
    np.testing.assert_allclose(drawn[:WHOLE], alone.positions, atol=1e-5)
    assert found["stress"] == alone.stress
    low, high = alone.positions.min(axis=0), alone.positions.max(axis=0)
    assert ((drawn >= low - 1e-5) & (drawn <= high + 1e-5)).all()  # means of landmarks


def test_what_comes_later_moves_nothing_and_what_goes_is_gone(site: Site) -> None:
    insight, group = site.service.insight, group_of(site)
    before = insight.map(ANONYMOUS)
    try:
        seen(site, COUNT - 2, group, "private")
        fewer = insight.map(ANONYMOUS)
        assert places(fewer) == {i: xy for i, xy in places(before).items() if i != group[COUNT - 2].id}
        seen(site, COUNT - 2, group, "public")
        assert places(insight.map(ANONYMOUS)) == places(before)
        seen(site, 2, group, "private")  # a landmark
        without = insight.map(ANONYMOUS)
        assert group[2].id not in str(without)
        assert len(without["points"]) == COUNT - 1 and without["exact"] == WHOLE
    finally:
        seen(site, COUNT - 2, group, "public")
        seen(site, 2, group, "public")


def test_a_copy_is_no_landmark_and_the_bound_keeps_the_newest(site: Site) -> None:
    service, group = site.service, group_of(site)
    settings = service.settings.model_copy(update={"map_points": WHOLE + 2})
    with service.database.write() as rows:
        things.change_listing(rows, group[1].id, group[1].owner_id, related={"neighbours": [], "copy_of": group[0].id})
    try:
        group = group_of(site)
        found = Planes(service.scopes.geometry, service.nearness, settings).map(group)
        assert [p["id"] for p in found["points"]] == [
            x.id for x in (group[0], *group[2 : WHOLE + 1], *group[COUNT - 2 :])
        ]
        assert found["left_out"] == COUNT - WHOLE - 2
    finally:
        with service.database.write() as rows:
            things.change_listing(rows, group[1].id, group[1].owner_id, related=None)


def test_the_map_is_kept_for_the_next_start(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    service, group = site.service, group_of(site)
    before = service.insight.map(ANONYMOUS)
    monkeypatch.setattr(service.scopes.geometry, "warm", lambda listings: pytest.fail("it is made again"))
    again = Planes(service.scopes.geometry, service.nearness, service.settings)
    assert places(again.map(group)) == places(before)


def test_nobody_waits_long_for_a_first_map_and_those_who_come_later_see_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, group, over = site.service, group_of(site), threading.Event()
    planes = Planes(service.scopes.geometry, service.nearness, service.settings)
    real = planes._begun
    monkeypatch.setattr(planes, "_begun", lambda key, landmarks: (over.wait(300), real(key, landmarks))[1])
    monkeypatch.setattr("comgrad.service.planes.PATIENCE", 0.05)
    try:
        with pytest.raises(Busy, match="are being laid out"):
            planes.map(group)
        coming = next(iter(planes._coming.values()))
        with pytest.raises(Busy):
            planes.map(group)
        assert list(planes._coming.values()) == [coming]  # it is made once
    finally:
        over.set()
    coming.result(timeout=300)
    assert len(planes.map(group)["points"]) == COUNT


def test_points_that_are_not_placed_yet_are_told_and_a_lost_vector_is_left_out(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, group = site.service, group_of(site)
    nearness = Nearness(service.scopes.geometry, service.settings)
    planes = Planes(service.scopes.geometry, nearness, service.settings)
    planes.prepare(Group(group[:WHOLE]))
    real = nearness.sketched

    def away(listings: Any, *more: Any) -> Any:
        raise StorageError("the object store", "it does not answer", "try again later", code="unavailable")

    monkeypatch.setattr(nearness, "sketched", away)
    found = planes.map(group)
    assert (len(found["points"]), found["waiting"]) == (WHOLE, COUNT - WHOLE)

    def lost(listings: Any, *more: Any) -> Any:
        rows, there = real(listings, *more)
        return rows, there & np.array([x.id != group[-1].id for x in listings])

    monkeypatch.setattr(nearness, "sketched", lost)
    found = planes.map(group)
    assert (len(found["points"]), found["waiting"], found["left_out"]) == (COUNT - 1, 0, 1)


def test_the_answer_and_the_page_say_what_is_approximate(site: Site) -> None:
    answer = site.client.get(f"{API}/map", params={"most": 3}).json()
    assert len(answer["points"]) == 3 and answer["exact"] == WHOLE
    page = site.client.get("/map").text
    assert (
        f"The {WHOLE} oldest lie where their exact distances put them. The {COUNT - WHOLE} others are put among" in page
    )


def test_trends_count_the_growth_of_all_and_no_answer_is_of_another_scope(site: Site) -> None:
    insight, group = site.service.insight, group_of(site)
    found = insight.trends(ANONYMOUS)
    assert (found["vectors"], found["counted"], found["left_out"]) == (COUNT, COUNT, COUNT - WHOLE)
    assert found["weighed"]["vectors"] == WHOLE
    assert sum(row[-1] for row in found["growth"]["total"].values()) == COUNT
    assert f"among the newest {WHOLE}" in site.client.get("/trends").text
    try:
        seen(site, 0, group, "private")  # older than what is weighed
        fewer = insight.trends(ANONYMOUS)
        assert sum(row[-1] for row in fewer["growth"]["total"].values()) == fewer["vectors"] == COUNT - 1
        assert {k: fewer[k] for k in ("copies", "mixtures", "lonely")} == {
            k: found[k] for k in ("copies", "mixtures", "lonely")
        }
    finally:
        seen(site, 0, group, "public")


def test_a_small_scope_is_laid_out_whole(site: Site) -> None:
    service = site.service
    settings = service.settings.model_copy(update={"whole_scope": COUNT})
    insight = Insight(service.scopes, service.listings, Nearness(service.scopes.geometry, settings), settings)
    found = insight.map(ANONYMOUS)
    assert (found["exact"], found["waiting"], found["left_out"]) == (COUNT, 0, 0)
    assert len(found["points"]) == COUNT
