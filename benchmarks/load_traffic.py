"""Clients of the load benchmark: what they ask, how each answer is checked, and how long it took."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from load_data import WHAT, WHEN, WHERE, WHO, WHY, digest

API = "/api/v1"
MIX = {"search": 12, "catalogue": 4, "vector": 3, "suggestion": 1}  # of twenty requests
TASKS = (
    "tell angry from friendly", "sort by topic", "find the ones that ask for money", "detect sarcasm",
    "recognise the intent", "mark ungrammatical sentences", "tell which product is meant", "spot hate",
    "judge whether the second sentence follows", "find the medical complaint", "rate how urgent", "label the emotion",
)  # fmt: skip


@dataclass
class Told:
    """What came of one kind of request."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class Run:
    """What came of one phase."""

    name: str
    clients: int
    pace: float
    lasted: float = 0.0
    kinds: dict[str, Told] = field(default_factory=dict)

    def told(self, kind: str) -> Told:
        """Of one kind."""
        return self.kinds.setdefault(kind, Told())

    def rows(self) -> list[dict[str, Any]]:
        """One row for each kind, and one for all where there are several."""
        kinds = dict(self.kinds)
        if len(kinds) > 1:
            every = kinds.values()
            kinds["all"] = Told([s for k in every for s in k.seconds], [e for k in every for e in k.errors])
        return [self._row(kind, told) for kind, told in kinds.items()]

    def _row(self, kind: str, told: Told) -> dict[str, Any]:
        ordered = sorted(told.seconds)
        out: dict[str, Any] = {"phase": self.name, "kind": kind, "clients": self.clients, "pace": self.pace}
        out |= {
            "answers": len(ordered),
            "errors": len(told.errors),
            "per_second": len(ordered) / max(self.lasted, 1e-9),
        }
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("most", 1.0)):
            out[f"{name}_ms"] = 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
        return out | {"first_errors": told.errors[:3]}


class Wrong(Exception):
    """An answer that is not what it should be."""


def check(truth: bool, what: str) -> None:
    """Refuse an answer."""
    if not truth:
        raise Wrong(what)


@dataclass
class Asker:
    """The requests, each in words that were never used before."""

    client: httpx2.AsyncClient
    ids: Sequence[str]
    names: dict[str, str]
    total: int
    random: random.Random
    numbers: itertools.count[int]

    def _text(self) -> str:
        one = self.random.choice
        words = f"{one(TASKS)} in {one(WHAT)} {one(WHEN)}, for {one(WHO)} in {one(WHERE)} {one(WHY)}"
        return f"{words}, case {next(self.numbers)}"

    async def search(self) -> None:
        """A search by meaning."""
        found = await self.client.get(f"{API}/search", params={"q": self._text()})
        check(found.status_code == 200, f"search: {found.status_code} {found.text[:200]}")
        items = found.json()["items"]
        scores = [x["score"] for x in items if not x["doubt"]]
        check(len(items) == min(20, self.total), f"search: {len(items)} results")
        check(scores == sorted(scores, reverse=True) and all(-1.01 <= s <= 1.01 for s in scores), "search: order")

    async def catalogue(self) -> None:
        """A page of the catalogue, as a browser gets it."""
        page = self.random.randrange(1, max(2, min(40, self.total // 25)))
        extra = {"sort": self.random.choice(["newest", "oldest", "name"])}
        if self.random.random() < 0.3:
            extra["q"] = self.random.choice(["intent", "sentence", "tweet", "question", "sexist", "grammar"])
            page = 1
        found = await self.client.get("/vectors", params={"page": page, **extra})
        check(found.status_code == 200, f"catalogue: {found.status_code} {found.text[:200]}")
        rows = min(25, self.total - 25 * (page - 1)) if "q" not in extra else 1
        check(found.text.count("/vectors/tv-") >= rows and "</html>" in found.text, f"catalogue: not {rows} rows")

    async def vector(self) -> None:
        """A vector's page, as a browser gets it."""
        identity = self.random.choice(self.ids)
        found = await self.client.get(f"/vectors/{identity}")
        check(found.status_code == 200, f"vector: {found.status_code} {found.text[:200]}")
        check(self.names[identity] in found.text and "</html>" in found.text, "vector: its name")

    async def suggestion(self) -> None:
        """A new suggestion; of one in ten the adapter is downloaded and hashed."""
        found = await self.client.post(f"{API}/suggestions", json={"text": self._text(), "dare": True})
        check(found.status_code == 200, f"suggestion: {found.status_code} {found.text[:200]}")
        body = found.json()
        files = {f["name"]: f for f in body["files"]}
        check("adapter_model.safetensors" in files and bool(body["layers"]), "suggestion: files")
        check(body["abstained"] or bool(body["sources"]), "suggestion: sources")
        if self.random.random() < 0.1:
            sent = await self.client.get(f"{API}/suggestions/{body['id']}/files/adapter_model.safetensors")
            check(sent.status_code == 200, f"file: {sent.status_code}")
            check(digest(sent.content) == files["adapter_model.safetensors"]["sha256"], "file: digest")


def asker(address: str, client: httpx2.AsyncClient, seed: int, ids: Sequence[str], names: dict[str, str]) -> Asker:
    """The requests of one client."""
    del address
    return Asker(client, ids, names, len(ids), random.Random(seed), itertools.count(seed * 10_000_000))


async def traffic(
    address: str, run: Run, mix: dict[str, int], seconds: float, vectors: dict[str, str], *, warm: float, seed: int
) -> None:
    """Run the phase: each client asks, waits for the answer, and thinks for `pace` seconds on average.

    A client's next request is not sent before the last answer came, so a slow service is asked less.
    """
    ids = list(vectors)
    limits = httpx2.Limits(max_connections=run.clients, max_keepalive_connections=run.clients)
    begin = time.monotonic() + warm
    end = begin + seconds
    async with httpx2.AsyncClient(base_url=address, timeout=60.0, limits=limits) as client:

        async def one(number: int) -> None:
            mine = asker(address, client, seed + number, ids, vectors)
            kinds = [k for k, n in mix.items() for _ in range(n)]
            await asyncio.sleep(mine.random.random() * max(run.pace, 0.2))
            while time.monotonic() < end:
                kind = mine.random.choice(kinds)
                await _timed(run.told(kind), getattr(mine, kind), begin, end)
                if run.pace:
                    await asyncio.sleep(mine.random.expovariate(1.0 / run.pace))

        await asyncio.gather(*(one(i) for i in range(run.clients)))
    run.lasted = seconds


async def _timed(told: Told, work: Callable[[], Awaitable[None]], begin: float, end: float) -> None:
    """An error counts whenever it comes, an answer's time when it was asked for between begin and end."""
    at = time.monotonic()
    try:
        await work()
    except (Wrong, httpx2.HTTPError, KeyError, ValueError, TypeError) as error:
        told.errors.append(f"{type(error).__name__}: {error}"[:300])
        return
    if begin <= at < end:
        told.seconds.append(time.monotonic() - at)


async def uploads(address: str, token: str, run: Run, seconds: float, files: Sequence[dict[str, bytes]]) -> list[str]:
    """Send adapters by the client's protocol until the time or the files are over; the ids of their jobs."""
    jobs: list[str] = []
    waiting = iter(files)
    limits = httpx2.Limits(max_connections=run.clients, max_keepalive_connections=run.clients)
    headers = {"Authorization": f"Bearer {token}"}
    begin = time.monotonic()
    async with httpx2.AsyncClient(base_url=address, timeout=60.0, limits=limits, headers=headers) as client:

        async def one() -> None:
            for parts in waiting:

                async def send(parts: dict[str, bytes] = parts) -> None:
                    jobs.append(await _sent(client, parts))

                await _timed(run.told("upload"), send, begin, begin + seconds)
                if time.monotonic() > begin + seconds:
                    return

        await asyncio.gather(*(one() for _ in range(run.clients)))
    run.lasted = min(seconds, time.monotonic() - begin)
    return jobs


async def _sent(client: httpx2.AsyncClient, parts: dict[str, bytes]) -> str:
    """One adapter: declared, sent, completed; acknowledged when this returns. The id of its job."""
    listed = [{"name": n, "size": len(b), "sha256": digest(b)} for n, b in parts.items()]
    made = await client.post(f"{API}/uploads", json={"parts": listed, "visibility": "public"})
    check(made.status_code == 201, f"upload: {made.status_code} {made.text[:200]}")
    identity = made.json()["upload"]["id"]
    for name, data in parts.items():
        headers = {"Upload-Offset": "0", "Content-Type": "application/octet-stream"}
        sent = await client.patch(f"{API}/uploads/{identity}/parts/{name}", content=data, headers=headers)
        check(sent.status_code == 204 and sent.headers["Upload-Offset"] == str(len(data)), f"part: {sent.status_code}")
    done = await client.post(f"{API}/uploads/{identity}/complete")
    check(done.status_code in (200, 201, 202), f"complete: {done.status_code} {done.text[:200]}")
    return str(done.json()["job"]["id"])
