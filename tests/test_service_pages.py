"""The web pages over HTTP: every page for every kind of reader, hostile words in every field, forms and their refusals.
Attack rows 33, 35, 38."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient

from comgrad.errors import ComgradError
from comgrad.service import pages
from comgrad.service.errors import TooMany
from comgrad.service.pages import charts, formats, words
from comgrad.service.pages.markdown import TAGS, markdown
from comgrad.service.pages.render import local, render_error
from service_site import PASSWORD, Site, a_card, running

BAD = """"'><script>alert(1)</script><img src=x onerror=alert(1)><svg onload=alert(1)>{{7*7}}"""
LINKS = "[click](javascript:alert(1)) ![pic](https://evil.example/x.png) <https://evil.example> https://evil.example/y"
ARABIC, CHINESE = "تصنيف المشاعر في الجمل العربية", "判断句子的情感"
HTML_LIMIT, ASSETS_LIMIT = 50_000, 60_000
VOID = {"meta", "link", "input", "br", "hr", "img", "rect", "circle", "path", "option"}
TASK = "Recognise which intent a request to a voice assistant expresses."


# -- the site: five honest vectors, one in other scripts, one that is hostile in every field -----------------------------
def hostile_card() -> dict[str, Any]:
    bad = BAD[:150]
    return a_card(
        name="", description=f"{BAD}\n\n{LINKS}\n\n# A heading\n\n- a list\n", family=bad, licence=bad, notes=f"{LINKS} {BAD}",
        label_names=[bad, "b"], source_repo=bad, created_by=bad, base_model="sentence-transformers/all-MiniLM-L6-v2",
        training={"recipe": bad, "optimizer": bad, "own": bad}, metrics={bad: bad},
        parents=[{"id": bad, "role": bad[:40], "coefficient": 0.5}], extra={bad[:50]: bad},
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(zoo: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(
        tmp_path_factory.mktemp("pages"), vectors=[p for p in zoo if "intent" in p.name][:6], pages=True
    ) as made:
        stored = [r.id for r in made.service.registry.store.list()]
        for at, identity in enumerate(stored[:2]):
            made.share(identity, "owner", f"public-{at}", "public", tags=["shared"])
        made.ids["PUBLIC"] = stored[0]
        answer = Browser(made).form("/suggest", text=TASK)  # of two described vectors nothing is predicted
        made.ids["ABSTAINED"] = answer.headers["location"].rsplit("/", 1)[1]
        made.ids["HOSTILE"] = made.share(stored[2], "owner", BAD, "public", card=hostile_card(), tags=[BAD[:40], "x"])
        other = a_card(name="", description=f"{ARABIC}. {CHINESE}.", family=ARABIC, label_names=[CHINESE])
        made.ids["SCRIPTS"] = made.share(stored[3], "org", f"{ARABIC} {CHINESE}", "public", card=other, tags=[ARABIC])
        made.ids["PRIVATE"] = made.share(stored[4], "owner", "secret-plan", "private")
        made.service.jobs.submit("relate", {}, key="relate")
        made.work_off()
        yield made


class Browser(TestClient):
    """A reader with cookies of its own; `role` None is nobody."""

    def __init__(self, site: Site, handle: str | None = None) -> None:
        super().__init__(site.client.app, raise_server_exceptions=False)
        if handle is not None:
            answer = self.form("/login", handle=handle, password=PASSWORD)
            assert answer.status_code == 303, answer.text

    def page(self, path: str) -> Any:
        return self.get(path, follow_redirects=False)

    def csrf(self) -> str:
        return re.search(r'data-csrf="([^"]*)"', self.get("/compare").text)[1]

    def form(self, path: str, **values: str) -> Any:
        return self.post(path, data={"csrf": self.csrf(), **values}, follow_redirects=False)


@pytest.fixture(scope="module")
def anybody(site: Site) -> Browser:
    return Browser(site)


@pytest.fixture(scope="module")
def bob(site: Site) -> Browser:
    return Browser(site, "bob")


@pytest.fixture(scope="module")
def ann(site: Site) -> Browser:
    return Browser(site, "ann")


# -- every page for everybody --------------------------------------------------------------------------------------------
PAGES: dict[str, tuple[str, int, int, int]] = {  # route: address, status for nobody, for bob, for the administrator
    "/": ("/?text=" + BAD, 200, 200, 200),
    "/suggestions/{suggestion_id}": ("/suggestions/{SUGGESTED}", 200, 200, 200),
    "/suggestions/{suggestion_id}/adapter.zip": ("/suggestions/{SUGGESTED}/adapter.zip", 200, 200, 200),
    "/vectors": ("/vectors?q={BAD}&sort=name", 200, 200, 200),
    "/names/{owner}/{name:path}": ("/names/bob/public-0", 303, 303, 303),
    "/vectors/{vector_id}": ("/vectors/{HOSTILE}", 200, 200, 200),
    "/vectors/{vector_id}/adapter.zip": ("/vectors/{PUBLIC}/adapter.zip", 200, 200, 200),
    "/compare": ("/compare?a={HOSTILE}&b={SCRIPTS}", 200, 200, 200),
    "/map": ("/map?focus={BAD}", 200, 200, 200),
    "/trends": ("/trends?since=2020-01-01", 200, 200, 200),
    "/explain": ("/explain", 200, 200, 200),
    "/share": ("/share", 200, 200, 200),
    "/jobs": ("/jobs", 303, 200, 200),
    "/jobs/{job_id}": ("/jobs/job-none", 303, 404, 404),
    "/login": ("/login?next={BAD}", 200, 303, 303),
    "/first-start": ("/first-start", 303, 303, 303),
    "/invitation": ("/invitation?handle={BAD}", 200, 200, 200),
    "/reset": ("/reset?handle={BAD}", 200, 200, 200),
    "/sign-up": ("/sign-up", 303, 303, 303),
    "/account": ("/account?done={BAD}", 303, 200, 200),
    "/people": ("/people", 303, 403, 200),
    "/audit": ("/audit", 303, 403, 200),
    "/organisations": ("/organisations", 303, 200, 200),
    "/organisations/{handle}": ("/organisations/lab", 303, 404, 404),
}
MORE = (
    "/vectors", "/vectors?family={BAD}", "/vectors?q=words that nothing has", "/vectors?page=2", "/vectors/{SCRIPTS}",
    "/vectors/{PRIVATE}", "/vectors/tv-0000000000000000", "/compare", "/compare?a={PUBLIC}", "/compare?a={BAD}&b={BAD}",
    "/map?base={BAD}", "/map", "/trends?since={BAD}", "/nothing/{BAD}", "/suggestions/{BAD}", "/suggestions/{ABSTAINED}",
    "/login", "/sign-up/", "/vectors?page=x", "/static/none.js", "/static/../render.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def suggested(site: Site, anybody: Browser) -> Site:
    """A suggestion that was made, if need be against the rule's own doubt."""
    answer = anybody.form("/suggest", text=f"{BAD} {TASK}", dare="1")
    assert answer.status_code == 303, answer.text
    site.ids["SUGGESTED"] = answer.headers["location"].rsplit("/", 1)[1].removesuffix("?dared=1")
    return site


def filled(site: Site, address: str) -> str:
    for key, value in {**site.ids, "BAD": BAD.replace("#", "%23").replace("&", "%26")}.items():
        address = address.replace(f"{{{key}}}", value)
    return address


@dataclass
class Seen(HTMLParser):
    """What a browser would make of a page."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({k for k, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag]


KNOWN_TAGS = {
    *("html", "head", "meta", "title", "link", "script", "body", "a", "header", "svg", "path", "circle", "rect", "g"),
    *("nav", "div", "form", "input", "button", "span", "bdi", "main", "section", "aside", "footer", "h1", "h2", "h3"),
    *("p", "ul", "ol", "li", "dl", "dt", "dd", "label", "textarea", "select", "option", "fieldset", "legend", "code"),
    *("pre", "strong", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "time", "canvas", "noscript"),
    *("figure", "figcaption", "progress", "datalist", "em", "h4", "h5", "h6", "br", "hr", "s", "blockquote"),
}


def checked(answer: Any) -> Seen:
    """A page that is whole, small, without inline script or style, and that points nowhere else."""
    assert answer.headers["content-type"].startswith("text/html"), answer.text[:200]
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert len(answer.content) < HTML_LIMIT
    seen = Seen()
    seen.feed(answer.text)
    seen.close()
    assert not seen.open
    assert {t for t, _ in seen.tags} <= KNOWN_TAGS
    for tag, attributes in seen.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            assert name not in ("style", "srcdoc", "xlink:href", "ping"), f"<{tag} {name}>"
            if name in ("href", "src", "action", "formaction"):
                assert re.match(r"[/?#](?![/\\])|\?$", value or ""), f"<{tag} {name}={value!r}>"
    for script in seen.all("script"):
        assert (script["src"] or "").startswith("/static/")
    assert re.fullmatch(r"(?s).*<script type=\"module\" src=\"[^\"]+\"></script>.*", answer.text)
    _well_made(seen)
    return seen


def _well_made(seen: Seen) -> None:
    """One heading of the first rank, every field labelled, no id twice."""
    assert len(seen.all("h1")) == 1
    ids = [a["id"] for _, a in seen.tags if "id" in a]
    assert len(set(ids)) == len(ids), sorted(i or "" for i in ids)
    labelled = {a.get("for") for a in seen.all("label")}
    for tag, a in seen.tags:
        if tag in ("input", "select", "textarea") and a.get("type") not in ("hidden", "radio", "checkbox"):
            assert a.get("id") in labelled or "hidden" in a, a
    for form in seen.all("form"):
        assert form.get("method") in ("get", "post", None)
    assert seen.all("html")[0]["lang"] == "en"
    assert seen.all("title")


@pytest.mark.parametrize(("at", "handle"), [(1, None), (2, "bob"), (3, "ann")], ids=["nobody", "bob", "administrator"])
@pytest.mark.parametrize("route", PAGES)
def test_every_page_for_everybody(
    suggested: Site, request: pytest.FixtureRequest, route: str, at: int, handle: str | None
) -> None:
    browser: Browser = request.getfixturevalue(handle or "anybody")
    row = PAGES[route]
    answer = browser.page(filled(suggested, row[0]))
    assert answer.status_code == row[at], answer.text[:600]
    if answer.status_code == 303:
        assert answer.headers["location"].startswith("/")
    elif route.endswith(".zip"):
        assert zipfile.is_zipfile(io.BytesIO(answer.content))
    else:
        seen = checked(answer)
        assert ("Sign in" in seen.words) == (handle is None)


@pytest.mark.parametrize("handle", [None, "bob"])
@pytest.mark.parametrize("address", MORE)
def test_more_pages_and_their_errors(
    suggested: Site, request: pytest.FixtureRequest, address: str, handle: str | None
) -> None:
    browser: Browser = request.getfixturevalue(handle or "anybody")
    answer = browser.get(filled(suggested, address))
    assert answer.status_code in (200, 404, 422), answer.text[:400]
    checked(answer)


def test_no_page_is_missing_from_the_table() -> None:
    parts = [import_module(f"comgrad.service.pages.{m.name}") for m in iter_modules(pages.__path__)]
    made = [
        r for part in parts for r in getattr(getattr(part, "router", None), "routes", ()) if isinstance(r, APIRoute)
    ]
    assert {r.path for r in made if "GET" in r.methods} == set(PAGES)
    assert {r.path for r in made if "POST" in r.methods} == set(POSTS)


# -- words of strangers ----------------------------------------------------------------------------------------------------
def test_hostile_words_are_shown_as_they_were_typed(site: Site, anybody: Browser) -> None:
    seen = checked(anybody.page(f"/vectors/{site.ids['HOSTILE']}"))
    assert (
        seen.words.count("<script>alert(1)</script>") >= 8
    )  # name, description, notes, family, labels, licence, metrics, ...
    assert "[click](javascript:alert(1))" in seen.words
    assert "49" not in seen.words.replace(site.ids["HOSTILE"], "").split("Get it")[0] or "{{7*7}}" in seen.words
    assert {t for t, _ in seen.tags} >= {"h3", "ul"}  # its Markdown still has structure


def test_hostile_words_in_lists_and_titles(site: Site, anybody: Browser) -> None:
    for address in ("/", "/vectors?sort=newest", "/map", f"/compare?a={site.ids['HOSTILE']}&b={site.ids['PUBLIC']}"):
        seen = checked(anybody.page(address))
        assert "<script>alert(1)</script>" in seen.words, address


def test_other_scripts_stand_on_their_own(site: Site, anybody: Browser) -> None:
    answer = anybody.page(f"/vectors/{site.ids['SCRIPTS']}")
    seen = checked(answer)
    assert ARABIC in seen.words
    assert CHINESE in seen.words
    assert '<h1 dir="auto">' in answer.text


@given(
    st.text(max_size=400)
    | st.lists(st.sampled_from([BAD, LINKS, "# h\n", "> q\n", "|a|b|\n|-|-|\n", "```\n", "&#106;", "\n"])).map("".join)
)
def test_markdown_makes_only_listed_tags(text: str) -> None:
    seen = Seen()
    seen.feed(str(markdown(text)))
    assert {t for t, _ in seen.tags} <= TAGS
    assert all(set(a) <= {"start"} for _, a in seen.tags)


def test_markdown_keeps_structure_and_makes_headings_smaller() -> None:
    made = str(markdown("# One\n\n*two* **three** `four`\n\n1. five\n"))
    assert (
        made
        == "<h3>One</h3>\n<p><em>two</em> <strong>three</strong> <code>four</code></p>\n<ol>\n<li>five</li>\n</ol>\n"
    )


# -- forms -----------------------------------------------------------------------------------------------------------------
POSTS = {
    "/suggest": "/suggest",
    "/vectors/{vector_id}/change": "/vectors/{PUBLIC}/change",
    "/vectors/{vector_id}/remove": "/vectors/{PUBLIC}/remove",
    "/login": "/login",
    "/logout": "/logout",
    "/first-start": "/first-start",
    "/invitation": "/invitation",
    "/reset": "/reset",
    "/sign-up": "/sign-up",
    "/theme": "/theme",
    "/account/password": "/account/password",
    "/account/tokens": "/account/tokens",
    "/account/tokens/{token_id}/revoke": "/account/tokens/tk-none/revoke",
    "/people/invite": "/people/invite",
    "/people/{handle}/reset": "/people/eve/reset",
    "/people/{handle}/disable": "/people/eve/disable",
    "/organisations": "/organisations",
    "/organisations/{handle}/members": "/organisations/lab/members",
    "/organisations/{handle}/invitations": "/organisations/lab/invitations",
    "/organisations/{handle}/invitations/withdraw": "/organisations/lab/invitations/withdraw",
    "/organisations/{handle}/answer": "/organisations/lab/answer",
    "/organisations/{handle}/members/remove": "/organisations/lab/members/remove",
}


@pytest.mark.parametrize("route", POSTS)
def test_a_form_without_the_sessions_token_is_refused(site: Site, bob: Browser, route: str) -> None:
    answer = bob.post(filled(site, POSTS[route]), data={"text": TASK, "sure": "1"}, follow_redirects=False)
    assert answer.status_code == 403
    assert "token against forged requests" in checked(answer).words


@pytest.mark.parametrize(
    "route", [r for r in POSTS if r not in ("/suggest", "/theme", "/login", "/invitation", "/reset")]
)
def test_a_form_of_nobody_changes_nothing(site: Site, anybody: Browser, route: str) -> None:
    answer = anybody.post(filled(site, POSTS[route]), data={"title": "x"}, follow_redirects=False)
    assert answer.status_code in (303, 403, 422)
    if answer.status_code == 303:
        assert answer.headers["location"].startswith(("/login?next=", "/"))


def test_signing_in_says_the_same_for_all_that_is_wrong(site: Site) -> None:
    answers = [Browser(site).form("/login", handle=h, password="wrong wrong wrong") for h in ("bob", "nobody-here")]
    assert {a.status_code for a in answers} == {422}
    assert len({re.sub(r'value="[^"]*"', "", a.text) for a in answers}) == 1


@pytest.mark.parametrize(
    ("onward", "expected"),
    [("/vectors?q=a", "/vectors?q=a"), ("//evil.example", "/"), ("/\\evil.example", "/"), ("https://evil.example", "/"), ("/a\r\nX", "/")],
)  # fmt: skip
def test_signing_in_leads_nowhere_else(site: Site, onward: str, expected: str) -> None:
    answer = Browser(site).form("/login", handle="eve", password=PASSWORD, next=onward)
    assert answer.headers["location"] == expected


@given(st.text(max_size=60) | st.text("/\\.:@%?#evil\t\n", max_size=12))
def test_local_addresses_stay_local(address: str) -> None:
    made = local(address)
    assert re.match(r"/(?![/\\])[\x21-\x7e]*$", made)


def test_the_theme_is_kept(site: Site) -> None:
    browser = Browser(site)
    assert '<html lang="en" data-theme="auto">' in browser.page("/compare").text
    answer = browser.form("/theme", theme="dark", next="/compare")
    assert answer.headers["location"] == "/compare"
    assert '<html lang="en" data-theme="dark">' in browser.page("/compare").text
    browser.form("/theme", theme='"><script>')
    assert '<html lang="en" data-theme="auto">' in browser.page("/compare").text


# -- suggestions and downloads -----------------------------------------------------------------------------------------------
def test_an_abstention_says_why_and_what_to_do(suggested: Site, anybody: Browser) -> None:
    seen = checked(anybody.page(f"/suggestions/{suggested.ids['ABSTAINED']}"))
    made = suggested.call("anonymous", "GET", f"/api/v1/suggestions/{suggested.ids['ABSTAINED']}").json()
    assert made["abstained"]
    assert formats.sentence(made["reason"]) in seen.words
    assert "What you can do" in seen.words
    assert "Download the adapter" not in seen.words


def test_a_suggestion_shows_its_sources_and_how_to_use_it(suggested: Site, anybody: Browser) -> None:
    identity = suggested.ids["SUGGESTED"]
    seen = checked(anybody.page(f"/suggestions/{identity}"))
    made = suggested.call("anonymous", "GET", f"/api/v1/suggestions/{identity}").json()
    for source in made["sources"]:
        assert formats.signed(source["coefficient"]) in seen.words
        assert source["name"] in seen.words
    assert words.confidence(made).headline in seen.words
    sent = anybody.get(f"/suggestions/{identity}/adapter.zip")
    assert sent.headers["content-type"] == "application/zip", sent.text
    archive = zipfile.ZipFile(io.BytesIO(sent.content))
    folder = archive.namelist()[0].partition("/")[0]
    assert f'PeftModel.from_pretrained(base, "{folder}"' in seen.words
    assert archive.testzip() is None
    inside = {n.partition("/")[2]: hashlib.sha256(archive.read(n)).hexdigest() for n in archive.namelist()}
    assert inside == {f["name"]: f["sha256"] for f in made["files"]}


def test_a_vectors_download_is_what_its_page_says(site: Site, anybody: Browser) -> None:
    identity = site.ids["PUBLIC"]
    page = anybody.page(f"/vectors/{identity}").text
    archive = zipfile.ZipFile(io.BytesIO(anybody.get(f"/vectors/{identity}/adapter.zip").content))
    assert {n.partition("/")[2] for n in archive.namelist()} == {
        "adapter_model.safetensors", "adapter_config.json", "task_card.json", "README.md",
    }  # fmt: skip
    for name in archive.namelist():
        assert f'title="SHA-256 {hashlib.sha256(archive.read(name)).hexdigest()}"' in page
        assert anybody.get(f"/api/v1/vectors/{identity}/files/{name.partition('/')[2]}").content == archive.read(name)


def test_a_private_vector_is_its_owners(site: Site, anybody: Browser, bob: Browser) -> None:
    address = f"/vectors/{site.ids['PRIVATE']}"
    assert anybody.page(address).status_code == 404
    assert anybody.page(f"{address}/adapter.zip").status_code == 404
    assert "secret-plan" not in anybody.page("/vectors").text
    assert "secret-plan" in checked(bob.page(address)).words


# -- accounts --------------------------------------------------------------------------------------------------------------
def test_a_token_is_shown_once_and_revoked(site: Site, bob: Browser) -> None:
    answer = bob.form("/account/tokens", name=BAD, days="3", **{"scope-read": "1"})
    secret = next(str(a["data-copy"]) for a in checked(answer).all("button") if "data-copy" in a)
    assert secret.startswith("cgt_")
    assert answer.headers["cache-control"] == "no-store"
    assert site.client.get("/api/v1/session", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    page = checked(bob.page("/account"))
    assert secret not in page.words
    ids = [a["action"] for a in page.all("form") if (a.get("action") or "").endswith("/revoke")]
    for address in ids[:2]:
        bob.form(str(address))
    assert checked(bob.page("/account")).words.count("revoked") >= 1
    for wrong in ({"days": "x", "scope-read": "1"}, {"days": "9999", "scope-read": "1"}, {"days": "3"}):
        assert checked(bob.form("/account/tokens", name="n", **wrong)).words.count("New token") == 1


def test_an_invitation_becomes_an_account_with_an_organisation(site: Site, ann: Browser) -> None:
    answer = ann.form("/people/invite", handle="zoe")
    lines = next(str(a["data-copy"]) for a in checked(answer).all("button") if "data-copy" in a)
    address, given_secret = lines.splitlines()
    assert address.endswith("/invitation?handle=zoe")
    zoe = Browser(site)
    assert zoe.form("/invitation", handle="zoe", secret="wrong", password=PASSWORD).status_code == 403
    assert zoe.form("/invitation", handle="zoe", secret=given_secret, password="short").status_code == 422
    joined = zoe.form("/invitation", handle="zoe", secret=given_secret, password=PASSWORD)
    assert (joined.status_code, joined.headers["location"]) == (303, "/account")
    made = zoe.form("/organisations", handle="reading-group", title=BAD)
    assert made.headers["location"] == "/organisations/reading-group"
    address = made.headers["location"]
    assert BAD in checked(zoe.page(address)).words
    assert zoe.form(f"{address}/members", member="bob", role="admin").status_code == 404  # he is asked first
    assert zoe.form(f"{address}/invitations", member="bob", role="member").status_code == 303
    assert zoe.form(f"{address}/invitations", member="nobody-here", role="admin").status_code == 404
    assert "Not answered yet" in checked(zoe.page(address)).words
    bob = Browser(site, "bob")
    assert bob.page(address).status_code == 404
    for place in ("/account", "/organisations"):
        assert "asks you to be a member" in checked(bob.page(place)).words
    assert bob.form(f"{address}/answer", answer="no").headers["location"] == "/organisations"
    assert bob.form(f"{address}/answer", answer="yes").status_code == 404
    assert zoe.form(f"{address}/invitations", member="bob", role="member").status_code == 303
    assert zoe.form(f"{address}/invitations/withdraw", member="bob").status_code == 303
    assert zoe.form(f"{address}/invitations", member="bob", role="member").status_code == 303
    assert bob.form(f"{address}/answer", answer="yes").headers["location"] == address
    assert "Not answered yet" not in checked(zoe.page(address)).words
    assert zoe.form(f"{address}/members", member="bob", role="admin").status_code == 303
    checked(bob.page(address))
    assert zoe.form(f"{address}/members/remove", member="zoe").headers["location"] == "/organisations"
    assert zoe.form("/account/password", old="wrong", new="another five words here").status_code == 403
    changed = zoe.form("/account/password", old=PASSWORD, new="another five words here")
    assert changed.headers["location"] == "/account?done=password"
    assert ann.form("/people/zoe/disable", disabled="1").status_code == 303
    assert zoe.page("/account").headers["location"].startswith("/login")
    assert "org-create" in checked(ann.page("/audit")).words


def test_a_lost_password_is_chosen_again_with_an_administrators_secret(site: Site, ann: Browser) -> None:
    new = "six loud green parrots here"
    answer = ann.form("/people/mia/reset")
    assert answer.headers["cache-control"] == "no-store"
    lines = next(str(a["data-copy"]) for a in checked(answer).all("button") if "data-copy" in a)
    address, secret = lines.splitlines()
    assert address.endswith("/reset?handle=mia")
    assert secret not in ann.page("/people").text
    mia = Browser(site)
    assert 'value="mia"' in mia.page("/reset?handle=mia").text
    assert checked(mia.form("/reset", handle="mia", secret="wrong", password=new)).words.count("ask an admin") == 0
    assert mia.form("/reset", handle="mia", secret=secret, password="short").status_code == 422
    inside = mia.form("/reset", handle="mia", secret=secret, password=new)
    assert (inside.status_code, inside.headers["location"]) == (303, "/account?done=password")
    assert "The password is changed" in checked(mia.page("/account?done=password")).words
    assert Browser(site).form("/reset", handle="mia", secret=secret, password=new).status_code == 403
    assert Browser(site).form("/login", handle="mia", password=PASSWORD).status_code == 422
    assert ann.form("/people/nobody-here/reset").status_code == 409
    assert Browser(site, "bob").form("/people/mia/reset").status_code == 403


def test_signing_out_ends_the_session(site: Site) -> None:
    eve = Browser(site, "eve")
    cookies = dict(eve.cookies)
    assert eve.form("/logout").headers["location"] == "/"
    eve.cookies.update(cookies)
    assert eve.page("/account").status_code == 303


def test_a_vector_is_changed_and_removed_by_its_owner(site: Site, bob: Browser, anybody: Browser) -> None:
    spare = [r.id for r in site.service.registry.store.list()][5]
    site.share(spare, "owner", "short-lived", "public")
    address = f"/vectors/{spare}"
    changed = bob.form(f"{address}/change", description=f"new words {BAD}", tags="one, two", visibility="private")
    assert changed.status_code == 303, changed.text
    assert "new words" in checked(bob.page(address)).words
    assert anybody.page(address).status_code == 404
    refused = bob.form(f"{address}/change", description="x", tags="a" * 90, visibility="private")
    assert refused.status_code == 422
    assert bob.form(f"{address}/remove").status_code == 422
    assert "no longer shared" in checked(bob.form(f"{address}/remove", sure="1")).words
    assert bob.page(address).status_code in (404, 410)


def test_another_ones_vector_is_not_changed(site: Site) -> None:
    eve = Browser(site, "eve")
    for deed in ("change", "remove"):
        answer = eve.form(f"/vectors/{site.ids['PUBLIC']}/{deed}", description="mine", sure="1")
        assert answer.status_code == 403


# -- the first start ---------------------------------------------------------------------------------------------------------
def test_first_start_on_an_empty_service(tmp_path: Path) -> None:
    from comgrad.service.app import create_app
    from comgrad.service.settings import Settings

    app = create_app(Settings(data=tmp_path, min_free_bytes=0, open_sign_up=True))
    with TestClient(app) as client:
        empty = client.get("/", follow_redirects=False)
        assert empty.headers["location"] == "/first-start"
        checked(client.get("/first-start"))
        wrong = {"secret": "wrong", "handle": "ada", "password": PASSWORD}
        assert client.post("/first-start", data=wrong, follow_redirects=False).status_code == 403
        right = wrong | {"secret": str(app.state.service.first_secret)}
        assert client.post("/first-start", data=right, follow_redirects=False).headers["location"] == "/"
        for address in ("/", "/vectors", "/map", "/trends", "/share", "/sign-up", "/account", "/people"):
            checked(client.get(address))
        assert "Nothing is shared here yet" in client.get("/").text
        client.cookies.clear()
        joined = client.post("/sign-up", data={"handle": "max", "password": PASSWORD}, follow_redirects=False)
        assert joined.headers["location"] == "/account"


# -- errors, assets, words ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_an_error_page_has_three_parts(site: Site, status: int) -> None:
    scope = {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": [], "app": site.client.app}
    kind = TooMany if status == 429 else ComgradError
    answer = render_error(Request(scope), kind(f"the thing {BAD}", "it is refused", "do something else"), status)
    assert answer.status_code == status
    answer.headers["content-security-policy"] = "script-src 'self'"
    seen = Seen()
    seen.feed(bytes(answer.body).decode())
    assert all(w in seen.words for w in ("<script>alert(1)", "it is refused.", "Do something else."))
    assert ("retry-after" in answer.headers) == (status == 429)


def test_who_asks_too_often_reads_a_page(tmp_path: Path) -> None:
    """Before any handler is reached; programs are answered in JSON."""
    with running(tmp_path, pages=True, workers="none", logins_per_minute=3) as made:
        browser = Browser(made)
        wrong = {"handle": "bob", "password": "wrong wrong wrong", "secret": "x"}
        doors = ("/login", "/invitation", "/reset", "/sign-up")
        answers = [browser.form(doors[n % 4], **wrong) for n in range(5)]
        assert [a.status_code for a in answers[3:]] == [429, 429]
        seen = checked(answers[3])
        assert "Slow down a little" in seen.words
        assert int(answers[3].headers["retry-after"]) >= 1
        assert re.search(r"In about \d+ seconds? the page can be loaded again", seen.words)
        told = browser.post("/api/v1/session", json={"handle": "bob", "password": "x"})
        assert (told.status_code, told.json()["error"]["code"]) == (429, "too-many")


def test_pauses_after_wrong_passwords_are_told_on_the_page(tmp_path: Path) -> None:
    with running(tmp_path, pages=True, workers="none") as made:
        answers = [Browser(made).form("/login", handle="bob", password=f"wrong {n} wrong") for n in range(11)]
        assert [a.status_code for a in answers] == [422] * 10 + [429]
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert "Elsewhere it works" in checked(answers[-1]).words or "elsewhere it works" in answers[-1].text


def test_an_address_where_nothing_is_says_what_to_do(anybody: Browser, bob: Browser) -> None:
    for address in ("/nothing/here", "/vectors/tv-0000000000000000"):
        seen = checked(anybody.page(address))
        assert "Nothing here" in seen.words
        assert [a["action"] for a in seen.all("form") if a.get("role") == "search"] == ["/vectors"]
        assert "/login?next=" in str([a["href"] for a in seen.all("a")])
        assert "What is private is shown" in seen.words
        assert "What is private is shown" not in checked(bob.page(address)).words
    assert "'/nothing/here': there is nothing at this address." in checked(anybody.page("/nothing/here")).words


def test_assets_are_small_known_and_kept(anybody: Browser) -> None:
    folder = Path(pages.__file__).parent / "static"
    files = sorted(p for p in folder.iterdir() if p.suffix in (".js", ".css"))
    assert len(files) >= 5
    assert sum(p.stat().st_size for p in files) < ASSETS_LIMIT
    for p in files:
        assert not re.search(r"https?://|eval\(|innerHTML|document\.write|new Function", p.read_text("utf-8")), p.name
    found = re.search(r"/static/site\.css\?v=[0-9a-f]+", anybody.page("/compare").text)
    assert found
    assert "immutable" in anybody.get(found[0]).headers["cache-control"]
    assert anybody.get("/static/site.css").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0"), (1234567.0, "1\u2009234\u2009567"), (-0.00123, "−0.00123"), (5.6591, "5.66"), (1e-9, "1.00e−9")],
)  # fmt: skip
def test_figures_are_written_with_three_digits(value: float | None, shown: str) -> None:
    assert formats.figure(value) == shown


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_has_a_short_form(value: float) -> None:
    for made in (formats.figure(value), formats.fixed(value, 3), formats.signed(value), formats.percent(value)):
        assert made
        assert "nan" not in made
        assert "inf" not in made


@given(st.integers(0, 10**13))
def test_sizes_are_readable(count: int) -> None:
    made = formats.size(count)
    assert re.fullmatch(r"\d{1,5}(\.\d)? (B|kB|MB|GB)", made)
    number, unit = made.split()
    assert abs(float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit] - count) <= 0.051 * count


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_signed_bars_share_one_zero_and_stay_inside(values: list[float]) -> None:
    made = charts.signed_bars(values)
    zero = {round(b.start + b.width, 1) for b, v in zip(made, values, strict=True) if v < 0 and b.width > 0}
    zero |= {round(b.start, 1) for b, v in zip(made, values, strict=True) if v > 0 and b.width > 0}
    assert max(zero, default=0) - min(zero, default=0) <= 0.2
    assert all(0 <= b.start <= 100.01 and 0 <= b.width <= 100.01 and b.start + b.width <= 100.1 for b in made)


@given(
    st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=20)
)
def test_stacked_columns_fill_what_is_counted(total: dict[str, list[int]]) -> None:
    made = charts.columns(["a", "b", "c"], total)
    assert len(made.stacks) <= charts.MOST_LABELS
    for i in range(3):
        tall = sum(s.parts[i][2] for s in made.stacks)
        assert tall == pytest.approx(100 * sum(row[i] for row in total.values()) / made.top, abs=0.1)
    assert sum(s.last for s in made.stacks) == sum(row[-1] for row in total.values())


@pytest.mark.parametrize(
    ("chance", "headline"), [(0.99, "Very likely to help"), (0.5, "A toss-up"), (0.1, "Unlikely to help")]
)
def test_confidence_words_follow_the_figure(chance: float, headline: str) -> None:
    gain = {"nats": 0.1, "low": 0.0, "high": 0.2}
    assert words.confidence({"confidence": chance, "expected_gain": gain}).headline == headline
    assert "explain" in words.confidence({"confidence": chance}).meaning
