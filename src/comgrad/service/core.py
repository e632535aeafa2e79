"""The service as one object: everything that handlers, workers and tests call, wired together."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comgrad.errors import ComgradError
from comgrad.registry import disk
from comgrad.service.audit import Audit
from comgrad.service.auth.accounts import Accounts
from comgrad.service.auth.guessing import Guesses
from comgrad.service.auth.organisations import Organisations
from comgrad.service.auth.recovery import Recovery
from comgrad.service.auth.sessions import Sessions
from comgrad.service.auth.tokens import Tokens
from comgrad.service.files import FileInfo, Files
from comgrad.service.insight import Insight
from comgrad.service.jobs.admission import STEPS, Admission
from comgrad.service.jobs.analysis import Analysis
from comgrad.service.jobs.runner import Jobs, Kind
from comgrad.service.listings import Listings
from comgrad.service.nearness import Nearness
from comgrad.service.reaping import Reaper
from comgrad.service.scopes import Scopes
from comgrad.service.settings import Settings
from comgrad.service.store import people, things, work
from comgrad.service.store.database import Database
from comgrad.service.uploads import Uploads
from comgrad.service.vectors import LOCAL, TAIL, drop_unlisted
from comgrad.service.warm import registry_of
from comgrad.workflows.registry import Registry

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger("comgrad.service")


class Service:
    """A registry as a service, without HTTP.

    Args:
        settings: what the operator set.
        registry: the vectors; opened from the settings when not given.

    Raises:
        StorageError: a folder or a database cannot be opened.
    """

    def __init__(self, settings: Settings, registry: Registry | None = None) -> None:
        self.settings = settings
        with disk.storage(f"the folder '{settings.folder}'"):
            disk.make_parents(settings.folder)
        self._own = registry is None
        self.registry = registry or registry_of(settings)
        self.database = Database(settings.folder, settings.database)
        self.audit = Audit(self.database)
        guesses = Guesses(self.database)
        self.accounts = Accounts(self.database, settings, self.audit, guesses)
        self.sessions = Sessions(self.database, settings, self.audit, guesses)
        self.recovery = Recovery(self.database, self.audit, guesses)
        self.tokens = Tokens(self.database, self.audit)
        self.organisations = Organisations(self.database, self.audit)
        self.scopes = Scopes(self.database, self.registry, settings)
        self.files = Files(self.registry.store, settings.folder / "peft")
        self.listings = Listings(self.database, self.scopes, self.files, self.audit)
        self.jobs = Jobs(self.database, settings)
        self.uploads = Uploads(self.database, settings, self.jobs)
        self.nearness = Nearness(self.scopes.geometry, settings)
        self.insight = Insight(self.scopes, self.listings, self.nearness, settings)
        self.signer: Callable[[list[FileInfo]], dict[str, Any]] | None = None  # signs the manifest of a vector's files
        if settings.signing_key is not None:
            from comgrad.workflows.signing import signer  # its libraries are large; most sites sign nothing

            self.signer = signer(settings.signing_key, password=settings.signing_password)
        self._register()
        self.database.patiently(self.adopt)
        self.first_secret = self.database.patiently(self.accounts.prepare)
        self._warming: threading.Thread | None = None
        self.when_loaded: Callable[[], object] = lambda: None

    def _register(self) -> None:
        self.reaper = reaper = Reaper(self.database, self.registry.store, self.uploads, self.audit, self.settings)
        admission = Admission(self.database, self.registry, self.uploads, self.jobs, self.audit, reaper.give_up)
        analysis = Analysis(self.database, self.scopes, self.nearness, self.uploads, self.jobs, self.settings)
        self.jobs.register(
            {
                "admit": Kind(STEPS, admission, 10, failed=reaper.failed),
                "explain": Kind(("read", "compare", "explain"), analysis.explain, 5, analysis.explained, reaper.failed),
                "relate": Kind(("describe", "relate"), analysis.relate, 0),
                "screen": Kind(("screen",), analysis.screen, -5),
            }
        )
        self.jobs.each_minute(reaper.reap)
        self.jobs.each_minute(self.insight.suggestions.reap)
        self.jobs.each_minute(self.files.reclaim)  # what could not be at the start

    # -- life ----------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the workers, where they run here, and load the listings in the background."""
        if self.settings.workers == "threads":
            self.jobs.start()
        self._warming = threading.Thread(target=self._load, name="load-listings", daemon=True)
        self._warming.start()

    def _load(self) -> None:
        try:
            self.database.patiently(self.scopes.refresh)
            self.database.patiently(self.reconcile)
            self.files.reclaim()
            if self.settings.preload or any(x.row.related is None for x in self.scopes.all_listings()):
                self.jobs.submit("relate", {}, key="relate")
            if self.settings.preload:
                self._preload()
            self.when_loaded()
        except Exception:
            log.exception("the listings could not be loaded")

    def _preload(self) -> None:
        """Import the numerical libraries, load the text encoder and the public vectors' geometry."""
        with contextlib.suppress(ComgradError):  # no encoder here, nothing listed: then there is nothing to prepare
            self.insight.prepare()

    def stop(self) -> None:
        """Let running jobs end, and close everything."""
        if self._warming is not None:
            self._warming.join(timeout=30)
        self.jobs.stop()
        self.jobs.close()
        self.insight.close()
        self.scopes.close()
        self.database.close()
        if self._own:
            self.registry.store.close()

    def ready(self) -> dict[str, bool]:
        """What must work for the service to be of use."""
        return {"database": self.database.alive(), "listings": self.scopes.loaded}

    def reconcile(self) -> int:
        """Finish removals that were cut short: vectors that nobody lists any more leave the registry; how many."""
        with self.database.read() as rows:
            gone = things.unlisted(rows)
        left = [r.id for r in self.registry.store.list() if r.id in gone] if gone else []
        for identity in left:
            if drop_unlisted(self.database, self.registry.store, identity, "removed by its owner"):
                self.files.forget(identity)
        return len(left)

    # -- what the registry held before ---------------------------------------------------------------------------
    def adopt(self) -> int:
        """List what the registry holds and nobody uploaded, for everybody, where the settings say so; how many."""
        if not self.settings.publish_unowned:
            return 0
        with self.database.write() as rows:
            if people.owner_by_key(rows, LOCAL) is None:
                people.put_handle(rows, LOCAL, LOCAL, LOCAL, "local")
            known = {r.vector_id for r in things.changed_since(rows, 0)} | work.brought(rows)
            sent = work.sharing_tails(rows, TAIL)  # being taken in just now: its uploader says who may see it
            found = [r for r in self.registry.store.list() if r.id not in known and r.name[-TAIL:] not in sent]
            for r in found:
                things.put_listing(
                    rows,
                    vector_id=r.id,
                    owner_id=LOCAL,
                    name=r.name,
                    name_key=f"{LOCAL} {r.id}",
                    digest=r.digest,
                    visibility="public",
                    state="active",
                    card=r.card.to_dict(),
                    tags=[],
                    size_bytes=r.size_bytes,
                    uploaded_by=LOCAL,
                )
        return len(found)


def service_of(request: Request) -> Service:
    """The service that a request is for."""
    found = request.app.state.service
    assert isinstance(found, Service)
    return found
