"""Questions about what somebody may read: search, suggestion, neighbours, profile, comparison, map, trends."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Any

from comgrad.errors import ComgradError
from comgrad.service.auth.identity import ANONYMOUS, Principal
from comgrad.service.files import Opened
from comgrad.service.finding import Finding, Hit
from comgrad.service.listings import Listings
from comgrad.service.nearness import Nearness, is_copy
from comgrad.service.planes import Planes
from comgrad.service.scope import Group, Scope
from comgrad.service.scopes import Scopes
from comgrad.service.settings import Settings
from comgrad.service.suggestions import Suggested, Suggestions
from comgrad.service.turns import Turns
from comgrad.service.vectors import Listing

OLDER = 16  # answers that stand in for newer ones while those are made
Answer = dict[str, Any]


class Insight:
    """Answers over scopes; at most a few are computed at one time."""

    def __init__(self, scopes: Scopes, listings: Listings, nearness: Nearness, settings: Settings) -> None:
        self._scopes = scopes
        self._listings = listings
        self._nearness = nearness
        self._settings = settings
        self.turns = Turns(settings.computing)
        self.finding = Finding(scopes, settings, self.turns)
        self.suggestions = Suggestions(scopes, self.finding, settings, self.turns)
        self.planes = Planes(scopes.geometry, nearness, settings)
        self._older: OrderedDict[tuple[object, ...], tuple[frozenset[str], Answer]] = OrderedDict()
        self._coming: set[tuple[object, ...]] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Begin nothing more."""
        self.turns.close()
        self.suggestions.close()

    def prepare(self) -> None:
        """Do before the first question what questions need. Raises ComgradError."""
        self.finding.meaning("a first text")
        scope = self._scopes.scope(ANONYMOUS)
        _ = scope.described
        group = scope.group(None)
        if len(group) <= self._settings.whole_scope:
            self._scopes.geometry.warm(group).known()
        else:
            self.suggestions.prepare(group)
            self._nearness.prepare(group)
            self.planes.prepare(group)

    # -- in words ------------------------------------------------------------------------------------------------
    def search(self, who: Principal, text: str, limit: int = 20, words: bool = False) -> list[Hit]:
        """See `Finding.search`."""
        return self.finding.search(who, text, limit, words)

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
        """See `Suggestions.suggest`."""
        return self.suggestions.suggest(who, text, base=base, rank=rank, rule=rule, dare=dare)

    def suggestion(self, who: Principal, identity: str) -> Suggested:
        """See `Suggestions.get`."""
        return self.suggestions.get(who, identity)

    def suggestion_file(self, who: Principal, identity: str, name: str) -> Opened:
        """See `Suggestions.file`."""
        return self.suggestions.file(who, identity, name)

    # -- one vector, two vectors ---------------------------------------------------------------------------------
    def neighbours(self, who: Principal, ref: str, limit: int = 10) -> list[dict[str, Any]]:
        """The vectors nearest in weights, best first, of what somebody may read. Raises NotFound."""
        x = self._listings.get(who, ref)
        scope = self._scopes.scope(who)
        group = scope.among(x)

        if len(group) < 2:
            return []
        seen = group[group.place[x.id]]
        if len(group) > self._settings.whole_scope and seen.row.related is not None:
            found = self._noted(seen, group, scope)
        else:

            def made() -> list[dict[str, Any]]:
                with self.turns.brief():
                    near: list[dict[str, Any]] = self._nearness.surroundings(seen, group)["neighbours"]
                    return near

            found = self.turns.remembered(("near", scope.mark, x.id), made)
        near = found[: max(1, min(limit, 10))]
        return [{"listing": scope.by_id[n["id"]], "cosine": n["cosine"]} for n in near]

    def _noted(self, x: Listing, group: Group, scope: Scope) -> list[dict[str, Any]]:
        """Neighbours among thousands as admissions found them: its own, and those of later vectors that it is near to."""
        near = {n["id"]: n["cosine"] for n in (x.row.related or {}).get("neighbours", ())}
        near = self._scopes.pointing(scope, x.id) | near
        leaders = [i for i in near if i in group.ids and not is_copy(group[group.place[i]], group)]
        return [{"id": i, "cosine": near[i]} for i in sorted(leaders, key=lambda i: -near[i])]

    def profile(self, who: Principal, ref: str) -> list[dict[str, Any]]:
        """Where in the model a vector acts: the share of its squared norm in each layer. Raises NotFound."""
        x = self._listings.get(who, ref)

        def made() -> list[dict[str, Any]]:
            from comgrad.workflows.profile import layer_profile

            with self.turns.brief():
                return [row.as_dict() for row in layer_profile(self._scopes.geometry.vector(x.entry, keep=False))]

        return self.turns.remembered(("profile", x.id), made)

    def compare(self, who: Principal, a: str, b: str) -> Answer:
        """Every measure between two vectors that somebody may read. Raises NotFound, BaseMismatch."""
        one, two = self._listings.get(who, a), self._listings.get(who, b)
        vector = self._scopes.geometry.vector

        def made() -> Answer:
            from comgrad.workflows.comparing import compare_vectors

            with self.turns.brief():
                return compare_vectors(vector(one.entry), vector(two.entry))

        found = self.turns.remembered(("compare", one.id, two.id), made)
        return {"a": one.as_dict(), "b": two.as_dict(), **found}

    # -- all vectors ---------------------------------------------------------------------------------------------
    def bases(self, who: Principal) -> list[Answer]:
        """The bases that what somebody may read stands on, and how many vectors over each."""
        scope = self._scopes.scope(who)

        def made() -> list[Answer]:
            out = []
            for group in scope.groups:
                ref = max((x.entry.record.facts.base for x in group), key=lambda r: r.fingerprint or "")
                out.append({"base": ref.name, "fingerprint": ref.fingerprint, "vectors": len(group)})
            return out

        return self.turns.remembered(("bases", scope.mark), made)

    def map(self, who: Principal, base: str | None = None, most: int | None = None) -> Answer:
        """The map of what somebody may read over one base; of more than are weighed together, the oldest by their exact
        distances (`exact` of the points, which come first) and the others among these. Raises ComgradError.

        Args:
            most: only so many of the points.
        """
        group = self._scopes.scope(who).group(base)

        def made() -> Answer:
            from comgrad.workflows.mapping import placed

            return self.turns.compute(
                lambda: placed(self._scopes.geometry.warm(group).atlas) | {"version": group.digest[:16]}
            )

        if len(group) > self._settings.whole_scope:
            found = self.planes.map(group) | {"base": group[0].base}
        else:
            found = {"exact": len(group), "waiting": 0} | self._lately(("map",), group, group, made)
        return found if most is None else found | {"points": found["points"][:most]}

    def trends(self, who: Principal, base: str | None = None, since: str | None = None) -> Answer:
        """What grows in what somebody may read, and what drifts, is copied or lacking in it; of more than are weighed
        together, only growth is of all, the rest of the newest: `weighed` says how many these are, and since when one of
        them counts as recent. Raises ComgradError."""
        from comgrad.workflows.trends import study
        from comgrad.workflows.trends_time import parsed_day

        group, whole = self._newest(who, base)
        day = parsed_day(since) if since is not None else None

        def made() -> Answer:
            warm = self._scopes.geometry.warm
            return self.turns.compute(lambda: study(warm(group).atlas, [x.entry for x in group], [], day).as_dict())

        found = self._lately(("trends", since), group, whole, made)
        told = found | {"weighed": {"vectors": len(group), "since": found["since"]}}
        return told if len(group) == len(whole) else told | self._grown(whole, since, day)

    def _grown(self, whole: Group, since: str | None, day: datetime | None) -> Answer:
        """How all of a group grew; copies, as their admission found them, do not count."""
        from comgrad.workflows.trends_time import OverTime

        def made() -> Answer:
            counted = [x for x in whole if not is_copy(x, whole)] or list(whole)
            dates, families = [x.row.created_at for x in counted], [x.family for x in counted]
            time = self.turns.compute(lambda: OverTime.of(dates, families, day))
            return {"vectors": len(whole), "counted": len(counted)} | time.as_dict()

        return self.turns.remembered(("growth", since, whole.digest), made)

    def _newest(self, who: Principal, base: str | None) -> tuple[Group, Group]:
        """The newest vectors over a base, as many as are weighed together; and all that may be read."""
        whole, most = self._scopes.scope(who).group(base), self._settings.whole_scope
        return (whole if len(whole) <= most else Group(whole[-most:])), whole

    def _lately(self, kind: tuple[object, ...], group: Group, whole: Group, make: Callable[[], Answer]) -> Answer:
        """The answer about the newest of a group, or meanwhile one about most of these and others of the group, while the
        newer one is made in the background; what may no longer be read is in none."""
        key = (*kind, group.digest)
        about = {"base": group[0].base, "left_out": len(whole) - len(group)}

        def noted() -> Answer:
            answer = make()
            with self._lock:
                self._older[key] = (frozenset(x.content for x in group), answer)
                while len(self._older) > OLDER:
                    self._older.popitem(last=False)
                self._coming.discard(key)
            return answer

        known: Answer | None = self.turns.known(key)
        if known is not None:
            return known | about
        older = self._stand_in(kind, group, whole)
        if older is None:
            return self.turns.remembered(key, noted) | about
        with self._lock:
            new = key not in self._coming
            self._coming.add(key)
        if new:
            self._scopes.geometry.later(lambda: self._quietly(key, noted))
        return older | about

    def _quietly(self, key: tuple[object, ...], make: Callable[[], Answer]) -> None:
        try:
            with contextlib.suppress(ComgradError):  # whoever asks next meets it
                self.turns.remembered(key, make)
        finally:
            with self._lock:
                self._coming.discard(key)

    def _stand_in(self, kind: tuple[object, ...], group: Group, whole: Group) -> Answer | None:
        if len(group) < self._settings.whole_scope:
            return None  # quick enough to be made at once
        mine, readable = {x.content for x in group}, {x.content for x in whole}
        with self._lock:
            for key, (contents, answer) in reversed(self._older.items()):
                if key[:-1] == kind and contents <= readable and 10 * len(contents & mine) >= 9 * len(mine):
                    return answer
        return None
