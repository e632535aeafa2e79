"""Organisations through the client, against a running service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import service_site
from client_stand_in import Fault, StandIn
from client_stand_in import running as listening
from comgrad.client.address import address
from comgrad.client.client import Client
from comgrad.client.errors import NotTrusted, Remote, Unreachable
from comgrad.client.wire import Patience, Wire
from comgrad.errors import NotFound

QUICK = Patience(attempts=6, seconds=60.0, longest=0.01, connect=10.0, answer=60.0)


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    """A client for each role, over the network."""
    with (
        service_site.running(tmp_path_factory.mktemp("service"), workers="none") as site,
        listening(site.client.app) as origin,
    ):
        made = {role: Client(origin, token=token, patience=QUICK) for role, token in site.tokens.items()}
        yield made
        for client in made.values():
            client.close()


def handles(found: list[dict[str, object]], key: str = "handle") -> list[object]:
    return [x[key] for x in found]


def test_an_organisation_from_its_founding_to_its_members_leaving(clients: dict[str, Client]) -> None:
    bob, eve, mia = clients["owner"], clients["other"], clients["member"]
    made = bob.create_org("choir", "The choir")
    assert made == {"handle": "choir", "title": "The choir", "role": "admin", "members": 1}
    assert bob.org("choir") == made
    assert made in bob.orgs()
    for handle in ("eve", "mia"):
        invited = bob.invite_member("choir", handle)
        assert (invited["handle"], invited["role"], invited["invited_by"]) == (handle, "member", "bob")
    assert handles(bob.members("choir")) == ["bob"]  # an invitation is no membership
    assert sorted(map(str, handles(bob.invitations("choir")))) == ["eve", "mia"]
    assert handles(eve.invited(), "org") == ["choir"]
    assert eve.accept_invitation("choir")["members"] == 2
    mia.decline("choir")
    assert mia.invited() == eve.invited() == bob.invitations("choir") == []
    bob.invite_member("choir", "mia", "admin")
    bob.withdraw("choir", "mia")
    with pytest.raises(NotFound):
        mia.accept_invitation("choir")
    assert bob.change_role("choir", "eve", "admin")["role"] == "admin"
    eve.remove_member("choir", "bob")
    assert handles(eve.members("choir")) == ["eve"]
    with pytest.raises(NotFound):
        bob.org("choir")
    with pytest.raises(Remote, match="no admin left"):
        eve.remove_member("choir", "eve")


def test_refusals_are_the_services_own(clients: dict[str, Client]) -> None:
    with pytest.raises(Remote) as taken:
        clients["owner"].create_org(service_site.ORG)
    assert (taken.value.code, taken.value.status) == ("handle-taken", 409)
    with pytest.raises(Remote) as refused:
        clients["member"].invite_member(service_site.ORG, "eve")
    assert (refused.value.code, refused.value.status) == ("forbidden", 403)
    with pytest.raises(NotFound):
        clients["other"].members(service_site.ORG)
    with pytest.raises(NotFound):
        clients["owner"].members("../tokens")  # one segment stays one segment


def test_what_may_have_been_done_is_not_done_twice_and_questions_are_asked_again(tmp_path: Path) -> None:
    hub = StandIn()
    with listening(hub) as origin, Client(origin, token="cgt_x", cache=tmp_path, patience=QUICK) as client:
        for call in (
            lambda: client.create_org("choir"),
            lambda: client.accept_invitation("choir"),
            lambda: client.remove_member("choir", "eve"),
        ):
            hub.log.clear()
            hub.faults = [Fault(path="choir", after=0), Fault(path="orgs", after=0)]
            with pytest.raises(Unreachable):
                call()
            assert len(hub.log) == 1
        hub.log.clear()
        body = b'{"items": [3]}'
        hub.faults = [Fault(path="orgs", status=503), Fault(path="orgs", status=200, body=body)]
        with pytest.raises(NotTrusted, match="another form"):
            client.orgs()
        assert len(hub.log) == 2
    with (
        Client(origin, offline=True, cache=tmp_path, wire=Wire(address(origin))) as client,
        pytest.raises(Unreachable, match="offline"),
    ):
        client.create_org("choir")
