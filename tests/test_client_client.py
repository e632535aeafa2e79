"""The client against a service that cuts, refuses, redirects and lies."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_stand_in import TOKEN, Fault, StandIn, running
from comgrad.client.address import address
from comgrad.client.client import Client
from comgrad.client.errors import NotTrusted, Remote, Unreachable
from comgrad.client.parcel import Part
from comgrad.client.paths import quoted
from comgrad.client.wire import Patience, Wire
from comgrad.errors import ComgradError, FileRefused, NotFound
from test_explain_explanation import WHOLE

FILES = {
    "vector.safetensors": bytes(range(256)) * 40,
    "adapter_model.safetensors": b"weights" * 300,
    "adapter_config.json": b"{}",
    "task_card.json": b'{"schema": 1}',
}
QUICK = Patience(attempts=6, seconds=60.0, longest=0.01, connect=2.0, answer=5.0)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMGRAD_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("COMGRAD_CACHE", str(tmp_path / "cache"))
    for name in ("COMGRAD_TOKEN", "COMGRAD_SERVER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[StandIn, str]]:
    service = StandIn()
    with running(service) as origin:
        yield service, origin


@pytest.fixture
def hub(served: tuple[StandIn, str]) -> StandIn:
    service, _ = served
    fresh = StandIn()
    service.__dict__.update(fresh.__dict__)
    service.share("ada/mood", "moods of tweets", FILES)
    return service


@pytest.fixture
def client(served: tuple[StandIn, str], hub: StandIn) -> Iterator[Client]:
    naps: list[float] = []
    where = address(served[1])
    wire = Wire(where, TOKEN, patience=QUICK, sleep=naps.append)
    with Client(served[1], wire=wire) as made:
        made.naps = naps  # type: ignore[attr-defined]
        yield made


def read(folder: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def requests(hub: StandIn, method: str, part: str) -> int:
    return sum(m == method and part in p for m, p, _ in hub.log)


# -- pulling -----------------------------------------------------------------------------------------------------------
def test_a_pulled_folder_holds_the_service_s_bytes(client: Client, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pulled = client.pull("ada/mood", tmp_path / "out", progress=lambda d, t: seen.append((d, t)))
    assert read(pulled.path) == FILES
    total = sum(map(len, FILES.values()))
    assert seen[-1] == (total, total)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert pulled.downloaded == total
    assert not pulled.offline


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(FILES["vector.safetensors"]) - 1), min_size=1, max_size=6))
def test_a_cut_anywhere_is_resumed_and_nothing_is_sent_twice(
    client: Client, hub: StandIn, tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    client._downloads = type(client._downloads)(tmp_path_factory.mktemp("cache"), 1 << 30)
    hub.faults = [Fault("GET", "files/vector.safetensors", after=n) for n in cuts]
    hub.log.clear()
    local = client.pull("ada/mood", only=["vector.safetensors"]).files["vector.safetensors"]
    assert local.read_bytes() == FILES["vector.safetensors"]
    ranges = [int(h["range"][6:-1]) for m, p, h in hub.log if "files/vector" in p and "range" in h]
    assert ranges == sorted(ranges)  # never from before what was there


def test_a_later_process_goes_on_where_a_killed_one_stopped(
    client: Client, hub: StandIn, served: tuple[StandIn, str]
) -> None:
    hub.faults = [Fault("GET", "files/vector", after=5000), Fault("GET", "files/vector", status=404, times=9)]
    with pytest.raises(ComgradError):
        client.pull("ada/mood")
    hub.faults, hub.log[:] = [], []
    with Client(served[1], wire=Wire(client.where, TOKEN, patience=QUICK)) as later:
        later.pull("ada/mood")
    first = next(h for m, p, h in hub.log if "files/vector" in p)
    assert first["range"] == "bytes=5000-"
    assert first["if-range"] == f'"{hashlib.sha256(FILES["vector.safetensors"]).hexdigest()}"'


def test_a_part_that_was_damaged_on_the_disk_is_fetched_again_whole(
    client: Client, hub: StandIn, tmp_path: Path
) -> None:
    digest = hashlib.sha256(FILES["vector.safetensors"]).hexdigest()
    client._downloads.prepare()
    (tmp_path / "cache" / "partial" / digest).write_bytes(b"x" * 700)
    pulled = client.pull("ada/mood")
    assert pulled.files["vector.safetensors"].read_bytes() == FILES["vector.safetensors"]


def test_other_bytes_are_refused_and_nothing_is_kept(client: Client, hub: StandIn, tmp_path: Path) -> None:
    hub.lie = lambda name, data: bytes(len(data)) if name == "adapter_model.safetensors" else data
    with pytest.raises(NotTrusted, match="hash to something else") as caught:
        client.pull("ada/mood", tmp_path / "out")
    assert caught.value.code == "digest-mismatch"
    assert not (tmp_path / "out").exists()
    digest = hashlib.sha256(FILES["adapter_model.safetensors"]).hexdigest()
    assert client._downloads.here(digest) is None
    assert not (tmp_path / "cache" / "partial" / digest).exists()


@pytest.mark.parametrize("change", [lambda d: d + b"more", lambda d: d[:-9]], ids=["longer", "shorter"])
def test_a_file_of_another_length_is_refused(client: Client, hub: StandIn, change) -> None:  # type: ignore[no-untyped-def]
    hub.lie = lambda name, data: change(data) if name == "vector.safetensors" else data
    with pytest.raises(NotTrusted) as caught:
        client.pull("ada/mood")
    assert caught.value.code == "size-mismatch"


def test_an_id_answers_for_its_bytes(client: Client, hub: StandIn) -> None:
    mood = hub.vectors["ada/mood"]["id"]
    other = hub.share("eve/mood", "other bytes", {**FILES, "vector.safetensors": b"evil"})
    hub.vectors["ada/mood"] = {**hub.vectors["eve/mood"]}
    hub.files[mood] = hub.files[other]
    hub.vectors["eve/mood"]["id"] = mood  # the id of one, the bytes of the other
    with pytest.raises(NotTrusted, match="do not belong together"):
        client.pull(mood)


def test_a_name_that_changes_its_meaning_is_refused(client: Client, hub: StandIn) -> None:
    client.pull("ada/mood")
    other = hub.share("ada/mood", "moods of tweets", {**FILES, "vector.safetensors": b"swapped after the review"})
    with pytest.raises(NotTrusted, match=rf"it was tv-\w+ on .* and is {other} now") as caught:
        client.pull("ada/mood")
    assert caught.value.code == "changed"
    assert client.pull("ada/mood", accept_change=True).id == other
    assert client.pull("ada/mood").id == other


def test_the_second_pull_needs_no_network(hub: StandIn, tmp_path: Path) -> None:
    with running(hub) as origin, Client(origin, wire=Wire(address(origin), patience=QUICK)) as client:
        first = client.pull("ada/mood", tmp_path / "one")
    # the service is gone now
    naps: list[float] = []
    with Client(origin, wire=Wire(address(origin), patience=QUICK, sleep=naps.append)) as client:
        second = client.pull("ada/mood", tmp_path / "two")
        assert second.offline
        assert len(naps) == 1  # it does not wait long for what it can do without
        assert second.seen == first.seen
        assert read(second.path) == read(first.path) == FILES
        with pytest.raises(Unreachable, match="does not answer"):
            client.pull("ada/never")
    before = len(hub.log)
    with Client(origin, offline=True) as client:
        assert client.pull(first.id, tmp_path / "three").id == first.id
        with pytest.raises(NotFound, match="was not pulled before"):
            client.pull("ada/never")
    assert len(hub.log) == before


def test_a_cached_file_that_was_changed_is_fetched_again(client: Client, hub: StandIn) -> None:
    path = client.pull("ada/mood").files["adapter_config.json"]
    path.chmod(0o644)
    path.write_bytes(b"{!")
    hub.log.clear()
    assert client.pull("ada/mood").files["adapter_config.json"].read_bytes() == b"{}"
    assert requests(hub, "GET", "/files/") == 1


def test_unknown_and_hostile_file_names_never_reach_the_disk(client: Client, hub: StandIn, tmp_path: Path) -> None:
    identity = hub.vectors["ada/mood"]["id"]
    hub.files[identity] = {**FILES, "../../evil": b"x", "model.sig": b"x", ".bashrc": b"x", "run.py": b"x"}
    client.pull("ada/mood", tmp_path / "out")
    assert set(read(str(tmp_path / "out"))) == set(FILES)


def test_an_occupied_folder_is_refused_before_anything_is_asked(client: Client, hub: StandIn, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ComgradError, match="not empty"):
        client.pull("ada/mood", tmp_path)
    assert hub.log == []


@given(st.text(min_size=1, max_size=40))
def test_a_segment_stays_one_segment(text: str) -> None:
    try:
        made = quoted(text)
    except NotFound:
        assert not text.strip(".")
        return
    assert made.isascii() and not set(made) & set("/?#\\ ."), made
    import re

    back = re.sub(rb"%([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), made.encode())
    assert back == text.encode("utf-8", "replace")


def test_a_figure_of_an_explanation_that_is_no_number_here_is_refused(client: Client, hub: StandIn) -> None:
    explanation = {**WHOLE.as_dict(), "norm": 10**400}
    body = json.dumps({"job": {"id": "jb-1", "state": "done", "result": {"explanation": explanation}}}).encode()
    hub.faults = [Fault("GET", "jobs/jb-1", status=200, body=body)]
    with pytest.raises(NotTrusted, match="another form"):
        client.explain(parcel_of())


# -- pushing -----------------------------------------------------------------------------------------------------------
def parcel_of(size: int = 300) -> list[Part]:
    data = hashlib.shake_128(b"weights").digest(size)
    return [Part.of("adapter_config.json", b"{}"), Part.of("adapter_model.safetensors", data)]


def arrived(hub: StandIn) -> dict[str, bytes]:
    return next(iter(hub.uploads.values()))["bytes"]  # type: ignore[no-any-return]


def test_a_push_arrives_whole_in_chunks(client: Client, hub: StandIn) -> None:
    seen: list[tuple[int, int]] = []
    pushed = client.push(parcel_of(), name="mine", public=True, progress=lambda d, t: seen.append((d, t)))
    assert (pushed.id, pushed.name, pushed.status) == ("tv-1", "ada/mine", "added")
    assert arrived(hub) == {p.name: p.source for p in parcel_of()}
    assert hub.uploads["up-1"]["visibility"] == "public"
    assert requests(hub, "PATCH", "parts") == 1 + 5  # 300 bytes in chunks of 64
    assert seen[-1] == (302, 302)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 64), min_size=1, max_size=5))
def test_a_push_goes_on_at_the_offset_that_arrived(client: Client, hub: StandIn, cuts: list[int]) -> None:
    hub.uploads, hub.sent = {}, 0
    hub.faults = [Fault("PATCH", "parts", after=n) for n in cuts]
    client.push(parcel_of(), name="mine")
    assert len(hub.uploads) == 1
    assert arrived(hub) == {p.name: p.source for p in parcel_of()}
    assert hub.sent == 302  # not one byte was taken twice


def test_a_killed_push_goes_on_and_one_of_another_kind_does_not_take_it_over(client: Client, hub: StandIn) -> None:
    hub.faults = [Fault("PATCH", "adapter_model", after=50), Fault("HEAD", "adapter_model", status=503, times=99)]
    with pytest.raises(Remote):
        client.push(parcel_of(), name="mine", public=True)
    # a refusal ends the memory; an unreachable service does not
    hub.uploads.clear()
    hub.faults = [Fault("PATCH", "adapter_model", after=50), Fault("PATCH", "adapter_model", after=0, times=99)]
    with pytest.raises(Unreachable):
        client.push(parcel_of(), name="mine", public=True)
    hub.faults = []
    client.push(parcel_of(), name="mine", public=False)
    assert len(hub.uploads) == 2  # the private one is another upload than the public one
    client.push(parcel_of(), name="mine", public=True)
    assert len(hub.uploads) == 2
    assert arrived(hub) == {p.name: p.source for p in parcel_of()}


def test_a_file_that_changes_while_it_is_sent_is_refused(client: Client, hub: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(b"a" * 200)
    parts = [Part.of("adapter_config.json", b"{}"), Part.of(path.name, path)]
    path.write_bytes(b"b" * 200)
    with pytest.raises(Remote, match="bytes differ") as caught:
        client.push(parts, name="mine")
    assert caught.value.code == "digest-mismatch"
    path.write_bytes(b"b" * 100)
    with pytest.raises(FileRefused, match="became shorter"):
        client.push(parts, name="mine")


def test_links_are_not_sent(client: Client, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(FileRefused, match="symbolic link"):
        client.push(folder)
    with pytest.raises(NotFound, match="holds no adapter_model"):
        client.push(tmp_path / "secret")


# -- patience and trust ------------------------------------------------------------------------------------------------
def test_retry_after_is_honoured(client: Client, hub: StandIn) -> None:
    hub.faults = [
        Fault("GET", "service", status=429, headers={"Retry-After": "7"}),
        Fault("GET", "service", status=503),
    ]
    assert client.service()["name"] == "stand-in"
    naps = client.naps  # type: ignore[attr-defined]
    assert naps[0] == 7.0
    assert len(naps) == 2 and naps[1] <= 0.01


def test_a_pause_that_is_too_long_is_reported_at_once(client: Client, hub: StandIn) -> None:
    body = b'{"error": {"code": "too-many", "given": "you", "why": "over the limit", "remedy": "come back in an hour"}}'
    hub.faults = [Fault("GET", "service", status=429, headers={"Retry-After": "3600"}, body=body, times=9)]
    with pytest.raises(Remote, match="come back in an hour") as caught:
        client.service()
    assert (caught.value.code, caught.value.status) == ("too-many", 429)
    assert len(hub.log) == 1


def test_what_may_have_been_done_is_not_sent_again(client: Client, hub: StandIn) -> None:
    for status, asked in ((504, 1), (503, 6)):
        hub.log.clear()
        hub.faults = [Fault("POST", "tokens", status=status, times=9)]
        with pytest.raises(Remote):
            client._wire.ask("POST", "/api/v1/tokens", body={}, repeatable=False)
        assert len(hub.log) == asked


def test_redirects_are_not_followed(client: Client, hub: StandIn) -> None:
    with running(StandIn()) as elsewhere:
        hub.faults = [Fault("GET", "service", status=307, headers={"Location": f"{elsewhere}/api/v1/service"}, times=9)]
        with pytest.raises(Remote, match="redirect to '127.0.0.1', and a token is never taken"):
            client.service()
    assert len(hub.log) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(status=200, body=b"<html>a page</html>"), "no JSON"),
        (Fault(status=200, body=b"[1]"), "no comgrad service"),
        (Fault(status=200, body=b"[" * 100_000), "no JSON"),
        (Fault(status=200, body=b"x", headers={"Content-Encoding": "gzip"}), "compressed"),
        (Fault(status=418, body=b"<b>\x1b[31mteapot"), "status 418"),
        (Fault(status=400, body=b'{"error": {"code": "../x", "given": 3}}'), "status 400"),
    ],
)
def test_what_is_no_answer_of_a_service_is_said_so(client: Client, hub: StandIn, fault: Fault, words: str) -> None:
    hub.faults = [Fault("GET", "service", status=fault.status, headers=fault.headers, body=fault.body)]
    with pytest.raises(ComgradError, match=words):
        client.service()


def test_a_service_s_words_reach_the_user_on_one_line(client: Client, hub: StandIn) -> None:
    error = {"code": "quota", "given": "another\nvector", "why": "x" * 5000, "remedy": "remove one"}
    hub.faults = [Fault("GET", "service", status=409, body=json.dumps({"error": error}).encode())]
    with pytest.raises(Remote) as caught:
        client.service()
    assert caught.value.given == "another vector"
    assert len(caught.value.why) == 1000


def test_the_token_is_sent_to_its_address_only_and_shown_nowhere(
    client: Client, hub: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        client.pull("ada/mood")
        client.push(parcel_of(), name="mine")
    assert all(h["authorization"] == f"Bearer {TOKEN}" for _, _, h in hub.log)
    assert TOKEN not in caplog.text
    assert caplog.records  # the guard can fail: something was logged
    assert TOKEN not in repr(client) + repr(client._wire) + repr(vars(client))
    where = address("https://example.org")
    with Client("https://example.org") as other:
        assert "authorization" not in other._wire._http.headers
        assert other.where == where


def test_search_and_suggest(client: Client, tmp_path: Path) -> None:
    assert [h["full_name"] for h in client.search("moods")] == ["ada/mood"]
    made = client.suggest("moods of tweets", tmp_path / "start")
    assert made["path"] == str(tmp_path / "start")
    assert read(made["path"]) == {k: v for k, v in FILES.items() if k != "vector.safetensors"}
