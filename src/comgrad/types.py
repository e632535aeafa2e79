"""Plain value types shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass

from comgrad.errors import BaseMismatch


@dataclass(frozen=True)
class BaseRef:
    """The base model a task vector stands on.

    `fingerprint` is the Merkle root over the base's tensors (`weights.fingerprint`), `None` when the base was only
    declared by name and never seen.
    """

    name: str
    fingerprint: str | None = None

    @property
    def status(self) -> str:
        """`verified` when the base's weights were seen, `declared` when only its name is known."""
        return "verified" if self.fingerprint else "declared"

    def same_as(self, other: BaseRef) -> bool:
        """Whether both name one base: by fingerprint when both have one, by name otherwise."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint == other.fingerprint
        return self.name == other.name

    def joined(self, other: BaseRef, *, what: str = "these vectors") -> BaseRef:
        """The better known of two references to one base.

        Raises:
            BaseMismatch: they name two bases.
        """
        if not self.same_as(other):
            raise BaseMismatch(
                f"{what} come from different bases ({self.label} and {other.label})",
                "a task vector only has a meaning relative to one base",
                "extract them again from the same base",
            )
        return self if self.fingerprint else other

    @property
    def label(self) -> str:
        """Name and the first eight characters of the fingerprint, for messages."""
        return f"'{self.name}' {self.fingerprint[:8]}" if self.fingerprint else f"'{self.name}' (not verified)"
