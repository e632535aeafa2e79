"""What a reference means on a service: asked there, or, where it does not answer, as it was when it was last pulled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from comgrad.client.errors import Unreachable, not_trusted
from comgrad.client.paths import API, quoted, vector_path
from comgrad.client.remembered import Offer, Remembered
from comgrad.client.uploads import inner
from comgrad.client.wire import Wire
from comgrad.errors import NotFound


class Questions:
    """Requests with a JSON object, or nothing, for an answer; none is made offline."""

    def __init__(self, wire: Wire, offline: bool) -> None:
        self.wire = wire
        self.offline = offline

    def object(self, method: str, path: str, body: Any = None, *, repeatable: bool = True) -> dict[str, Any]:
        """The answer. Raises the service's refusal, Unreachable, NotTrusted."""
        found = self._answer(method, path, body, repeatable)
        if not isinstance(found, dict):
            raise not_trusted(f"an answer of {self.wire.where.origin}", "it is no comgrad service", "no-service")
        return found

    def nothing(self, method: str, path: str) -> None:
        """Have something done that has no answer, and not twice. Raises as `object`."""
        self._answer(method, path, None, False)

    def _answer(self, method: str, path: str, body: Any, repeatable: bool) -> Any:
        if self.offline:
            origin = self.wire.where.origin
            raise Unreachable(origin, "this client is offline", "ask again without --offline", code="offline")
        return self.wire.ask(method, path, body=body, repeatable=repeatable).json


class Offers:
    """Vectors by reference: `owner/name` or an id."""

    def __init__(self, questions: Questions, remembered: Remembered) -> None:
        self._ask = questions
        self._remembered = remembered
        self._origin = questions.wire.where.origin

    def vector(self, ref: str) -> dict[str, Any]:
        """What the service says of a vector. Raises NotFound."""
        return inner(self._ask.object("GET", vector_path(ref)), "vector")

    def remember(self, refs: Sequence[str], offer: Offer) -> None:
        """Keep what the references mean. Raises StorageError."""
        self._remembered.put(self._origin, refs, offer)

    def meant(self, ref: str, accept_change: bool) -> tuple[Offer, bool]:
        """What the reference means, and whether that is only what it meant before. Raises as `Client.pull`."""
        before = self._remembered.get(self._origin, ref)
        if self._ask.offline:
            if before is None:
                raise not_here(ref)
            return before, True
        try:
            with self._ask.wire.briefly() if before is not None else nullcontext():
                offer = self._asked(ref)
        except Unreachable:
            if before is None:
                raise
            return before, True
        if ref.startswith("tv-") and "/" not in ref and offer.id != ref:
            raise not_trusted(f"'{ref}'", f"the service answers with another vector, {offer.id}", "digest-mismatch")
        if before is not None and before.id != offer.id and not accept_change:
            error = not_trusted(
                f"'{ref}'", f"it was {before.id} on {before.seen[:10]} and is {offer.id} now", "changed"
            )
            error.remedy = f"names never change their meaning: look at both, then pull {offer.id}"
            raise error
        return offer, False

    def _asked(self, ref: str) -> Offer:
        vector = self.vector(ref)
        path = f"{API}/vectors/{quoted(str(vector.get('id') or ''))}"
        files = self._ask.object("GET", f"{path}/files").get("items")
        try:
            bundle = self._ask.object("GET", f"{path}/manifest").get("signature")
        except NotFound:
            bundle = None  # a service without signatures
        return Offer.of(vector, files, bundle)


def not_here(ref: str) -> NotFound:
    """The refusal of what was not pulled before, while nobody is asked."""
    return NotFound(
        f"'{ref}'", "the service is not asked, and it was not pulled before", "pull it while online", code="not-cached"
    )
