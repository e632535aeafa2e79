"""What happens when two things happen at once, or one is cut short: found by reading the service as an attacker."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from sqlalchemy import text

from bounded import joined, started
from comgrad.describe.encoder import load_encoder
from comgrad.errors import StorageError
from comgrad.registry.card import Card
from comgrad.service.auth.identity import Principal
from comgrad.service.errors import Busy, Conflict, TooSlow
from comgrad.service.jobs.admission import Admission
from comgrad.service.jobs.analysis import Analysis
from comgrad.service.store import work
from comgrad.service.turns import Turns
from comgrad.service.web.limits import network
from comgrad.types import BaseRef
from comgrad.workflows import adding
from comgrad.workflows.resolve import read_vector
from service_site import PASSWORD, Site, adapter, running

API = "/api/v1"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A service whose jobs run when the test says so."""
    with running(tmp_path / "service", workers="none", publish_unowned=True, computing=1) as made:
        yield made


@pytest.fixture
def files(zoo: list[Path]) -> dict[str, bytes]:
    return adapter(zoo[0])


def handed_over(site: Site, files: dict[str, bytes], role: str = "owner", **body: Any) -> tuple[str, str]:
    """An upload that waits for its job; its id and the job's."""
    answer = site.upload(role, files, wait=0, **body)
    assert answer.status_code == 202, answer.text
    return answer.json()["upload"]["id"], answer.json()["job"]["id"]


def state(site: Site, identity: str, role: str = "owner") -> str:
    found: str = site.call(role, "GET", f"{API}/uploads/{identity}").json()["upload"]["state"]
    return found


def principal(site: Site, role: str) -> Principal:
    return site.service.sessions.of_token(site.tokens[role], "")


def test_what_is_being_taken_in_is_published_by_no_restart(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = handed_over(site, files, name="secret")

    def cut(*args: object) -> str:
        raise StorageError("the database", "it is away", "wait", code="locked")

    with monkeypatch.context() as m:
        m.setattr(Admission, "_listed", cut)
        site.service.jobs.run(job)
    assert len(site.service.registry.store.list()) == 1  # stored, not listed yet
    assert site.service.adopt() == 0  # what every starting process does
    assert site.client.get(f"{API}/vectors").json()["total"] == 0
    site.service.jobs.run(job)
    assert site.call("owner", "GET", f"{API}/names/bob/secret").json()["vector"]["visibility"] == "private"
    assert site.client.get(f"{API}/vectors").json()["total"] == 0


def test_bases_of_one_name_stand_apart_and_stop_nobodys_analysis(site: Site, zoo: list[Path]) -> None:
    prints = ["a" * 64, "a" * 64, "b" * 64, None]
    ids = []
    for at, (path, fingerprint) in enumerate(zip(zoo, prints, strict=False)):
        tau = read_vector(path)
        tau = type(tau)(BaseRef("acme/base", fingerprint), tau.tensors)
        card = Card.make(description=f"task {at}")
        record = adding.store_vector(site.service.registry, tau, card, f"v{at}", what="it").record
        assert record is not None
        ids.append(site.share(record.id, "owner", f"v{at}", "public"))
    found = [site.client.get(f"{API}/vectors/{i}/neighbours") for i in ids]
    assert [f.status_code for f in found] == [200] * 4, [f.text for f in found]
    assert [{n["id"] for n in f.json()["items"]} for f in found] == [{ids[1]}, {ids[0]}, set(), set()]
    job = site.service.jobs.submit("relate", {}, key="relate")
    site.service.jobs.run(job.id)
    assert all(x.row.related is not None for x in site.service.scopes.all_listings())


def test_an_upload_whose_job_is_over_is_over_too(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, job = handed_over(site, files)

    def broken(*args: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Admission, "_admitted", broken)
    site.service.jobs.run(job)
    site.service.reaper.reap()
    found = site.call("owner", "GET", f"{API}/uploads/{upload}").json()["upload"]
    assert found["state"] == "refused" and found["error"]["code"] == "internal"
    assert not (site.service.uploads.folder / upload).exists()


def test_cancelling_what_is_handed_over_meanwhile_takes_nothing_from_its_job(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, who = site.service.uploads, principal(site, "owner")
    upload, job = handed_over(site, files)
    with site.service.database.read() as rows:
        row = work.upload(rows, upload)
    assert row is not None
    before = work.UploadRow(**{**row.__dict__, "state": "open", "job_id": None})
    real, seen = uploads._mine, [before]
    monkeypatch.setattr(uploads, "_mine", lambda who, identity: seen.pop() if seen else real(who, identity))
    with pytest.raises(Conflict, match="being checked"):
        uploads.cancel(who, upload)
    site.service.jobs.run(job)
    uploads.end(upload, "refused")  # a worker that was given up too early, and finds the files gone
    monkeypatch.undo()
    assert state(site, upload) == "done"


def test_a_removal_while_the_same_bytes_come_in_loses_nothing(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = handed_over(site, files, name="one", visibility="public")
    site.service.jobs.run(first)
    vector = site.client.get(f"{API}/names/bob/one").json()["vector"]["id"]
    _, second = handed_over(site, files, "other", name="two", visibility="public")
    real = adding.store_vector

    def then_removed(*args: Any, **more: Any) -> Any:
        made = real(*args, **more)
        site.call("owner", "DELETE", f"{API}/vectors/{vector}")
        return made

    with monkeypatch.context() as m:
        m.setattr(adding, "store_vector", then_removed)
        site.service.jobs.run(second)
    site.service.jobs.run(second)
    assert site.call("other", "GET", f"{API}/jobs/{second}").json()["job"]["state"] == "done"
    assert site.client.get(f"{API}/names/eve/two").status_code == 200
    assert site.client.get(f"{API}/vectors/{vector}/files/vector.safetensors").status_code == 200


def test_an_owner_changes_its_own_listing_of_what_others_share_too(site: Site, files: dict[str, bytes]) -> None:
    for role in ("owner", "other"):
        site.service.jobs.run(handed_over(site, files, role, name="same", visibility="public")[1])
    vector = site.client.get(f"{API}/names/eve/same").json()["vector"]["id"]
    assert site.client.get(f"{API}/vectors/{vector}").json()["vector"]["owner"] == "bob"
    changed = site.call("other", "PATCH", f"{API}/vectors/{vector}", json={"tags": ["mine"]})
    assert changed.status_code == 200 and changed.json()["vector"]["owner"] == "eve", changed.text
    assert site.client.get(f"{API}/names/bob/same").json()["vector"]["tags"] == []


def test_who_left_an_organisation_shares_nothing_more_in_its_name(site: Site, files: dict[str, bytes]) -> None:
    parts = [{"name": n, "size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()]
    made = site.call("member", "POST", f"{API}/uploads", json={"parts": parts, "owner": "lab", "name": "late"})
    upload = made.json()["upload"]["id"]
    for name, data in files.items():
        assert site.send("member", upload, name, data, 0).status_code == 204
    assert site.call("org-admin", "DELETE", f"{API}/orgs/lab/members/mia").status_code == 204
    assert site.call("member", "POST", f"{API}/uploads/{upload}/complete").status_code == 403


def test_only_an_uploads_parts_may_be_large_or_slow(site: Site) -> None:
    body = b'{"role":"' + b"m" * 300_000 + b'"}'
    answer = site.call("anonymous", "PUT", f"{API}/orgs/parts/members/bob", content=body)
    assert answer.status_code == 413


def test_a_chunk_that_takes_too_long_in_all_is_a_refusal(tmp_path: Path, files: dict[str, bytes]) -> None:
    with running(tmp_path, workers="none", body_seconds=0.05) as site:
        parts = [{"name": n, "size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()]
        made = site.call("owner", "POST", f"{API}/uploads", json={"parts": parts}).json()["upload"]["id"]

        async def drops() -> AsyncIterator[bytes]:
            for _ in range(100):
                await anyio.sleep(0.02)
                yield b"x"

        async def slow() -> None:
            who = principal(site, "owner")
            await site.service.uploads.append(who, made, "adapter_model.safetensors", 0, drops())

        with pytest.raises(TooSlow):
            anyio.run(slow)


def test_few_wait_for_a_turn_and_one_question_is_computed_once(site: Site) -> None:
    turns, calls = site.service.insight.turns, []

    def made() -> str:
        calls.append(1)
        time.sleep(0.2)
        return "made"

    asking = [threading.Thread(target=turns.remembered, args=(("a", 1), made)) for _ in range(6)]
    started(asking)
    joined(asking)
    assert len(calls) == 1
    over, refused = threading.Event(), []

    def ask() -> None:
        try:
            turns.compute(lambda: over.wait(10))
        except Busy:
            refused.append(1)

    asking = [threading.Thread(target=ask) for _ in range(100)]
    started(asking)
    until = time.monotonic() + 5
    while len(refused) < 20 and time.monotonic() < until:
        time.sleep(0.01)
    many = len(refused)
    over.set()
    joined(asking)
    assert many >= 20  # at once: they hold no thread that others need


def test_nothing_is_left_unscreened_that_came_meanwhile(
    site: Site, zoo: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(at: int) -> None:
        card = Card.make(description=f"task {at}")
        record = adding.store_vector(site.service.registry, read_vector(zoo[at]), card, f"v{at}", what="it").record
        assert record is not None
        site.share(record.id, "owner", f"v{at}", "public")

    real = Analysis._screened

    def screened(self: Analysis, x: Any) -> dict[str, Any]:
        if x.name == "v0":
            add(1)
            second = site.service.jobs.submit("screen", {})
            thread = threading.Thread(target=site.service.jobs.run, args=(second.id,))
            joined(started([thread]))
        return real(self, x)

    monkeypatch.setattr(Analysis, "_screened", screened)
    add(0)
    site.service.jobs.run(site.service.jobs.submit("screen", {}).id)
    assert [x.row.screening is not None for x in site.service.scopes.all_listings()] == [True, True]


def test_a_suggestion_goes_with_what_it_was_made_from(tmp_path: Path, zoo: list[Path]) -> None:
    with running(tmp_path, vectors=zoo[:12], workers="none") as site:
        ids = [site.share(r.id, "owner", r.name, "public") for r in site.service.registry.store.list()]
        made = site.client.post(
            f"{API}/suggestions", json={"text": "decide whether a sentence is acceptable", "dare": True}
        )
        assert made.status_code == 200, made.text
        address = f"{API}/suggestions/{made.json()['id']}"
        assert site.client.get(address).status_code == 200
        source = made.json()["sources"][0]["id"]
        assert source in ids
        site.call("owner", "PATCH", f"{API}/vectors/{source}", json={"visibility": "private"})
        assert site.client.get(address).status_code == 404
        assert site.client.get(f"{address}/files/adapter_model.safetensors").status_code == 404


def test_odd_methods_and_odd_texts_are_refused_without_a_mistake(site: Site) -> None:
    for n in range(3):
        site.client.request(f"ODD{n}", f"{API}/service")
    text = site.client.app.state.metrics.text().decode()  # type: ignore[attr-defined]
    assert "ODD" not in text
    answer = site.client.post(f"{API}/session", content=b'{"\\ud800": 1}', headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_a_list_of_jobs_reads_no_reports(site: Site, files: dict[str, bytes]) -> None:
    site.service.jobs.run(handed_over(site, files)[1])
    assert [j.result for j in site.service.jobs.list(principal(site, "owner"))] == [None]


def test_guesses_of_tokens_are_counted_apart_from_any_account(site: Site) -> None:
    admin = site.service.sessions.of_session(site.service.sessions.log_in("ann", PASSWORD).secret, "")
    assert admin is not None
    invited = site.service.accounts.invite(admin, "token")
    site.service.accounts.accept("token", invited.secret, PASSWORD)
    for n in range(12):
        site.client.get(f"{API}/session", headers={"Authorization": f"Bearer cgt_{n:040}"})
    answer = site.client.post(f"{API}/session", json={"handle": "token", "password": PASSWORD})
    assert answer.status_code == 200


def test_descriptions_of_two_encoders_are_not_mixed(tmp_path: Path, zoo: list[Path]) -> None:
    with running(tmp_path, vectors=zoo[:2], workers="none") as site:
        old, new = site.service.registry.store.list()
        site.share(old.id, "owner", "old", "public", embedding=np.ones(5, dtype="<f4").tobytes(), encoder="old")
        row = load_encoder().encode(["a task"])[0].astype("<f4").tobytes()
        site.share(new.id, "owner", "new", "public", embedding=row, encoder="new")
        found = site.client.post(f"{API}/search", json={"text": "a task"})
        assert [x["name"] for x in found.json()["items"]] == ["new"], found.text


def test_one_customer_of_ipv6_has_one_bucket() -> None:
    assert network("2001:db8::1") == network("2001:db8::ffff") != network("2001:db8:0:1::1")
    assert network("10.0.0.1") != network("10.0.0.2")


def test_suggestions_take_no_more_room_than_they_may(tmp_path: Path) -> None:
    with running(tmp_path, workers="none", suggestion_bytes=2**20) as site:
        folder = site.service.insight.suggestions.folder
        for n in range(3):
            (folder / f"sg-{n}").mkdir()
            (folder / f"sg-{n}" / "adapter_model.safetensors").write_bytes(b"x" * 400_000)
            os.utime(folder / f"sg-{n}", (time.time() - 10 + n,) * 2)
        assert site.service.insight.suggestions.reap() == 1
        assert sorted(p.name for p in folder.iterdir()) == ["sg-1", "sg-2"]


def test_short_questions_wait_for_no_long_one_and_a_closed_service_begins_none() -> None:
    turns, over, began = Turns(1), threading.Event(), threading.Event()

    def long() -> int:
        began.set()
        over.wait(10)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) if sys.platform == "linux" else 0

    told: list[int] = []
    asking = threading.Thread(target=lambda: told.append(turns.compute(long)))
    started([asking])
    assert began.wait(10)
    with turns.brief():
        assert not over.is_set()
    over.set()
    joined([asking])
    if sys.platform == "linux":
        assert told[0] > os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with pytest.raises(TimeoutError, match="of its own"):
        turns.compute(_out_of_time)
    turns.close()
    with pytest.raises(Busy, match="stopping"):
        turns.compute(lambda: 1)


def test_who_waits_when_the_service_stops_is_told_so() -> None:
    turns, over, began = Turns(1), threading.Event(), threading.Event()
    told: dict[str, object] = {}

    def long() -> str:
        began.set()
        over.wait(10)
        return "ended"

    def ask(name: str) -> None:
        try:
            told[name] = turns.compute(long)
        except Busy as error:
            told[name] = error.why

    asking = [threading.Thread(target=ask, args=(name,)) for name in ("first", "second")]
    started(asking[:1])
    assert began.wait(10)
    started(asking[1:])
    until = time.monotonic() + 10
    while turns._long._work_queue.qsize() == 0 and time.monotonic() < until:
        time.sleep(0.01)
    turns.close()
    over.set()
    joined(asking)
    assert told == {"first": "ended", "second": "the service is stopping"}


def _out_of_time() -> None:
    raise TimeoutError("of its own")


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        (
            "count(*), sum(size_bytes) FROM service_listings WHERE uploaded_by = 'a' AND state != 'removed'",
            "listings_quota",
        ),
        (
            "count(*), sum(size_bytes) FROM service_uploads WHERE account_id = 'a' AND state IN ('open')",
            "uploads_quota",
        ),
        ("count(*) FROM service_jobs WHERE account_id = 'a' AND state IN ('queued', 'running')", "jobs_waiting"),
    ],
)
def test_a_quota_is_summed_from_an_index_alone(site: Site, asked: str, index: str) -> None:
    with site.service.database.read() as rows:
        plan = " ".join(str(r) for r in rows.execute(text(f"EXPLAIN QUERY PLAN SELECT {asked}")))
    assert f"COVERING INDEX ix_service_{index}" in plan
