"""Every route for every role; a route that is missing from the matrix fails. Attack rows 23, 30, 31, 46."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comgrad.service.auth.identity import ANONYMOUS
from comgrad.service.core import Service
from comgrad.service.listings import Asked
from comgrad.vectors.task_vector import TaskVector
from service_site import ORG, PASSWORD, ROLES, Site, a_card, running

API = "/api/v1"


@pytest.fixture(scope="module")
def site(zoo: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("service"), vectors=zoo[:14]) as made:
        stored = [r.id for r in made.service.registry.store.list()]
        for at, identity in enumerate(stored[:12]):
            made.share(identity, "owner", f"public-{at}", "public", tags=["shared"])
        made.ids["PUBLIC"] = stored[0]
        made.ids["PRIVATE"] = made.share(stored[12], "owner", "secret-plan", "private")
        made.ids["ORG"] = made.share(stored[13], "org", "lab-plan", "private")
        made.service.jobs.submit("relate", {}, key="relate")
        made.work_off()
        yield made


# -- the matrix ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Row:
    """A request and the status that each role gets, in the order of `ROLES`."""

    method: str
    route: str
    expected: tuple[int, ...]
    values: dict[str, Any] | None = None
    body: Any = None
    raw: bool = False
    spare: bool = False  # ends the token that asks: with one of its own

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.route


def everybody(status: int = 200) -> tuple[int, ...]:
    return (status,) * 6


def signed_in(status: int = 200) -> tuple[int, ...]:
    return (401, *(status,) * 5)


def only_admins(status: int = 200) -> tuple[int, ...]:
    return (401, 403, 403, 403, 403, status)


PRIVATE = (404, 404, 200, 404, 404, 404)
OF_ORG = (404, 404, 404, 200, 200, 404)
READERS = {"PUBLIC": everybody(), "PRIVATE": PRIVATE, "ORG": OF_ORG}
QUESTION = {"text": "decide whether a sentence is acceptable"}
PART = [{"name": "vector.safetensors", "size": 10, "sha256": "0" * 64}]
CREDENTIALS = {"handle": "nobody-here", "password": PASSWORD}
OTHERS = {"handle": "nobody-there", "password": PASSWORD}


def reading(route: str, values: dict[str, Any] | None = None) -> list[Row]:
    """A route of one vector, asked of a public one, another's private one, and an organisation's."""
    return [Row("GET", route, READERS[v], {"ref": v, **(values or {})}) for v in READERS]


MATRIX = [
    Row("GET", "/healthz", everybody()),
    Row("GET", "/readyz", everybody()),
    Row("GET", "/metrics", everybody(403)),
    Row("GET", f"{API}/service", everybody()),
    # accounts
    Row("POST", f"{API}/first-start", everybody(403), body={**CREDENTIALS, "secret": "wrong"}),
    Row("POST", f"{API}/accounts", everybody(403), body=CREDENTIALS),
    Row("GET", f"{API}/accounts", only_admins()),
    Row("PUT", f"{API}/accounts/{{handle}}/disabled", only_admins(), {"handle": "eve"}, {"disabled": False}),
    Row("POST", f"{API}/invitations", only_admins(201), body={"handle": "someone-new"}),
    Row("POST", f"{API}/accounts/accept", everybody(403), body={**OTHERS, "secret": "wrong"}),
    Row("POST", f"{API}/session", everybody(401), body=CREDENTIALS),
    Row("GET", f"{API}/session", signed_in()),
    Row("DELETE", f"{API}/session", signed_in(204), spare=True),
    Row("PUT", f"{API}/account/password", (401, 403, 403, 403, 403, 403), body={"old": "no", "new": PASSWORD}),
    Row("POST", f"{API}/accounts/{{handle}}/reset", (401, 403, 403, 403, 403, 409), {"handle": "nobody-here"}),
    Row("POST", f"{API}/accounts/reset", everybody(403), body={**CREDENTIALS, "handle": "lost-it", "secret": "wrong"}),
    Row("GET", f"{API}/tokens", only_admins()),  # a token manages tokens only with the scope admin
    Row("POST", f"{API}/tokens", only_admins(201), body={"name": "again", "scopes": ["read"]}),
    Row("DELETE", f"{API}/tokens/{{token_id}}", (401, 403, 403, 403, 403, 404), {"token_id": "tk-0"}),
    Row("GET", f"{API}/orgs", signed_in()),
    Row("POST", f"{API}/orgs", (401, 409, 409, 409, 409, 409), body={"handle": ORG}),
    Row("GET", f"{API}/orgs/{{org}}", (401, 404, 404, 200, 200, 404), {"org": ORG}),
    Row("GET", f"{API}/orgs/{{org}}/members", (401, 404, 404, 200, 200, 404), {"org": ORG}),
    Row(
        "PUT",
        f"{API}/orgs/{{org}}/members/{{handle}}",
        (401, 404, 404, 403, 200, 404),
        {"org": ORG, "handle": "mia"},
        {"role": "member"},
    ),
    Row(
        "DELETE",
        f"{API}/orgs/{{org}}/members/{{handle}}",
        (401, 404, 404, 403, 409, 404),
        {"org": ORG, "handle": "ora"},
    ),
    Row("GET", f"{API}/orgs/{{org}}/invitations", (401, 404, 404, 403, 200, 404), {"org": ORG}),
    Row(
        "PUT",
        f"{API}/orgs/{{org}}/invitations/{{handle}}",
        (401, 404, 404, 403, 200, 404),
        {"org": ORG, "handle": "eve"},
        {"role": "member"},
    ),
    Row(
        "DELETE",
        f"{API}/orgs/{{org}}/invitations/{{handle}}",
        (401, 404, 404, 403, 404, 404),
        {"org": ORG, "handle": "bob"},
    ),
    Row("GET", f"{API}/account/invitations", signed_in()),
    Row("POST", f"{API}/account/invitations/{{org}}", signed_in(404), {"org": "no-such-org"}),
    Row("DELETE", f"{API}/account/invitations/{{org}}", signed_in(404), {"org": "no-such-org"}),
    Row("GET", f"{API}/audit", only_admins()),
    # vectors
    Row("GET", f"{API}/vectors", everybody()),
    *reading(f"{API}/vectors/{{ref}}"),
    *reading(f"{API}/vectors/{{ref}}/neighbours"),
    *reading(f"{API}/vectors/{{ref}}/profile"),
    *reading(f"{API}/vectors/{{ref}}/lineage"),
    *reading(f"{API}/vectors/{{ref}}/files"),
    *reading(f"{API}/vectors/{{ref}}/manifest"),
    *reading(f"{API}/vectors/{{ref}}/files/{{name}}", {"name": "adapter_model.safetensors"}),
    *reading(f"{API}/vectors/{{ref}}/files/{{name}}", {"name": "vector.safetensors"}),
    Row("HEAD", f"{API}/vectors/{{ref}}/files/{{name}}", PRIVATE, {"ref": "PRIVATE", "name": "README.md"}),
    Row("GET", f"{API}/names/{{owner}}/{{name}}", everybody(), {"owner": "bob", "name": "public-0"}),
    Row("GET", f"{API}/names/{{owner}}/{{name}}", PRIVATE, {"owner": "bob", "name": "secret-plan"}),
    Row("GET", f"{API}/names/{{owner}}/{{name}}", OF_ORG, {"owner": ORG, "name": "lab-plan"}),
    Row("PATCH", f"{API}/vectors/{{ref}}", (401, 403, 200, 403, 403, 403), {"ref": "PUBLIC"}, {"tags": ["shared"]}),
    Row("PATCH", f"{API}/vectors/{{ref}}", (401, 404, 200, 404, 404, 404), {"ref": "PRIVATE"}, {"tags": []}),
    Row("PATCH", f"{API}/vectors/{{ref}}", (401, 404, 404, 403, 200, 404), {"ref": "ORG"}, {"tags": []}),
    Row("DELETE", f"{API}/vectors/{{ref}}", (401, 404, 404, 404, 404, 404), {"ref": "tv-0000000000000000"}),
    # questions
    Row("POST", f"{API}/search", everybody(), body=QUESTION),
    Row("GET", f"{API}/search", everybody(), {"?": "q=acceptable"}),
    Row("POST", f"{API}/suggestions", everybody(), body=QUESTION),
    Row("GET", f"{API}/suggestions/{{identity}}", everybody(404), {"identity": "sg-" + "0" * 32}),
    Row("GET", f"{API}/suggestions/{{identity}}/files/{{name}}", everybody(404), {"identity": "sg-..", "name": "x"}),
    Row("HEAD", f"{API}/suggestions/{{identity}}/files/{{name}}", everybody(404), {"identity": "sg-..", "name": "x"}),
    Row("GET", f"{API}/compare", everybody(), {"?": "a=PUBLIC&b=PUBLIC"}),
    Row("GET", f"{API}/compare", PRIVATE, {"?": "a=PUBLIC&b=PRIVATE"}),
    Row("GET", f"{API}/compare", OF_ORG, {"?": "a=ORG&b=PUBLIC"}),
    Row("GET", f"{API}/map", everybody()),
    Row("GET", f"{API}/trends", everybody()),
    Row("GET", f"{API}/bases", everybody()),
    # uploads and jobs
    Row("POST", f"{API}/uploads", signed_in(201), body={"parts": PART}),
    Row("POST", f"{API}/uploads", (401, 403, 403, 201, 201, 403), body={"parts": PART, "owner": ORG}),
    Row("GET", f"{API}/uploads", signed_in()),
    Row("GET", f"{API}/uploads/{{identity}}", (401, 404, 200, 404, 404, 404), {"identity": "UPLOAD"}),
    Row("HEAD", f"{API}/uploads/{{identity}}/parts/{{part}}", (401, 404, 200, 404, 404, 404), {"identity": "UPLOAD"}),
    Row(
        "PATCH",
        f"{API}/uploads/{{identity}}/parts/{{part}}",
        (401, 404, 204, 404, 404, 404),
        {"identity": "UPLOAD"},
        raw=True,
    ),
    Row("POST", f"{API}/uploads/{{identity}}/complete", (401, 404, 409, 404, 404, 404), {"identity": "UPLOAD"}),
    Row("DELETE", f"{API}/uploads/{{identity}}", (401, 404, 200, 404, 404, 404), {"identity": "UPLOAD"}),
    Row("GET", f"{API}/jobs", signed_in()),
    Row("GET", f"{API}/jobs/{{identity}}", (401, 404, 200, 404, 404, 404), {"identity": "JOB"}),
    Row("GET", f"{API}/jobs/{{identity}}/report", (401, 404, 404, 404, 404, 404), {"identity": "JOB"}),
]


def test_every_route_is_in_the_matrix(site: Site) -> None:
    described = {
        (method.upper(), path)
        for path, methods in site.client.get(f"{API}/openapi.json").json()["paths"].items()
        for method in methods
    }
    assert len(described) > 50
    assert described - {r.key for r in MATRIX} == set()
    hidden = {("HEAD", r.route) for r in MATRIX if r.method == "HEAD"}
    assert {r.key for r in MATRIX} - described - hidden == set()


def test_the_matrix_notices_a_missing_route(site: Site) -> None:
    described = set(site.client.get(f"{API}/openapi.json").json()["paths"])
    assert described - {r.route for r in MATRIX if not r.route.endswith("/audit")} == {f"{API}/audit"}


@pytest.fixture(scope="module")
def things(site: Site) -> dict[str, str]:
    """What the names in capitals stand for."""
    upload = site.call("owner", "POST", f"{API}/uploads", json={"parts": PART}).json()["upload"]["id"]
    job = site.service.jobs.submit("relate", {}, site.ids["owner"])
    site.work_off()
    return {**{k: site.ids[k] for k in ("PUBLIC", "PRIVATE", "ORG")}, "UPLOAD": upload, "JOB": job.id}


@pytest.mark.parametrize("row", MATRIX, ids=lambda r: f"{r.method} {r.route} {json.dumps(r.values)}")
def test_each_role_gets_what_it_may(site: Site, things: dict[str, str], row: Row) -> None:
    path, query = row.route, ""
    for key, value in {"part": "vector.safetensors", **(row.values or {})}.items():
        if key == "?":
            query = "?" + re.sub(r"[A-Z]{3,}", lambda m: things[m[0]], value)
        else:
            path = path.replace(f"{{{key}}}", things.get(value, value))
    more: dict[str, Any] = {"json": row.body} if row.body is not None else {}
    if row.raw:
        more = {"content": b"", "headers": {"Upload-Offset": "0", "Content-Type": "application/octet-stream"}}
    kept = dict(site.tokens)
    if row.spare:
        for role in kept:
            site.tokens[role] = site.another_token(role)
    found = {role: site.call(role, row.method, path + query, **more) for role in ROLES}
    site.tokens |= kept
    assert {r: a.status_code for r, a in found.items()} == dict(zip(ROLES, row.expected, strict=True))
    refusals = [a for a in found.values() if a.status_code >= 400 and row.method != "HEAD"]
    assert all(set(a.json()["error"]) == {"code", "given", "why", "remedy"} for a in refusals)


def test_what_may_not_be_read_is_as_what_is_not_there(site: Site) -> None:
    hidden = site.call("other", "GET", f"{API}/vectors/{site.ids['PRIVATE']}")
    absent = site.call("other", "GET", f"{API}/vectors/tv-0000000000000000")
    assert hidden.text.replace(site.ids["PRIVATE"], "X") == absent.text.replace("tv-0000000000000000", "X")


# -- nothing computed tells of what may not be read ------------------------------------------------------------------
@pytest.mark.parametrize(
    "ask",
    [
        lambda s, r: s.call(r, "GET", f"{API}/vectors?limit=200"),
        lambda s, r: s.call(r, "POST", f"{API}/search", json={"text": "secret plan of the lab", "limit": 100}),
        lambda s, r: s.call(r, "POST", f"{API}/search", json={"text": "secret-plan lab-plan", "words": True}),
        lambda s, r: s.call(r, "GET", f"{API}/map"),
        lambda s, r: s.call(r, "GET", f"{API}/trends"),
        lambda s, r: s.call(r, "GET", f"{API}/vectors/{s.ids['PUBLIC']}/neighbours"),
        lambda s, r: s.call(r, "POST", f"{API}/suggestions", json={**QUESTION, "dare": True}),
    ],
)
def test_answers_come_from_what_one_may_read(site: Site, ask: Callable[[Site, str], Any]) -> None:
    texts = {role: ask(site, role).text for role in ROLES}
    private, org = (site.ids[k] for k in ("PRIVATE", "ORG"))
    assert [r for r in ROLES if private in texts[r] or "secret-plan" in texts[r]] in ([], ["owner"])
    assert [r for r in ROLES if org in texts[r] or "lab-plan" in texts[r]] in ([], ["member", "org-admin"])
    assert texts["anonymous"] == texts["other"] == texts["site-admin"]


def test_private_vectors_are_found_by_those_who_may(site: Site) -> None:
    found = site.call("member", "GET", f"{API}/vectors?visibility=private").json()
    assert [x["full_name"] for x in found["items"]] == ["lab/lab-plan"]
    assert len(site.call("owner", "GET", f"{API}/map").json()["points"]) == 13
    assert len(site.call("anonymous", "GET", f"{API}/map").json()["points"]) == 12


def test_a_suggestion_from_private_vectors_is_its_askers_own(site: Site) -> None:
    asked = {"text": "decide whether a sentence is acceptable", "dare": True}
    mine = site.call("owner", "POST", f"{API}/suggestions", json=asked).json()
    path = f"{API}/suggestions/{mine['id']}"
    assert [site.call(r, "GET", path).status_code for r in ROLES] == [404, 404, 200, 404, 404, 404]
    assert site.call("other", "GET", f"{path}/files/adapter_model.safetensors").status_code == 404


def test_the_same_bytes_of_two_owners_do_not_tell_of_each_other(site: Site) -> None:
    identity = site.ids["PRIVATE"]
    site.share(identity, "other", "mine-too", "private", card=a_card(description="quite other words"))
    seen = {r: site.call(r, "GET", f"{API}/vectors/{identity}").json() for r in ("owner", "other", "member")}
    assert seen["owner"]["vector"]["name"] == "secret-plan"
    assert seen["other"]["vector"]["name"] == "mine-too"
    assert "secret" not in json.dumps(seen["other"]) and "error" in seen["member"]
    gone = site.call("other", "DELETE", f"{API}/vectors/{identity}")
    assert gone.status_code == 200
    assert site.call("other", "GET", f"{API}/vectors/{identity}").status_code == 404
    assert site.call("owner", "GET", f"{API}/vectors/{identity}/files/vector.safetensors").status_code == 200


# -- the catalogue ---------------------------------------------------------------------------------------------------
def test_pages_and_facets(site: Site) -> None:
    first = site.client.get(f"{API}/vectors?limit=5&sort=oldest").json()
    rest = site.client.get(f"{API}/vectors?limit=50&sort=oldest&offset=5").json()
    names = [x["name"] for x in first["items"] + rest["items"]]
    assert names == [f"public-{i}" for i in range(12)] and first["total"] == 12
    facets = {f: {v["value"]: v["count"] for v in values} for f, values in first["facets"].items()}
    assert facets["owner"] == {"bob": 12} and facets["tag"] == {"shared": 12} and facets["kind"] == {"lowrank": 12}
    family = first["facets"]["family"][0]
    kept = site.client.get(f"{API}/vectors", params={"family": family["value"]}).json()
    assert kept["total"] == family["count"] and {x["family"] for x in kept["items"]} == {family["value"]}
    assert sum(v["count"] for v in kept["facets"]["family"]) == 12  # what the other choices leave
    assert site.client.get(f"{API}/vectors?q=zebra+quantum").json()["total"] == 0


def test_a_suggestion_is_a_peft_folder(site: Site, tmp_path: Path) -> None:
    made = site.client.post(f"{API}/suggestions", json={**QUESTION, "dare": True}).json()
    assert made["sources"] and made["layers"] and not made["abstained"]
    assert abs(sum(x["share"] for x in made["layers"]) - 1.0) < 1e-9
    for info in made["files"]:
        data = site.client.get(f"{API}/suggestions/{made['id']}/files/{info['name']}").content
        assert hashlib.sha256(data).hexdigest() == info["sha256"] and len(data) == info["size"]
        (tmp_path / info["name"]).write_bytes(data)
    assert TaskVector.from_peft(tmp_path).norm() > 0
    assert made == site.client.post(f"{API}/suggestions", json={**QUESTION, "dare": True}).json()


# -- files -----------------------------------------------------------------------------------------------------------
def test_files_are_what_their_digests_say(site: Site, tmp_path: Path) -> None:
    path = f"{API}/vectors/{site.ids['PUBLIC']}"
    infos = site.client.get(f"{path}/files").json()["items"]
    names = ["vector.safetensors", "adapter_model.safetensors", "adapter_config.json", "task_card.json", "README.md"]
    assert [i["name"] for i in infos] == names
    for info in infos:
        answer = site.client.get(f"{path}/files/{info['name']}")
        assert answer.headers["etag"] == f'"{info["sha256"]}"'
        assert hashlib.sha256(answer.content).hexdigest() == info["sha256"] and len(answer.content) == info["size"]
        assert answer.headers["content-disposition"].startswith("attachment")
        (tmp_path / info["name"]).write_bytes(answer.content)
    stored = site.service.scopes.all_listings()[0].entry.store.get(site.ids["PUBLIC"])
    assert infos[0]["sha256"] == stored.digest
    again, whole = TaskVector.from_peft(tmp_path), TaskVector.load(tmp_path / "vector.safetensors")
    assert again.cosine(whole) > 1 - 1e-12
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith('---\nbase_model: "sentence-transformers/all-MiniLM-L6-v2"\nlibrary_name: peft\n')


def test_one_range_and_conditions(site: Site) -> None:
    path = f"{API}/vectors/{site.ids['PUBLIC']}/files/vector.safetensors"
    whole = site.client.get(path)
    size, etag = len(whole.content), whole.headers["etag"]
    for text, first, last in (("bytes=0-99", 0, 99), ("bytes=100-", 100, size - 1), ("bytes=-7", size - 7, size - 1)):
        part = site.client.get(path, headers={"Range": text})
        assert part.status_code == 206 and part.content == whole.content[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
    for text in ("bytes=0-1,5-6", f"bytes={size}-", "bytes=9-2", "bytes=-", "lines=0-1", "bytes=0-0," * 5000):
        assert site.client.get(path, headers={"Range": text}).status_code == 416
    assert site.client.get(path, headers={"If-None-Match": etag}).status_code == 304
    assert site.client.get(path, headers={"Range": "bytes=0-9", "If-Range": '"other"'}).status_code == 200
    head = site.client.head(path)
    assert head.headers["content-length"] == str(size) and head.content == b""


@pytest.mark.parametrize(
    "name", ["../vector.safetensors", "..%2f..%2fservice.sqlite", "%2e%2e/x", "C:\\x", "con", "\u202ex"]
)
def test_no_user_string_reaches_the_file_system(site: Site, name: str) -> None:
    for path in (f"{API}/vectors/{site.ids['PUBLIC']}/files/{name}", f"{API}/suggestions/sg-{name}/files/{name}"):
        assert site.client.get(path).status_code in (404, 405)


# -- changing --------------------------------------------------------------------------------------------------------
def test_visibility_changes_at_once_and_removal_leaves_a_tombstone(site: Site) -> None:
    listed = site.client.get(f"{API}/vectors?limit=1&sort=newest").json()["items"][0]
    path = f"{API}/vectors/{listed['id']}"
    assert site.call("owner", "PATCH", path, json={"visibility": "private"}).status_code == 200
    assert site.client.get(path).status_code == 404
    assert listed["id"] not in site.client.get(f"{API}/map").text
    assert (
        site.call("owner", "PATCH", path, json={"visibility": "public", "description": "new words"}).status_code == 200
    )
    assert site.client.get(path).json()["vector"]["description"] == "new words"
    gone = site.call("site-admin", "DELETE", f"{path}?reason=taken+down")
    assert gone.status_code == 200 and site.client.get(path).status_code == 404
    assert not site.service.registry.store.blobs.exists(listed["digest"])
    entries = site.call("site-admin", "GET", f"{API}/audit").json()["items"]
    assert entries[0]["action"] == "remove" and entries[0]["handle"] == "ann"
    assert site.service.audit.broken() is None


# -- what analysis says, and to whom ---------------------------------------------------------------------------------
def test_screening_says_whether_weights_bear_out_a_description(site: Site) -> None:
    service = site.service
    job = service.jobs.submit("screen", {}, site.ids["owner"])
    site.work_off(300)
    assert service.jobs.get(service.sessions.of_token(site.tokens["owner"], ""), job.id).state == "done"
    seen = site.client.get(f"{API}/vectors/{site.ids['PUBLIC']}").json()["vector"]["screening"]
    assert seen["verdict"] in ("consistent", "unexplained", "suspicious")
    assert seen["reasons"] and 0 <= seen["residual"] <= 1 and seen["known"] >= 10
    names = [x["full_name"] for x in site.client.get(f"{API}/vectors?limit=200").json()["items"]]
    assert {s["name"] for s in seen["sources"]} <= set(names)


def test_analysis_of_what_became_private_is_not_told(site: Site) -> None:
    listed = site.client.get(f"{API}/vectors?limit=200&sort=oldest").json()["items"]
    before = {x["id"]: site.client.get(f"{API}/vectors/{x['id']}").json()["vector"]["related"] for x in listed}
    hidden = next(n["id"] for r in before.values() if r for n in r["neighbours"])
    assert site.call("owner", "PATCH", f"{API}/vectors/{hidden}", json={"visibility": "private"}).status_code == 200
    told = {i: site.client.get(f"{API}/vectors/{i}").text for i in before if i != hidden}
    assert [i for i, text in told.items() if hidden in text] == []
    asked = {"text": "say whether this word order can be accepted", "dare": True}
    suggested = site.client.post(f"{API}/suggestions", json=asked).json()
    assert suggested["sources"] and hidden not in json.dumps(suggested)
    mine = [site.call("owner", "GET", f"{API}/vectors/{i}").text for i in told]
    assert any(hidden in text for text in mine)


def test_a_scope_too_large_to_weigh_whole_is_asked_by_neighbourhoods(site: Site) -> None:
    small = site.service.settings.model_copy(update={"whole_scope": 6, "neighbourhood": 5, "workers": "none"})
    service = Service(small, site.service.registry)
    try:
        total = service.listings.page(ANONYMOUS, Asked()).total
        assert total > 8
        made = service.insight.suggest(ANONYMOUS, "decide whether a sentence is acceptable", dare=True)
        assert 1 <= len(made.sources) <= 5
        nearest = service.insight.search(ANONYMOUS, "decide whether a sentence is acceptable", limit=5)
        assert nearest[0].listing.id in {s["id"] for s in made.sources}
        drawn = service.insight.map(ANONYMOUS)
        told = (drawn["exact"], len(drawn["points"]) + drawn["waiting"], drawn["left_out"])
        assert told == (6, total, 0)
        assert len(service.insight.map(ANONYMOUS, most=6)["points"]) <= 6
        around = service.insight.neighbours(ANONYMOUS, nearest[0].listing.id)
        assert 1 <= len(around) <= 10 and nearest[0].listing.id not in {n["listing"].id for n in around}
    finally:
        service.stop()


def test_while_geometry_is_made_an_older_one_answers_unless_it_holds_too_much(site: Site) -> None:
    scopes = site.service.scopes
    listings = scopes.scope(ANONYMOUS).group(None)
    geometry = scopes.geometry
    older = geometry.warm(listings[:-1])
    geometry._whole.pop(tuple(x.content for x in listings), None)
    found, theirs = geometry.lately(listings)
    assert (found is older, theirs) == (True, False)
    until = time.monotonic() + 60
    while not geometry.lately(listings)[1]:
        assert time.monotonic() < until
        time.sleep(0.05)
    fewer, theirs = geometry.lately(listings[1:])  # the first may no longer be read
    assert theirs
    assert listings[0].id not in fewer.atlas.ids
