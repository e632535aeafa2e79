"""Slow work on what was taken in: descriptions embedded, neighbours and copies found, adapters explained and screened."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from comgrad.errors import ComgradError, NotFound
from comgrad.service.auth.identity import Principal
from comgrad.service.errors import passing_soon
from comgrad.service.jobs.admission import passing, read_upload
from comgrad.service.jobs.progress import Progress
from comgrad.service.jobs.runner import Jobs
from comgrad.service.nearness import Nearness
from comgrad.service.scope import Group, Scope
from comgrad.service.scopes import Scopes
from comgrad.service.settings import Settings
from comgrad.service.store import orgs, things, work
from comgrad.service.store.database import Database
from comgrad.service.store.work import Job
from comgrad.service.uploads import Uploads
from comgrad.service.vectors import Listing
from comgrad.service.warm import Warm

BATCH = 512
FEWEST = 10  # described vectors that a verdict needs
AT_ONCE = 32  # vectors that are related in one transaction
WAIT = 600.0  # seconds that a job waits for geometry that another one makes


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
    nearness: Nearness
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
        from comgrad.describe.encoder import key_of, load_encoder

        try:
            encoder = load_encoder()
        except NotFound:
            return 0
        key = key_of(encoder)
        waiting = [x for x in self.scopes.all_listings() if x.description.strip() and x.row.encoder != key]
        for done, batch in _batches(waiting, BATCH):
            texts = [x.description for x in batch]
            rows = encoder.encode(texts).astype("<f4")
            with self.database.write() as store:
                for x, row in zip(batch, rows, strict=True):
                    now = things.listing(store, x.id, x.owner_id)
                    if now is not None and now.changed == x.row.changed:
                        values = {"embedding": row.tobytes(), "encoder": key}
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
            for _, batch in _batches(listings, AT_ONCE):
                found = [(x, self._surroundings(x, scope)) for x in batch]
                with self.database.write() as store:
                    for x, related in found:
                        now = things.listing(store, x.id, x.owner_id)
                        if now is not None and now.changed == x.row.changed:
                            things.change_listing(store, x.id, x.owner_id, related=related)
                done += len(batch)
                progress.count(done, len(waiting))
        return len(waiting)

    def _surroundings(self, x: Listing, scope: Scope) -> dict[str, Any]:
        """Neighbours, copies and doubts among what its readers may read. Raises ComgradError that passes soon."""
        seen, group = scope.by_id.get(x.id), scope.among(x)
        if seen is None or len(group) < 2:
            return {"neighbours": [], "notes": []}
        try:
            return self.nearness.surroundings(seen, group, patience=WAIT)
        except ComgradError as error:
            if passing_soon(error):
                raise  # the job is tried again; what is kept now is kept for good
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
        group = Group(g for g in scope.among(x) if g.description.strip())
        large = len(group) > self.settings.whole_scope
        near = scope.nearest_in_words(x, group, self.settings.neighbourhood if large else len(group))
        if len(near) <= FEWEST:
            return {
                "verdict": None,
                "known": max(0, len(near) - 1),
                "reasons": ["too few vectors are known to compare it with"],
            }
        try:
            warm = self.scopes.geometry.warm(near, keep=not large, patience=WAIT)
            tau = self.scopes.geometry.vector(x.entry)
            made = explain_in(warm.atlas, warm.groups, tau, claim=x.description, identity=x.id, cache=warm.cache)
        except ComgradError as error:
            return {"verdict": None, "known": len(near) - 1, "reasons": [error.why]}
        lines = [" ".join((e.name, e.figure, e.null, e.meaning)) for e in made.evidence]
        text = " ".join([*made.reasons, made.description, *lines])
        about = {s.id for s in made.sources[:5]} | {m.id for m in warm.atlas.members if m.name in text}
        told = made.as_dict()
        kept = {k: told[k] for k in ("verdict", "reasons", "description", "residual", "known", "claim", "evidence")}
        return kept | {"sources": told["sources"][:5], "about": sorted(about - {x.id})}

    # -- explaining ----------------------------------------------------------------------------------------------
    def explain(self, job: Job, progress: Progress) -> dict[str, Any]:
        """What an uploaded adapter does, by its weights; nothing of it is kept but the report. Raises ComgradError."""
        with self.database.read() as rows:
            upload = work.upload(rows, str(job.payload["upload"]))
            assert upload is not None
            roles = orgs.roles(rows, upload.account_id)
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
        return self.scopes.geometry.warm(listings[: self.settings.whole_scope], patience=WAIT)


def report(made: Any) -> str:
    """The report as a page of its own."""
    from comgrad.workflows.explain_report import page

    return page(made)


def _reader(owner: str | None, org_ids: dict[str, str] | None = None) -> Principal:
    """Whoever reads what that owner reads, for the service's own work."""
    return Principal(owner, "", scopes=frozenset({"read"}), org_ids=org_ids or {})


def _batches(items: Sequence[Listing], size: int) -> Iterator[tuple[int, Sequence[Listing]]]:
    for at in range(0, len(items), size):
        batch = items[at : at + size]
        yield at + len(batch), batch
