"""Questions about what somebody may read: search, suggestion, neighbours, profile, comparison, map, trends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comgrad.errors import ComgradError, NotFound
from comgrad.registry import disk, search
from comgrad.service.auth.identity import Principal
from comgrad.service.errors import Busy
from comgrad.service.files import README, FileInfo, Opened, note_digests, of_path
from comgrad.service.jobs.analysis import nearest_in_words, surroundings
from comgrad.service.listings import Listings
from comgrad.service.modelcard import suggestion_card
from comgrad.service.scopes import Scope, Scopes, Warm
from comgrad.service.settings import Settings
from comgrad.service.vectors import Listing

if TYPE_CHECKING:
    from comgrad.workflows.suggesting import Suggestion

MOST = 100
MOST_TEXT = 20_000
PATIENCE = 20.0  # seconds that a question waits for its turn
WAITING = 64  # questions that wait for theirs: each holds a thread that other requests need
REMEMBERED = 256


@dataclass(frozen=True)
class Hit:
    """One result of a search; see `workflows.searching.Found`."""

    listing: Listing
    score: float
    copies: int
    doubt: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self.listing.as_dict() | {"score": self.score, "copies": self.copies, "doubt": self.doubt}


@dataclass(frozen=True)
class Suggested:
    """A suggestion that can be downloaded for a while."""

    id: str
    description: str
    made: dict[str, Any]
    sources: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    files: list[FileInfo]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what `comgrad suggest --json` says, and where the files are."""
        own = {"id": self.id, "description": self.description, "sources": self.sources, "layers": self.layers}
        return self.made | own | {"files": [f.as_dict() for f in self.files]}


class Insight:
    """Answers over scopes; at most a few are computed at one time."""

    def __init__(self, scopes: Scopes, listings: Listings, settings: Settings) -> None:
        self._scopes = scopes
        self._listings = listings
        self._settings = settings
        self._turn = threading.Semaphore(settings.computing)
        self.folder = settings.folder / "suggestions"
        with disk.storage(f"the folder '{self.folder}'"):
            disk.make_parents(self.folder)
        self._waiting = threading.Semaphore(WAITING + settings.computing)
        self._answers: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._making: dict[tuple[object, ...], Future[Any]] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Do before the first question what questions need. Raises ComgradError."""
        from comgrad.describe.encoder import load_encoder
        from comgrad.service.auth.identity import ANONYMOUS

        load_encoder().encode(["a first text"])
        group = self._scopes.scope(ANONYMOUS).group(None)
        if len(group) <= self._settings.whole_scope:
            _ = self._scopes.warm(group).known().vectors

    # -- search --------------------------------------------------------------------------------------------------
    def search(self, who: Principal, text: str, limit: int = 20, words: bool = False) -> list[Hit]:
        """The vectors whose descriptions are nearest in meaning, best first; by words alone when asked, or where the
        text encoder is not on this machine. Raises ComgradError."""
        from comgrad.workflows.searching import checked_description, nearest, settled

        query = checked_description(text)
        scope = self._scopes.scope(who)
        described, rows = scope.described
        found = (
            self._by_words(query, scope)
            if words or not described
            else nearest(query, [x.entry for x in described], rows)
        )
        found = settled(found, self._counted(scope))[: max(1, min(limit, MOST))]
        return [Hit(scope.by_id[f.entry.id], f.score, f.copies, f.doubt) for f in found]

    def _by_words(self, query: str, scope: Scope) -> list[Any]:
        from comgrad.workflows.searching import Found

        terms = search.terms(query)
        near = [x for x in scope.listings if any(search.stem(t) in x.document for t in terms)]
        scores = search.scores(terms, [x.document for x in near], len(scope.listings))
        found = [Found(x.entry, s) for s, x in zip(scores, near, strict=True) if s > 0.0]
        return sorted(found, key=lambda f: (-f.score, f.entry.name))

    def _counted(self, scope: Scope) -> Any:
        """What each listing counts for: from the geometry of a small scope, else from what its admission found."""
        from comgrad.workflows.searching import Counted

        key = ("counted", scope.mark)
        with self._lock:
            if key in self._answers:
                return self._answers[key]
        out, whole = Counted({}, {}, set()), True
        for group in scope.groups:
            if len(group) > self._settings.whole_scope:
                _count_as_admitted(out, group, scope)
                continue
            with contextlib.suppress(ComgradError):  # a file is lost: searching must still work
                warm, theirs = self._scopes.lately(group)
                whole = whole and theirs
                one = warm.counted()
                out.copies.update(one.copies)
                out.doubt.update(one.doubt)
                out.hidden.update(one.hidden)
        return self._remembered(key, lambda: out) if whole else out

    # -- suggestion ----------------------------------------------------------------------------------------------
    def suggest(
        self,
        who: Principal,
        text: str,
        *,
        base: str | None = None,
        rank: int | None = None,
        rule: str | None = None,
        dare: bool = False,
    ) -> Suggested:
        """A starting adapter for a task in words, from what somebody may read. Raises ComgradError, Busy."""
        from comgrad.workflows.searching import checked_description

        description = checked_description(text)
        if rank is not None and not 1 <= rank <= 256:
            raise ComgradError(f"rank {rank}", "it is not between 1 and 256", "ask for another rank", code="rank")
        scope = self._scopes.scope(who)
        reader = who.account_id if scope.private else None
        group = scope.group(base)

        def named(used: Sequence[Listing]) -> str:
            asked = [description, base, rank, rule, dare, reader, [x.content for x in used]]
            return "sg-" + hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]

        with contextlib.suppress(NotFound):
            return self.suggestion(who, named(group))
        with self._computing():
            warm = self._around(description, group, scope)
            identity = named(warm.listings)  # an older geometry's answer is not kept as that of the newer one
            with contextlib.suppress(NotFound):
                return self.suggestion(who, identity)
            self._check_room()
            from comgrad.workflows.suggesting import predict

            made = predict(warm.known(), description, rank=rank, rule=rule, dare=dare)
        self._write(identity, reader, made, scope)
        return self.suggestion(who, identity)

    def _check_room(self) -> None:
        if shutil.disk_usage(self.folder).free < self._settings.min_free_bytes:
            raise Busy("the suggestion", "the service has too little room for it", "try later", code="disk-full")

    def _around(self, description: str, group: list[Listing], scope: Scope) -> Warm:
        """All vectors of a small group; of a large one the neighbourhood of the described vector nearest in words.

        Neighbourhoods are those of the vectors themselves, so that questions alike share one.
        """
        if len(group) <= self._settings.whole_scope:
            return self._scopes.lately(group)[0]
        from comgrad.workflows.searching import nearest

        mark, part = _mark(group), scope.parts[group[0].id]
        kept, rows = part.described
        if not kept:
            return self._scopes.warm(group[-self._settings.neighbourhood :], keep=False)
        anchor = part.by_id[nearest(description, [x.entry for x in kept], rows, most=1)[0].entry.id]
        near = self._remembered(
            ("near", mark, anchor.id), lambda: nearest_in_words(anchor, group, self._settings.neighbourhood)
        )
        return self._scopes.warm(near, keep=False)

    def _write(self, identity: str, reader: str | None, made: Suggestion, scope: Scope) -> None:
        from comgrad.workflows.profile import layer_profile
        from comgrad.workflows.suggesting import write_suggestion

        sources: list[dict[str, Any]] = []
        for s in made.sources[:MOST]:
            x = scope.by_id[s.id]
            words = {"description": x.description, "owner": x.owner}
            sources.append({"id": s.id, "name": x.full_name, "coefficient": s.coefficient, **words})
        told = [(s["id"], s["name"], s["coefficient"]) for s in sources]
        readme = suggestion_card(made.description, made.base, told, made.confidence).encode()
        shown = {
            "reader": reader,
            "description": made.description,
            "made": {k: v for k, v in made.as_dict().items() if k not in ("path", "sources")},
            "sources": sources,
            "layers": [x.as_dict() for x in layer_profile(made.vector)],
        }
        folder = self.folder / identity
        extra = {README: readme, "suggestion.json": json.dumps(shown).encode()}
        try:
            write_suggestion(made, folder, extra_files=extra)
        except ComgradError as error:
            if error.code != "exists":  # another thread answered the same question
                raise
        note_digests(folder)

    def suggestion(self, who: Principal, identity: str) -> Suggested:
        """A suggestion that was made; one from private vectors only for whoever asked. Raises NotFound."""
        folder = self._folder(identity)
        try:
            shown = json.loads((folder / "suggestion.json").read_text("utf-8"))
            files = note_digests(folder) if not (folder / f"{README}.sha256").exists() else self._noted(folder)
        except OSError as error:
            raise _no_suggestion(identity) from error
        if shown["reader"] is not None and shown["reader"] != who.account_id:
            raise _no_suggestion(identity)
        readable = self._scopes.scope(who).by_id
        if not all(s["id"] in readable for s in shown["sources"]):  # removed since, or no longer shown to everybody
            raise _no_suggestion(identity)
        return Suggested(identity, shown["description"], shown["made"], shown["sources"], shown["layers"], files)

    def suggestion_file(self, who: Principal, identity: str, name: str) -> Opened:
        """One of a suggestion's files. Raises NotFound."""
        found = self.suggestion(who, identity)
        if name not in {f.name for f in found.files}:
            raise NotFound(f"the file {name[:80]!a}", "this suggestion has none of that name", "see its list of files")
        return of_path(self._folder(identity) / name)

    def _folder(self, identity: str) -> Path:
        digits = identity.removeprefix("sg-")
        if len(digits) != 32 or set(digits) - set("0123456789abcdef"):
            raise _no_suggestion(identity)
        return self.folder / f"sg-{digits}"

    @staticmethod
    def _noted(folder: Path) -> list[FileInfo]:
        from comgrad.service.files import MEDIA, info

        return [info(of_path(folder / n)) for n in MEDIA if (folder / f"{n}.sha256").exists()]

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

    # -- one vector, two vectors ---------------------------------------------------------------------------------
    def neighbours(self, who: Principal, ref: str, limit: int = 10) -> list[dict[str, Any]]:
        """The vectors nearest in weights, best first, of what somebody may read. Raises NotFound."""
        x = self._listings.get(who, ref)
        scope = self._scopes.scope(who)
        group = nearest_in_words(x, scope.among(x), self._settings.whole_scope)
        if len(group) < 2:
            return []
        with self._computing():
            found = surroundings(x, self._scopes.warm(group))["neighbours"]
        near = found[: max(1, min(limit, 10))]
        return [{"listing": scope.by_id[n["id"]], "cosine": n["cosine"]} for n in near]

    def profile(self, who: Principal, ref: str) -> list[dict[str, Any]]:
        """Where in the model a vector acts: the share of its squared norm in each layer. Raises NotFound."""
        x = self._listings.get(who, ref)

        def made() -> list[dict[str, Any]]:
            from comgrad.workflows.profile import layer_profile

            with self._computing():
                return [row.as_dict() for row in layer_profile(self._scopes.vector(x.entry))]

        found: list[dict[str, Any]] = self._remembered(("profile", x.id), made)
        return found

    def compare(self, who: Principal, a: str, b: str) -> dict[str, Any]:
        """Every measure between two vectors that somebody may read. Raises NotFound, BaseMismatch."""
        one, two = self._listings.get(who, a), self._listings.get(who, b)

        def made() -> dict[str, Any]:
            from comgrad.workflows.comparing import compare_vectors

            with self._computing():
                return compare_vectors(self._scopes.vector(one.entry), self._scopes.vector(two.entry))

        found: dict[str, Any] = self._remembered(("compare", one.id, two.id), made)
        return {"a": one.as_dict(), "b": two.as_dict(), **found}

    # -- all vectors ---------------------------------------------------------------------------------------------
    def bases(self, who: Principal) -> list[dict[str, Any]]:
        """The bases that what somebody may read stands on, and how many vectors over each."""
        out = []
        for group in self._scopes.scope(who).groups:
            refs = [x.entry.record.facts.base for x in group]
            ref = max(refs, key=lambda r: r.fingerprint or "")
            out.append({"base": ref.name, "fingerprint": ref.fingerprint, "vectors": len(group)})
        return out

    def map(self, who: Principal, base: str | None = None) -> dict[str, Any]:
        """The map of what somebody may read over one base. Raises ComgradError."""
        group = self._group(who, base)

        def made() -> dict[str, Any]:
            from comgrad.workflows.mapping import placed

            with self._computing():
                return placed(self._scopes.warm(group).atlas)

        found: dict[str, Any] = self._remembered(("map", _mark(group)), made)
        return found | {
            "base": group[0].base,
            "version": f"{_mark(group) & (2**63 - 1):x}",
            "left_out": self._left(who, base),
        }

    def trends(self, who: Principal, base: str | None = None, since: str | None = None) -> dict[str, Any]:
        """What grows, drifts, is copied or lacking in what somebody may read. Raises ComgradError."""
        group = self._group(who, base)

        def made() -> dict[str, Any]:
            from comgrad.workflows.trends import parsed_day, study

            day = parsed_day(since) if since is not None else None
            with self._computing():
                return study(self._scopes.warm(group).atlas, [x.entry for x in group], [], day).as_dict()

        found: dict[str, Any] = self._remembered(("trends", _mark(group), since), made)
        return found | {"base": group[0].base, "left_out": self._left(who, base)}

    def _group(self, who: Principal, base: str | None) -> list[Listing]:
        """The newest vectors over a base, as many as are weighed together."""
        return self._scopes.scope(who).group(base)[-self._settings.whole_scope :]

    def _left(self, who: Principal, base: str | None) -> int:
        return max(0, len(self._scopes.scope(who).group(base)) - self._settings.whole_scope)

    # -- turns and memory ----------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        if not self._waiting.acquire(blocking=False):
            raise _busy()
        try:
            if not self._turn.acquire(timeout=PATIENCE):
                raise _busy()
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._waiting.release()

    def _remembered(self, key: tuple[object, ...], make: Any) -> Any:
        """An answer from memory, or made by whoever asks first, for all who ask meanwhile."""
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
            found = self._making.get(key)
            if found is None:
                mine = self._making[key] = Future()
        if found is not None:
            return self._shared(found)
        try:
            made = make()
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(made)
            with self._lock:
                self._answers[key] = made
                while len(self._answers) > REMEMBERED:
                    self._answers.popitem(last=False)
            return made
        finally:
            with self._lock:
                self._making.pop(key, None)

    def _shared(self, found: Future[Any]) -> Any:
        if not self._waiting.acquire(blocking=False):
            raise _busy()
        try:
            return found.result(timeout=PATIENCE)
        except TimeoutError as error:
            raise _busy() from error
        finally:
            self._waiting.release()


def _busy() -> Busy:
    return Busy("the question", "too many are being answered", "ask again in a moment")


def _mark(group: list[Listing]) -> int:
    return hash(tuple(x.content for x in group))


def _count_as_admitted(out: Any, group: list[Listing], scope: Scope) -> None:
    """Copies of a large group as the admission of each found them, as far as the reader may read both."""
    for x in group:
        of = (x.row.related or {}).get("copy_of")
        if of in scope.by_id:
            out.hidden.add(x.id)
            out.copies[of] = out.copies.get(of, 0) + 1


def _no_suggestion(identity: str) -> NotFound:
    return NotFound(f"the suggestion {identity[:60]!a}", "it is not known, or was too long ago", "ask again")
