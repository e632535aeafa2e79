"""Addresses and credentials: who may be asked, what is kept where, and that a token goes nowhere else."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_stand_in import TOKEN, StandIn, running
from comgrad.client import credentials, signing_in
from comgrad.client.address import Address, address
from comgrad.client.client import Client
from comgrad.client.credentials import Credential
from comgrad.client.wire import Wire
from comgrad.errors import ComgradError, FileRefused


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMGRAD_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("COMGRAD_CACHE", str(tmp_path / "cache"))
    for name in ("COMGRAD_TOKEN", "COMGRAD_SERVER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "config"


@pytest.mark.parametrize(
    ("given_text", "origin"),
    [
        ("hub.example.org", "https://hub.example.org"),
        ("https://Hub.Example.org/", "https://hub.example.org"),
        ("https://hub.example.org:443", "https://hub.example.org"),
        ("https://hub.example.org:8443", "https://hub.example.org:8443"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000", "http://localhost:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("http://[::1]", "http://[::1]"),
        ("https://hüb.example.org", "https://xn--hb-xka.example.org"),
    ],
)
def test_addresses(given_text: str, origin: str) -> None:
    assert address(given_text).origin == origin
    assert address(origin) == address(given_text)


@pytest.mark.parametrize(
    "text",
    [
        "http://hub.example.org",
        "http://127.0.0.1.example.org",
        "http://127.1",
        "http://0x7f.0.0.1",
        "http://2130706433",
        "http://localhost.example.org",
        "http://[::ffff:8.8.8.8]",
    ],
)
def test_http_to_another_machine_needs_saying_so(text: str) -> None:
    with pytest.raises(ComgradError) as caught:
        address(text)
    assert caught.value.code == "not-secure"
    assert address(text, insecure=True).scheme == "http"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://x",
        "file:///etc/passwd",
        "https://",
        "https://x/path",
        "https://x?q",
        "https://x#f",
        "https://x:99999",
        "a b",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ComgradError) as caught:
        address(text)
    assert caught.value.code in ("bad-address", "not-secure")


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(ComgradError, match="user name or a password") as caught:
        address("https://ada:hunter2@hub.example.org")
    assert "hunter2" not in str(caught.value)


ORIGINS = (
    "https://a.example",
    "https://a.example:8443",
    "https://b.example",
    "http://127.0.0.1:1",
    "http://127.0.0.1:2",
)


@settings(max_examples=4)
@given(st.permutations(ORIGINS))
def test_a_token_belongs_to_one_scheme_host_and_port(order: list[str]) -> None:
    for origin in order:
        assert credentials.keep(Credential(origin, f"cgt_{'x' * 30}{ORIGINS.index(origin)}")).exists()
    for i, origin in enumerate(ORIGINS):
        found = credentials.found(address(origin))
        assert found is not None and found.token.endswith(str(i))
    assert credentials.current() == order[-1]
    for other in ("https://a.example.org", "https://xa.example", "https://127.0.0.1:1"):
        assert credentials.found(address(other)) is None
    assert credentials.found(Address("http", "a.example", 443)) is None
    for origin in order:
        assert credentials.forget(address(origin))
        assert not credentials.forget(address(origin))


def test_the_file_is_its_owner_s_alone(folder: Path) -> None:
    old = os.umask(0)
    try:
        path = credentials.keep(Credential("https://a.example", TOKEN, "ada"))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [p.name for p in folder.iterdir() if p.suffix == ".part"] == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_can_read_is_not_used(mode: int) -> None:
    path = credentials.keep(Credential("https://a.example", TOKEN))
    path.chmod(mode)
    with pytest.raises(FileRefused, match="chmod 600") as caught:
        Client("https://a.example")
    assert TOKEN not in str(caught.value)
    path.chmod(0o600)
    assert credentials.found(address("https://a.example")) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": 2, "hosts": {}}',
        '{"schema": 1}',
        '{"schema": 1, "hosts": {"https://a.example": 3}}',
        "{" * 9999,
    ],
)
def test_a_damaged_file_is_said_so(text: str) -> None:
    path = credentials.keep(Credential("https://a.example", TOKEN))
    path.write_text(text)
    with pytest.raises(FileRefused, match="no file of credentials"):
        credentials.found(address("https://a.example"))


def test_a_token_with_a_line_break_cannot_become_a_header() -> None:
    path = credentials.keep(Credential("https://a.example", TOKEN))
    data = json.loads(path.read_text())
    data["hosts"]["https://a.example"]["token"] = "cgt_x\r\nX-Evil: 1"
    path.write_text(json.dumps(data))
    with pytest.raises(FileRefused):
        credentials.found(address("https://a.example"))


def test_a_linked_file_is_refused(folder: Path, tmp_path: Path) -> None:
    path = credentials.keep(Credential("https://a.example", TOKEN))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileRefused, match="symbolic link"):
        credentials.found(address("https://a.example"))


def test_a_token_in_the_environment_counts_for_its_server_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMGRAD_TOKEN", TOKEN)
    assert credentials.found(address("https://a.example")) is None
    monkeypatch.setenv("COMGRAD_SERVER", "https://a.example")
    assert credentials.current() == "https://a.example"
    assert credentials.found(address("https://a.example")) == Credential("https://a.example", TOKEN)
    assert credentials.found(address("https://b.example")) is None


def test_printing_a_credential_hides_its_token() -> None:
    assert TOKEN not in repr(Credential("https://a.example", TOKEN))


@pytest.mark.parametrize("cookie", ["comgrad_session", "__Host-comgrad_session"])  # over http, and over https
def test_signing_in_by_password_keeps_a_token_and_no_password(folder: Path, cookie: str) -> None:
    hub = StandIn(cookie=cookie)
    with running(hub) as origin:
        where = address(origin)
        with pytest.raises(ComgradError, match="do not belong together"):
            signing_in.with_password(where, "ada", "wrong")
        assert credentials.found(where) is None
        held, path = signing_in.with_password(where, "ada", "right")
        assert (held.token, held.handle, held.token_id) == (TOKEN, "ada", "tk-1")
        assert "right" not in path.read_text() and "s3cret" not in path.read_text()
        assert ("DELETE", "/api/v1/session") in [(m, p) for m, p, _ in hub.log]  # the session is over
        with Client() as client:
            assert client.where.origin == origin
            assert client.account() == {"account": {"handle": "ada"}}
        assert "cookie" not in hub.log[-1][2]
        ended = signing_in.out(where)
        assert (ended.known, ended.revoked, ended.error) == (True, True, None)
        assert not signing_in.out(where).known
        with pytest.raises(ComgradError, match="nobody is signed in"):
            Client()


def test_signing_in_by_token_checks_it(folder: Path) -> None:
    hub = StandIn(sign_out=403)
    with running(hub) as origin:
        where = address(origin)
        with pytest.raises(ComgradError, match="tokens begin with cgt_"):
            signing_in.with_token(where, "hunter2")
        with pytest.raises(ComgradError, match="needs an account"):
            signing_in.with_token(where, "cgt_" + "u" * 43)
        assert not folder.exists()
        held, _ = signing_in.with_token(where, f" {TOKEN}\n")
        assert held.handle == "ada"
        ended = signing_in.out(where)
        assert (ended.known, ended.revoked) == (True, False)
        assert ended.error is not None
        assert TOKEN not in folder.joinpath("credentials.json").read_text()


def test_signing_out_of_a_service_that_is_gone_forgets_the_token_and_says_so(folder: Path) -> None:
    with running(StandIn()) as origin:
        where = address(origin)
        signing_in.with_password(where, "ada", "right")
    ended = signing_in.out(where, wire=Wire(where, TOKEN, sleep=lambda _: None))
    assert (ended.known, ended.revoked) == (True, False)
    assert ended.error is not None and ended.error.code == "unreachable"
    assert TOKEN not in folder.joinpath("credentials.json").read_text()


def test_signing_out_with_a_token_that_is_over_already(folder: Path) -> None:
    hub = StandIn()
    with running(hub) as origin:
        where = address(origin)
        signing_in.with_password(where, "ada", "right")
        hub.revoked = True
        assert signing_in.out(where).revoked
    assert TOKEN not in folder.joinpath("credentials.json").read_text()
