"""Suggestions: predicted from what somebody may read, kept as files for some hours, and reaped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comgrad.errors import ComgradError, NotFound
from comgrad.registry import disk
from comgrad.service.apart import Apart
from comgrad.service.auth.identity import Principal
from comgrad.service.errors import Busy
from comgrad.service.files import MEDIA, FileInfo, Opened, info, of_bytes
from comgrad.service.finding import Finding
from comgrad.service.scope import Group, Scope
from comgrad.service.scopes import Scopes
from comgrad.service.settings import Settings
from comgrad.service.starting import SHOWN, Question, make
from comgrad.service.turns import Turns

FEWEST_NEAR = 4  # vectors of a neighbourhood
HELD = 256  # suggestions in memory, without their files


@dataclass(frozen=True)
class Suggested:
    """A suggestion that can be downloaded for a while."""

    id: str
    description: str
    made: dict[str, Any]
    sources: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    files: list[FileInfo]
    reader: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what `comgrad suggest --json` says, and where the files are."""
        own = {"id": self.id, "description": self.description, "sources": self.sources, "layers": self.layers}
        return self.made | own | {"files": [f.as_dict() for f in self.files]}


class Suggestions:
    """The suggestions of a service."""

    def __init__(self, scopes: Scopes, finding: Finding, settings: Settings, turns: Turns) -> None:
        self._scopes = scopes
        self._finding = finding
        self._settings = settings
        self._turns = turns
        self._apart = Apart(settings)
        self.folder = settings.folder / "suggestions"
        with disk.storage(f"the folder '{self.folder}'"):
            disk.make_parents(self.folder)
        self._held: OrderedDict[str, Suggested] = OrderedDict()
        self._lock = threading.Lock()

    # -- making --------------------------------------------------------------------------------------------------
    def suggest(
        self, who: Principal, text: str, *, base: str | None, rank: int | None, rule: str | None, dare: bool
    ) -> Suggested:
        """A starting adapter for a task in words, from what somebody may read. Raises ComgradError, Busy."""
        from comgrad.workflows.searching import checked_description

        description = checked_description(text)
        if rank is not None and not 1 <= rank <= 256:
            raise ComgradError(f"rank {rank}", "it is not between 1 and 256", "ask for another rank", code="rank")
        scope = self._scopes.scope(who)
        reader = who.account_id if scope.private else None
        group = scope.group(base)

        def named(used: Group) -> str:
            asked = [description, base, rank, rule, dare, reader, used.digest]
            return "sg-" + hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]

        def question() -> Question:
            meaning, encoder = self._finding.meaning(description), self._finding.encoder()
            return Question(description, meaning, encoder, rank, rule, dare, reader)

        with contextlib.suppress(NotFound):
            return self.get(who, named(group))
        if len(group) <= self._settings.whole_scope:
            return self.get(who, self._turns.compute(lambda: self._of_all(question(), group, named)))
        near = self._neighbourhood(description, group, scope)  # what is far from it adds little
        with contextlib.suppress(NotFound):
            return self.get(who, named(near))
        self._check_room()
        self._of_near(question(), near, self.folder / named(near))
        return self.get(who, named(near))

    def _of_all(self, question: Question, group: Group, named: Callable[[Group], str]) -> str:
        """Make it from the geometry of a whole group, or from an older one, and say which it is."""
        warm = self._scopes.geometry.lately(group)[0]
        identity = named(Group(warm.listings))  # an older geometry's answer is not kept as that of the newer one
        if not (self.folder / identity).exists():
            self._check_room()
            make(question, warm, self.folder / identity)
        return identity

    def _of_near(self, question: Question, near: Group, folder: Path) -> None:
        """Make it from a neighbourhood, in a process beside this one."""
        if not self._settings.beside:
            warm = self._scopes.geometry.warm
            return self._turns.compute(lambda: make(question, warm(near, keep=False), folder))
        return self._apart.make(question, near, folder, self._turns)

    def _neighbourhood(self, description: str, group: Group, scope: Scope) -> Group:
        """The neighbourhood of the described vector nearest in words: questions alike share one. Where too few of it have a
        gradient to predict gains, the nearer half predicts better (decision 0015)."""
        from comgrad.predict.functional import FEWEST

        anchor = self._finding.nearest(description, group, scope)

        def nearest(most: int) -> Group:
            if anchor is None:
                return Group(group[-most:])
            return self._turns.remembered(
                ("neighbourhood", scope.mark, anchor.id, most), lambda: scope.nearest_in_words(anchor, group, most)
            )

        most = self._settings.neighbourhood
        near = nearest(most)
        known = self._scopes.registry.store.gradients([x.id for x in near])
        return near if len(known) >= FEWEST else nearest(max(FEWEST_NEAR, most // 2))

    def prepare(self, group: Group) -> None:
        """Start the process beside, where questions will need it."""
        if self._settings.beside and len(group) > self._settings.whole_scope:
            with contextlib.suppress(Busy):  # the service is stopping
                self._apart.prepare()

    def close(self) -> None:
        """Begin nothing more."""
        self._apart.close()

    def _check_room(self) -> None:
        if shutil.disk_usage(self.folder).free < self._settings.min_free_bytes:
            raise Busy("the suggestion", "the service has too little room for it", "try later", code="disk-full")

    # -- reading -------------------------------------------------------------------------------------------------
    def get(self, who: Principal, identity: str) -> Suggested:
        """A suggestion that was made; one from private vectors only for whoever asked. Raises NotFound."""
        found = self._read(identity)
        if found.reader is not None and found.reader != who.account_id:
            raise _unknown(identity)
        readable = self._scopes.scope(who).by_id
        if not all(s["id"] in readable for s in found.sources):  # removed since, or no longer shown to everybody
            raise _unknown(identity)
        return found

    def _read(self, identity: str) -> Suggested:
        folder = self._folder(identity)
        with self._lock:
            held = self._held.get(identity)
        try:
            if held is not None and (folder / SHOWN).is_file():
                return held
            shown = json.loads((folder / SHOWN).read_text("utf-8"))
            files = [info(self._opened(folder / n)) for n in MEDIA if (folder / n).is_file()]
        except OSError as error:
            raise _unknown(identity) from error
        own = (shown["description"], shown["made"], shown["sources"], shown["layers"])
        made = Suggested(identity, *own, files, shown["reader"])
        with self._lock:
            self._held[identity] = made
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        return made

    @staticmethod
    def _opened(path: Path) -> Opened:
        return of_bytes(path.name, path.read_bytes())  # one starting adapter: small

    def file(self, who: Principal, identity: str, name: str) -> Opened:
        """One of a suggestion's files. Raises NotFound."""
        found = self.get(who, identity)
        listed = next((f for f in found.files if f.name == name), None)
        if listed is None:
            raise NotFound(f"the file {name[:80]!a}", "this suggestion has none of that name", "see its list of files")
        return Opened(name, listed.size, listed.sha256, listed.media_type, self._folder(identity) / name)

    def _folder(self, identity: str) -> Path:
        digits = identity.removeprefix("sg-")
        if len(digits) != 32 or set(digits) - set("0123456789abcdef"):
            raise _unknown(identity)
        return self.folder / f"sg-{digits}"

    # -- the end -------------------------------------------------------------------------------------------------
    def reap(self) -> int:
        """Delete suggestions that are older than they are kept, and the oldest of more than there is room for; how many."""
        before, room, gone = time.time() - 3600 * self._settings.suggestion_hours, self._settings.suggestion_bytes, 0
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process reaps too
                found.append((path.stat().st_mtime, sum(p.stat().st_size for p in path.glob("*")), path))
        for at, size, path in sorted(found, reverse=True):
            room -= size
            if at < before or room < 0:
                shutil.rmtree(path, ignore_errors=True)
                gone += 1
        return gone


def _unknown(identity: str) -> NotFound:
    return NotFound(f"the suggestion {identity[:60]!a}", "it is not known, or was too long ago", "ask again")
