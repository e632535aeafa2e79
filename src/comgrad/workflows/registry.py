"""The registry as users see it: described task vectors by id or name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comgrad.registry.card import Card
from comgrad.registry.gradients import GradientRecord
from comgrad.registry.models import Record
from comgrad.registry.places import configured
from comgrad.registry.store import Store

if TYPE_CHECKING:
    from comgrad.vectors.task_vector import TaskVector
    from comgrad.workflows.adding import Added


@dataclass(frozen=True)
class Entry:
    """One described vector of a registry."""

    record: Record
    store: Store

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def description(self) -> str:
        return self.record.description

    @property
    def card(self) -> Card:
        return self.record.card

    @property
    def base(self) -> str:
        return self.record.facts.base.name

    @property
    def kind(self) -> str:
        return self.record.facts.kind

    @property
    def rank(self) -> int | None:
        return self.record.facts.rank

    @property
    def norm(self) -> float:
        return self.record.facts.norm or 0.0

    def vector(self) -> TaskVector:
        """The task vector, read from its blob."""
        from comgrad.vectors.task_vector import TaskVector

        return TaskVector.load(self.store.blob_path(self.record))

    def gradient(self) -> GradientRecord | None:
        """The record of its task's gradient, if it has one."""
        return self.store.catalogue.gradient(self.id)

    def load_gradient(self) -> TaskVector | None:
        """∇L_q(θ₀) of its task in low-rank form, read from its blob; None when it has none."""
        from comgrad.vectors.task_vector import TaskVector

        found = self.store.gradient(self.id)
        return None if found is None else TaskVector.load(found[1])

    def card_dict(self) -> dict[str, Any]:
        """The card as plain values, without what is empty."""
        return self.record.card.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def as_dict(self, *, full: bool = False) -> dict[str, Any]:
        """The entry for JSON output; `full` adds the card and where it stands."""
        facts = self.record.facts
        short = {
            "id": self.id,
            "name": self.name,
            "description": self.description,
            "family": self.card.family,
            "base": facts.base.name,
            "base_status": facts.base.status,
            "kind": facts.kind,
            "rank": facts.rank,
            "norm": facts.norm,
            "digest": self.record.digest,
        }
        if not full:
            return short
        gradient = self.gradient()
        return short | {
            "base_fingerprint": facts.base.fingerprint,
            "size_bytes": self.record.size_bytes,
            "created_at": self.record.created_at.isoformat(),
            "state": self.record.state,
            "damage": self.record.damage,
            "gradient": None if gradient is None else {**gradient.facts.as_dict(), "damage": gradient.damage},
            "card": self.card_dict(),
        }


class Registry:
    """Described task vectors in a folder, or where the environment says: `COMGRAD_HOME`, or database and bucket."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.store = Store(path if path is not None else configured())

    def add(
        self,
        path: str | Path,
        card: Card | dict[str, Any] | None = None,
        *,
        base: str | None = None,
        name: str | None = None,
    ) -> Added:
        """Check a fine-tune and put it in; the same bytes again change nothing.

        Args:
            path: a PEFT adapter folder, a vector's folder, or (with `base`) a full checkpoint.
            card: what it is; default: the task_card.json beside it.

        Raises:
            ComgradError: refused; nothing is stored.
        """
        from comgrad.workflows.adding import AddRequest, add_one

        given = Card.from_dict(card) if isinstance(card, dict) else card
        return add_one(self, Path(path), AddRequest(card=given, base=base, name=name))

    def get(self, ref: str) -> Entry:
        """The entry of an id, a name, or a unique beginning of either. Raises NotFound."""
        return Entry(self.store.get(ref), self.store)

    def list(self, *, base: str | None = None) -> Sequence[Entry]:
        """All entries, oldest first; `base` keeps those over one base."""
        entries = [Entry(r, self.store) for r in self.store.list()]
        return [e for e in entries if base is None or base in _base_names(e)]

    def search(self, text: str, *, limit: int = 10) -> Sequence[Entry]:
        """Entries whose name, labels or description hold the words of `text`, best first."""
        return [Entry(h.record, self.store) for h in self.store.search(text, limit=limit)]

    def remove(self, ref: str, *, reason: str = "") -> Entry:
        """Remove an entry; its name stays taken. Raises NotFound."""
        return Entry(self.store.remove(ref, reason), self.store)


def by_base(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries in groups over one base each.

    An entry whose base was only named belongs to the one seen base of that name; where two bases were seen under one
    name, or none was, those that were only named stand apart.
    """
    seen: dict[str, set[str]] = {}
    for e in entries:
        base = e.record.facts.base
        if base.fingerprint:
            seen.setdefault(base.name, set()).add(base.fingerprint)
    groups: dict[str, list[Entry]] = {}
    for e in entries:
        base = e.record.facts.base
        known = seen.get(base.name, set())
        key = base.fingerprint or (next(iter(known)) if len(known) == 1 else f"name {base.name}")
        groups.setdefault(key, []).append(e)
    return list(groups.values())


def _base_names(entry: Entry) -> tuple[str | None, ...]:
    return (entry.base, entry.base.rsplit("/", 1)[-1], entry.record.facts.base.fingerprint)
