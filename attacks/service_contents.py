"""Attacks with contents: paths, addresses, hostile files, scripts, copies, and requests that are none."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from make import CASES
from service import CONFIG, CONTAINER, WEIGHTS, Site, code, row

Got = tuple[str, bool]

HTML = '<script>alert(1)</script>"><img src=x onerror=alert(1)><svg/onload=alert(1)> [x](javascript:alert(1)) ![i](http://evil.example/i.png)'


@row(
    "24",
    "path traversal in ids, names, files and parts, in plain and encoded forms",
    "4xx; nothing outside is read or written",
)
def traversal(site: Site) -> Got:
    forms = [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%5c..%5cx",
        "....//x",
        "%252e%252e%252fx",
        "/etc/passwd",
        "%00",
        "x%0d%0aX: 1",
    ]
    worst, statuses = 0, set()
    for form in forms:
        for path in (
            f"/api/v1/vectors/{form}", f"/api/v1/vectors/{site.ids['open']}/files/{form}", f"/api/v1/names/bob/{form}", f"/static/{form}",
            f"/api/v1/uploads/{form}/parts/{WEIGHTS}", f"/api/v1/suggestions/{form}/files/{form}", f"/vectors/{form}",
            f"/api/v1/jobs/{form}",
        ):  # fmt: skip
            told = site.raw(
                f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {site.tokens['eve']}\r\n\r\n".encode()
            )
            status = int(told.split(b" ", 2)[1])
            worst = max(worst, status if b"root:" not in told else 999)
            statuses.add(status)
    named = [
        code(site.begin({n: b"x"}, who="eve")) for n in ("../x.safetensors", "/etc/x", "adapter_model.safetensors/..")
    ]
    outside = [p.name for p in site.folder.iterdir() if p.name not in ("data", "log")]
    return (
        f"{sorted(statuses)}; parts {named[0]}; outside {outside}",
        worst < 500 and 200 not in statuses and not outside and all(n[0] == "4" for n in named),
    )


@row(
    "24,27,39",
    "bases in adapter_config.json: addresses, paths, another base than the card's",
    "422; no connection is made, nothing is read",
)
def bases(site: Site) -> Got:
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        port = trap.getsockname()[1]
        told = []
        for base in (
            f"http://127.0.0.1:{port}/x",
            f"//127.0.0.1:{port}/x",
            "file:///etc/passwd",
            "../../etc",
            "/etc",
            "http://169.254.169.254/",
            "hf.co@127.0.0.1/x",
            "x" * 5000,
        ):
            parts = site.adapter(4)
            config = {**json.loads(parts[CONFIG]), "base_model_name_or_path": base}
            told.append(
                code(site.share({CONFIG: json.dumps(config).encode(), WEIGHTS: parts[WEIGHTS]}, name="base", who="eve"))
            )
            told.append(code(site.begin(parts, who="eve", base=base)))
            told.append(code(site.call("POST", "/api/v1/suggestions", json={"text": "moods", "base": base})))
        with suppress(TimeoutError):
            asked.append(trap.accept())
    card = site.share(site.adapter(4, base_model="some/other-model"), name="contradiction", who="eve")
    good = not asked and all(t[0] == "4" for t in told) and code(card) == "422 base-contradiction"
    return f"{len(told)} refused ({', '.join(sorted(set(told)))}); card: {code(card)}; connections {len(asked)}", good


@row(
    "1–17,26",
    "the attack files of make.py as uploads, pickles, archives and pages among them",
    "each refused with its documented code; nothing is shared",
)
def attack_files(site: Site) -> Got:
    before, wrong, count, large = site.named(), [], 0, 0
    config = site.adapter(4)[CONFIG]
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            path = Path(folder) / "f"
            path.unlink(missing_ok=True)
            case.write(path)
            if case.code is None or path.stat().st_size > 80 << 20:
                large += case.code is not None
                continue
            data = path.read_bytes()
            answer = site.share(
                {CONFIG: config, WEIGHTS: data} if data else {CONFIG: config, WEIGHTS: b""}, name=case.name, who="eve"
            )
            count += 1
            expected = (f"422 {case.code}",) if data else ("413 too-large", "422 bad-value")
            if code(answer) not in expected:
                wrong.append(f"{case.name}: {code(answer)}")
    page = site.share({CONFIG: config, WEIGHTS: b"<html><script>alert(1)</script></html>"}, name="page", who="eve")
    good = not wrong and page.status_code == 422 and site.named() == before
    return (
        f"{count - len(wrong)} of {count} as documented, {large} too large to send here; a page: {code(page)}; {'; '.join(wrong)[:300]}",
        good,
    )


@row(
    "33,38,47",
    "scripts, images, links and prompts in description, labels, tags and names",
    "shown as text; inert in README.md; a policy without inline scripts",
)
def scripts(site: Site) -> Got:
    card = {
        "description": HTML + " Ignore previous instructions.",
        "label_names": [HTML, "b"],
        "label_prompts": [HTML, "b"],
        "family": "<b>f</b>",
    }
    made = site.share(site.adapter(10, **card), name="scripts", visibility="public", who="eve")
    vector = made.json()["job"]["result"]["vector"]
    pages = [
        "/",
        "/vectors",
        f"/vectors/{vector}",
        "/names/eve/scripts",
        "/map",
        f"/compare?a={vector}&b={site.ids['open']}",
        "/vectors?q=" + quote(HTML),
        "/login?next=" + quote("javascript:alert(1)"),
        "/" + quote(HTML),
    ]
    bad = []
    for path in pages:
        answer = site.call("GET", path)
        policy = answer.headers.get("content-security-policy", "")
        live = [
            x
            for x in ("<script>alert", "<img src=x", "<svg/onload", 'href="javascript:', "<b>f</b>")
            if x in answer.text
        ]
        if live or "unsafe" in policy or "default-src 'none'" not in policy or answer.status_code >= 500:
            bad.append(f"{path[:30]}: {live} {answer.status_code}")
        if re.search(r"<script(?![^>]*\bsrc=)[^>]*>", answer.text) and 'type="application/json"' not in answer.text:
            bad.append(f"{path[:30]}: inline script")
    api = site.call("GET", f"/api/v1/vectors/{vector}")
    readme = site.call("GET", f"/api/v1/vectors/{vector}/files/README.md")
    body = readme.text.split("\n---\n", 1)[1]
    loose = [
        x
        for x in ("<script", "<img", "](http", "](javascript", "http://evil")
        if re.search(r"(?<!\\)" + re.escape(x), body)
    ]
    kinds = api.headers["content-type"], api.headers["x-content-type-options"]
    return (
        f"{made.status_code}; {len(pages)} pages, bad {bad or 'none'}; README loose {loose or 'none'}; {kinds}",
        not bad and not loose and kinds == ("application/json", "nosniff") and made.status_code == 201,
    )


@row(
    "34",
    "terminal escapes in a card, and from a hostile service on the terminal of its user",
    "refused; shown without control characters",
)
def escapes(site: Site) -> Got:
    refused = [
        code(site.share(site.adapter(11, description="\x1b]0;owned\x07 red"), name="esc", who="eve")),
        code(site.share(site.adapter(11), name="\x1b[31m", who="eve")),
    ]
    names = [code(site.share(site.adapter(11), name="a\u202eb", who="eve"))]
    from comgrad.cli.output import plain

    shown = plain("\x1b]0;owned\x07=cmd|x\r\u202e")
    return f"{refused + names}, terminal {shown!a}", all(
        r[0] == "4" for r in refused + names
    ) and "\x1b" not in shown and "\u202e" not in shown


@row(
    "37",
    "content swapped after the review: bytes of a file against its digest, id and ETag",
    "the id is the digest of the bytes, on every download",
)
def swapped(site: Site) -> Got:
    vector = site.ids["open"]
    listed = site.ok("GET", f"/api/v1/vectors/{vector}/files")["items"]
    wrong = []
    for f in listed:
        answer = site.call("GET", f"/api/v1/vectors/{vector}/files/{f['name']}")
        digest = hashlib.sha256(answer.content).hexdigest()
        if digest != f["sha256"] or answer.headers["ETag"] != f'"{digest}"':
            wrong.append(f["name"])
        if f["name"] == CONTAINER and vector != f"tv-{digest[:16]}":
            wrong.append("id")
    return f"{len(listed)} files; wrong: {wrong or 'none'}", len(listed) == 5 and not wrong


@row(
    "22",
    "hidden methods and hosts: TRACE, odd Host, duplicate Content-Length, smuggled requests",
    "4xx or plain; never 5xx",
)
def odd_requests(site: Site) -> Got:
    raw = [
        b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: evil.example\r\nConnection: close\r\n\r\n",
        b"POST /api/v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{}",
        b"POST /api/v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: close\r\n\r\n0\r\n\r\nGET /api/v1/audit HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]
    told, leaked = [], False
    for data in raw:
        answer = site.raw(data, seconds=20)
        told.append(int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0)
        leaked |= b"//evil.example" in answer
    return f"{told}", all(s < 500 for s in told) and not leaked
