"""Slow work on what was taken in: descriptions embedded, neighbours and copies found, adapters explained and screened."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comgrad.errors import ComgradError, NotFound
from comgrad.service.auth.identity import Principal
from comgrad.service.jobs.admission import passing, read_upload
from comgrad.service.jobs.progress import Progress
from comgrad.service.jobs.runner import Jobs
from comgrad.service.scopes import Scopes, Warm
from comgrad.service.settings import Settings
from comgrad.service.store import people, things, work
from comgrad.service.store.database import Database
from comgrad.service.store.work import Job
from comgrad.service.uploads import Uploads
from comgrad.service.vectors import Listing

BATCH = 512
FEWEST = 10  # described vectors that a verdict needs
COPY = 0.999


class _Single:
    """Work that one thread of a process does at a time, the others' threads being for uploads; whoever comes meanwhile
    leaves a word, and the one that works begins again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = threading.Event()

    def rounds(self) -> Iterator[None]:
        """As often as there is something new to look at; not at all while another does it."""
        self._asked.set()
        while self._asked.is_set() and self._lock.acquire(blocking=False):
            try:
                self._asked.clear()
                yield
            finally:
                self._lock.release()


_SCREENING, _RELATING = _Single(), _Single()


@dataclass(frozen=True)
class Analysis:
    """The jobs that compute."""

    database: Database
    scopes: Scopes
    uploads: Uploads
    jobs: Jobs
    settings: Settings

    # -- after admissions, many at once --------------------------------------------------------------------------
    def relate(self, job: Job, progress: Progress) -> dict[str, Any]:
        """Embed the new descriptions, then find each new vector's neighbours among what its readers may read."""
        del job
        embedded = related = 0
        for _ in _RELATING.rounds():
            while True:
                progress.step("describe")
                described = self._embed(progress)
                progress.step("relate")
                found = self._relate(progress)
                embedded, related = embedded + described, related + found
                if not described and not found:
                    break
        if embedded or related:
            self._ask_for_screening()
        return {"described": embedded, "related": related}

    def _ask_for_screening(self) -> None:
        if self.settings.screen:
            self.jobs.submit("screen", {}, key="screen")

    def _embed(self, progress: Progress) -> int:
        from comgrad.describe.encoder import load_encoder
        from comgrad.describe.memory import encode_cached

        try:
            encoder = load_encoder()
        except NotFound:
            return 0
        waiting = [x for x in self.scopes.all_listings() if x.description.strip() and x.row.encoder != _key(encoder)]
        for done, batch in _batches(waiting, BATCH):
            texts = [x.description for x in batch]
            rows = encode_cached(encoder, texts, self.scopes.registry.store.cache_dir).astype("<f4")
            with self.database.write() as store:
                for x, row in zip(batch, rows, strict=True):
                    now = things.listing(store, x.id, x.owner_id)
                    if now is not None and now.changed == x.row.changed:
                        values = {"embedding": row.tobytes(), "encoder": _key(encoder)}
                        things.change_listing(store, x.id, x.owner_id, **values)
            progress.count(done, len(waiting))
        return len(waiting)

    def _relate(self, progress: Progress) -> int:
        waiting = [x for x in self.scopes.all_listings() if x.row.related is None]
        by_reader: dict[str | None, list[Listing]] = {}
        for x in waiting:
            by_reader.setdefault(None if x.visibility == "public" else x.owner_id, []).append(x)
        done = 0
        for owner, listings in by_reader.items():
            scope = self.scopes.scope(_reader(owner))
            for x in listings:
                found = self._surroundings(x, scope.among(x))
                with self.database.write() as store:
                    now = things.listing(store, x.id, x.owner_id)
                    if now is not None and now.changed == x.row.changed:
                        things.change_listing(store, x.id, x.owner_id, related=found)
                done += 1
                progress.count(done, len(waiting))
        return len(waiting)

    def _surroundings(self, x: Listing, group: Sequence[Listing]) -> dict[str, Any]:
        """Neighbours by centred cosine and copies, among at most a neighbourhood in words of a large scope."""
        near = nearest_in_words(x, group, self.settings.whole_scope)
        if len(near) < 2:
            return {"neighbours": [], "notes": []}
        try:
            return surroundings(x, self.scopes.warm(near))
        except ComgradError as error:
            return {"neighbours": [], "notes": [f"its neighbours are not known: {error.why}"]}

    # -- screening -----------------------------------------------------------------------------------------------
    def screen(self, job: Job, progress: Progress) -> dict[str, Any]:
        """Say of each new described vector whether its weights bear out its description; advice, never a decision."""
        del job
        screened = 0
        for _ in _SCREENING.rounds():
            progress.step("screen")
            waiting = [x for x in self.scopes.all_listings() if x.row.screening is None and x.description.strip()]
            for done, x in enumerate(waiting, 1):
                found = self._screened(x)
                with self.database.write() as store:
                    now = things.listing(store, x.id, x.owner_id)
                    if now is not None and now.card == x.row.card and now.visibility == x.visibility:
                        things.change_listing(store, x.id, x.owner_id, screening=found)
                progress.count(done, len(waiting))
            screened += len(waiting)
        return {"screened": screened}

    def _screened(self, x: Listing) -> dict[str, Any]:
        from comgrad.workflows.explaining import explain_in

        scope = self.scopes.scope(_reader(None if x.visibility == "public" else x.owner_id))
        group = [g for g in scope.among(x) if g.description.strip()]
        near = nearest_in_words(x, group, self.settings.whole_scope)
        if len(near) <= FEWEST:
            return {
                "verdict": None,
                "known": max(0, len(near) - 1),
                "reasons": ["too few vectors are known to compare it with"],
            }
        try:
            warm = self.scopes.warm(near)
            made = explain_in(
                warm.atlas, warm.groups, self.scopes.vector(x.entry), claim=x.description, cache=warm.cache
            )
        except ComgradError as error:
            return {"verdict": None, "known": len(near) - 1, "reasons": [error.why]}
        text = " ".join([*made.reasons, made.description])
        about = {s.id for s in made.sources[:5]} | {m.id for m in warm.atlas.members if m.name in text}
        told = made.as_dict()
        kept = {k: told[k] for k in ("verdict", "reasons", "description", "residual", "known", "claim")}
        return kept | {"sources": told["sources"][:5], "about": sorted(about - {x.id})}

    # -- explaining ----------------------------------------------------------------------------------------------
    def explain(self, job: Job, progress: Progress) -> dict[str, Any]:
        """What an uploaded adapter does, by its weights; nothing of it is kept but the report. Raises ComgradError."""
        with self.database.read() as rows:
            upload = work.upload(rows, str(job.payload["upload"]))
            assert upload is not None
            roles = people.roles(rows, upload.account_id)
        reader = _reader(upload.account_id, {h: i for i, (h, _) in roles.items()})
        try:
            progress.step("read")
            tau, card = read_upload(self.uploads, upload)
            progress.step("compare")
            warm = self.warm_for(self.scopes.scope(reader).group, tau.base.name)
            progress.step("explain")
            from comgrad.workflows.explaining import explain_in

            claim = upload.request["claim"] or card.description
            made = explain_in(warm.atlas, warm.groups, tau, claim=claim, cache=warm.cache)
        except ComgradError as error:
            if not passing(error):
                self.uploads.end(upload.id, "refused", error=error.as_dict())
            raise
        return {"explanation": made.as_dict(), "report": report(made)}

    def explained(self, job: Job) -> None:
        """Delete the adapter, once its report is kept: a worker that dies before then is followed by another."""
        self.uploads.end(str(job.payload["upload"]), "done")

    def warm_for(self, group: Any, base: str) -> Warm:
        """The geometry over that base; over the largest other one where there is none, which the answer then says."""
        try:
            listings = group(base)
        except NotFound:
            listings = group(None)
        return self.scopes.warm(listings[: self.settings.whole_scope])


def report(made: Any) -> str:
    """The report as a page of its own."""
    from comgrad.workflows.explain_report import page

    return page(made)


def surroundings(x: Listing, warm: Warm) -> dict[str, Any]:
    """Neighbours and near-copies of one member."""
    atlas = warm.atlas
    at = atlas.ids.index(x.id)
    cosine = atlas.cosine()[at]
    neighbours = [{"id": m.id, "name": m.name, "cosine": c} for m, c in atlas.neighbours(at, most=10)]
    counted = warm.counted()
    notes = [counted.doubt[x.id]] if x.id in counted.doubt else []
    twins = [j for j in range(at) if cosine[j] > COPY]
    if twins:
        notes.append(f"nearly the same vector as '{atlas.members[twins[0]].name}': derived from it, or a copy of it")
    about = {n["id"] for n in neighbours} | {m.id for m in atlas.members if any(f"'{m.name}'" in n for n in notes)}
    copy_of = atlas.ids[twins[0]] if twins else None
    return {"neighbours": neighbours, "notes": notes, "copy_of": copy_of, "about": sorted(about - {x.id})}


def nearest_in_words(x: Listing, group: Sequence[Listing], most: int) -> list[Listing]:
    """All of a small group; of a large one those nearest in words to one of its members, in the group's order."""
    if len(group) <= most:
        return list(group)
    mine = None if x.row.embedding is None else np.frombuffer(x.row.embedding, dtype="<f4")
    kept = [g for g in group if g.row.embedding is not None and g.row.encoder == x.row.encoder]
    if mine is None or not kept:
        return [*[g for g in group if g.id != x.id][-most + 1 :], x]
    scores = np.stack([np.frombuffer(g.row.embedding or b"", dtype="<f4") for g in kept]) @ mine
    near = {kept[int(i)].id for i in np.argsort(-scores, kind="stable")[: most - 1]} | {x.id}
    return [g for g in group if g.id in near]


def _reader(owner: str | None, orgs: dict[str, str] | None = None) -> Principal:
    """Whoever reads what that owner reads, for the service's own work."""
    return Principal(owner, "", scopes=frozenset({"read"}), org_ids=orgs or {})


def _key(encoder: Any) -> str:
    return hashlib.sha256(f"{encoder.name} {encoder.digest}".encode()).hexdigest()


def _batches(items: Sequence[Listing], size: int) -> Iterator[tuple[int, Sequence[Listing]]]:
    for at in range(0, len(items), size):
        batch = items[at : at + size]
        yield at + len(batch), batch
