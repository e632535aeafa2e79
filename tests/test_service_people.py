"""People: joining organisations by one's own yes, guessing slowed without locking anybody out, passwords that were lost,
signing out. Attack rows 29, 30."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.service.auth import guessing, organisations, secrets
from comgrad.service.auth.guessing import ATTACKED, FIRST, FREE, FREE_ATTACKED, LONGEST, QUIET, Guesses
from comgrad.service.errors import Forbidden, SignInNeeded, TooMany
from comgrad.service.store import guesses, people
from comgrad.service.store.database import Database, new_id, now
from comgrad.service.web.limits import kind_of
from service_site import PASSWORD, Site, running

API = "/api/v1"
NEW = "six loud green parrots here"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("service"), workers="none") as made:
        yield made


@pytest.fixture(autouse=True)
def nobody_signed_in(site: Site) -> None:
    site.client.cookies.clear()


def actions(site: Site) -> list[str]:
    return [e["action"] for e in site.call("site-admin", "GET", f"{API}/audit?limit=20").json()["items"]]


# -- organisations ---------------------------------------------------------------------------------------------------
def test_nobody_becomes_a_member_without_their_own_yes(site: Site) -> None:
    refused = site.call("org-admin", "PUT", f"{API}/orgs/lab/members/eve", json={"role": "member"})
    assert refused.status_code == 404
    assert "invite them" in refused.json()["error"]["remedy"]
    asked = site.call("org-admin", "PUT", f"{API}/orgs/lab/invitations/eve", json={"role": "admin"})
    assert asked.status_code == 200, asked.text
    assert {k: asked.json()["invitation"][k] for k in ("org", "handle", "role", "invited_by")} == {
        "org": "lab",
        "handle": "eve",
        "role": "admin",
        "invited_by": "ora",
    }
    # until the answer nothing has changed for anybody
    assert site.call("other", "GET", f"{API}/orgs/lab").status_code == 404
    assert "eve" not in site.call("org-admin", "GET", f"{API}/orgs/lab/members").text
    assert site.call("other", "GET", f"{API}/session").json()["orgs"] == []
    # nobody else answers for her, and who reads but does not write does not either
    assert site.call("owner", "POST", f"{API}/account/invitations/lab").status_code == 404
    reading = {"Authorization": f"Bearer {site.another_token('other', 'read')}"}
    assert site.client.post(f"{API}/account/invitations/lab", headers=reading).status_code == 403
    [mine] = site.call("other", "GET", f"{API}/account/invitations").json()["items"]
    assert (mine["org"], mine["title"], mine["role"]) == ("lab", "The laboratory", "admin")
    joined = site.call("other", "POST", f"{API}/account/invitations/lab")
    assert joined.json()["org"]["role"] == "admin"
    assert site.call("other", "POST", f"{API}/account/invitations/lab").status_code == 404  # once
    assert [a for a in actions(site) if a.startswith("org-")][:2] == ["org-join", "org-invite"]
    assert site.call("org-admin", "PUT", f"{API}/orgs/lab/invitations/eve", json={"role": "admin"}).status_code == 409
    changed = site.call("org-admin", "PUT", f"{API}/orgs/lab/members/eve", json={"role": "member"})
    assert changed.json()["member"]["role"] == "member"
    assert site.call("other", "DELETE", f"{API}/orgs/lab/members/eve").status_code == 204
    assert site.service.audit.broken() is None


def test_an_invitation_is_renewed_at_the_limit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(organisations, "MOST", 1)
    assert site.call("owner", "POST", f"{API}/orgs", json={"handle": "crew"}).status_code == 201
    for role in ("member", "admin"):
        answer = site.call("org-admin", "PUT", f"{API}/orgs/lab/invitations/ann", json={"role": role})
        assert answer.status_code == 200, answer.text
    refused = site.call("owner", "PUT", f"{API}/orgs/crew/invitations/ann", json={"role": "member"})
    assert (refused.status_code, "invitations wait" in refused.json()["error"]["why"]) == (409, True)
    assert site.call("site-admin", "DELETE", f"{API}/account/invitations/lab").status_code == 204


def test_an_invitation_is_declined_withdrawn_renewed_and_ends(site: Site) -> None:
    path, mine = f"{API}/orgs/lab/invitations/bob", f"{API}/account/invitations/lab"

    def invite(role: str = "member") -> None:
        assert site.call("org-admin", "PUT", path, json={"role": role}).status_code == 200

    invite()
    assert site.call("owner", "DELETE", mine).status_code == 204
    assert site.call("owner", "POST", mine).status_code == 404
    invite()
    assert site.call("org-admin", "DELETE", path).status_code == 204
    assert site.call("owner", "POST", mine).status_code == 404
    invite()
    invite("admin")
    assert [i["role"] for i in site.call("owner", "GET", f"{API}/account/invitations").json()["items"]] == ["admin"]
    with site.service.database.write() as rows:
        rows.exec_driver_sql("UPDATE service_org_invitations SET expires_at = '2020-01-01 00:00:00.000000'")
    assert site.call("owner", "GET", f"{API}/account/invitations").json()["items"] == []
    assert site.call("owner", "POST", mine).status_code == 404
    assert site.call("org-admin", "GET", f"{API}/orgs/lab/invitations").json()["items"] == []
    assert (
        site.call("org-admin", "PUT", f"{API}/orgs/lab/invitations/no-such-one", json={"role": "member"}).status_code
        == 404
    )
    told = actions(site)
    assert {"org-decline", "org-withdraw", "org-invite"} <= set(told)


# -- guessing --------------------------------------------------------------------------------------------------------
@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Time that passes when it is told to."""
    at = [now()]

    def pass_by(seconds: float) -> None:
        at[0] += timedelta(seconds=seconds)

    def then() -> datetime:
        return at[0]

    for module in (guessing, guesses):
        monkeypatch.setattr(module, "now", then)
    yield pass_by


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Guesses]:
    database = Database(tmp_path)
    yield Guesses(database)
    database.close()


def tries(slow: Guesses, what: str, client: str, count: int) -> list[bool]:
    """Which of so many attempts in a row were let through."""
    out = []
    for _ in range(count):
        try:
            slow.charge(what, client)
            out.append(True)
        except TooMany:
            out.append(False)
    return out


def test_pauses_grow_and_are_forgotten(slow: Guesses, clock: Callable[[float], None]) -> None:
    assert tries(slow, "bob", "192.0.2.1", FREE + 3) == [True] * FREE + [False] * 3
    expected = FIRST
    for _ in range(9):
        clock(expected - 1.0)
        with pytest.raises(TooMany) as caught:
            slow.charge("bob", "192.0.2.1")
        assert 0.0 < caught.value.seconds <= 1.0 + 1e-6
        clock(1.0)
        slow.charge("bob", "192.0.2.1")
        expected = min(2 * expected, LONGEST)
    assert expected == LONGEST
    clock(QUIET.total_seconds() + 1.0)
    assert tries(slow, "bob", "192.0.2.1", FREE + 1) == [True] * FREE + [False]


def test_strangers_cannot_lock_an_owner_out(slow: Guesses, clock: Callable[[float], None]) -> None:
    """However many sources attack an account, each new one has some attempts: its owner's too."""
    let = sum(sum(tries(slow, "bob", f"198.51.100.{n}", 12)) for n in range(20))
    assert let <= ATTACKED + FREE + 20 * FREE_ATTACKED  # attacked from everywhere, each source has few
    assert tries(slow, "bob", "192.0.2.9", 10) == [True] * FREE_ATTACKED + [False] * (10 - FREE_ATTACKED)
    assert tries(slow, "mia", "192.0.2.9", 1) == [True]  # another account is not attacked


def test_a_network_of_ipv6_is_one_source(slow: Guesses) -> None:
    let = [tries(slow, "bob", f"2001:db8::{n:x}", 1)[0] for n in range(20)]
    assert let == [True] * FREE + [False] * 10
    assert tries(slow, "bob", "2001:db8:0:1::1", 1) == [True]


def test_one_source_at_many_accounts_is_slowed(slow: Guesses) -> None:
    let = [tries(slow, f"user-{n}", "192.0.2.1", 1)[0] for n in range(60)]
    assert let == [True] * guessing.FREE_SOURCE + [False] * 10


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database(tmp_path_factory.mktemp("guesses"))
    yield made
    made.close()


@settings(max_examples=20)
@given(st.lists(st.booleans(), max_size=25))
def test_right_ones_take_themselves_back(kept: Database, outcomes: list[bool]) -> None:
    """Whoever is right now and then is slowed by what was wrong since only; counts never fall below zero."""
    slow, what, wrong = Guesses(kept), new_id("h"), 0
    for right in outcomes:
        if wrong >= FREE:
            break
        slow.charge(what, what)
        if right:
            with kept.write() as rows:
                slow.refund(rows, what, what)
        wrong = 0 if right else wrong + 1
    with kept.read() as rows:
        found = guesses.known(rows, [f"{what} from {what}", f"any {what}", f"from {what}"], QUIET)
    assert found.get(f"{what} from {what}", (0, None))[0] == wrong
    assert all(count >= 0 for count, _ in found.values())


def test_the_right_password_from_another_source_works_under_attack(site: Site) -> None:
    sessions = site.service.sessions
    for n in range(ATTACKED + 5):
        with contextlib.suppress(SignInNeeded, TooMany):
            sessions._guesses.charge("bob", f"198.51.100.{n % 250}")
    with pytest.raises(SignInNeeded):
        sessions.log_in("bob", "not the password", "203.0.113.5")
    assert sessions.log_in("bob", PASSWORD, "203.0.113.5").account.handle == "bob"
    # and a session or token that is there already is asked for no password
    assert site.call("owner", "GET", f"{API}/session").status_code == 200


def test_attempts_at_once_do_not_slip_through_together(site: Site) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def guess(n: int) -> str:
        try:
            site.service.sessions.log_in("mia", f"guess number {n}", "203.0.113.77")
        except (SignInNeeded, TooMany) as error:
            return error.code
        return "in"

    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(guess, range(24)))
    assert codes.count("wrong-password") == FREE
    assert codes.count("guessing") == 24 - FREE


@pytest.mark.parametrize(
    "path", ["/login", "/invitation", "/sign-up", "/reset", "/first-start", f"{API}/accounts/reset"]
)
def test_what_takes_a_password_draws_from_the_bucket_of_signing_in(path: str) -> None:
    assert kind_of("POST", path) == "login"
    assert kind_of("GET", path) == "read"


# -- passwords that were lost ----------------------------------------------------------------------------------------
def issued(site: Site, handle: str) -> dict[str, Any]:
    answer = site.call("site-admin", "POST", f"{API}/accounts/{handle}/reset")
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def use(site: Site, secret: str, password: str = NEW, handle: str = "eve") -> int:
    body = {"handle": handle, "secret": secret, "password": password}
    return int(site.client.post(f"{API}/accounts/reset", json=body).status_code)


def test_a_reset_works_once_for_one_account_and_ends_its_sessions(site: Site) -> None:
    before = site.service.sessions.log_in("eve", PASSWORD, "192.0.2.3")
    first, made = issued(site, "eve"), issued(site, "eve")
    assert made["secret"].startswith("cgr_")
    assert len(made["secret"]) >= 40
    dump = "".join(p.read_bytes().decode("latin-1") for p in site.service.settings.folder.glob("service.sqlite*"))
    assert made["secret"] not in dump
    assert use(site, first["secret"]) == 403  # the second one ended it
    assert use(site, made["secret"], handle="bob") == 403
    assert use(site, "wrong") == 403
    assert use(site, made["secret"], password="short") == 422
    assert use(site, made["secret"]) == 200
    assert use(site, made["secret"]) == 403
    assert site.service.sessions.of_session(before.secret, "") is None
    assert site.call("other", "GET", f"{API}/session").status_code == 200  # tokens stay
    with pytest.raises(SignInNeeded):
        site.service.sessions.log_in("eve", PASSWORD, "192.0.2.4")
    assert site.service.sessions.log_in("eve", NEW, "192.0.2.4").account.handle == "eve"
    entries = site.call("site-admin", "GET", f"{API}/audit").json()["items"]
    told = [(e["action"], e["handle"], e["target"]) for e in entries if e["action"].startswith("reset")]
    assert told == [("reset-use", "eve", "eve"), ("reset-issue", "ann", "eve"), ("reset-issue", "ann", "eve")]
    assert made["secret"] not in json.dumps(entries)


def test_a_reset_ends_by_time_and_not_by_signing_in(site: Site) -> None:
    made = issued(site, "mia")
    with site.service.database.write() as rows:
        people.change_account(rows, site.ids["member"], invitation_until=now() - timedelta(seconds=1))
    assert use(site, made["secret"], handle="mia") == 403
    again = issued(site, "mia")
    stolen = site.service.sessions.log_in("mia", PASSWORD, "192.0.2.8")  # whoever stole the password cannot cancel it
    assert use(site, again["secret"], handle="mia") == 200
    assert site.service.sessions.of_session(stolen.secret, "") is None


def test_a_change_of_password_does_not_end_a_reset(site: Site) -> None:
    """A thief who has the password sees the reset coming, and changes the password before the owner uses it."""
    made = issued(site, "mia")
    stolen = site.service.sessions.log_in("mia", NEW, "192.0.2.8")
    thief = site.service.sessions.of_session(stolen.secret, "")
    assert thief is not None
    site.service.sessions.change_password(thief, NEW, "the thief's own words")
    assert use(site, made["secret"], handle="mia") == 200
    assert site.service.sessions.of_session(stolen.secret, "") is None
    with pytest.raises(SignInNeeded):
        site.service.sessions.log_in("mia", "the thief's own words", "192.0.2.8")
    assert use(site, made["secret"], handle="mia") == 403


def while_checked(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen while the next password is being stretched."""
    real = secrets.matches

    def slowly(password: str, stored: str | None) -> bool:
        monkeypatch.setattr(secrets, "matches", real)
        happens()
        return real(password, stored)

    monkeypatch.setattr(secrets, "matches", slowly)


def test_a_log_in_that_a_reset_overtakes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path, workers="none") as made:
        sessions, reset = made.service.sessions, issued(made, "eve")
        while_checked(monkeypatch, lambda: use(made, reset["secret"]))
        with pytest.raises(SignInNeeded, match="do not belong together"):
            sessions.log_in("eve", PASSWORD)
        opened = sessions.log_in("eve", NEW)
        thief = sessions.of_session(opened.secret, "")
        assert thief is not None
        again = issued(made, "eve")
        while_checked(monkeypatch, lambda: use(made, again["secret"], password=PASSWORD))
        with pytest.raises(Forbidden, match="not this account's"):
            sessions.change_password(thief, NEW, NEW + " too")
        assert sessions.of_session(opened.secret, "") is None
        assert sessions.log_in("eve", PASSWORD).account.handle == "eve"


def test_no_reset_and_no_invitation_works_while_shut_out(tmp_path: Path) -> None:
    with running(tmp_path, workers="none") as made:

        def shut_out(handle: str, disabled: bool) -> None:
            answer = made.call("site-admin", "PUT", f"{API}/accounts/{handle}/disabled", json={"disabled": disabled})
            assert answer.status_code == 200, answer.text

        reset = issued(made, "eve")
        shut_out("eve", True)
        with made.service.database.write() as rows:  # as one that was put in by hand, or came with a backup
            until = {"invitation": secrets.digest("by hand"), "invitation_until": now() + timedelta(hours=1)}
            people.change_account(rows, made.ids["other"], **until)
        assert use(made, "by hand") == 403
        shut_out("eve", True)
        shut_out("eve", False)
        assert use(made, "by hand") == use(made, reset["secret"]) == 403  # being shut out ended them
        invited = made.call("site-admin", "POST", f"{API}/invitations", json={"handle": "new"}).json()
        body = {"handle": "new", "secret": invited["secret"], "password": NEW}
        shut_out("new", True)
        assert made.client.post(f"{API}/accounts/accept", json=body).status_code == 403
        shut_out("new", False)
        assert made.client.post(f"{API}/accounts/accept", json=body).status_code in (200, 201)


def test_only_accounts_with_a_password_are_reset(site: Site) -> None:
    assert site.call("site-admin", "POST", f"{API}/invitations", json={"handle": "not-yet"}).status_code == 201
    for handle in ("not-yet", "never-was", "lab"):
        answer = site.call("site-admin", "POST", f"{API}/accounts/{handle}/reset")
        assert answer.status_code == 409, handle
    with_one = site.call("site-admin", "POST", f"{API}/invitations", json={"handle": "not-yet"}).json()
    assert use(site, with_one["secret"], handle="not-yet") == 403  # an invitation is no reset
    body = {"handle": "bob", "secret": issued(site, "bob")["secret"], "password": NEW}
    assert site.client.post(f"{API}/accounts/accept", json=body).status_code == 403  # nor the other way round


def test_whoever_has_the_machine_lets_the_last_administrator_in_again(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = run("reset-password", "ann", "--data", tmp_path)
    assert code == 1 and "no service has its folder there" in err
    with running(tmp_path, workers="none") as made:  # the service runs meanwhile
        code, out, err = run("reset-password", "ann", "--data", tmp_path, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["url"].endswith("/reset?handle=ann")
        assert use(made, found["secret"], handle="ann") == 200
        assert made.service.sessions.log_in("ann", NEW).account.site_admin
        entries = made.call("site-admin", "GET", f"{API}/audit").json()["items"]
        assert ("reset-issue", "(operator)") in [(e["action"], e["handle"]) for e in entries]
        assert run("reset-password", "never-was", "--data", tmp_path)[0] == 1


# -- signing out -----------------------------------------------------------------------------------------------------
def test_a_token_that_signs_out_is_revoked_and_no_other(site: Site) -> None:
    token = site.another_token("owner", "write")  # even one that may not read
    header = {"Authorization": f"Bearer {token}"}
    assert site.client.delete(f"{API}/session", headers=header).status_code == 204
    assert site.client.get(f"{API}/session", headers=header).status_code == 401
    assert site.call("owner", "GET", f"{API}/session").status_code == 200
    assert actions(site)[0] == "token-revoke"
    assert site.client.delete(f"{API}/session").status_code == 401
