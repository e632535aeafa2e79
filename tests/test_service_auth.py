"""First start, accounts, sessions, tokens, limits, headers and logs. Attack rows 22, 28, 29, 32, 35, 48."""

from __future__ import annotations

import io
import json
import logging
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from comgrad.errors import ComgradError
from comgrad.service.app import create_app
from comgrad.service.auth import secrets
from comgrad.service.auth.identity import checked_handle
from comgrad.service.core import Service
from comgrad.service.settings import Settings
from comgrad.service.store import guesses, people
from comgrad.service.store.database import now
from comgrad.service.store.tables import audit
from comgrad.service.web.logs import JsonFormatter, redacted, set_up
from service_site import PASSWORD, Site, running

API = "/api/v1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("service")) as made:
        yield made


@pytest.fixture(autouse=True)
def nobody_signed_in(site: Site) -> None:
    site.client.cookies.clear()


def signed_in(site: Site, handle: str = "bob") -> dict[str, str]:
    """Sign in by cookie; the header that changes need."""
    answer = site.client.post(f"{API}/session", json={"handle": handle, "password": PASSWORD})
    assert answer.status_code == 200
    return {"X-CSRF-Token": answer.json()["csrf"]}


def cookie(site: Site) -> dict[str, str]:
    """The session's cookie as a header."""
    return {"Cookie": f"comgrad_session={site.client.cookies['comgrad_session']}"}


# -- the first start -------------------------------------------------------------------------------------------------
def test_there_are_no_default_credentials_and_the_secret_works_once(tmp_path: Path) -> None:
    app = create_app(Settings(data=tmp_path, pages=False, preload=False, workers="none"))
    with TestClient(app) as client:
        service = app.state.service
        file = service.accounts.first_start_file
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        secret = file.read_text().strip()
        assert secret == service.first_secret
        assert len(secret) >= 40
        body = {"secret": secret, "handle": "root-user", "password": PASSWORD}
        for wrong in ("", "admin", secret[:-1]):
            assert client.post(f"{API}/first-start", json={**body, "secret": wrong}).status_code == 403
        assert client.get(f"{API}/service").json()["first_start"] is True
        assert client.post(f"{API}/first-start", json=body).status_code == 201
        assert client.post(f"{API}/first-start", json={**body, "handle": "second"}).status_code == 403
        assert not file.exists()
        assert client.get(f"{API}/service").json()["first_start"] is False


def test_a_restart_before_the_first_start_keeps_the_secret(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        service = Service(Settings(data=tmp_path, workers="none"))
        found.append(service.first_secret)
        service.stop()
    assert found[0] == found[1]


# -- accounts --------------------------------------------------------------------------------------------------------
def test_handles_that_read_alike_are_one(site: Site) -> None:
    for twin in ("b0b", "rn-bob", "bob"):
        answer = site.call("site-admin", "POST", f"{API}/invitations", json={"handle": twin})
        expected = 201 if twin == "rn-bob" else 409
        assert answer.status_code == expected, twin
    assert site.call("site-admin", "POST", f"{API}/invitations", json={"handle": "m-bob"}).status_code == 409


@pytest.mark.parametrize(
    "handle", ["", "a", "Bob", "bob ", "-bob", "bob-", "b--b", "bоb", "api", "x" * 40, "a/b", "a\n"]
)
def test_a_handle_is_small_letters_digits_and_hyphens(handle: str) -> None:
    with pytest.raises(ComgradError, match="a handle is 2 to 39"):
        checked_handle(handle)


def test_sign_up_is_by_invitation_unless_the_site_says_otherwise(site: Site) -> None:
    answer = site.client.post(f"{API}/accounts", json={"handle": "stranger", "password": PASSWORD})
    assert answer.status_code == 403
    assert "by invitation" in answer.json()["error"]["why"]


def test_an_unknown_account_and_a_wrong_password_get_one_answer(site: Site) -> None:
    wrong = [
        site.client.post(f"{API}/session", json={"handle": h, "password": "not the password"})
        for h in ("eve", "never-was", "Not A Handle")
    ]
    assert [a.status_code for a in wrong] == [401] * 3
    assert len({a.text for a in wrong}) == 1


def test_guessing_is_stopped(site: Site) -> None:
    tries = [
        site.client.post(f"{API}/session", json={"handle": "mia", "password": f"guess number {i}"}).status_code
        for i in range(12)
    ]
    assert tries == [401] * 10 + [429] * 2
    with site.service.database.write() as rows:
        guesses.forget(rows, "mia from testclient")


def test_weak_passwords_are_refused(site: Site) -> None:
    who = site.service.sessions.of_token(site.tokens["site-admin"], "")
    invited = site.service.accounts.invite(who, "newcomer")
    for weak in ("short", "aaaaaaaaaaaaaaaa"):
        body = {"handle": "newcomer", "secret": invited.secret, "password": weak}
        answer = site.client.post(f"{API}/accounts/accept", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "password-refused")


def test_a_disabled_account_is_out_at_once(site: Site) -> None:
    path = f"{API}/accounts/eve/disabled"
    assert site.call("other", "GET", f"{API}/session").status_code == 200
    assert site.call("site-admin", "PUT", path, json={"disabled": True}).status_code == 200
    assert site.call("other", "GET", f"{API}/session").status_code == 401
    assert site.client.post(f"{API}/session", json={"handle": "eve", "password": PASSWORD}).status_code == 401
    assert site.call("site-admin", "PUT", path, json={"disabled": False}).status_code == 200
    assert site.call("other", "GET", f"{API}/session").status_code == 200


def test_changing_the_password_ends_other_sessions(site: Site) -> None:
    signed_in(site, "ora")
    old = cookie(site)
    site.client.cookies.clear()
    headers = signed_in(site, "ora")
    body = {"old": PASSWORD, "new": PASSWORD + " again"}
    assert site.client.put(f"{API}/account/password", json=body, headers=headers).status_code == 204
    assert site.client.get(f"{API}/session").status_code == 200
    site.client.cookies.clear()
    assert site.client.get(f"{API}/session", headers=old).status_code == 401


# -- cookies and forged requests -------------------------------------------------------------------------------------
def test_the_cookie_is_not_for_scripts_nor_other_sites(site: Site) -> None:
    answer = site.client.post(f"{API}/session", json={"handle": "bob", "password": PASSWORD})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie  # this site is http on one machine


def test_over_https_the_cookie_is_bound_to_the_host(tmp_path: Path) -> None:
    with running(tmp_path, public_url="https://example.org", workers="none") as made:
        answer = made.client.post(f"{API}/session", json={"handle": "bob", "password": PASSWORD})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-comgrad_session=")
        assert "; secure" in cookie.lower()
        assert answer.headers["strict-transport-security"].startswith("max-age=")


@pytest.mark.parametrize("header", [None, "", "0" * 64])
def test_changes_by_cookie_need_the_sessions_token(site: Site, header: str | None) -> None:
    right = signed_in(site)
    wrong = {} if header is None else {"X-CSRF-Token": header}
    body = {"name": "made by a forger", "scopes": ["read"]}
    for method, path, more in (
        ("POST", f"{API}/tokens", {"json": body}),
        ("DELETE", f"{API}/session", {}),
        ("POST", f"{API}/uploads/x/complete", {"headers": {"Content-Type": "application/x-www-form-urlencoded"}}),
    ):
        headers = {**more.pop("headers", {}), **wrong}
        answer = site.client.request(method, path, headers=headers, **more)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "csrf")
    assert site.client.post(f"{API}/tokens", json=body, headers=right).status_code == 201


def test_another_sites_page_cannot_sign_anybody_in(site: Site) -> None:
    body = {"handle": "bob", "password": PASSWORD}
    answer = site.client.post(f"{API}/session", json=body, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_a_token_is_read_from_the_header_only(site: Site) -> None:
    token = site.tokens["owner"]
    assert site.client.get(f"{API}/session?token={token}&access_token={token}").status_code == 401
    assert site.client.get(f"{API}/session", headers={"Cookie": f"comgrad_session={token}"}).status_code == 401
    assert site.client.get(f"{API}/session", headers={"Authorization": f"Bearer {token}"}).status_code == 200


# -- tokens ----------------------------------------------------------------------------------------------------------
def test_tokens_are_long_and_stored_as_digests_only(site: Site) -> None:
    body = {"name": "ci", "scopes": ["read", "write"], "days": 1}
    made = site.client.post(f"{API}/tokens", json=body, headers=signed_in(site)).json()
    secret = made["secret"]
    assert len(secret.removeprefix("cgt_")) * 6 >= 128
    dump = "".join(p.read_bytes().decode("latin-1") for p in site.service.settings.folder.glob("service.sqlite*"))
    assert secret not in dump
    assert secret.removeprefix("cgt_") not in dump
    assert secrets.digest(secret) in dump
    assert PASSWORD not in dump
    listed = site.client.get(f"{API}/tokens").text
    assert made["token"]["id"] in listed
    assert secret not in listed


def test_scopes_end_and_revocation_hold(site: Site) -> None:
    headers = signed_in(site)
    made = site.client.post(f"{API}/tokens", json={"name": "r", "scopes": ["read"]}, headers=headers).json()
    token = {"Authorization": f"Bearer {made['secret']}"}
    headers |= cookie(site)
    site.client.cookies.clear()
    assert site.client.get(f"{API}/uploads", headers=token).status_code == 200
    refused = site.client.post(f"{API}/orgs", json={"handle": "no-scope"}, headers=token)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "scope")
    gone = site.client.delete(f"{API}/tokens/{made['token']['id']}", headers=headers)
    assert gone.json()["token"]["revoked"] is True
    assert site.client.get(f"{API}/uploads", headers=token).status_code == 401
    info = site.service.tokens.list(site.service.sessions.of_token(site.tokens["site-admin"], ""))[0]
    with site.service.database.write() as rows:
        people.change_token(rows, info.id, expires_at=now() - timedelta(seconds=1))
    assert site.call("site-admin", "GET", f"{API}/audit").status_code == 401
    with site.service.database.write() as rows:
        people.change_token(rows, info.id, expires_at=now() + timedelta(days=1))


def test_only_admins_of_the_site_make_admin_tokens(site: Site) -> None:
    body = {"name": "x", "scopes": ["admin"]}
    assert site.client.post(f"{API}/tokens", json=body, headers=signed_in(site)).status_code == 403


def test_wrong_tokens_do_not_keep_right_ones_of_the_same_address_out(site: Site) -> None:
    with site.service.database.write() as rows:
        guesses.forget(rows, "a token from testclient")
    wrong = [
        site.client.get(f"{API}/session", headers={"Authorization": f"Bearer cgt_{'x' * 40}{i}"}).status_code
        for i in range(12)
    ]
    assert wrong == [401] * 10 + [429] * 2
    assert site.call("owner", "GET", f"{API}/session").status_code == 200


def test_the_last_admin_of_an_organisation_stays(site: Site) -> None:
    path = f"{API}/orgs/lab/members/ora"
    assert site.call("org-admin", "DELETE", path).status_code == 409
    assert site.call("org-admin", "PUT", path, json={"role": "member"}).status_code == 409


# -- bodies, addresses, headers --------------------------------------------------------------------------------------
def test_compressed_and_large_bodies_are_refused_unread(site: Site) -> None:
    path = f"{API}/search"
    bomb = site.client.post(path, content=b"\x1f\x8b" + b"0" * 99, headers={"Content-Encoding": "gzip"})
    assert bomb.status_code == 415
    assert site.client.post(path, content=b"x" * 300_000).status_code == 413
    parts = b"".join(b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' for _ in range(2000))
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    assert site.client.post(path, content=parts, headers=multipart).status_code == 422


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"text": 1}',
    b'{"text": "x", "extra": 1}',
    b'{"text": "\\u0000"}',
    b'{"text": "\\ud800"}',
    b'{"text": "' + b"a" * 30_000 + b'"}',
    b"[" * 100_000,
    b'{"text": "x", "limit": 1e999}',
    b"\xff\xfe",
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_bodies_of_strangers_are_refused_in_three_parts(site: Site, body: bytes) -> None:
    answer = site.client.post(f"{API}/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert set(answer.json()["error"]) == {"code", "given", "why", "remedy"}


def test_a_nul_in_the_address_is_refused(site: Site) -> None:
    assert site.client.get(f"{API}/vectors?q=%00").status_code == 400
    assert site.client.get(f"{API}/vectors/%00").status_code == 400


def test_every_answer_carries_the_security_headers(site: Site) -> None:
    for path in ("/healthz", f"{API}/service", f"{API}/nowhere", f"{API}/vectors?limit=0"):
        headers = site.client.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert len(headers["x-request-id"]) == 16


def test_one_address_cannot_ask_without_end(tmp_path: Path) -> None:
    with running(tmp_path, reads_per_minute=20, workers="none") as made:
        codes = [made.client.get(f"{API}/service").status_code for _ in range(30)]
        assert codes[:20] == [200] * 20
        assert codes[-1] == 429
        assert int(made.client.get(f"{API}/service").headers["retry-after"]) >= 1
        assert made.client.get("/healthz").status_code == 200


def test_a_proxys_word_is_taken_from_named_proxies_only(tmp_path: Path) -> None:
    headers = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}
    for proxies, expected in (((), "testclient"), (("203.0.113.0/24",), "testclient")):
        with running(tmp_path / str(len(proxies)), trusted_proxies=proxies, workers="none") as made:
            made.client.post(f"{API}/session", json={"handle": "bob", "password": PASSWORD}, headers=headers)
            entry = made.call("site-admin", "GET", f"{API}/audit").json()["items"][0]
            assert (entry["action"], entry["client"]) == ("log-in", expected)


def test_metrics_are_for_who_has_the_token(tmp_path: Path) -> None:
    token = secrets.new("m")
    with running(tmp_path, metrics_token=token, workers="none") as made:
        assert made.client.get("/metrics").status_code == 403
        made.client.get(f"{API}/nowhere/{'x' * 50}")
        text = made.client.get("/metrics", headers={"Authorization": f"Bearer {token}"}).text
        assert 'comgrad_requests_total{method="GET",route="none",status="404"} 1.0' in text
        assert "xxxxx" not in text


# -- logs ------------------------------------------------------------------------------------------------------------
def test_no_secret_reaches_the_logs(tmp_path: Path) -> None:
    stream = io.StringIO()
    names = ("comgrad", "uvicorn", "uvicorn.error", "huey", "uvicorn.access")
    kept = {n: (logging.getLogger(n).handlers, logging.getLogger(n).propagate) for n in names}
    set_up(stream)
    try:
        with running(tmp_path, workers="none") as made:
            answer = made.client.post(f"{API}/session", json={"handle": "bob", "password": PASSWORD})
            session, csrf = made.client.cookies["comgrad_session"], answer.json()["csrf"]
            body = {"name": "x", "scopes": ["read"]}
            token = made.client.post(f"{API}/tokens", json=body, headers={"X-CSRF-Token": csrf}).json()["secret"]
            made.client.get(f"{API}/vectors/{token}?token={token}", headers={"Authorization": f"Bearer {token}"})
            made.client.get(f"{API}/vectors/{token}%0a%7B%22forged%22:1%7D")
            logging.getLogger("comgrad.service").error("made with %s", token, extra={"password": PASSWORD})
    finally:
        for n, (handlers, propagate) in kept.items():
            logging.getLogger(n).handlers = handlers
            logging.getLogger(n).propagate = propagate
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 5
    assert all(isinstance(json.loads(line), dict) and "forged" not in json.loads(line) for line in lines)
    for secret in (session, csrf, token, PASSWORD):
        assert secret not in stream.getvalue()
    assert "[hidden]" in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    ["Bearer abcdefgh12345678", "Basic dXNlcjpwYXNzd29yZA==", "hf_abcdefghijkl", "postgresql://u:s3cret@host/db"]
    + [f"{kind}{'A1_-' * 8}" for kind in (secrets.TOKEN, secrets.SESSION, secrets.INVITATION, secrets.FIRST_START)],
)
def test_redaction_knows_secrets_by_their_look(text: str) -> None:
    assert redacted(f"before {text} after") != f"before {text} after"
    record = logging.LogRecord("x", logging.INFO, "", 0, "said: %s", (text,), None)
    secret = text.split()[-1].removeprefix("postgresql://").removesuffix("@host/db")
    assert secret not in JsonFormatter().format(record)


def test_the_audit_log_shows_what_was_changed(site: Site) -> None:
    assert site.service.audit.broken() is None
    with site.service.database.write() as rows:
        rows.execute(audit.update().where(audit.c.number == 2).values(handle="somebody\nelse"))
    assert site.service.audit.broken() == 2


def test_a_mistake_of_ours_is_an_answer_too_and_tells_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(site.service.listings, "page", broken)
    answer = site.client.get(f"{API}/vectors")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "secret detail" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_body_without_a_length_is_cut_off_at_the_limit(site: Site) -> None:
    chunks = iter([b"[" * 100_000] * 5)
    answer = site.client.post(f"{API}/search", content=chunks, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
