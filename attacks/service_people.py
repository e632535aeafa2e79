"""Attacks on people: secrets, guessing, another's vectors, forms of other sites. Guessing comes last: it makes bob's source wait."""

from __future__ import annotations

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from service import PASSWORD, WEIGHTS, Site, code, row

Got = tuple[str, bool]


@row(
    "28,48",
    "secrets, and line breaks, in paths, headers and bodies of all attacks so far",
    "no secret in any log line; each line is one JSON object",
)
def logs(site: Site) -> Got:
    for path in (
        f"/x?token={site.tokens['bob']}",
        f"/{site.tokens['bob']}",
        "/a%0a%7B%22level%22:%22error%22%7D",
        "/%1b%5b31m",
    ):
        site.call(
            "GET",
            path,
            headers={"User-Agent": '"}\t{"level": "error", "message": "forged"}', "X-Forwarded-For": "6.6.6.6"},
        )
    site.call("POST", "/api/v1/session", json={"handle": "bob\n{}", "password": PASSWORD})
    time.sleep(0.5)
    text = site.log.read_text(errors="replace")
    told = [line for line in text.splitlines() if not line.startswith(("serving ", "first start:"))]
    broken = [line for line in told if not _is_object(line)]
    leaked = [s[:6] for s in site.secrets if any(s in line for line in told)]
    forged = [line for line in told if _is_object(line) and json.loads(line).get("message") == "forged"]
    return f"{len(told)} lines, {len(broken)} not JSON, {len(leaked)} secrets, {len(forged)} forged", bool(
        told
    ) and not (broken or leaked or forged)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@row(
    "29",
    "tokens: their length, how they are stored, where they are read from",
    "≥ 128 bit; no file holds one; read in the header only",
)
def tokens(site: Site) -> Got:
    token = site.tokens["bob"]
    bits = len(token.removeprefix("cgt_")) * 6
    held = [p.name for p in (site.folder / "data").rglob("*") if p.is_file() and token.encode() in p.read_bytes()]
    session = site.session("bob")[0].split("=", 1)[1]
    held += [p.name for p in (site.folder / "data").rglob("*") if p.is_file() and session.encode() in p.read_bytes()]
    other = [
        site.call("GET", f"/api/v1/tokens?token={token}&access_token={token}").status_code,
        site.call("GET", "/api/v1/uploads", headers={"Cookie": f"comgrad_session={token}"}).status_code,
        site.call("GET", "/api/v1/uploads", headers={"Authorization": f"Basic {token}"}).status_code,
        site.call("GET", "/api/v1/uploads", headers={"Authorization": f"Bearer {token[:-1]}"}).status_code,
    ]
    return f"{bits} bit, in files: {held}, elsewhere: {other}", bits >= 128 and not held and other == [401] * 4


@row("30", "another's private vector on every route that names one", "404 in the words for a vector that is not there")
def private(site: Site) -> Got:
    hidden, spec = site.ids["hidden"], site.ok("GET", "/api/v1/openapi.json")
    paths = [(m.upper(), p) for p, ms in spec["paths"].items() for m in ms if "{ref}" in p or "{vector_id}" in p]
    paths += [
        ("GET", "/vectors/{ref}"),
        ("GET", "/vectors/{ref}/adapter.zip"),
        ("GET", "/api/v1/names/bob/hidden"),
        ("GET", "/names/bob/hidden"),
    ]
    wrong = []
    for method, path in sorted(set(paths)):
        for who in (None, "eve"):

            def ask(ref: str, method: str = method, path: str = path, who: str | None = who) -> Any:
                where = path.replace("{ref}", ref).replace("{vector_id}", ref).replace("{name}", WEIGHTS)
                return site.call(method, where, who=who, json={"visibility": "public"} if method == "PATCH" else None)

            real, none = ask(hidden), ask("tv-" + "0" * 16)
            expected = {401, 404} if who is None else {404}
            words = [re.sub(r"tv-\w+|bob/hidden|[0-9a-f]{16}", "X", a.text) for a in (real, none)]
            if real.status_code not in expected or ("{ref}" in path and words[0] != words[1]):
                wrong.append(f"{method} {path} {who}: {real.status_code}")
    good = (
        not wrong
        and len(paths) >= 10
        and site.ok("GET", f"/api/v1/vectors/{hidden}", who="bob")["vector"]["visibility"] == "private"
    )
    return f"{len(set(paths))} routes; {'; '.join(wrong) or 'all 404'}", good


@row(
    "30",
    "changing what is another's: patch, remove, their upload, their job, their tokens, the site's pages",
    "401, 403 or 404",
)
def changing(site: Site) -> Got:
    upload = site.begin(site.adapter(4)).json()["upload"]["id"]
    asked = [
        ("PATCH", f"/api/v1/vectors/{site.ids['open']}", {"description": "mine now"}),
        ("DELETE", f"/api/v1/vectors/{site.ids['open']}", None),
        ("GET", f"/api/v1/uploads/{upload}", None),
        ("DELETE", f"/api/v1/uploads/{upload}", None),
        ("POST", f"/api/v1/uploads/{upload}/complete", None),
        ("GET", "/api/v1/accounts", None),
        ("GET", "/api/v1/audit", None),
        ("POST", "/api/v1/invitations", {"handle": "mallory"}),
        ("PUT", "/api/v1/accounts/bob/disabled", {"disabled": True}),
    ]
    told = {
        f"{m} {p.split('/')[3]} {w}": site.call(m, p, who=w, json=b).status_code
        for m, p, b in asked
        for w in (None, "eve")
    }
    sent = site.send(upload, WEIGHTS, b"evil", who="eve").status_code
    site.call("DELETE", f"/api/v1/uploads/{upload}", who="bob")
    wrong = [f"{k}: {s}" for k, s in told.items() if s not in (401, 403, 404)]
    return f"{len(told) + 1} refused; {'; '.join(wrong) or 'none let through'}", not wrong and sent == 404


@row(
    "31,46",
    "a private vector through comparison, suggestion, neighbours, map, search, facets and lineage",
    "404, or not a trace of it",
)
def deriving(site: Site) -> Got:
    hidden, public = site.ids["hidden"], site.ids["open"]
    compared = [
        site.call("GET", f"/api/v1/compare?a={a}&b={b}", who="eve").status_code
        for a, b in ((hidden, public), (public, hidden))
    ]
    text = site.ok("GET", f"/api/v1/vectors/{hidden}", who="bob")["vector"]["description"]
    traces = {}
    for name, method, path, body in (
        ("search", "POST", "/api/v1/search", {"text": text, "limit": 50, "words": True}),
        ("list", "GET", "/api/v1/vectors?limit=200", None),
        ("neighbours", "GET", f"/api/v1/vectors/{public}/neighbours", None),
        ("lineage", "GET", f"/api/v1/vectors/{public}/lineage", None),
        ("map", "GET", "/api/v1/map", None),
        ("suggestion", "POST", "/api/v1/suggestions", {"text": text, "dare": True}),
        ("bases", "GET", "/api/v1/bases", None),
    ):
        answer = site.call(method, path, who="eve", json=body)
        traces[name] = hidden in answer.text or "bob/hidden" in answer.text or answer.status_code >= 500
    counts = [sum(g["vectors"] for g in site.ok("GET", "/api/v1/bases", who=w)["items"]) for w in ("bob", "eve")]
    found = [k for k, v in traces.items() if v]
    return f"compare {compared}, traces in {found or 'none'}, counted {counts}", (
        compared == [404, 404] and not found and counts[0] == counts[1] + 1
    ) or (compared == [404, 404] and not found and counts[0] > counts[1])


@row("32", "default credentials, and a second first start", "401; 4xx")
def defaults(site: Site) -> Got:
    time.sleep(1)
    pairs = [("admin", "admin"), ("ann", ""), ("ann", "password"), ("root", "root"), ("local", "local")]
    told = [site.call("POST", "/api/v1/session", json={"handle": h, "password": p}).status_code for h, p in pairs]
    again = site.call(
        "POST", "/api/v1/first-start", json={"secret": site.secrets[0], "handle": "eve2", "password": PASSWORD}
    )
    left = (site.folder / "data" / "service" / "first-start-secret").exists()
    return f"{told}, first start again {code(again)}, file {'there' if left else 'gone'}", all(
        400 <= s < 500 for s in told
    ) and 400 <= again.status_code < 500 and not left


@row(
    "35",
    "a form of another site with the user's cookie: no token, a wrong one, another session's",
    "403; nothing changes",
)
def forgery(site: Site) -> Got:
    cookie, csrf = site.session("bob")
    _, other = site.session("bob")
    body = {"visibility": "private"}
    vector = f"/api/v1/vectors/{site.ids['open']}"
    tries: tuple[dict[str, str], ...] = ({}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": other})
    told = [site.call("PATCH", vector, headers={"Cookie": cookie, **extra}, json=body).status_code for extra in tries]
    form = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded", "Origin": "https://evil.example"}
    told.append(site.call("POST", f"/vectors/{site.ids['open']}/remove", headers=form, content=b"reason=x").status_code)
    told.append(
        site.call(
            "POST", f"/vectors/{site.ids['open']}/remove", headers=form, content=b"csrf=" + other.encode()
        ).status_code
    )
    login = site.call("POST", "/api/v1/session", json={"handle": "bob", "password": PASSWORD})
    flags = login.headers.get("set-cookie", "").lower()
    still = site.ok("GET", f"/api/v1/vectors/{site.ids['open']}")["vector"]["visibility"]
    fine = site.call(
        "PATCH",
        f"/api/v1/vectors/{site.ids['open']}",
        headers={"Cookie": cookie, "X-CSRF-Token": csrf},
        json={"tags": ["kept"]},
    ).status_code
    good = told == [403] * 5 and "httponly" in flags and "samesite" in flags and still == "public" and fine == 200
    return (
        f"{told}, cookie {'HttpOnly SameSite' if 'httponly' in flags and 'samesite' in flags else flags}, with the token {fine}",
        good,
    )


@row(
    "28",
    "a service that redirects its client to another host, at login, push and pull",
    "not followed; the other host gets nothing",
)
def redirected(site: Site) -> Got:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    from comgrad.client.client import Client
    from comgrad.errors import ComgradError

    got: list[str] = []

    class Thief(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            got.append(str(self.headers))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        do_GET = do_POST = do_PATCH = do_HEAD = handle_any  # noqa: N815 - the library's names

    class Liar(Thief):
        def handle_any(self) -> None:
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{thief.server_port}{self.path}")
            self.end_headers()

        do_GET = do_POST = do_PATCH = do_HEAD = handle_any  # noqa: N815 - the library's names

    thief, liar = ThreadingHTTPServer(("127.0.0.1", 0), Thief), ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    for server in (thief, liar):
        Thread(target=server.serve_forever, daemon=True).start()
    told = []
    with tempfile.TemporaryDirectory() as folder:
        origin = f"http://127.0.0.1:{liar.server_port}"
        with Client(origin, token=site.tokens["bob"], cache=Path(folder)) as client:
            for ask in (client.account, lambda: client.pull("bob/open"), lambda: client.search("x"), client.service):
                try:
                    ask()
                    told.append("followed")
                except ComgradError as error:
                    told.append(error.code)
    for server in (thief, liar):
        server.shutdown()
        server.server_close()
    return f"{sorted(set(told))}, the other host got {len(got)} requests", set(told) == {"redirected"} and not got


@row(
    "29",
    "guessing: unknown handles against wrong passwords, then sixty in a row",
    "one answer, one time; 429 with Retry-After",
)
def guessing(site: Site) -> Got:
    def timed(handle: str) -> tuple[str, float]:
        began = time.perf_counter()
        answer = site.call("POST", "/api/v1/session", json={"handle": handle, "password": "not the password"})
        return re.sub(handle, "HANDLE", code(answer) + answer.text), time.perf_counter() - began

    known, unknown = [timed("bob") for _ in range(3)], [timed("nobody-here") for _ in range(3)]
    same = known[0][0] == unknown[0][0]
    ratio = sorted(t for _, t in known)[1] / sorted(t for _, t in unknown)[1]
    answers = [
        site.call("POST", "/api/v1/session", json={"handle": "bob", "password": f"guess {i}"}) for i in range(60)
    ]
    limited = [a for a in answers if a.status_code == 429]
    good = same and 1 / 4 < ratio < 4 and bool(limited) and int(limited[0].headers["Retry-After"]) > 0
    return f"same answer {same}, time ratio {ratio:.2f}, 429 for {len(limited)} of 60", good
