"""What is left of uploads when they are over: vectors of jobs that were given up, races of completions, old rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from comgrad.errors import StorageError
from comgrad.registry.card import Card
from comgrad.registry.catalogue import Catalogue
from comgrad.registry.store import Store
from comgrad.service import uploads as module
from comgrad.service.jobs.admission import Admission
from comgrad.service.store import work
from comgrad.service.store.database import now
from comgrad.service.vectors import TAIL
from comgrad.workflows import adding
from comgrad.workflows.resolve import read_vector
from service_site import WEIGHTS, Site, adapter, running

API = "/api/v1"


class Killed(BaseException):
    """What a worker that is killed leaves behind: nothing is tidied up."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A service whose jobs run when the test says so, and which shows what nobody owns."""
    with running(tmp_path / "service", workers="none", publish_unowned=True) as made:
        yield made


@pytest.fixture
def files(zoo: list[Path]) -> dict[str, bytes]:
    return adapter(zoo[0])


def handed_over(site: Site, files: dict[str, bytes], **body: Any) -> tuple[str, str]:
    answer = site.upload("owner", files, wait=0, **body)
    assert answer.status_code == 202, answer.text
    return answer.json()["upload"]["id"], answer.json()["job"]["id"]


def upload(site: Site, identity: str) -> Any:
    return site.call("owner", "GET", f"{API}/uploads/{identity}").json()["upload"]


def stored(site: Site) -> list[str]:
    return [r.id for r in site.service.registry.store.list()]


def killed_three_times(site: Site, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a job whose worker dies after the vector is stored, as often as it is tried."""

    def dies(*args: object) -> str:
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(Admission, "_listed", dies)
        for _ in range(3):
            with pytest.raises(Killed):
                site.service.jobs.run(job)
            with site.service.database.write() as rows:  # as the next start does
                work.free_jobs(rows, {site.service.jobs.worker})


def test_a_job_that_was_killed_three_times_leaves_no_vector(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, job = handed_over(site, files, name="secret")
    killed_three_times(site, job, monkeypatch)
    assert len(stored(site)) == 1
    site.service.jobs.run(job)
    found = site.call("owner", "GET", f"{API}/jobs/{job}").json()["job"]
    assert found["state"] == "failed"
    assert "ended its worker 3 times" in found["error"]["why"]
    assert stored(site) == []
    assert upload(site, identity)["state"] == "refused"
    assert upload(site, identity)["error"] == found["error"]
    assert not (site.service.uploads.folder / identity).exists()
    assert site.service.adopt() == 0
    again, job = handed_over(site, files, name="secret")  # nothing stands in the way of the next try
    site.service.jobs.run(job)
    assert upload(site, again)["state"] == "done"


def test_a_worker_that_died_before_it_could_say_so_leaves_the_whole_answer(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An uploader compares the digest that it is told: an empty one would be an acknowledgement of nothing."""
    identity, job = handed_over(site, files, name="late")

    def dies(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(type(site.service.uploads), "clear", dies)
        with pytest.raises(Killed):
            site.service.jobs.run(job)
    assert upload(site, identity)["state"] == "done"
    with site.service.database.write() as rows:  # as the next start does
        work.free_jobs(rows, {site.service.jobs.worker})
    site.service.jobs.run(job)
    found = site.call("owner", "GET", f"{API}/jobs/{job}").json()["job"]
    assert found["state"] == "done"
    assert len(stored(site)) == 1
    told = site.call("owner", "GET", f"{API}/vectors/{found['result']['vector']}").json()["vector"]
    assert found["result"]["digest"] == told["digest"]
    assert found["result"]["name"] == told["full_name"]
    assert not (site.service.uploads.folder / identity).exists()


def test_nor_does_one_whose_database_stays_away(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, job = handed_over(site, files)

    def away(*args: object) -> str:
        raise StorageError("the database", "it is away", "wait", code="locked")

    with monkeypatch.context() as m:
        m.setattr(Admission, "_listed", away)
        for _ in range(3):
            site.service.jobs.run(job)
    assert (stored(site), upload(site, identity)["state"]) == ([], "refused")


def test_nor_does_one_that_fails_at_once_after_storing(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, job = handed_over(site, files)

    def wrong(*args: object) -> str:
        assert len(stored(site)) == 1
        raise RuntimeError("a mistake of ours")

    with monkeypatch.context() as m:
        m.setattr(Admission, "_listed", wrong)
        site.service.jobs.run(job)
    found = site.call("owner", "GET", f"{API}/jobs/{job}").json()["job"]
    assert (found["state"], found["error"]["code"]) == ("failed", "internal")
    assert (stored(site), upload(site, identity)["state"]) == ([], "refused")


def fails_at(step: str, monkeypatch: pytest.MonkeyPatch, site: Site, job: str) -> None:
    """Run a job that meets a mistake of ours in that method."""

    def wrong(*args: object) -> str:
        assert len(stored(site)) == 1
        raise RuntimeError("a mistake of ours")

    with monkeypatch.context() as m:
        m.setattr(Admission, step, wrong)
        site.service.jobs.run(job)
    found = site.call("owner", "GET", f"{API}/jobs/{job}").json()["job"]
    assert (found["state"], found["error"]["code"]) == ("failed", "internal")


@pytest.mark.parametrize("step", ["_gradient", "_listed"])
def test_a_removed_vector_that_a_failed_job_brought_back_goes_again(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It comes back under the name that its first upload gave it, which says nothing of this one."""
    first, job = handed_over(site, files, name="mine")
    site.service.jobs.run(job)
    vector = upload(site, first)["vector"]
    assert site.call("owner", "DELETE", f"{API}/vectors/{vector}").status_code == 200
    assert stored(site) == []
    identity, job = handed_over(site, files, name="mine")
    fails_at(step, monkeypatch, site, job)
    assert stored(site) == []
    assert (upload(site, identity)["state"], upload(site, identity)["vector"]) == ("refused", None)
    assert site.call("owner", "GET", f"{API}/vectors/{vector}").status_code == 404
    again, job = handed_over(site, files, name="mine")
    site.service.jobs.run(job)
    assert upload(site, again)["vector"] == vector
    assert stored(site) == [vector]


def test_a_job_that_fails_late_lists_nothing(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = handed_over(site, files, name="mine")
    fails_at("_gradient", monkeypatch, site, job)
    assert stored(site) == []
    assert site.call("owner", "GET", f"{API}/names/bob/mine").status_code == 404


@pytest.mark.parametrize("step", ["_gradient", "_listed"])
def test_a_failed_job_leaves_what_was_there_before(
    site: Site, zoo: list[Path], files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The registry's own vector, that nobody shares: its owner did not upload it and does not lose it."""
    own = adding.store_vector(site.service.registry, read_vector(zoo[0]), Card.make(name="own"), "own", what="it")
    assert own.record is not None
    _, job = handed_over(site, files, name="mine")
    fails_at(step, monkeypatch, site, job)
    assert stored(site) == [own.record.id]


def test_what_is_being_brought_back_is_published_by_nobody(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of a session that was given up and whose row is gone, on their way in again."""
    first, job = handed_over(site, files, name="mine")
    fails_at("_listed", monkeypatch, site, job)
    with site.service.database.write() as rows:
        work.drop_uploads(rows, [first])
    second, job = handed_over(site, files, name="mine")
    killed_three_times(site, job, monkeypatch)
    assert len(stored(site)) == 1
    assert upload(site, second)["vector"] is None  # it is not told before it is listed
    assert site.service.adopt() == 0


def test_a_refused_upload_costs_the_same_however_much_is_stored(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each kind: refused when it is read, when it is stored, and after that. Nothing asks for all vectors."""

    def asked(*args: object, **kwargs: object) -> Any:
        raise AssertionError("all vectors are asked for")

    def wrong(*args: object, **kwargs: object) -> Any:
        raise RuntimeError("a mistake of ours")

    for part, method in (({WEIGHTS: b"\0" * 100}, None), ({}, (Store, "_stored")), ({}, (Admission, "_listed"))):
        identity, job = handed_over(site, {**files, **part})
        with monkeypatch.context() as m:
            for kind, name in ((Store, "list"), (Catalogue, "list"), (Catalogue, "_unknown")):
                m.setattr(kind, name, asked)
            if method is not None:
                m.setattr(*method, wrong)
            site.service.jobs.run(job)
        found = upload(site, identity)
        assert (found["state"], found["error"]["code"]) == ("refused", "internal" if method else "header-start")
        assert stored(site) == []


def test_what_somebody_else_lists_meanwhile_stays(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = handed_over(site, files, name="mine")
    killed_three_times(site, job, monkeypatch)
    answer = site.upload("other", files, wait=0, name="theirs")
    site.service.jobs.run(answer.json()["job"]["id"])
    site.service.jobs.run(job)
    assert len(stored(site)) == 1
    assert site.call("other", "GET", f"{API}/names/eve/theirs").status_code == 200


def test_one_that_was_given_up_and_not_cleared_up_is_so_later(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, job = handed_over(site, files)
    killed_three_times(site, job, monkeypatch)
    with site.service.database.write() as rows:  # the process died between the job's end and the upload's
        work.claim_job(rows, job, "gone", timedelta(0))
        work.end_job(rows, job, "gone", "failed", error={"code": "internal"})
    assert (len(stored(site)), upload(site, identity)["state"]) == (1, "checking")
    assert site.service.reaper.reap() == 1
    assert (stored(site), upload(site, identity)["state"]) == ([], "refused")


def test_a_completion_that_loses_the_race_answers_with_the_winners_job(
    site: Site, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other completion, and its whole job, come between the look at the files and the reading of them."""
    identity = site.call("owner", "POST", f"{API}/uploads", json={"parts": _declared(files)}).json()["upload"]["id"]
    for name, data in files.items():
        assert site.send("owner", identity, name, data, 0).status_code == 204
    real, won = module.check_digest, []

    def overtaken(path: Path, part: dict[str, Any]) -> None:
        if not won:
            won.append("")
            winner = site.call("owner", "POST", f"{API}/uploads/{identity}/complete")
            won[0] = winner.json()["job"]["id"]
            site.service.jobs.run(won[0])
        real(path, part)

    monkeypatch.setattr(module, "check_digest", overtaken)
    answer = site.call("owner", "POST", f"{API}/uploads/{identity}/complete")
    assert answer.status_code == 201, answer.text
    assert answer.json()["job"]["id"] == won[0]
    assert answer.json()["upload"]["state"] == "done"


def _declared(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"name": n, "size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()]


def test_completing_what_was_cancelled_or_refused_is_a_conflict(site: Site, files: dict[str, bytes]) -> None:
    answer = site.call("owner", "POST", f"{API}/uploads", json={"parts": _declared(files)})
    identity = answer.json()["upload"]["id"]
    assert site.call("owner", "DELETE", f"{API}/uploads/{identity}").status_code == 200
    again = site.call("owner", "POST", f"{API}/uploads/{identity}/complete")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "upload-state")


def test_rows_of_old_sessions_go_and_their_figures_stay(site: Site, files: dict[str, bytes]) -> None:
    shared, job = handed_over(site, files, name="kept")
    site.service.jobs.run(job)
    vector = upload(site, shared)["vector"]
    small = {"parts": [{"name": "vector.safetensors", "size": 20, "sha256": "0" * 64}]}
    ids = [site.call("owner", "POST", f"{API}/uploads", json=small).json()["upload"]["id"] for _ in range(3)]
    for identity in ids[:2]:
        site.call("owner", "DELETE", f"{API}/uploads/{identity}")
    long_ago = now() - timedelta(days=site.service.settings.job_days, seconds=1)
    with site.service.database.write() as rows:
        for identity in (shared, ids[0]):
            work.change_upload(rows, identity, expires_at=long_ago)
    site.service.reaper.reap()
    statuses = [site.call("owner", "GET", f"{API}/uploads/{i}").status_code for i in (shared, *ids)]
    assert statuses == [404, 404, 200, 200]
    entry = site.call("site-admin", "GET", f"{API}/audit").json()["items"][0]
    assert (entry["action"], entry["handle"]) == ("uploads-reaped", "(service)")
    size = sum(len(b) for b in files.values())
    detail = entry["detail"]
    assert (detail["sessions"], detail["accounts"], detail["bytes"]) == (2, 1, size + 20)
    assert detail["ends"] == {"share cancelled": 1, "share done": 1}
    assert detail["first"] < detail["last"]
    assert site.service.reaper.reap() == 0
    assert len(site.call("site-admin", "GET", f"{API}/audit").json()["items"]) > 0
    assert site.call("owner", "GET", f"{API}/vectors/{vector}").status_code == 200  # the listing is another thing
    assert site.service.adopt() == 0
    assert site.service.audit.broken() is None


def test_a_stray_of_an_old_session_is_published_by_nobody(site: Site, zoo: list[Path]) -> None:
    """One that an earlier version left: once its session's row is gone nothing else would tell where it came from."""
    small = {"parts": [{"name": "vector.safetensors", "size": 20, "sha256": "0" * 64}]}
    identity = site.call("owner", "POST", f"{API}/uploads", json=small).json()["upload"]["id"]
    name = f"bob stray {identity[-TAIL:]}"
    adding.store_vector(site.service.registry, read_vector(zoo[0]), Card.make(description="private"), name, what="it")
    own = adding.store_vector(site.service.registry, read_vector(zoo[1]), Card.make(description="x"), "own", what="it")
    site.call("owner", "DELETE", f"{API}/uploads/{identity}")
    with site.service.database.write() as rows:
        work.change_upload(rows, identity, expires_at=now() - timedelta(days=400))
    site.service.reaper.reap()
    assert own.record is not None
    assert stored(site) == [own.record.id]
    assert site.service.adopt() == 1  # what is the registry's own
