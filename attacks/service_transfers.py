"""Attacks on transfers: cuts, lengths, digests, names at one time, bombs, slowness, ranges."""

from __future__ import annotations

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from service import CARD, CONFIG, CONTAINER, WEIGHTS, Site, code, row

Got = tuple[str, bool]


def head(site: Site, upload: str, name: str, who: str = "bob") -> int:
    return int(site.call("HEAD", f"/api/v1/uploads/{upload}/parts/{name}", who=who).headers["Upload-Offset"])


def patch(site: Site, upload: str, name: str, size: int, extra: str = "", at: int = 0) -> bytes:
    """The head of a PATCH request by hand."""
    lines = [
        f"PATCH /api/v1/uploads/{upload}/parts/{name} HTTP/1.1",
        f"Host: 127.0.0.1:{site.port}",
        f"Authorization: Bearer {site.tokens['bob']}",
        "Content-Type: application/octet-stream",
        f"Upload-Offset: {at}",
        f"Content-Length: {size}" if size >= 0 else "Transfer-Encoding: chunked",
    ]
    return ("\r\n".join([*lines, *filter(None, [extra])]) + "\r\n\r\n").encode()


@row("18", "an upload is cut at every eighth, then gone on with", "nothing visible before its end; whole after it")
def cut_at_every_eighth(site: Site) -> Got:
    parts = site.adapter(3)
    upload = site.begin(parts, name="eighths", visibility="public").json()["upload"]["id"]
    data, offsets, seen = parts[WEIGHTS], [], set()
    for eighth in range(1, 8):
        at = head(site, upload, WEIGHTS)
        upto = len(data) * eighth // 8
        site.raw(patch(site, upload, WEIGHTS, len(data) - at, at=at) + data[at:upto], half_close=True)
        until = time.monotonic() + 10  # the server notices the cut, or its clock for chunks runs out
        while head(site, upload, WEIGHTS) < upto and time.monotonic() < until:
            time.sleep(0.1)
        offsets.append(head(site, upload, WEIGHTS))
        seen |= set(site.named())
    until = time.monotonic() + 10
    while (answer := site.send(upload, WEIGHTS, data[offsets[-1] :], at=offsets[-1])).status_code == 409:
        assert time.monotonic() < until, code(answer)
        time.sleep(0.2)
    for name in (CONFIG, CARD):
        site.send(upload, name, parts[name])
    done = site.call("POST", f"/api/v1/uploads/{upload}/complete?wait=60", who="bob")
    good = offsets == sorted(offsets) and "bob/eighths" not in seen and "bob/eighths" in site.named()
    return f"offsets {offsets}, then {done.status_code}", good and done.status_code == 201


@row(
    "18",
    "a Content-Length that is not true: more than the part, a chunked body without end",
    "4xx; not a byte too many is kept",
)
def wrong_length(site: Site) -> Got:
    parts = site.adapter(4)
    upload = site.begin(parts, name="lengths").json()["upload"]["id"]
    size = len(parts[CONFIG])
    long = site.send(upload, CONFIG, parts[CONFIG] + b"more")
    endless = site.raw(
        patch(site, upload, CARD, -1) + b"".join(b"1000\r\n" + bytes(4096) + b"\r\n" for _ in range(600))
    )
    status = endless.split(b" ", 2)[1].decode() if endless else "closed"
    kept = head(site, upload, CONFIG), head(site, upload, CARD)
    site.call("DELETE", f"/api/v1/uploads/{upload}", who="bob")
    good = long.status_code == 413 and kept[0] <= size and kept[1] <= len(parts[CARD]) and status in ("413", "closed")
    return f"{code(long)} and {status}; {kept[0]} of {size} bytes kept", good


@row("19", "eight uploads of one digest at one time", "one vector; each is told added or exists")
def one_digest_at_once(site: Site) -> Got:
    parts = site.adapter(5)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: site.share(parts, name="twins", visibility="public"), range(8)))
    told = sorted(
        (a.json().get("job") or {}).get("result", {}).get("status", code(a)) if a.status_code < 300 else code(a)
        for a in answers
    )
    ids = {a.json()["job"]["result"]["vector"] for a in answers if a.status_code < 300}
    good = (
        len(ids) == 1
        and told.count("added") == 1
        and set(told) == {"added", "exists"}
        and site.named().count("bob/twins") == 1
    )
    return ", ".join(told), good


@row("19,36", "another vector under a name that is taken, or was; a case twin, a look-alike", "409, each time")
def names(site: Site) -> Got:
    answers = [code(site.share(site.adapter(6), name=n)) for n in ("twins", "TWINS", "tw\u0131ns", "t\uff57ins")]
    first = site.share(site.adapter(7), name="gone")
    site.call("DELETE", f"/api/v1/vectors/{first.json()['job']['result']['vector']}", who="bob")
    answers.append(code(site.share(site.adapter(6), name="gone")))
    return ", ".join(answers), answers == ["409 name-taken"] * 5


@row(
    "20",
    "kill -9 in the middle of an upload, and again while its job runs",
    "the acknowledged bytes are there; it ends as added",
)
def kill_nine(site: Site) -> Got:
    parts = site.adapter(8)
    upload = site.begin(parts, name="killed", visibility="public").json()["upload"]["id"]
    half = len(parts[WEIGHTS]) // 2
    site.send(upload, WEIGHTS, parts[WEIGHTS][:half])
    site.stop(signal.SIGKILL)
    site.start()
    at = head(site, upload, WEIGHTS)
    site.send(upload, WEIGHTS, parts[WEIGHTS][at:], at=at)
    for name in (CONFIG, CARD):
        site.send(upload, name, parts[name])
    site.call("POST", f"/api/v1/uploads/{upload}/complete", who="bob")
    site.stop(signal.SIGKILL)
    site.start()
    until = time.monotonic() + 180
    while (state := site.ok("GET", f"/api/v1/uploads/{upload}", who="bob")["upload"]["state"]) == "checking":
        if time.monotonic() > until:
            break
        time.sleep(0.5)
    return (
        f"{at} of {half} acknowledged bytes, then {state}",
        at == half and state == "done" and "bob/killed" in site.named(),
    )


@row("21", "a declared digest that the body does not have", "422 digest-mismatch; its bytes are deleted")
def wrong_digest(site: Site) -> Got:
    parts = site.adapter(9)
    upload = site.begin(parts, name="liar").json()["upload"]["id"]
    for name, data in parts.items():
        site.send(upload, name, data[:-1] + b"X" if name == WEIGHTS else data)
    answer = site.call("POST", f"/api/v1/uploads/{upload}/complete?wait=30", who="bob")
    folder = site.folder / "data" / "service" / "uploads" / upload
    return f"{code(answer)}, folder {'there' if folder.exists() else 'deleted'}", code(
        answer
    ) == "422 digest-mismatch" and not folder.exists()


@row("22", "compressed bodies, a body of 1 MB of JSON, 10 000 multipart parts, JSON 100 000 deep", "4xx at once")
def bombs(site: Site) -> Got:
    began = time.monotonic()
    many = (
        b"".join(b'--x\r\nContent-Disposition: form-data; name="p%d"\r\n\r\n1\r\n' % i for i in range(10_000))
        + b"--x--"
    )
    upload = site.begin(site.adapter(4)).json()["upload"]["id"]
    gzip = {"Content-Encoding": "gzip", "Upload-Offset": "0", "Content-Type": "application/octet-stream"}
    json_body = {"Content-Type": "application/json"}
    answers = [
        site.call(
            "PATCH", f"/api/v1/uploads/{upload}/parts/{WEIGHTS}", who="bob", headers=gzip, content=b"\x1f\x8b" * 9
        ),
        site.call("POST", "/api/v1/search", headers={**json_body, "Content-Encoding": "br"}, content=b"{}"),
        site.call("POST", "/api/v1/search", headers=json_body, content=b'{"text": "' + b"x" * 1_000_000 + b'"}'),
        site.call("POST", "/api/v1/search", headers={"Content-Type": "multipart/form-data; boundary=x"}, content=many),
        site.call("POST", "/login", headers={"Content-Type": "multipart/form-data; boundary=x"}, content=many),
        site.call("POST", "/api/v1/search", headers=json_body, content=b"[" * 100_000),
    ]
    site.call("DELETE", f"/api/v1/uploads/{upload}", who="bob")
    seconds = time.monotonic() - began
    told = [code(a) for a in answers]
    return f"{', '.join(told)} in {seconds:.1f} s", all(a[0] == "4" for a in told) and seconds < 30


@row(
    "22",
    "a body that comes a byte at a time: a form, and an upload's chunk",
    "closed or 408 after the time that is set, not held",
)
def slow(site: Site) -> Got:
    upload = site.begin(site.adapter(4)).json()["upload"]["id"]
    form = b"POST /api/v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    took, said = [], []
    for start in (form, patch(site, upload, WEIGHTS, 1000)):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", site.port), timeout=1.0) as s:
            s.sendall(start)
            answer = b""
            while time.monotonic() - began < 60:
                try:
                    if start is form:
                        s.sendall(b" ")
                    answer = s.recv(4096)
                    break
                except TimeoutError:
                    continue
                except OSError:
                    break
        took.append(time.monotonic() - began)
        said.append(answer.split(b" ", 2)[1].decode() if answer else "closed")
    site.call("DELETE", f"/api/v1/uploads/{upload}", who="bob")
    return ", ".join(f"{a} after {t:.0f} s" for a, t in zip(said, took, strict=True)), max(took) < 30 and set(said) <= {
        "408",
        "closed",
    }


@row("22", "an upload that is declared larger than allowed; a thousand open ones", "413; 429")
def too_much(site: Site) -> Got:
    part = {"name": CONTAINER, "size": 10**15, "sha256": "0" * 64}
    large = site.call("POST", "/api/v1/uploads", who="eve", json={"purpose": "share", "parts": [part]})
    answers = []
    for _ in range(1000):
        answers.append(site.begin({CONTAINER: b"x" * 9}, who="eve"))
        if answers[-1].status_code != 201:
            break
    for upload in (a.json()["upload"]["id"] for a in answers[:-1]):
        site.call("DELETE", f"/api/v1/uploads/{upload}", who="eve")
    return f"{code(large)}; {code(answers[-1])} after {len(answers) - 1}", large.status_code == 413 and answers[
        -1
    ].status_code == 429


@row("22", "40 MB of request headers on one connection", "refused or closed early; the server's memory stays")
def headers(site: Site) -> Got:
    assert site.process is not None
    status = Path(f"/proc/{site.process.pid}/status")

    def held() -> float:
        return next(int(x.split()[1]) for x in status.read_text().splitlines() if x.startswith("VmRSS")) / 1024

    before, sent, answer = held(), 0, b""
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        with suppress(OSError):
            for i in range(40):
                s.sendall(b"".join(b"X-%d-%d: %s\r\n" % (i, j, b"y" * 990) for j in range(1000)))
                sent += 1
            s.sendall(b"\r\n")
            answer = s.recv(100)
    grown = held() - before
    code = answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/") else "closed"
    return f"{code} after {sent} MB, memory +{grown:.0f} MB", code in ("closed", "400", "413", "431") and grown < 20


@row(
    "23",
    "ranges: several, overlapping, a thousand, backwards, past the end, not of this form",
    "one range, or the whole file, or 416; never more bytes than the file",
)
def ranges(site: Site) -> Got:
    path = f"/api/v1/vectors/{site.ids['open']}/files/{WEIGHTS}"
    size = int(site.call("HEAD", path).headers["Content-Length"])
    asked = {
        "0-0": 206, "-1": 206, "0-1,5-6": None, ",".join("0-" for _ in range(1000)): None, "9-2": None, f"{size}-": 416,
        "99999999999999999999-": None, "a-b": None, "--1": None, "0-1,": None,
    }  # fmt: skip
    got = {}
    for given, expected in asked.items():
        answer = site.call("GET", path, headers={"Range": f"bytes={given}"})
        fits = answer.status_code == expected if expected else answer.status_code in (200, 206, 416)
        one = "multipart" not in answer.headers.get("content-type", "") and len(answer.content) <= size
        got[given[:12]] = (answer.status_code, fits and one)
    return ", ".join(f"{k}→{s}" for k, (s, _) in got.items()), all(g for _, g in got.values())
