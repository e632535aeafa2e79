"""Uploads: resumed, checked, refused, and taken in. Attack rows 1-22, 24, 26, 33, 36-39."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from bounded import joined, started
from comgrad.errors import StorageError
from comgrad.service import receiving
from comgrad.types import BaseRef
from comgrad.vectors.task_vector import TaskVector
from service_site import CARD, CONFIG, PASSWORD, WEIGHTS, Site, adapter, running

API = "/api/v1"
ATTACKS = Path(__file__).parent.parent / "attacks"


def _attacks() -> ModuleType:
    if str(ATTACKS) not in sys.path:
        sys.path.insert(0, str(ATTACKS))
    return __import__("make")


make = _attacks()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("service"), max_open_uploads=200) as made:
        yield made


@pytest.fixture(scope="module")
def files(zoo: list[Path]) -> dict[str, bytes]:
    return adapter(zoo[0])


def parts(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"name": n, "size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()]


def begin(site: Site, files: dict[str, bytes], role: str = "owner", **body: Any) -> str:
    answer = site.call(role, "POST", f"{API}/uploads", json={"parts": parts(files), **body})
    assert answer.status_code == 201, answer.text
    identity: str = answer.json()["upload"]["id"]
    return identity


def left(site: Site) -> list[str]:
    """Files of uploads that are still on the disk."""
    return sorted(p.name for p in site.service.uploads.folder.rglob("*") if p.is_file())


def code(answer: Any) -> tuple[int, str]:
    body = answer.json()
    return answer.status_code, body["error"]["code"]


# -- the whole way ---------------------------------------------------------------------------------------------------
def test_an_adapter_is_shared_and_served_in_our_own_bytes(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    answer = site.upload("owner", files, name="Absurd things", visibility="public", tags=["Fun", "fun"])
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert [s["state"] for s in body["job"]["steps"]] == ["done"] * 3
    assert body["upload"]["state"] == "done"
    identity = body["upload"]["vector"]
    seen = site.client.get(f"{API}/vectors/{identity}").json()["vector"]
    assert (seen["full_name"], seen["tags"], seen["base_status"]) == ("bob/Absurd things", ["fun"], "verified")
    assert seen["description"] == json.loads(files[CARD])["description"]
    for name in (WEIGHTS, CONFIG):
        (tmp_path / name).write_bytes(site.client.get(f"{API}/vectors/{identity}/files/{name}").content)
    sent = tmp_path / "sent"
    sent.mkdir()
    for name in (WEIGHTS, CONFIG):
        (sent / name).write_bytes(files[name])
    assert TaskVector.from_peft(tmp_path).cosine(TaskVector.from_peft(sent)) > 1 - 1e-12
    assert left(site) == []
    site.work_off()


def test_the_same_bytes_again_change_nothing_and_another_owner_gets_a_listing_of_its_own(
    site: Site, files: dict[str, bytes]
) -> None:
    first = site.upload("owner", files, name="Absurd things").json()
    again = site.upload("owner", files, name="Another name")
    assert again.status_code == 200
    assert again.json()["job"]["result"]["status"] == "exists"
    assert again.json()["upload"]["vector"] == first["upload"]["vector"]
    other = site.upload("other", files, name="Absurd things", visibility="private")
    assert other.status_code == 201
    assert site.call("other", "GET", f"{API}/names/eve/absurd-things").status_code == 200


def test_one_name_with_two_digests_is_a_conflict_and_a_removed_name_stays_taken(site: Site, zoo: list[Path]) -> None:
    one, two = adapter(zoo[1]), adapter(zoo[2])
    made = site.upload("member", one, name="Mine")
    assert made.status_code == 201
    for twin in ("Mine", "mine", "MINE", "míne", "ｍｉｎｅ"):
        assert code(site.upload("member", two, name=twin)) == (409, "name-taken"), twin
    identity = made.json()["upload"]["vector"]
    assert site.call("member", "DELETE", f"{API}/vectors/{identity}").status_code == 200
    refused = site.upload("member", two, name="mine")
    assert code(refused) == (409, "name-taken")
    assert "never passes to another" in refused.json()["error"]["why"]
    assert site.upload("member", one, name="whatever").status_code == 201  # the same bytes, back under their name
    assert site.call("member", "GET", f"{API}/names/mia/mine").status_code == 200
    assert left(site) == []


def test_an_organisations_member_shares_nothing_in_its_name_unless_admitted(
    site: Site, files: dict[str, bytes]
) -> None:
    assert site.upload("other", files, owner="lab").status_code == 403
    assert site.upload("member", files, owner="lab", name="ours").status_code == 201
    assert site.call("org-admin", "GET", f"{API}/names/lab/ours").status_code == 200
    assert site.call("other", "GET", f"{API}/names/lab/ours").status_code == 404


def test_a_gradient_comes_with_its_vector_and_does_not_replace_anothers(site: Site, zoo: list[Path]) -> None:
    sent = adapter(zoo[11]) | {
        n: (zoo[11] / n).read_bytes() for n in ("task_gradient.safetensors", "task_gradient.json")
    }
    answer = site.upload("owner", sent, name="with gradient")
    assert answer.status_code == 201, answer.text
    assert answer.json()["job"]["result"]["warnings"] == []
    kept = site.service.registry.store.gradient(answer.json()["upload"]["vector"])
    assert kept is not None
    assert site.upload("other", sent, name="the same").status_code == 201
    again = site.service.registry.store.gradient(answer.json()["upload"]["vector"])
    assert again is not None
    assert again[0].created_at == kept[0].created_at
    half = {n: b for n, b in sent.items() if n != "task_gradient.json"}
    assert code(site.upload("owner", half)) == (422, "upload-parts")


# -- cuts ------------------------------------------------------------------------------------------------------------
def test_an_upload_goes_on_where_it_was_cut(site: Site, zoo: list[Path]) -> None:
    files = adapter(zoo[3])
    identity = begin(site, files, name="in pieces")
    path = f"{API}/uploads/{identity}/parts/{WEIGHTS}"
    data = files[WEIGHTS]
    eighth = len(data) // 8 + 1
    for name in (CONFIG, CARD):
        assert site.send("owner", identity, name, files[name], 0).status_code == 204
    for at in range(0, len(data), eighth):
        head = site.call("owner", "HEAD", path).headers
        assert (head["upload-offset"], head["upload-length"]) == (str(at), str(len(data)))
        wrong = site.send("owner", identity, WEIGHTS, data[at:], at + 1)
        assert code(wrong) == (409, "offset")
        early = site.call("owner", "POST", f"{API}/uploads/{identity}/complete")
        assert code(early) == (409, "incomplete")
        assert site.send("owner", identity, WEIGHTS, data[at : at + eighth], at).status_code == 204
    assert site.call("owner", "POST", f"{API}/uploads/{identity}/complete?wait=60").status_code == 201


def test_more_than_was_declared_is_refused(site: Site, files: dict[str, bytes]) -> None:
    identity = begin(site, files)
    assert site.send("owner", identity, CONFIG, files[CONFIG] + b" ", 0).status_code == 413
    long = begin(site, {"vector.safetensors": b"x" * 100})
    assert site.send("owner", long, "vector.safetensors", b"x" * (9 * 2**20), 0).status_code == 413


def test_a_cancelled_or_stale_upload_leaves_nothing(site: Site, files: dict[str, bytes]) -> None:
    identity = begin(site, files)
    site.send("owner", identity, CONFIG, files[CONFIG], 0)
    assert site.call("owner", "DELETE", f"{API}/uploads/{identity}").json()["upload"]["state"] == "cancelled"
    assert code(site.send("owner", identity, CARD, files[CARD], 0)) == (409, "upload-state")
    stale = begin(site, files)
    site.send("owner", stale, CONFIG, files[CONFIG], 0)
    from comgrad.service.store import work
    from comgrad.service.store.database import now

    with site.service.database.write() as rows:
        work.change_upload(rows, stale, expires_at=now())
    assert site.service.reaper.reap() == 1
    assert not (site.service.uploads.folder / stale).exists()


def test_two_completions_at_once_make_one_job(site: Site, zoo: list[Path]) -> None:
    files = adapter(zoo[4])
    identity = begin(site, files, name="raced")
    for name, data in files.items():
        site.send("owner", identity, name, data, 0)
    answers: list[Any] = []

    def complete() -> None:
        answers.append(site.call("owner", "POST", f"{API}/uploads/{identity}/complete?wait=60"))

    threads = [threading.Thread(target=complete) for _ in range(4)]
    started(threads)
    joined(threads)
    assert {a.status_code for a in answers} <= {201, 409}
    assert len({a.json()["job"]["id"] for a in answers if a.status_code == 201}) == 1


# -- lies ------------------------------------------------------------------------------------------------------------
def test_a_digest_that_is_not_the_bodys_is_refused_and_deleted(site: Site, files: dict[str, bytes]) -> None:
    identity = begin(site, files)
    for name, data in files.items():
        changed = data[:-1] + bytes([data[-1] ^ 1]) if name == WEIGHTS else data
        assert site.send("owner", identity, name, changed, 0).status_code == 204
    assert code(site.call("owner", "POST", f"{API}/uploads/{identity}/complete")) == (422, "digest-mismatch")
    assert not (site.service.uploads.folder / identity).exists()
    assert site.call("owner", "GET", f"{API}/uploads/{identity}").json()["upload"]["state"] == "refused"


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (["vector.zip"], 422),
        (["../../etc/passwd"], 422),
        ([WEIGHTS], 422),
        ([WEIGHTS, CONFIG, "vector.safetensors"], 422),
        (["vector.safetensors", "vector.safetensors"], 422),
        ([WEIGHTS, "adapter_model.bin"], 422),
        (["vector.safetensors"], 201),
    ],
)
def test_only_these_parts_are_taken(site: Site, names: list[str], status: int) -> None:
    body = {"parts": [{"name": n, "size": 5, "sha256": "0" * 64} for n in names]}
    answer = site.call("owner", "POST", f"{API}/uploads", json=body)
    assert answer.status_code == status
    if status == 201:
        identity = answer.json()["upload"]["id"]
        for part in ("..%2f..%2fx", CONFIG, "%2e%2e"):
            assert site.send("owner", identity, part, b"x", 0).status_code == 404


@pytest.mark.parametrize("case", [c for c in make.CASES if c.code], ids=lambda c: c.name)
def test_the_attack_files_are_refused_with_their_codes(
    site: Site, files: dict[str, bytes], attack_files: dict[str, Path], case: Any
) -> None:
    before, there = site.service.scopes.refresh(), left(site)
    data = attack_files[case.name].read_bytes()
    if not data:
        return  # an empty part cannot even be declared
    answer = site.upload("owner", {**files, WEIGHTS: data}, name=f"attack {case.name}")
    assert answer.status_code in (413, 422), answer.text
    if answer.status_code == 422:
        assert answer.json()["error"]["code"] == case.code
        assert str(site.service.settings.data) not in answer.text
    assert left(site) == there
    assert site.service.scopes.refresh() == before


@pytest.fixture(scope="module")
def attack_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found: dict[str, Path] = make.make(tmp_path_factory.mktemp("attacks"))
    return found


@pytest.mark.parametrize(
    "value",
    [
        "../../../../etc",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://169.254.169.254/x",
        "~root/x",
        "a/b/c",
        "\\\\host\\x",
    ],
)
def test_a_base_is_a_name_on_the_hub_and_never_a_path(site: Site, files: dict[str, bytes], value: str) -> None:
    config = json.loads(files[CONFIG]) | {"base_model_name_or_path": value}
    card = json.dumps({"schema": 1, "description": "a task"}).encode()
    answer = site.upload("owner", {**files, CONFIG: json.dumps(config).encode(), CARD: card})
    assert code(answer) == (422, "base-name")
    assert site.upload("owner", files, base=value).status_code == 422


def test_a_base_that_is_contradicted_is_refused(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    card = json.loads(files[CARD]) | {"base_model": "somebody/another-base"}
    assert code(site.upload("owner", {**files, CARD: json.dumps(card).encode()})) == (422, "base-contradiction")
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in (WEIGHTS, CONFIG):
        (folder / name).write_bytes(files[name])
    tau = TaskVector.from_peft(folder)
    lie = TaskVector(BaseRef(tau.base.name, "f" * 64), tau.tensors)
    lie.save(tmp_path / "vector.safetensors")
    answer = site.upload("owner", {"vector.safetensors": (tmp_path / "vector.safetensors").read_bytes()})
    assert code(answer) == (422, "base-contradiction")


def test_what_a_container_claims_of_an_unknown_base_is_not_believed(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    for name in (WEIGHTS, CONFIG):
        (tmp_path / name).write_bytes(files[name])
    tau = TaskVector.from_peft(tmp_path)
    claim = TaskVector(BaseRef("nobody/has-this-base", "e" * 64), tau.tensors, ("<b>trust me</b>",))
    claim.save(tmp_path / "vector.safetensors")
    answer = site.upload(
        "owner", {"vector.safetensors": (tmp_path / "vector.safetensors").read_bytes()}, name="claimed"
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["job"]["result"]["warnings"] == ["no description: it cannot be found or used for suggestions"]
    seen = site.call("owner", "GET", f"{API}/names/bob/claimed").json()["vector"]
    assert (seen["base_status"], seen["base_fingerprint"]) == ("declared", None)
    data = site.call("owner", "GET", f"{API}/vectors/{seen['id']}/files/vector.safetensors").content
    assert b"trust me" not in data


def test_words_of_strangers_are_inert(site: Site, zoo: list[Path]) -> None:
    hostile = "<script>alert(1)</script> [x](javascript:alert(1)) ![i](http://evil/x)\n---\nlicense: mit\n```sh\nx\n```"
    card = {"schema": 1, "description": hostile, "licence": "x\n---\nevil: true"}
    sent = {**adapter(zoo[5]), CARD: json.dumps(card).encode()}
    answer = site.upload("owner", sent, name="hostile", tags=["a: b"])
    assert answer.status_code == 201, answer.text
    identity = answer.json()["upload"]["vector"]
    readme = site.call("owner", "GET", f"{API}/vectors/{identity}/files/README.md").text
    for live in ("<script>", "](", "```", "http://"):
        assert live not in readme
    header = readme.split("\n---\n")[0].splitlines()
    assert [line for line in header if line.startswith(("evil", "license"))] == [r'license: "x\n---\nevil: true"']
    bad = {"schema": 1, "description": "right to left \u202e"}
    assert code(site.upload("owner", {**adapter(zoo[6]), CARD: json.dumps(bad).encode()})) == (422, "card-refused")


# -- quotas ----------------------------------------------------------------------------------------------------------
def test_quotas_hold(tmp_path: Path) -> None:
    with running(tmp_path, max_open_uploads=2, max_stored_bytes=1000, workers="none") as made:
        big = {"parts": [{"name": "vector.safetensors", "size": 2000, "sha256": "0" * 64}]}
        assert code(made.call("owner", "POST", f"{API}/uploads", json=big)) == (429, "quota")
        small = {"parts": [{"name": "vector.safetensors", "size": 20, "sha256": "0" * 64}]}
        codes = [made.call("owner", "POST", f"{API}/uploads", json=small).status_code for _ in range(3)]
        assert codes == [201, 201, 429]
        assert made.call("other", "POST", f"{API}/uploads", json=small).status_code == 201
    with running(tmp_path / "full", min_free_bytes=2**60, workers="none") as made:
        assert code(made.call("owner", "POST", f"{API}/uploads", json=small)) == (507, "disk-full")


# -- explaining a stranger's adapter ---------------------------------------------------------------------------------
def test_an_uploaded_adapter_is_explained_and_not_kept(site: Site, zoo: list[Path]) -> None:
    for at in (7, 8, 9):
        assert site.upload("owner", adapter(zoo[at]), name=f"known {at}", visibility="public").status_code == 201
    site.work_off()
    before, there = site.service.scopes.refresh(), left(site)
    answer = site.upload("other", adapter(zoo[10]), purpose="explain", claim="decide what an intent is")
    assert answer.status_code == 200, answer.text
    job = answer.json()["job"]
    explanation = job["result"]["explanation"]
    assert {"sources", "residual", "verdict", "evidence"} <= set(explanation)
    report = site.call("other", "GET", f"{API}/jobs/{job['id']}/report")
    assert report.headers["content-type"].startswith("text/html")
    assert "sandbox" in report.headers["content-security-policy"]
    assert site.call("owner", "GET", f"{API}/jobs/{job['id']}").status_code == 404
    assert site.service.scopes.refresh() == before
    until = time.monotonic() + 10  # the files go once the report is kept
    while left(site) != there:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_jobs_say_how_far_they_are(site: Site) -> None:
    made = site.service.jobs.submit("relate", {}, site.ids["owner"])
    site.work_off()
    job = site.call("owner", "GET", f"{API}/jobs/{made.id}?wait=10").json()["job"]
    assert (job["state"], [s["name"] for s in job["steps"]]) == ("done", ["describe", "relate"])
    assert {s["state"] for s in job["steps"]} == {"done"}
    assert time.strptime(job["finished_at"][:19], "%Y-%m-%dT%H:%M:%S")
    assert PASSWORD not in json.dumps(job)


# -- bytes as they come ------------------------------------------------------------------------------------------------
async def pieces(data: bytes, cut: bool) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 50_000):
        yield data[at : at + 50_000]
    if cut:
        raise ConnectionError


@pytest.mark.parametrize("cut", [False, True])
def test_what_arrived_is_in_the_file_in_its_order(tmp_path: Path, cut: bool) -> None:
    data = hashlib.shake_128(b"x").digest(2_600_000)  # two writes on the way and one at the end

    async def received() -> None:
        with receiving.appending(tmp_path / "part") as fd, contextlib.suppress(ConnectionError):
            await receiving.take(fd, pieces(data, cut), len(data), idle=60.0, whole=60.0)

    anyio.run(received)
    assert (tmp_path / "part").read_bytes() == data


def test_bytes_that_do_not_reach_the_disk_are_said_so() -> None:
    reader, writer = os.pipe()  # takes bytes, and no fsync

    async def received() -> None:
        await receiving.take(writer, pieces(b"data", False), 10, idle=60.0, whole=60.0)

    try:
        with pytest.raises(StorageError, match="the upload"):
            anyio.run(received)
    finally:
        os.close(reader)
        os.close(writer)
